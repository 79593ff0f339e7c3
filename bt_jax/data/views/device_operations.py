"""Operations on images in JAX, with the same levels as the host's (host_operations.py) except for a few roundings.

All images of a batch are processed at once, each with its own parameters. Images enter as (N, H, W, 3) uint8. The crop is two
batched matrix products of the images with weights that contain the crop, its antialiasing and the flip; Pillow rounds to
whole levels after each, so the factors are exact even on a device that multiplies in bfloat16 or TF32. From then on an image
is (S, S) int32, one word per pixel (`packed`), as on the host.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bt_jax.data.views.value_operations import Library


def packed(images: jax.Array) -> jax.Array:
    """(N, H, W, 3) uint8 -> (N, H, W) int32, one word per pixel: red in the lowest byte, then green, then blue."""
    return _pack(*(images[..., c] for c in range(3)))


def unpacked(x: jax.Array) -> jax.Array:
    """The inverse of `packed`."""
    return jnp.stack(_channels(x, jnp.uint8), axis=-1)


def _pack(red, green, blue) -> jax.Array:
    red, green, blue = (c.astype(jnp.int32) for c in (red, green, blue))
    return red | green << 8 | blue << 16


def _channels(x: jax.Array, dtype) -> list[jax.Array]:
    """Red, green and blue."""
    return [((x >> 8 * c) & 255).astype(dtype) for c in range(3)]


def resized_crops(
    images: jax.Array, crops: jax.Array, flip: jax.Array, size: int, interpolation: str = "bicubic"
) -> jax.Array:
    """Each image's crop, mirrored where `flip` says so, antialiased: (N, size, size) packed.

    Pillow's arithmetic: the cubic's a is -0.5, whole levels after each axis, the width before the height.

    Args:
      images: (N, H, W, 3) uint8; crops: (N, 4) int32, inside the images; flip: (N,) bool.
    """
    return _pack(*jnp.moveaxis(_resized(images, crops, flip, size, interpolation, _levels, "high"), 2, 0))


def resized_values(
    images: jax.Array, crops: jax.Array, flip: jax.Array, size: int, interpolation: str = "bicubic"
) -> jax.Array:
    """Like `resized_crops`, without rounding, for levels (N, H, W, C) of any type: (N, size, size, C) float32."""
    return jnp.moveaxis(_resized(images, crops, flip, size, interpolation, lambda x: x, "highest"), 2, 3)


def _resized(images, crops, flip, size: int, interpolation: str, rounded: Callable, precision: str) -> jax.Array:
    """(N, size, C, size) float32."""
    n, height, width, channels = images.shape
    top, left, h, w = crops.T
    across = _weights(left, w, width, size, flip, interpolation)
    down = _weights(top, h, height, size, jnp.zeros_like(flip), interpolation)
    # Rows × channels × columns: then both products are plain ones, and their results lie as the next step reads them.
    x = images.transpose(0, 1, 3, 2).reshape(n, height * channels, width).astype(jnp.float32)
    x = rounded(_product("nrw,nsw->nrs", x, across, precision))
    x = rounded(_product("nth,nhk->ntk", down, x.reshape(n, height, channels * size), precision))
    return x.reshape(n, size, channels, size)


def _product(formula: str, a: jax.Array, b: jax.Array, precision: str) -> jax.Array:
    # "high" is TF32 on a GPU and three bfloat16 products on a TPU: both keep levels of 8 bits exact and weights to 2⁻¹¹ or better.
    # Levels of 16 bits need "highest".
    return jnp.einsum(formula, a, b, precision=precision, preferred_element_type=jnp.float32)


def _levels(x: jax.Array) -> jax.Array:
    """The nearest whole numbers from 0 to 255, as floats: on a CPU, XLA may drop a cast to uint8 and back."""
    return jnp.floor(jnp.clip(x + 0.5, 0.0, 255.0))


def _weights(
    start: jax.Array, length: jax.Array, full: int, size: int, mirrored: jax.Array, interpolation: str
) -> jax.Array:
    """(N, size, full): the weight of each pixel of an axis in each of the `size` pixels of the result."""
    start, length, mirrored = (v[:, None, None] for v in (start, length, mirrored))
    place = jnp.arange(size)[None, :, None]
    place = jnp.where(mirrored, size - 1 - place, place).astype(jnp.float32)
    pixel = jnp.arange(full)[None, None, :]
    scale = length.astype(jnp.float32) / size
    distance = pixel.astype(jnp.float32) + 0.5 - (start.astype(jnp.float32) + (place + 0.5) * scale)
    x = jnp.abs(distance / jnp.maximum(scale, 1.0))
    if interpolation == "bilinear":
        weight = jnp.maximum(1.0 - x, 0.0)
    else:
        near = ((1.5 * x - 2.5) * x) * x + 1.0
        far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        weight = jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))
    weight = jnp.where((pixel >= start) & (pixel < start + length), weight, 0.0)
    return weight / jnp.sum(weight, axis=2, keepdims=True)


def adjust_brightness(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with black. This and the other operations: (N, S, S) packed, one factor per image; see host_operations.py."""
    return blended(jnp.zeros((1, 1, 1)), x, factor)


