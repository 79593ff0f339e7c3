"""bt_jax/models/pool.py against flax.linen.max_pool: values, gradients, and programs of other platforms."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from bt_jax.models.pool import max_pool

SHAPES = [(4, 24, 24, 16), (3, 7, 9, 5), (2, 1, 2, 3), (2, 2, 1, 3), (1, 5, 4, 2), (3, 1, 1, 1)]


def plain(x):
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def with_gradient(function):
    def both(x, dy):
        y, backward = jax.vjp(function, x)
        return y, *backward(dy)

    return both


def draw(shape, dtype):
    """Values of which many are equal and none is negative, as after a ReLU, and whole numbers as gradients of the outputs."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.maximum(rng.integers(-4, 5, shape), 0), dtype)
    return x, jnp.asarray(rng.integers(-9, 10, plain(x).shape), dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_equals_flax(shape, dtype):
    """To the last bit, where the sums are exact; of equal maxima the first gets the gradient."""
    found, expected = (jax.jit(with_gradient(f))(*draw(shape, dtype)) for f in (max_pool, plain))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_array_equal(np.float32(a), np.float32(b))


def test_by_finite_differences():
    """In float64, where no maxima are equal; negative values beside the padding too."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).permutation(7 * 6 * 2).reshape(1, 7, 6, 2) - 90.0)
        jax.test_util.check_grads(max_pool, (x,), order=1, modes=["rev"], eps=1e-3)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_nothing_changes_on_accelerators(platform):
    """The operations of flax's own, with the same attributes and types; some twice, of which XLA drops the second."""

    def operations(function):
        traced = jax.jit(with_gradient(function)).trace(*draw(SHAPES[0], jnp.bfloat16))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        lines = [line for line in text.splitlines() if "stablehlo." in line]
        return {re.sub(r"%\w+(#\d+)?", "%", line).strip() for line in lines}

    assert operations(max_pool) == operations(plain)


def test_under_vmap_and_in_exported_programs():
    """Programs for all platforms, and for any batch size, give the same on this one."""
    x, dy = draw((4, 8, 8, 3), jnp.float32)
    expected = with_gradient(plain)(x, dy)
    stacked = jax.vmap(with_gradient(max_pool))(jnp.stack([x, x[::-1]]), jnp.stack([dy, dy[::-1]]))
    program = jax.export.export(jax.jit(with_gradient(max_pool)), platforms=("cpu", "cuda", "tpu"))(x, dy)
    for a, b, c in zip(program.call(x, dy), expected, stacked, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(c, jnp.stack([b, b[::-1]]))
    anything = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("n"), 8, 8, 3), jnp.float32)
    program = jax.export.export(jax.jit(max_pool), platforms=("cpu", "tpu"))(anything)
    np.testing.assert_array_equal(program.call(x[:3]), expected[0][:3])
