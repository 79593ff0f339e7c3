"""bt_jax/models/conv.py against jax.lax.conv_general_dilated: values, gradients, devices, and programs of other platforms."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from recipes import relative

from bt_jax.models import conv
from bt_jax.models.conv import convolution

# (N, H, W, C), (h, w, F), strides, padding, the form that a CPU takes once no batch fits the cache
CASES = [
    ((8, 9, 9, 16), (3, 3, 20), (1, 1), ((1, 1), (1, 1)), "large"),
    ((6, 8, 11, 17), (3, 3, 8), (2, 2), ((1, 1), (1, 1)), "large"),
    ((5, 9, 8, 16), (3, 2, 8), (2, 3), ((0, 2), (1, 0)), "large"),
    ((7, 12, 12, 16), (5, 5, 4), (3, 1), ((2, 2), (0, 0)), "large"),
    ((16, 6, 6, 24), (1, 1, 40), (1, 1), ((0, 0), (0, 0)), "large"),
    ((16, 7, 6, 40), (1, 1, 24), (2, 2), ((0, 0), (0, 0)), "large"),
    ((4, 4, 4, 16), (1, 1, 16), (2, 2), ((1, 0), (0, 1)), "large"),
    ((4, 16, 16, 3), (7, 7, 8), (2, 2), ((3, 3), (3, 3)), "xla"),
    ((8, 2, 2, 5), (3, 3, 6), (1, 1), ((1, 1), (1, 1)), "small"),
    ((8, 3, 3, 5), (3, 3, 6), (2, 2), ((1, 1), (1, 1)), "small"),
    ((8, 1, 2, 5), (3, 3, 6), (1, 1), ((1, 1), (1, 1)), "small"),
    ((8, 5, 6, 3), (7, 7, 4), (2, 2), ((3, 3), (3, 3)), "small"),
    ((8, 3, 5, 3), (3, 3, 4), (1, 3), ((0, 0), (0, 2)), "small"),
    ((2, 2, 2, 3), (3, 3, 4), (1, 1), ((0, 0), (1, 1)), "xla"),  # no outputs
    ((2, 40, 40, 3), (3, 3, 4), (30, 30), ((1, 1), (1, 1)), "xla"),  # few outputs of a large image
]


@pytest.fixture
def no_cache(monkeypatch):
    """The products for small batches too."""
    monkeypatch.setattr(conv, "_CACHE", 0)


def draw(shape, kernel, strides, padding, dtype):
    """x, the kernel and the gradient of the output."""
    rng = np.random.default_rng(0)
    sides = [
        max(0, (n + sum(p) - k) // s + 1) for n, k, s, p in zip(shape[1:3], kernel[:2], strides, padding, strict=True)
    ]
    shapes = [shape, (*kernel[:2], shape[3], kernel[2]), (shape[0], *sides, kernel[2])]
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]


def plain(x, kernel, *, strides, padding):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def with_gradients(function, strides, padding):
    """(x, kernel, dy) -> (y, gradient by x, gradient by the kernel)."""

    def both(x, kernel, dy):
        y, backward = jax.vjp(lambda x, kernel: function(x, kernel, strides=strides, padding=padding), x, kernel)
        return y, *backward(dy)

    return both


@pytest.mark.parametrize(("shape", "kernel", "strides", "padding", "form"), CASES)
def test_equals_lax_in_float64(shape, kernel, strides, padding, form, no_cache, monkeypatch):
    """Values and both gradients, to the rounding of float64; and the form is the one that is meant."""
    taken = []
    for name in ("_large_batch", "_small_images"):
        own = getattr(conv, name)
        monkeypatch.setattr(conv, name, lambda *a, own=own, name=name: taken.append(name) or own(*a))
    with jax.enable_x64(True):
        arrays = draw(shape, kernel, strides, padding, jnp.float64)
        found = jax.jit(with_gradients(convolution, strides, padding))(*arrays)
        expected = jax.jit(with_gradients(plain, strides, padding))(*arrays)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype == jnp.float64
        assert b.size == 0 or not b.any() or relative(a, b) < 1e-13
    assert set(taken) == {"large": {"_large_batch"}, "small": {"_small_images"}, "xla": set()}[form]


@pytest.mark.parametrize(("shape", "kernel", "strides", "padding", "form"), CASES[:13])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_as_near_to_float64_as_lax(shape, kernel, strides, padding, form, dtype, no_cache):
    """The rounding errors of values and gradients are at most twice those of XLA's own convolutions."""
    with jax.enable_x64(True):
        arrays = draw(shape, kernel, strides, padding, dtype)
        exact = jax.jit(with_gradients(plain, strides, padding))(*(a.astype(jnp.float64) for a in arrays))
    found = jax.jit(with_gradients(convolution, strides, padding))(*arrays)
    lax = jax.jit(with_gradients(plain, strides, padding))(*arrays)
    for a, b, e in zip(found, lax, exact, strict=True):
        assert a.dtype == dtype
        assert relative(np.float64(a), e) < 2 * relative(np.float64(b), e) + float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("case", [0, 4, 8])
