"""Convolution whose gradients are quick on CPUs too; on other platforms it is `jax.lax.conv_general_dilated` and no more.

XLA makes the gradient by weights a convolution whose kernel is as large as the image. Accelerators are good at it. On a CPU
it takes two to four times as long as the forward pass once the batch no longer fits the cache, and for kernels of 1×1 up to
fifteen times. Measured with JAX 0.10.2 on one core of an AMD EPYC (Zen 4), float32, 256 images, memory kept as in runs
(bt_jax/runtime/machine.py), milliseconds; oneDNN is PyTorch 2.13, the forward pass stands for scale:

    image, channels, kernel, stride      forward   by weights: XLA   products   oneDNN
    32×32    64 →  64   3×3   1              198               398        270      184
    32×32    64 → 128   3×3   2               97               461        119      105
    32×32    64 → 128   1×1   2               16               123         17       14
    16×16   128 → 128   3×3   1              185               722        212      172
     8×8    256 → 256   3×3   1              192               421        197      159
     4×4    512 → 512   3×3   1              195               277        226      174
    12×12    16 →  16   3×3   1                3.4               2.5        3.3      1.4
    48×48     3 →  16   7×7   2               31                11         22        6

So XLA's own form stays where the batch fits the cache and for images, whose three channels are copied in short runs; what is
left are matrix products over patches, a few images at a time. XLA's gradient by the input costs what its forward pass does,
with strides as well, and stays. One case remains, both ways: where the kernel is larger than the image XLA exchanges the two
and takes thirteen times as long as it should (2×2 images of 128 channels: 37 ms). There each output sees almost every
input, and the convolution is a dense layer.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
from jax.interpreters import batching, mlir

Pair = tuple[int, int]

_CACHE = 16 * 2**20  # bytes of inputs and outputs on a device, above which XLA's gradient by weights slows down
_PATCHES = 2 * 2**20  # bytes of patches at a time, which should stay in a core's cache until they are multiplied
_FEW_CHANNELS = 16


def convolution(x: jax.Array, kernel: jax.Array, *, strides: Pair, padding: tuple[Pair, Pair]) -> jax.Array:
    """The convolution of images with a kernel, as networks mean it (correlation), differentiable in reverse mode.

    Same value and gradients as `jax.lax.conv_general_dilated` to the rounding of the type. Sharded over N, the gradient by
    weights takes one all-reduce, as there.

    Args:
      x: (N, H, W, C), any float type.
      kernel: (h, w, C, F) of the same type.
      strides: along H and W.
      padding: zeros (before, after) along H and W.

    Returns:
      (N, H', W', F) of the same type.
    """
    out = jax.eval_shape(partial(_xla, strides=strides, padding=padding), x, kernel)
    seen, made, size = x.shape[1:3], out.shape[1:3], kernel.shape[:2]  # without N, which may be symbolic
    smaller = any(m < s for m, s in zip(made, size, strict=True)) and math.prod(seen) <= 2 * math.prod(size)
    if smaller and 0 not in made:
        return _small_images(x, kernel, strides, padding)
    if x.shape[-1] >= _FEW_CHANNELS:
        return _large_batch(x, kernel, strides, padding)
    return _xla(x, kernel, strides=strides, padding=padding)


def _xla(x, kernel, *, strides, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, window_strides=strides, padding=padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _xla_by_input(kernel, dy, *, shape, strides, padding):
    x = jax.ShapeDtypeStruct(shape, dy.dtype)
    return jax.linear_transpose(lambda x: _xla(x, kernel, strides=strides, padding=padding), x)(dy)[0]


def _xla_by_weights(x, dy, *, size, strides, padding):
    kernel = jax.ShapeDtypeStruct((*size, x.shape[-1], dy.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: _xla(x, kernel, strides=strides, padding=padding), kernel)(dy)[0]


def per_platform(name: str, cpu: Callable, default: Callable) -> Callable:
    """A function that is `cpu` in programs for CPUs and `default` in all others, as if that had been called.

    (jax.lax.platform_dependent leaves conditionals of one branch in the programs.)
    """
    primitive = jax.extend.core.Primitive(name)

    @primitive.def_impl
    def run(*arrays, **static):
        return jax.jit(partial(primitive.bind, **static))(*arrays)

    @primitive.def_abstract_eval
    def result(*arrays, **static):
        out = jax.eval_shape(partial(default, **static), *arrays)
        return jax.core.ShapedArray(out.shape, out.dtype)

    def under_vmap(arrays, axes, **static):
        return jax.vmap(partial(default, **static), axes)(*arrays), 0

    batching.primitive_batchers[primitive] = under_vmap
    mlir.register_lowering(primitive, mlir.lower_fun(default, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(cpu, multiple_results=False), platform="cpu")
    return primitive.bind


# Large batches: the gradient by weights as products.


def _products_by_weights(x, dy, *, size, strides, padding):
    """(h, w, C, F): patches of x, (…, hwC), times dy, (…, F), summed over chunks of the batch; XLA's if that is quick."""
    (n, out_h, out_w, features), channels = dy.shape, x.shape[-1]
    lanes, length = _lanes(n), math.prod(size) * channels
    if 0 in (n, out_h, out_w) or (size != (1, 1) and (x.size + dy.size) * x.dtype.itemsize <= _CACHE * lanes):
        return _xla_by_weights(x, dy, size=size, strides=strides, padding=padding)
    patch_bytes = out_h * out_w * length * x.dtype.itemsize
    sum_bytes = length * features * x.dtype.itemsize  # which are read and written once a chunk
    chunk = _divisor(n // lanes, max(_PATCHES, sum_bytes) // patch_bytes)
    x, dy = (a.reshape(lanes, n // lanes // chunk, chunk, *a.shape[1:]) for a in (x, dy))
    # The first factor of a product is transposed, so it should be the smaller. Patches can be written transposed.
    turned = size == (1, 1) and features < channels

    def add(i, total):
        xs, dys = (jax.lax.dynamic_index_in_dim(a, i, 1, keepdims=False) for a in (x, dy))
        patches = _patches(xs, size, strides, padding, (out_h, out_w))
        equation, factors = ("lnhwf,lnhwk->lfk", (dys, patches)) if turned else ("lnhwk,lnhwf->lkf", (patches, dys))
        return total + jnp.einsum(equation, *factors, preferred_element_type=total.dtype)

    shape = (features, length) if turned else (length, features)
    zeros = jnp.zeros((lanes, *shape), jnp.promote_types(x.dtype, jnp.float32))
    total = jax.lax.fori_loop(0, x.shape[1], add, zeros).sum(0)
    return (total.T if turned else total).reshape(*size, channels, features).astype(x.dtype)


def _lanes(batch: int) -> int:
    """Parts of the batch that are summed apart: one a device, so that the loop over chunks needs no all-reduce."""
    devices = jax.device_count()
    return devices if batch % devices == 0 else 1


def _divisor(n: int, most: int) -> int:
    """The largest divisor of n up to `most`, at least 1."""
    return next(d for d in range(max(1, min(n, most)), 0, -1) if n % d == 0)


def _patches(x, size, strides, padding, out_size):
    """(…, H, W, C) -> (…, H', W', hwC): what each output sees."""
    lead = ((0, 0, 0),) * (x.ndim - 3)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), (*lead, *((*p, 0) for p in padding), (0, 0, 0)))
    parts = []
    for corner in itertools.product(*map(range, size)):
        rows, columns = (
            slice(start, start + (count - 1) * stride + 1, stride)
            for start, count, stride in zip(corner, out_size, strides, strict=True)
        )
        parts.append(x[..., rows, columns, :])
    return jnp.concatenate(parts, -1) if len(parts) > 1 else parts[0]


_by_weights = per_platform("conv_by_weights", _products_by_weights, _xla_by_weights)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _large_batch(x, kernel, strides, padding):
    return _xla(x, kernel, strides=strides, padding=padding)


def _large_batch_forward(x, kernel, strides, padding):
    return _large_batch(x, kernel, strides, padding), (x, kernel)


def _large_batch_backward(strides, padding, saved, dy):
    x, kernel = saved
    geometry = {"strides": strides, "padding": padding}
    return (
        _xla_by_input(kernel, dy, shape=x.shape, **geometry),
        _by_weights(x, dy, size=kernel.shape[:2], **geometry),
    )


_large_batch.defvjp(_large_batch_forward, _large_batch_backward)


# Images smaller than the kernel: a dense layer.


def _dense(x, kernel, *, strides, padding):
    """One product: (N, HWC) times (HWC, H'W'F), which holds the kernel once for each output."""
    out = jax.eval_shape(partial(_xla, strides=strides, padding=padding), x, kernel).shape
    matrix = kernel
    for axis in (0, 1):  # (h, w, C, F) -> (H', H, w, C, F) -> (H', W', H, W, C, F)
        inputs, outputs, stride, before = x.shape[1 + axis], out[1 + axis], strides[axis], padding[axis][0]
        position = 2 * axis  # of h and then of w
        # Output o sees input i by the kernel's row i - o · stride + before, and not at all if there is no such row.
        low, high = max(0, (outputs - 1) * stride - before), max(0, inputs + before - matrix.shape[position])
        widths = [(0, 0, 0)] * matrix.ndim
        widths[position] = (low, high, 0)
        wide = jax.lax.pad(matrix, jnp.zeros((), matrix.dtype), widths)
        starts = [low + before - o * stride for o in range(outputs)]
        matrix = jnp.stack([jax.lax.slice_in_dim(wide, s, s + inputs, axis=position) for s in starts], axis)
    return jnp.einsum("nhwc,yxhwcf->nyxf", x, matrix)


def _dense_by_input(kernel, dy, *, shape, strides, padding):
    x = jax.ShapeDtypeStruct(shape, dy.dtype)
    return jax.linear_transpose(lambda x: _dense(x, kernel, strides=strides, padding=padding), x)(dy)[0]


def _dense_by_weights(x, dy, *, size, strides, padding):
    kernel = jax.ShapeDtypeStruct((*size, x.shape[-1], dy.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: _dense(x, kernel, strides=strides, padding=padding), kernel)(dy)[0]


_small = per_platform("conv_small", _dense, _xla)
_small_by_input = per_platform("conv_small_by_input", _dense_by_input, _xla_by_input)
_small_by_weights = per_platform("conv_small_by_weights", _dense_by_weights, _xla_by_weights)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _small_images(x, kernel, strides, padding):
    return _small(x, kernel, strides=strides, padding=padding)


def _small_images_forward(x, kernel, strides, padding):
    return _small_images(x, kernel, strides, padding), (x, kernel)


def _small_images_backward(strides, padding, saved, dy):
    x, kernel = saved
    geometry = {"strides": strides, "padding": padding}
    return (
        _small_by_input(kernel, dy, shape=x.shape, **geometry),
        _small_by_weights(x, dy, size=kernel.shape[:2], **geometry),
    )


_small_images.defvjp(_small_images_forward, _small_images_backward)
