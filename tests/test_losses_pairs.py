"""bt_jax/losses/pairs.py: unit rows and the spread of embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax.losses.pairs import spread, unit


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
