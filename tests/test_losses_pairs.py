"""bt_jax/losses/pairs.py: unit rows and the spread of embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax.evaluation.cached_probe import _logits
from bt_jax.evaluation.knn import _search
from bt_jax.losses.barlow_twins import barlow_twins_loss
from bt_jax.losses.nt_xent import nt_xent
from bt_jax.losses.pairs import spread, unit
from bt_jax.losses.vicreg import vicreg_loss
from bt_jax.models.heads import Prototypes


def test_unit_rows():
    z = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    np.testing.assert_allclose(unit(z), z / np.linalg.norm(z, axis=1, keepdims=True), rtol=1e-6)
    assert (
        not np.any(unit(jnp.zeros((2, 3)))) and np.isfinite(jax.grad(lambda x: unit(x).sum())(jnp.zeros((2, 3)))).all()
    )
    assert unit(jnp.ones((2, 2), jnp.bfloat16)).dtype == jnp.float32


def test_spread():
    """√(1 - ‖mean of the unit rows‖²): 1 around the origin, 0 if all directions are the same, whatever their lengths."""
    z = np.random.default_rng(0).standard_normal((50, 6)) + 0.5
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    assert float(spread(z)) == pytest.approx(np.sqrt(1 - np.sum(u.mean(axis=0) ** 2)), rel=1e-5)
    assert float(spread(np.concatenate([z, -z]))) == pytest.approx(1, rel=1e-6)
    assert float(spread(np.outer(np.arange(1.0, 9), [1.0, 2, 3]))) == pytest.approx(0, abs=1e-6)
    assert not np.any(jax.grad(spread)(jnp.asarray(z, jnp.float32)))


def products_in(jaxpr):
    """The precision of each matrix product, those of inner functions too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from products_in(inner)


def gradient_of(loss, count=2):
    z = [jax.ShapeDtypeStruct((8, 12), jnp.float32)] * count
    return jax.make_jaxpr(
        jax.value_and_grad(lambda *z: jnp.sum(jax.tree.leaves(loss(*z))[0]), argnums=tuple(range(count)))
    )(*z)


def one_device():
    return jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])


@pytest.mark.parametrize(
    "traced",
    [
        lambda: gradient_of(lambda a, b: barlow_twins_loss(a, b, form="correlation")),
        lambda: gradient_of(lambda a, b: barlow_twins_loss(a, b, form="gram")),
        lambda: gradient_of(lambda a, b: barlow_twins_loss(a, b, form="gram", mesh=one_device())),
        lambda: gradient_of(vicreg_loss),
        lambda: gradient_of(nt_xent),
        lambda: gradient_of(lambda z: Prototypes(5).apply({"params": {"kernel": jnp.ones((12, 5))}}, z), 1),
        lambda: gradient_of(lambda x: _logits({"kernel": jnp.ones((12, 5)), "bias": jnp.ones(5)}, x), 1),
        lambda: jax.make_jaxpr(_search(one_device(), 3, 32))(jnp.ones((2, 16, 12)), jnp.ones((4, 12))),
    ],
)
def test_products_have_the_highest_precision(traced):
    """On a TPU they would be of bfloat16, and on a GPU of TF32, which no test on a CPU can feel."""
    found = list(products_in(traced().jaxpr))
    assert found and all(precision == (jax.lax.Precision.HIGHEST,) * 2 for precision in found), found
