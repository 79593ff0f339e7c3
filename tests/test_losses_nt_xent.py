"""bt_jax/losses/nt_xent.py against the formula in float64, the explicit matrix, and on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from recipes import one_program, relative

from bt_jax import losses
from bt_jax.losses.nt_xent import nt_xent_floor, unrelated_nt_xent
from bt_jax.planning.compiled import collectives
from bt_jax.runtime import mesh as mesh_lib

nt_xent = one_program(losses.nt_xent, "temperature", "mesh", "block")


def draw(n, d, seed=0, noise=0.5):
    """Related views: the second is the first and noise."""
    rng = np.random.default_rng(seed)
    z_a = rng.standard_normal((n, d))
    return z_a.astype(np.float32), (z_a + noise * rng.standard_normal((n, d))).astype(np.float32)


def reference(z_a, z_b, temperature):
    """The paper's equation 1, row by row, in float64, and its gradients; a row is never among its own negatives."""
    n = len(z_a)
    z = np.concatenate([z_a, z_b]).astype(np.float64)
    length = np.linalg.norm(z, axis=1, keepdims=True)
    u = z / length
    total, gradient = 0.0, np.zeros_like(u)
    for i in range(2 * n):
        positive = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if k != i]
        similar = u[others] @ u[i] / temperature
        highest = similar.max()
        total += highest + np.log(np.exp(similar - highest).sum()) - u[positive] @ u[i] / temperature
        share = np.exp(similar - highest) / np.exp(similar - highest).sum()
        gradient[i] += (share @ u[others] - u[positive]) / temperature
        gradient[others] += share[:, None] * u[i] / temperature
        gradient[positive] -= u[i] / temperature
    gradient /= 2 * n
    of_z = (gradient - np.sum(gradient * u, axis=1, keepdims=True) * u) / length
    return total / (2 * n), of_z[:n], of_z[n:]


def value_and_gradients(z_a, z_b, **settings):
    return jax.jit(jax.value_and_grad(lambda a, b: nt_xent(a, b, **settings)[0], argnums=(0, 1)))(z_a, z_b)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("block", [2**24, 40 * 7, 1])
def test_formula_in_float64(temperature, block):
    """Value and gradients to 1e-12, also in blocks that do not divide the rows, and of one row."""
    z_a, z_b = draw(20, 6)
    expected = reference(z_a, z_b, temperature)
    with jax.enable_x64(True):
        a, b = jnp.asarray(z_a, jnp.float64), jnp.asarray(z_b, jnp.float64)
        loss, gradients = value_and_gradients(a, b, temperature=temperature, block=block)
    assert relative(loss, expected[0]) < 1e-13
    assert relative(gradients[0], expected[1]) < 1e-12 and relative(gradients[1], expected[2]) < 1e-12


def test_worked_case():
    """Of N 4, D 3 by hand: za = sin(1+3i+j), zb = cos(0.5+3i+2j)."""
    i, j = np.mgrid[0:4, 0:3]
    with jax.enable_x64(True):
        z_a, z_b = jnp.asarray(np.sin(1 + 3 * i + j)), jnp.asarray(np.cos(0.5 + 3 * i + 2 * j))
        assert float(nt_xent(z_a, z_b, temperature=0.5)[0]) == pytest.approx(2.58433336125474, abs=1e-12)
        assert float(nt_xent(z_a, z_b, temperature=0.1)[0]) == pytest.approx(10.422372292996, abs=1e-11)


def test_float32_and_bfloat16():
    """float32 to 1e-5 at the paper's width; bfloat16 embeddings are computed in float32, and have gradients of their type."""
    z_a, z_b = draw(256, 128, noise=3)
    expected, *grads = reference(z_a[:64], z_b[:64], 0.1)
    loss, found = value_and_gradients(z_a[:64], z_b[:64], temperature=0.1)
    assert relative(loss, expected) < 1e-5
    assert all(relative(f, g) < 1e-5 for f, g in zip(found, grads, strict=True))
    half = [jnp.asarray(z, jnp.bfloat16) for z in (z_a, z_b)]
    loss, found = value_and_gradients(*half)
    exact, _ = value_and_gradients(*(z.astype(jnp.float32) for z in half))
    assert loss.dtype == jnp.float32 and found[0].dtype == jnp.bfloat16 and relative(loss, exact) < 1e-6


def test_identities():
    """A cross-entropy on the explicit matrix; the order of views and of images; equal and orthogonal embeddings."""
    z_a, z_b = draw(32, 16)
    loss, parts = nt_xent(z_a, z_b)
    u = np.concatenate([z_a, z_b]) / np.linalg.norm(np.concatenate([z_a, z_b]), axis=1, keepdims=True)
    logits = np.where(np.eye(64, dtype=bool), -np.inf, u @ u.T / 0.1)
    positives = (np.arange(64) + 32) % 64
    explicit = jax.nn.logsumexp(logits, axis=1) - logits[np.arange(64), positives]
    assert float(loss) == pytest.approx(float(explicit.mean()), rel=1e-5)
    assert float(parts["accuracy"]) == pytest.approx((logits.argmax(axis=1) == positives).mean())
    order = np.random.default_rng(1).permutation(32)
    for a, b in ((z_b, z_a), (z_a[order], z_b[order]), (3 * z_a, 0.1 * z_b)):
        assert float(nt_xent(a, b)[0]) == pytest.approx(float(loss), rel=1e-5)
    same = np.ones((8, 5), np.float32)
    assert float(nt_xent(same, same)[0]) == pytest.approx(np.log(15), rel=1e-6) == pytest.approx(unrelated_nt_xent(8))
    apart, temperature = np.eye(8, dtype=np.float32), 0.5
    assert float(nt_xent(apart, apart, temperature=temperature)[0]) == pytest.approx(
        np.log(1 + 14 * np.exp(-1 / temperature)), rel=1e-5
    )