@pytest.mark.parametrize("devices", [2, 8])
def test_sharded_over_the_batch(case, devices, no_cache):
    """The same numbers; one all-reduce, of the gradient by weights, and nothing else is sent."""
    shape, kernel, strides, padding, _ = CASES[case]
    arrays = draw((16, *shape[1:]), kernel, strides, padding, jnp.float32)
    function = with_gradients(convolution, strides, padding)
    expected = jax.jit(function)(*arrays)
    mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    program = jax.jit(function, in_shardings=(split, whole, split), out_shardings=(split, split, whole))
    for a, b in zip(program(*arrays), expected, strict=True):
        assert relative(a, b) < 1e-5
    text = program.lower(*arrays).compile().as_text()
    sent = re.findall(r" (all-[a-z]+|collective-[a-z]+|reduce-scatter)(?:-start)?\(", text)
    assert sent == ["all-reduce"]


@pytest.mark.parametrize("case", [0, 8])
def test_computed_again_in_the_backward_pass(case, no_cache):
    """Under jax.checkpoint the gradients stay."""
    shape, kernel, strides, padding, _ = CASES[case]
    arrays = draw(shape, kernel, strides, padding, jnp.float32)

    def layers(x, kernel, **geometry):
        return jnp.sin(convolution(jnp.sin(x), kernel, **geometry))

    def computed_again(x, kernel, **geometry):
        return jax.checkpoint(partial(layers, **geometry))(x, kernel)

    again, once = (with_gradients(f, strides, padding) for f in (computed_again, layers))
    for a, b in zip(jax.jit(again)(*arrays), jax.jit(once)(*arrays), strict=True):
        assert relative(a, b) < 1e-6


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("case", [0, 1, 4, 5, 8, 9])
def test_nothing_changes_on_accelerators(case, platform, no_cache):
    """The program of value and gradients has the operations of lax's own, with the same attributes and types."""
    shape, kernel, strides, padding, _ = CASES[case]
    arrays = draw(shape, kernel, strides, padding, jnp.bfloat16)

    def operations(function, gradients):
        traced = jax.jit(with_gradients(function, strides, padding)).trace(*arrays)
        if not gradients:
            traced = jax.jit(partial(function, strides=strides, padding=padding)).trace(*arrays[:2])
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        lines = [line for line in text.splitlines() if "stablehlo." in line]
        return sorted(re.sub(r"%\w+(#\d+)?", "%", line).strip() for line in lines)

    for gradients in (False, True):
        assert operations(convolution, gradients) == operations(plain, gradients)


@pytest.mark.parametrize("case", [0, 8])
def test_under_vmap_and_in_exported_programs(case, no_cache):
    """Gradients of several kernels at once; programs for all platforms, and for any batch size, give the same on this one."""
    shape, kernel, strides, padding, _ = CASES[case]
    x, kernel, dy = draw(shape, kernel, strides, padding, jnp.float32)
    function = with_gradients(convolution, strides, padding)
    kernels = jnp.stack([kernel, 2 * kernel])
    expected = [jax.jit(function)(x, k, dy) for k in kernels]
    for n, both in enumerate(jax.jit(jax.vmap(function, (None, 0, None)))(x, kernels, dy)):
        assert all(relative(both[i], expected[i][n]) < 1e-5 for i in range(2))
    program = jax.export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(x, kernel, dy)
    for a, b in zip(program.call(x, kernel, dy), expected[0], strict=True):
        assert relative(a, b) < 1e-6
    geometry = {"strides": strides, "padding": padding}
    anything = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("n"), *shape[1:]), jnp.float32)
    program = jax.export.export(jax.jit(partial(convolution, **geometry)), platforms=("cpu", "tpu"))(anything, kernel)
    assert relative(program.call(x[:3], kernel), expected[0][0][:3]) < 1e-6
