"""bt_jax/losses/vicreg.py against its formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from recipes import one_program, relative

from bt_jax import losses
from bt_jax.runtime import mesh as mesh_lib

vicreg_loss = one_program(losses.vicreg_loss, "invariance", "variance", "covariance", "mesh")


def draw(n, d, seed=0):
    rng = np.random.default_rng(seed)
    z_a = 0.7 * rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) / np.sqrt(d)
    return z_a, z_a + 0.5 * rng.standard_normal((n, d)) + 1


def reference(z_a, z_b):
    """The three terms, column by column."""
    (n, d), variance, covariance = z_a.shape, 0.0, 0.0
    for z in (z_a, z_b):
        deviations = np.sqrt(z.var(axis=0, ddof=1) + 1e-4)
        variance += sum(max(0.0, 1 - s) for s in deviations) / d / 2
        products = np.cov(z, rowvar=False)
        covariance += sum(products[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return np.sum((z_a - z_b) ** 2) / (n * d), variance, covariance


def value_and_gradients(z_a, z_b, **weights):
    return jax.jit(jax.value_and_grad(lambda a, b: vicreg_loss(a, b, **weights)[0], argnums=(0, 1)))(z_a, z_b)


@pytest.mark.parametrize(("n", "d"), [(32, 6), (6, 32)])
def test_formula_in_float64(n, d):
    """Each term and the weighted sum to 1e-12, with either product, and gradients by finite differences."""
    z_a, z_b = draw(n, d)
    invariance, variance, covariance = reference(z_a, z_b)
    assert variance > 0.01 and covariance > 0.01
    with jax.enable_x64(True):
        a, b = jnp.asarray(z_a), jnp.asarray(z_b)
        loss, parts = vicreg_loss(a, b)
        assert float(parts["invariance"]) == pytest.approx(invariance, rel=1e-12)
        assert float(parts["variance"]) == pytest.approx(variance, rel=1e-12)
        assert float(parts["covariance"]) == pytest.approx(covariance, rel=1e-12)
        assert float(loss) == pytest.approx(25 * invariance + 25 * variance + covariance, rel=1e-12)
        _, gradients = value_and_gradients(a, b)
        direction, step = np.random.default_rng(5).standard_normal((n, d)), 1e-6
        for which, gradient in enumerate(gradients):
            ends = []
            for sign in (1, -1):
                moved = [np.array(z_a), np.array(z_b)]
                moved[which] += sign * step * direction
                ends.append(np.dot((25, 25, 1), reference(*moved)))
            assert float(np.sum(gradient * direction)) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(64, 256), (256, 64)])
def test_float32_against_float64(n, d):
    z_a, z_b = draw(n, d)
    with jax.enable_x64(True):
        expected, grads = value_and_gradients(jnp.asarray(z_a), jnp.asarray(z_b))
    loss, found = value_and_gradients(jnp.asarray(z_a, jnp.float32), jnp.asarray(z_b, jnp.float32))
    assert relative(loss, expected) < 1e-5
    assert all(relative(f, g) < 1e-5 for f, g in zip(found, grads, strict=True))


@pytest.mark.parametrize(("n", "d", "model"), [(16, 27, 1), (32, 64, 2), (64, 16, 1)])
def test_eight_devices_equal_one(n, d, model):
    """Also for a width that does not divide among them, for embeddings split over a model axis too, and for N above D."""
    mesh = mesh_lib.make_mesh(ConfigDict({"data": -1, "model": model}))
    z_a, z_b = (z.astype(np.float32) for z in draw(n, d))
    expected, found_one = value_and_gradients(z_a, z_b)
    split = jax.sharding.PartitionSpec("data", "model" if model > 1 else None)
    placed = [jax.device_put(z, jax.sharding.NamedSharding(mesh, split)) for z in (z_a, z_b)]
    weights = {"argnums": (0, 1)}
    loss, found = jax.jit(jax.value_and_grad(lambda a, b: vicreg_loss(a, b, mesh=mesh)[0], **weights))(*placed)
    assert relative(loss, expected) < 2e-6
    for f, g in zip(found, found_one, strict=True):
        assert relative(f, g) < 5e-6
    parts = (vicreg_loss(*views, mesh=m)[1] for views, m in ((placed, mesh), ((z_a, z_b), None)))
    many, one = ({name: float(part) for name, part in of.items()} for of in parts)
    assert many == pytest.approx(one, rel=1e-5)


def test_identities():
    """Swapping views, permuting images or features changes nothing; shifts do not reach variance and covariance."""
    z_a, z_b = (z.astype(np.float32) for z in draw(16, 5))
    loss, parts = vicreg_loss(z_a, z_b)
    rows, columns = np.random.default_rng(0).permutation(16), np.random.default_rng(1).permutation(5)
    for a, b in ((z_b, z_a), (z_a[rows], z_b[rows]), (z_a[:, columns], z_b[:, columns])):
        assert float(vicreg_loss(a, b)[0]) == pytest.approx(float(loss), rel=1e-5)
    shifted = vicreg_loss(z_a + 3, z_b - 1)[1]
    assert float(shifted["variance"]) == pytest.approx(float(parts["variance"]), rel=1e-4)
    assert float(shifted["covariance"]) == pytest.approx(float(parts["covariance"]), rel=1e-4)
    same = np.full((8, 4), 2.0, np.float32)
    loss, parts = vicreg_loss(same, same)
    assert float(loss) == pytest.approx(25 * 0.99, rel=1e-6), "a collapsed network: the hinge at √1e-4"
    assert float(parts["spread"]) == 0 == float(parts["invariance"]) == float(parts["covariance"])


@pytest.mark.parametrize("alone", ["invariance", "variance", "covariance"])
def test_a_term_alone(alone):
    z_a, z_b = (z.astype(np.float32) for z in draw(16, 5))
    weights = {name: 2.0 if name == alone else 0.0 for name in ("invariance", "variance", "covariance")}
    loss, parts = vicreg_loss(z_a, z_b, **weights)
    assert float(loss) == pytest.approx(2 * float(parts[alone]), rel=1e-6)


def test_bad_input():
    with pytest.raises(ValueError, match="at least 2 rows"):
        vicreg_loss(np.ones((1, 3), np.float32), np.ones((1, 3), np.float32))