def test_floor():
    """Attained by a regular simplex seen twice, and by nothing below it."""
    n, temperature = 6, 0.3
    simplex = np.eye(n) - 1 / n
    assert float(nt_xent(simplex, simplex, temperature=temperature)[0]) == pytest.approx(
        nt_xent_floor(n, temperature), rel=1e-5
    )
    for seed in range(20):
        assert float(nt_xent(*draw(n, 8, seed), temperature=temperature)[0]) > nt_xent_floor(n, temperature)
    assert unrelated_nt_xent(4096) == pytest.approx(9.01, abs=0.01)


def test_a_row_is_not_its_own_negative():
    """With one image there are two rows, and each has only its positive: a loss of zero. With a self-pair it would be ln 2."""
    with pytest.raises(ValueError, match="at least 2 rows"):
        nt_xent(np.ones((1, 3), np.float32), np.ones((1, 3), np.float32))
    far = np.array([[1, 0], [-1, 0]], np.float32)  # the only negatives are opposite
    assert float(nt_xent(far, far, temperature=0.02)[0]) == pytest.approx(0, abs=1e-6)


def test_zero_rows_and_low_temperatures_are_finite():
    z_a, z_b = draw(8, 4)
    z_a[3] = 0
    loss, gradients = value_and_gradients(z_a, z_b, temperature=0.005)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("block", [2**24, 64 * 3])
def test_eight_devices_equal_one(block):
    """All 2N - 2 negatives, those of other devices too, and gradients that come from other devices' anchors."""
    mesh = mesh_lib.make_mesh(ConfigDict({"data": -1}))
    z_a, z_b = draw(32, 12, noise=2)
    expected, found_one = value_and_gradients(z_a, z_b)
    placed = [jax.device_put(z, mesh_lib.over_batch(mesh)) for z in (z_a, z_b)]
    loss, found = value_and_gradients(*placed, mesh=mesh, block=block)
    assert relative(loss, expected) < 2e-6
    assert all(relative(f, g) < 2e-6 for f, g in zip(found, found_one, strict=True))
    local = np.mean([float(nt_xent(z_a[i : i + 4], z_b[i : i + 4])[0]) for i in range(0, 32, 4)])
    assert abs(local - float(loss)) > 0.5, "negatives of one device only are another loss"
    one, many = (nt_xent(*views, mesh=m)[1] for views, m in (((z_a, z_b), None), (placed, mesh)))
    assert {k: float(v) for k, v in many.items()} == pytest.approx({k: float(v) for k, v in one.items()}, rel=1e-6)


def test_one_gather_of_embeddings():
    """Bytes that each of 8 devices exchanges for loss and gradients: the other devices' rows once, and their denominators."""
    n, d, devices = 64, 128, 8
    mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,))
    rows = mesh_lib.over_batch(mesh)
    z = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=rows)
    loss = jax.value_and_grad(lambda a, b: nt_xent(a, b, mesh=mesh)[0], argnums=(0, 1))
    text = jax.jit(loss, out_shardings=(mesh_lib.everywhere(mesh), (rows, rows))).lower(z, z).compile().as_text()
    moved = sum(collective.bytes for collective in collectives(text, devices))
    assert 0 < moved <= 1.05 * 4 * 2 * n * (d + 1)


def test_memory_does_not_grow_with_the_matrix():
    """The program for 4096 images in blocks takes much less than the 256 MiB of their 8192 × 8192 matrix."""
    z = jax.ShapeDtypeStruct((4096, 64), jnp.float32)
    loss = jax.value_and_grad(lambda a, b: nt_xent(a, b, block=2**20)[0], argnums=(0, 1))
    assert jax.jit(loss).lower(z, z).compile().memory_analysis().temp_size_in_bytes < 48 * 2**20


@pytest.mark.parametrize(
    ("z_b", "settings", "words"),
    [
        (np.ones((4, 3)), {"temperature": 0.0}, "temperature is 0.0, but must be a positive number"),
        (np.ones((4, 3)), {"temperature": float("nan")}, "temperature is nan, but must be a positive number"),
        (np.ones((4, 2)), {}, r"z_a has shape \(4, 3\) and z_b \(4, 2\), but the two views must have the same"),
        (np.ones(4), {}, r"z_b has shape \(4,\), but embeddings must be \(N, D\)"),
        (np.ones((4, 3), int), {}, "z_b is int32, but embeddings must be floating-point numbers"),
    ],
)
def test_bad_input(z_b, settings, words):
    with pytest.raises(ValueError, match=words):
        nt_xent(np.ones((4, 3), np.float32), z_b, **settings)
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match="4 rows, which do not divide among the 8 devices"):
        nt_xent(np.ones((4, 3), np.float32), np.ones((4, 3), np.float32), mesh=mesh)
