"""The two asymmetric views in JAX, for an accelerator whose host is too weak to make them.

The same distributions and, on the same parameters, the levels of the host's views (views.py) but for a few roundings. All
images of a batch are worked on at once, each with parameters of its own: where the host branches, this computes and selects.
Nothing depends on the other images of a batch, so that it shards over devices without a word between them.

Images enter as (N, H, W, 3) uint8. The crop is two batched matrix products, of the images with weights that hold the crop,
its antialiasing and the flip; Pillow rounds to whole levels after each, so that what is multiplied is exact even where a
device multiplies in bfloat16 or TF32. Then a view is (N, S, S) int32, a pixel a word, as on the host.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax.data.views.spec import CROP_TRIES, UNIFORMS, ViewParameters, ViewSpec
from bt_jax.errors import UserError


def make_views(
    images: jax.Array,
    sizes: jax.Array | None,
    *,
    seed: int,
    epoch: jax.Array,
    examples: jax.Array,
    specs: Sequence[ViewSpec],
    size: int,
    kernel: str = "keyscubic",
) -> jax.Array:
    """Draws and applies a view of each spec, a pure function of (seed, epoch, example, view) and the image.

    Args:
      images: (N, H, W, 3) uint8.
      sizes: (N, 2) int32, the height and width of the image in the upper left corner of its array; None: they fill it.
      epoch: () int32, or (N,) where images are of several.
      examples: (N,) int32, the numbers of the images in their set.
      size: side of a view, S.
      kernel: of the crop's resizing, as view_spec.kernel_of names it.

    Returns:
      (N, len(specs), S, S, 3) uint8.

    Raises:
      UserError: images of another shape or type.
    """
    check_images(images)
    if sizes is None:
        sizes = jnp.broadcast_to(jnp.array(images.shape[1:3], jnp.int32), (len(images), 2))
    with jax.named_scope("views"):
        views = []
        for v, spec in enumerate(specs):
            drawn = sample_views(seed, epoch, examples, v, sizes, spec)
            views.append(apply_views(images, drawn, size, spec, kernel))
        return jnp.stack(views, axis=1)


def check_images(images: jax.Array | np.ndarray) -> None:
    """Raises UserError unless images are (N, H, W, 3) uint8, telling the range of those that are not."""
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise UserError(f"images are {images.shape}; they must be (N, H, W, 3), none of these 0.")
    if images.dtype != np.uint8:
        found = ""
        if not isinstance(images, jax.core.Tracer):
            found = f" from {np.min(images):g} to {np.max(images):g}"
        raise UserError(f"images are {images.dtype}{found}; they must be uint8, from 0 to 255.")


def sample_views(
    seed: int, epoch: jax.Array, examples: jax.Array, view: int, sizes: jax.Array, spec: ViewSpec
) -> ViewParameters:
    """Draws a view of each image: as views.sample_view, from JAX's generator instead of TensorFlow's.

    Args:
      view: its number among the views of an image.
      sizes: (N, 2) int32, heights and widths; other arguments as for `make_views`.

    Returns:
      Parameters with an axis (N,) in front.
    """
    # Threefry is named because the default generator may be another, or differ between kinds of device.
    key = jax.random.key(seed, impl="threefry2x32")

    def uniforms(*places):
        return jax.random.uniform(functools.reduce(jax.random.fold_in, (*places, view), key), (UNIFORMS,), jnp.float32)

    drawn = jax.vmap(uniforms)(jnp.broadcast_to(epoch, examples.shape), examples)
    tries, u = drawn[:, : 2 * CROP_TRIES], drawn[:, 2 * CROP_TRIES :].T

    def between(uniform, low, high):
        return low + uniform * (high - low)

    def factor(uniform, strength):
        return between(uniform, max(0.0, 1 - strength), 1 + strength)

    return ViewParameters(
        crop=crops_from_uniforms(tries[:, :CROP_TRIES], tries[:, CROP_TRIES:], u[0], u[1], sizes, spec),
        flip=u[2] < spec.flip,
        jitter=u[3] < spec.jitter,
        order=jnp.argsort(u[4:8].T, axis=1).astype(jnp.int32),
        brightness=factor(u[8], spec.brightness),
        contrast=factor(u[9], spec.contrast),
        saturation=factor(u[10], spec.saturation),
        hue=between(u[11], -spec.hue, spec.hue),
        grayscale=u[12] < spec.grayscale,
        blur=u[13] < spec.blur,
        sigma=between(u[14], *spec.blur_sigma),
        solarize=u[15] < spec.solarize,
    )


def crops_from_uniforms(area, ratio, top, left, sizes, spec: ViewSpec) -> jax.Array:
    """torchvision's RandomResizedCrop.get_params, as views.crop_from_uniforms but in float32, for N images.

    Args:
      area, ratio: (N, 10) uniforms in [0, 1), one a try; top, left: (N,) uniforms for the place of the crop that fits.
      sizes: (N, 2) int32.

    Returns:
      (N, 4) int32: top, left, height, width.
    """
    height, width = sizes.astype(jnp.float32).T
    low, high = spec.crop_scale
    target = (height * width)[:, None] * (low + area * (high - low))
    log_low, log_high = math.log(spec.crop_ratio[0]), math.log(spec.crop_ratio[1])
    aspect = jnp.exp(log_low + ratio * (log_high - log_low))
    w, h = jnp.round(jnp.sqrt(target * aspect)), jnp.round(jnp.sqrt(target / aspect))
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])

    first = jnp.argmax(fits, axis=1)[:, None]  # the first True
    narrow, wide = width / height < spec.crop_ratio[0], width / height > spec.crop_ratio[1]
    whole_h = jnp.where(narrow, jnp.round(width / spec.crop_ratio[0]), height)
    whole_w = jnp.where(wide, jnp.round(height * spec.crop_ratio[1]), width)
    any_fits = jnp.any(fits, axis=1)

    def chosen(tries, whole):
        return jnp.where(any_fits, jnp.take_along_axis(tries, first, axis=1)[:, 0], whole)

    def place(uniform, rest):
        # In float32 a uniform near 1 times a count may round up to it.
        return jnp.where(any_fits, jnp.minimum(jnp.floor(uniform * (rest + 1)), rest), jnp.floor(rest / 2))

    h, w = chosen(h, whole_h), chosen(w, whole_w)
    return jnp.stack([place(top, height - h), place(left, width - w), h, w], axis=1).astype(jnp.int32)


def apply_views(
    images: jax.Array, p: ViewParameters, size: int, spec: ViewSpec | None = None, kernel: str = "keyscubic"
) -> jax.Array:
    """The view of each image that its parameters describe, in the official order of operations.

    Args:
      images: (N, H, W, 3) uint8.
      p: with an axis (N,) in front.
      size: side of a view, S.
      spec: what `p` was drawn from, if it is known: what has probability 0 there is left out of the program.
      kernel: as for `make_views`.

    Returns:
      (N, S, S, 3) uint8.
    """
    spec, p = spec or ViewSpec(solarize=1.0), jax.tree.map(jnp.asarray, p)

    def where(chosen, new, x):
        return jnp.where(chosen[:, None, None], new, x)

    x = resized_crops(images, p.crop, p.flip, size, kernel)
    if spec.jitter:
        x = where(p.jitter, _jitter(x, p), x)
    if spec.grayscale:
        x = where(p.grayscale, grayscale(x), x)
    if spec.blur:
        x = where(p.blur, gaussian_blur(x, p.sigma), x)
    if spec.solarize:
        x = where(p.solarize, solarize(x), x)
    return unpacked(x)


def _jitter(x: jax.Array, p: ViewParameters) -> jax.Array:
    """The four in each image's own order.

    Three of them blend with something, so that a place in the order needs one blend, with what its image's turn asks for.
    Hue costs more than all the others together and so is computed once: what comes before it in an image's order is
    blended before, what comes after it after. A blend by the factor 1 changes nothing.
    """
    turn_of_hue = jnp.argmax(p.order == 3, axis=1)
    factors = jnp.stack([p.brightness, p.contrast, p.saturation, jnp.ones_like(p.hue)], axis=1)

    def blended(x, place, active):
        which = p.order[:, place]
        factor = jnp.where(active, jnp.take_along_axis(factors, which[:, None], axis=1)[:, 0], 1.0)
        which = which[:, None, None]
        grey = luma(x)
        base = jnp.where(which == 0, 0, jnp.where(which == 1, _mean_level(grey), grey))
        return _blended(base.astype(jnp.float32), x, factor)

    # Loops, as XLA would otherwise make one expression of the blends and compute each pixel of the first many times.
    x = jax.lax.fori_loop(0, 3, lambda place, x: blended(x, place, place < turn_of_hue), x)
    x = adjust_hue(x, p.hue)
    return jax.lax.fori_loop(1, 4, lambda place, x: blended(x, place, place > turn_of_hue), x)


def packed(images: jax.Array) -> jax.Array:
    """(N, H, W, 3) uint8 -> (N, H, W) int32, a pixel a word: red in the lowest byte, then green, then blue."""
    return _pack(*(images[..., c] for c in range(3)))


def unpacked(x: jax.Array) -> jax.Array:
    """What `packed` took."""
    return jnp.stack(_channels(x, jnp.uint8), axis=-1)


def _pack(red, green, blue) -> jax.Array:
    red, green, blue = (c.astype(jnp.int32) for c in (red, green, blue))
    return red | green << 8 | blue << 16


def _channels(x: jax.Array, dtype) -> list[jax.Array]:
    """Red, green and blue."""
    return [((x >> 8 * c) & 255).astype(dtype) for c in range(3)]


def resized_crops(
    images: jax.Array, crops: jax.Array, flip: jax.Array, size: int, kernel: str = "keyscubic"
) -> jax.Array:
    """Each image's crop, mirrored where `flip` says so, antialiased: (N, size, size) packed.

    Pillow's arithmetic: the cubic's a is -0.5, whole levels after each axis, the width before the height.

    Args:
      images: (N, H, W, 3) uint8; crops: (N, 4) int32, inside the images; flip: (N,) bool.
    """
    n, height, width, _ = images.shape
    top, left, h, w = crops.T
    across = _weights(left, w, width, size, flip, kernel)
    down = _weights(top, h, height, size, jnp.zeros_like(flip), kernel)
    # Rows × channels × columns: so that both products are plain ones, whose results lie as the next reads them.
    x = images.transpose(0, 1, 3, 2).reshape(n, height * 3, width).astype(jnp.float32)
    x = _levels(_product("nrw,nsw->nrs", x, across))
    x = _levels(_product("nth,nhk->ntk", down, x.reshape(n, height, 3 * size)))
    return _pack(*jnp.moveaxis(x.reshape(n, size, 3, size), 2, 0))


def _product(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    # "high" is TF32 on a GPU and three bfloat16 products on a TPU: levels are exact in either, weights to 2⁻¹¹ or better.
    return jnp.einsum(formula, a, b, precision="high", preferred_element_type=jnp.float32)


def _levels(x: jax.Array) -> jax.Array:
    """The nearest whole numbers from 0 to 255, as floats: XLA on a CPU may leave out a cast to uint8 and back."""
    return jnp.floor(jnp.clip(x + 0.5, 0.0, 255.0))


def _weights(start: jax.Array, length: jax.Array, full: int, size: int, mirrored: jax.Array, kernel: str) -> jax.Array:
    """(N, size, full): what each pixel of an axis gives to each of the `size` that its stretch is resized to."""
    start, length, mirrored = (v[:, None, None] for v in (start, length, mirrored))
    place = jnp.arange(size)[None, :, None]
    place = jnp.where(mirrored, size - 1 - place, place).astype(jnp.float32)
    pixel = jnp.arange(full)[None, None, :]
    scale = length.astype(jnp.float32) / size
    distance = pixel.astype(jnp.float32) + 0.5 - (start.astype(jnp.float32) + (place + 0.5) * scale)
    x = jnp.abs(distance / jnp.maximum(scale, 1.0))
    if kernel == "triangle":
        weight = jnp.maximum(1.0 - x, 0.0)
    else:
        near = ((1.5 * x - 2.5) * x) * x + 1.0
        far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        weight = jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))
    weight = jnp.where((pixel >= start) & (pixel < start + length), weight, 0.0)
    return weight / jnp.sum(weight, axis=2, keepdims=True)


def adjust_brightness(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with black. This and the other operations: (N, S, S) packed, one factor an image; see views.py."""
    return _blended(jnp.zeros((1, 1, 1)), x, factor)