def adjust_contrast(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the mean grey, itself a whole level."""
    return blended(mean_level(luma(x)).astype(jnp.float32), x, factor)


def adjust_saturation(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the grey image."""
    return blended(luma(x).astype(jnp.float32), x, factor)


def mean_level(grey: jax.Array) -> jax.Array:
    """(N, 1, 1) int32: the mean of (N, S, S) whole numbers, rounded."""
    count = grey.shape[1] * grey.shape[2]
    return (2 * jnp.sum(grey, axis=(1, 2), keepdims=True) + count) // (2 * count)


def blended(base: jax.Array, x: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's blend with `base`, truncated rather than rounded; the maximum keeps the compiler from merging two roundings."""
    factor = factor[:, None, None]

    def blend(c):
        return jnp.clip(base + jnp.maximum(factor * (c - base), -1e9), 0.0, 255.0)

    return _pack(*map(blend, _channels(x, jnp.float32)))


def adjust_hue(x: jax.Array, shift: jax.Array) -> jax.Array:
    """To Pillow's 8-bit HSV, the hue turned by a whole number of 1/256 turns, and back.

    The host follows Pillow's C code in doubles, which accelerators lack or are slow at. In float32 a hue or shade on the
    border of two levels may fall to the other side.
    """
    r, g, b = _channels(x, jnp.float32)
    high, low = jnp.maximum(jnp.maximum(r, g), b), jnp.minimum(jnp.minimum(r, g), b)
    chroma = high - low
    r_, g_, b_ = ((high - c) / jnp.maximum(chroma, 1.0) for c in (r, g, b))
    sixths = jnp.where(r == high, b_ - g_, jnp.where(g == high, 2.0 + (r_ - b_), 4.0 + (g_ - r_)))
    turns = sixths / 6.0
    turns = jnp.where(turns < 0, turns + 1.0, turns)
    level = _times_255(turns)
    strength = _times_255(chroma / jnp.maximum(high, 1.0)).astype(jnp.float32) / 255.0
    level = (level + jnp.trunc(shift * 255.0).astype(jnp.int32)[:, None, None]) & 255

    sector = 6 * level // 255  # 6 at level 255, which is 0
    f = (6 * level - 255 * sector).astype(jnp.float32) / 255.0
    odd = sector & 1 > 0

    def shade(fraction):
        return jnp.floor(high * (1.0 - fraction) + 0.5).astype(jnp.int32)

    middle, dark = shade(strength * jnp.where(odd, f, 1.0 - f)), shade(strength)
    high = high.astype(jnp.int32)
    sector = jnp.where(sector == 6, 0, sector)

    def channel(sloping, darkest):
        is_sloping = (sector == sloping[0]) | (sector == sloping[1])
        is_darkest = (sector == darkest[0]) | (sector == darkest[1])
        return jnp.where(is_sloping, middle, jnp.where(is_darkest, dark, high))

    return _pack(channel((1, 4), (2, 3)), channel((0, 3), (4, 5)), channel((2, 5), (0, 1)))


def _times_255(q: jax.Array) -> jax.Array:
    """255·q truncated to a whole number, int32, as if computed exactly; q from 0 to 1.

    256·q is exact, and so is 256·q - m: it is less than q just when 255·q is less than m, the nearest whole number.
    """
    m = jnp.round(q * 255.0)
    return (m - (q * 256.0 - m < q)).astype(jnp.int32)


def luma(x: jax.Array) -> jax.Array:
    """(N, S, S) int32: ITU-R 601 grey in Pillow's 16-bit fixed point."""
    r, g, b = _channels(x, jnp.int32)
    return (r * 19595 + g * 38470 + b * 7471 + 32768) >> 16


def grayscale(x: jax.Array) -> jax.Array:
    """Grey in all three channels."""
    grey = luma(x)
    return _pack(grey, grey, grey)


def solarize(x: jax.Array) -> jax.Array:
    """Inverts levels of 128 and more."""
    return _pack(*(jnp.minimum(c, 255 - c) for c in _channels(x, jnp.int32)))


def gaussian_blur(x: jax.Array, sigma: jax.Array) -> jax.Array:
    """Pillow's GaussianBlur of radius `sigma` ≤ 2.4, one per image: three box blurs along each axis, in whole numbers."""
    inside, near, far = (w[:, None, None, None] for w in box_weights(sigma))

    def blurred(x, axis):
        n = x.shape[axis]
        wide = jnp.pad(x, [(2, 2) if a == axis else (0, 0) for a in range(4)], mode="edge")
        taps = [jax.lax.slice_in_dim(wide, k, k + n, axis=axis).astype(jnp.int32) for k in range(5)]
        total = taps[2] * inside + (taps[1] + taps[3]) * near + (taps[0] + taps[4]) * far
        # Beyond 2³¹ the sum wraps; the eight bits that are wanted stay the same.
        return jax.lax.shift_right_logical(total + (1 << 23), 24).astype(jnp.uint8)

    x = jnp.stack(_channels(x, jnp.uint8), axis=1)
    for axis in (3, 2):
        x = jax.lax.fori_loop(0, 3, lambda _, x, axis=axis: blurred(x, axis), x)
    return _pack(*jnp.moveaxis(x, 1, 0))


def box_weights(sigma: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(N,) int32 each: weights, in 2⁻²⁴, of a box's middle tap, its neighbours, and the next ones; see host_operations.py."""
    variance = jnp.square(sigma) / 3
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)  # 0 or 1
    rest = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    radius = whole + rest
    inside = (float(1 << 24) / (radius * 2 + 1)).astype(jnp.int32)
    whole = radius.astype(jnp.int32)
    edge = ((1 << 24) - (2 * whole + 1) * inside) // 2
    wide = whole > 0
    return inside, jnp.where(wide, inside, edge), jnp.where(wide, edge, 0)


# For images that are not photographs.
VALUES = Library(
    of=jnp,
    mean=lambda x, axes: jnp.mean(x, axes, keepdims=True),
    clip=jnp.clip,
    concat=jnp.concatenate,
    repeat=lambda times, function, x: jax.lax.fori_loop(0, times, lambda _, x: function(x), x),
)