def adjust_contrast(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the mean grey, itself a whole level."""
    return _blended(_mean_level(luma(x)).astype(jnp.float32), x, factor)


def adjust_saturation(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the grey image."""
    return _blended(luma(x).astype(jnp.float32), x, factor)


def _mean_level(grey: jax.Array) -> jax.Array:
    count = grey.shape[1] * grey.shape[2]
    return (2 * jnp.sum(grey, axis=(1, 2), keepdims=True) + count) // (2 * count)


def _blended(base: jax.Array, x: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's blend, cut off rather than rounded; the maximum keeps a compiler from one rounding where there are two."""
    factor = factor[:, None, None]

    def blend(c):
        return jnp.clip(base + jnp.maximum(factor * (c - base), -1e9), 0.0, 255.0)

    return _pack(*map(blend, _channels(x, jnp.float32)))


def adjust_hue(x: jax.Array, shift: jax.Array) -> jax.Array:
    """To Pillow's 8-bit HSV, the hue turned by a whole number of 1/256 turns, and back.

    The host follows Pillow's C code in doubles; accelerators are slow at those or lack them. In float32 a hue or shade that
    lies on the border of two levels may fall to the other side.
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
    """255·q cut off to a whole number, int32, as if it were computed exactly; q from 0 to 1.

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
    """Inverts what is 128 or more."""
    return _pack(*(jnp.minimum(c, 255 - c) for c in _channels(x, jnp.int32)))


def gaussian_blur(x: jax.Array, sigma: jax.Array) -> jax.Array:
    """Pillow's GaussianBlur of radius `sigma` ≤ 2.4, an image's own: three box blurs along each axis, in whole numbers."""
    inside, near, far = (w[:, None, None, None] for w in _box(sigma))

    def blurred(x, axis):
        n = x.shape[axis]
        wide = jnp.pad(x, [(2, 2) if a == axis else (0, 0) for a in range(4)], mode="edge")
        taps = [jax.lax.slice_in_dim(wide, k, k + n, axis=axis).astype(jnp.int32) for k in range(5)]
        total = taps[2] * inside + (taps[1] + taps[3]) * near + (taps[0] + taps[4]) * far
        # Past 2³¹ the sum wraps: the eight bits wanted are the same.
        return jax.lax.shift_right_logical(total + (1 << 23), 24).astype(jnp.uint8)

    x = jnp.stack(_channels(x, jnp.uint8), axis=1)
    for axis in (3, 2):
        x = jax.lax.fori_loop(0, 3, lambda _, x, axis=axis: blurred(x, axis), x)
    return _pack(*jnp.moveaxis(x, 1, 0))


def _box(sigma: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(N,) int32 each: weights, in 2⁻²⁴, of a box's middle, of those beside it, and of the next; see views.py."""
    variance = jnp.square(sigma) / 3
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)  # 0 or 1
    rest = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    radius = whole + rest
    inside = (float(1 << 24) / (radius * 2 + 1)).astype(jnp.int32)
    whole = radius.astype(jnp.int32)
    edge = ((1 << 24) - (2 * whole + 1) * inside) // 2
    wide = whole > 0
    return inside, jnp.where(wide, inside, edge), jnp.where(wide, edge, 0)
