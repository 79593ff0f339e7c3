"""Host augmentation in TensorFlow ops: the paper's two asymmetric views, and the evaluation view.

The arithmetic is Pillow's and torchvision's, level by level (official main.py, class Transform). Drawing parameters
(`sample_view`) is separate from applying them (`apply_view`), so that the same parameters can be tried on another
implementation. An image enters and leaves as (H, W, 3) uint8. Between the crop and the end it is (H, W) int32, a pixel a
word (`packed`), and all that is done to it there is compiled as one program by XLA: a pass over words takes a quarter of the
memory that float planes would, and no operation hands an image to the next through TensorFlow.
"""

import functools
import math
from collections.abc import Sequence

from bt_jax.data.tensorflow_import import tf
from bt_jax.data.views.spec import CROP_TRIES, UNIFORMS, ViewParameters, ViewSpec
from bt_jax.data.views.spec import VIEW_A as VIEW_A
from bt_jax.data.views.spec import VIEW_B as VIEW_B


def sample_view(seed: tf.Tensor, height: tf.Tensor, width: tf.Tensor, spec: ViewSpec) -> ViewParameters:
    """Draws a view of an image of this size; a pure function of its arguments.

    Args:
      seed: (2,) int64.
    """
    # Philox is named because the default algorithm may differ between kinds of device.
    u = tf.random.stateless_uniform([UNIFORMS], seed, dtype=tf.float32, alg="philox")
    tries, u = u[: 2 * CROP_TRIES], tf.unstack(u[2 * CROP_TRIES :])

    def between(uniform, low, high):
        return low + uniform * (high - low)

    def factor(uniform, strength):
        return between(uniform, max(0.0, 1 - strength), 1 + strength)

    return ViewParameters(
        crop=crop_from_uniforms(tries[:CROP_TRIES], tries[CROP_TRIES:], u[0], u[1], height, width, spec),
        flip=u[2] < spec.flip,
        jitter=u[3] < spec.jitter,
        order=tf.argsort(tf.stack(u[4:8])),
        brightness=factor(u[8], spec.brightness),
        contrast=factor(u[9], spec.contrast),
        saturation=factor(u[10], spec.saturation),
        hue=between(u[11], -spec.hue, spec.hue),
        grayscale=u[12] < spec.grayscale,
        blur=u[13] < spec.blur,
        sigma=between(u[14], *spec.blur_sigma),
        solarize=u[15] < spec.solarize,
    )


def crop_from_uniforms(area, ratio, top, left, height, width, spec: ViewSpec) -> tf.Tensor:
    """torchvision's RandomResizedCrop.get_params: the first of ten tries that fits, else the largest centred crop.

    Args:
      area, ratio: (10,) uniforms in [0, 1), one a try; top, left: uniforms for the place of the crop that fits.

    Returns:
      (4,) int32: top, left, height, width.
    """
    area, ratio, top, left = (tf.cast(u, tf.float64) for u in (area, ratio, top, left))
    full_height, full_width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    low, high = spec.crop_scale
    target = full_height * full_width * (low + area * (high - low))
    log_low, log_high = math.log(spec.crop_ratio[0]), math.log(spec.crop_ratio[1])
    aspect = tf.exp(log_low + ratio * (log_high - log_low))
    w, h = tf.round(tf.sqrt(target * aspect)), tf.round(tf.sqrt(target / aspect))
    fits = (w > 0) & (w <= full_width) & (h > 0) & (h <= full_height)

    first = tf.argmax(fits)  # the first True
    narrow = full_width / full_height < spec.crop_ratio[0]
    wide = full_width / full_height > spec.crop_ratio[1]
    whole_h = tf.where(narrow, tf.round(full_width / spec.crop_ratio[0]), full_height)
    whole_w = tf.where(wide, tf.round(full_height * spec.crop_ratio[1]), full_width)
    any_fits = tf.reduce_any(fits)
    h, w = tf.where(any_fits, h[first], whole_h), tf.where(any_fits, w[first], whole_w)
    y = tf.where(any_fits, tf.floor(top * (full_height - h + 1)), tf.floor((full_height - h) / 2))
    x = tf.where(any_fits, tf.floor(left * (full_width - w + 1)), tf.floor((full_width - w) / 2))
    return tf.cast(tf.stack([y, x, h, w]), tf.int32)


def apply_view(image: tf.Tensor, parameters: ViewParameters, size: int) -> tf.Tensor:
    """The view of an image that the parameters describe, in the official order of operations.

    Args:
      image: (H, W, 3) uint8.

    Returns:
      (size, size, 3) uint8.
    """
    return apply_views(image, [parameters], size)[0]


def apply_views(
    image: tf.Tensor, parameters: Sequence[ViewParameters], size: int, kernel: str = "keyscubic"
) -> tf.Tensor:
    """Several views of an image, (V, size, size, 3) uint8: as `apply_view`, and cheaper than one by one.

    Args:
      kernel: of the crops' resizing, keyscubic (bicubic) or triangle (bilinear).
    """
    resized = [_resized(image, p.crop, size, size, kernel) for p in parameters]
    return _distorted(resized, list(parameters))


# XLA makes one pass over the image of what would be dozens, several times faster. It compiles once for a size.
@functools.partial(tf.function, jit_compile=True, autograph=False)
def _distorted(resized: list[tf.Tensor], parameters: list[ViewParameters]) -> tf.Tensor:
    return tf.stack([unpacked(_distort(packed(_levels(x)), p)) for x, p in zip(resized, parameters, strict=True)])


def _distort(x: tf.Tensor, p: ViewParameters) -> tf.Tensor:
    x = tf.cond(p.flip, lambda: tf.reverse(x, [1]), lambda: x)
    x = tf.cond(p.jitter, lambda: _jitter(x, p), lambda: x)
    x = tf.cond(p.grayscale, lambda: grayscale(x), lambda: x)
    x = tf.cond(p.blur, lambda: gaussian_blur(x, p.sigma), lambda: x)
    return tf.cond(p.solarize, lambda: solarize(x), lambda: x)


def _jitter(x: tf.Tensor, p: ViewParameters) -> tf.Tensor:
    def one(place, x):
        adjusted = tf.switch_case(
            p.order[place],
            [
                lambda: adjust_brightness(x, p.brightness),
                lambda: adjust_contrast(x, p.contrast),
                lambda: adjust_saturation(x, p.saturation),
                lambda: adjust_hue(x, p.hue),
            ],
        )
        return place + 1, adjusted

    return tf.while_loop(lambda place, _: place < 4, one, (0, x))[1]


def packed(image: tf.Tensor) -> tf.Tensor:
    """(H, W, 3) uint8 -> (H, W) int32, a pixel a word: red in the lowest byte, then green, then blue."""
    return _pack(*tf.unstack(tf.cast(image, tf.int32), axis=-1))


def unpacked(x: tf.Tensor) -> tf.Tensor:
    """What `packed` took."""
    return tf.cast(tf.bitwise.right_shift(x[..., None], [0, 8, 16]), tf.uint8)


def _pack(red, green, blue) -> tf.Tensor:
    """Three (H, W) of whole numbers from 0 to 255, of any type."""
    red, green, blue = (tf.cast(c, tf.int32) for c in (red, green, blue))
    return red + green * (1 << 8) + blue * (1 << 16)


def _channels(x: tf.Tensor, dtype: tf.DType) -> list[tf.Tensor]:
    """Red, green and blue."""
    return [tf.cast(tf.bitwise.right_shift(x, 8 * k) & 255, dtype) for k in range(3)]


def resized_crop(image: tf.Tensor, crop: tf.Tensor, size: int) -> tf.Tensor:
    """The crop (top, left, height, width) of a (H, W, 3) uint8 image, antialiased bicubic, (size, size, 3) uint8.

    Pillow's arithmetic: the cubic's a is -0.5, whole levels after each axis, the width before the height (Pillow 13 takes
    the height of tall images first; the official results are older). It weighs in 22-bit fixed point, this in float32,
    which moves one value in ten thousand by a level.
    """
    return _levels(_resized(image, crop, size, size))


def _resized(image: tf.Tensor, crop: tf.Tensor, new_height, new_width, kernel: str = "keyscubic") -> tf.Tensor:
    """A crop resized, before its last rounding: (new_height, new_width, 3) float32."""
    height, width = crop[2], crop[3]
    x = tf.slice(image, [crop[0], crop[1], 0], [height, width, 3])
    # Transposed as matrices, several times faster than with a channel axis at the end.
    x = tf.transpose(tf.reshape(x, [height, width * 3]))
    x = _levels(_resized_rows(tf.reshape(x, [width, 3 * height]), new_width, kernel))
    x = tf.transpose(tf.reshape(x, [new_width * 3, height]))
    return tf.reshape(_resized_rows(x, new_height, kernel), [new_height, new_width, 3])


def _resized_rows(x: tf.Tensor, size: tf.Tensor, kernel: str) -> tf.Tensor:
    """(n, m) -> (size, m) float32. TensorFlow's kernel is fast along whole rows, and slow along columns of three."""
    scale = tf.stack([tf.cast(size, tf.float32) / tf.cast(tf.shape(x)[0], tf.float32), 1.0])
    x = tf.raw_ops.ScaleAndTranslate(
        images=x[None, :, None, :],
        size=[size, 1],
        scale=scale,
        translation=[0.0, 0.0],
        kernel_type=kernel,
        antialias=True,
    )
    return x[0, :, 0, :]


def adjust_brightness(x: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Pillow's ImageEnhance.Brightness: blends with black."""
    return _blended(tf.constant(0.0), x, factor)


def adjust_contrast(x: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Pillow's ImageEnhance.Contrast: blends with the mean grey, itself a whole level."""
    grey = luma(x)
    count = tf.size(grey)
    mean = (2 * tf.reduce_sum(grey) + count) // (2 * count)
    return _blended(tf.cast(mean, tf.float32), x, factor)


def adjust_saturation(x: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Pillow's ImageEnhance.Color: blends with the grey image."""
    return _blended(tf.cast(luma(x), tf.float32), x, factor)


def _blended(base: tf.Tensor, x: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Pillow's blend: base + factor·(x - base) in float32, clipped, then cut off rather than rounded.

    A compiler likes to make one operation, with one rounding, of a product and a sum. The maximum, which changes no
    number here, keeps them apart.
    """

    def blend(c):
        return tf.clip_by_value(base + tf.maximum(factor * (c - base), -1e9), 0.0, 255.0)

    return _pack(*map(blend, _channels(x, tf.float32)))


def adjust_hue(x: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """torchvision's adjust_hue: to Pillow's 8-bit HSV, the hue turned by a whole number of 1/256 turns, and back.

    The roundings are Pillow's C code's, step by step: floats, which C makes doubles where it adds a constant. A hue that
    lies on a level falls to this side or that by them.
    """
    r, g, b = _channels(x, tf.float32)
    high, low = tf.maximum(tf.maximum(r, g), b), tf.minimum(tf.minimum(r, g), b)
    chroma = high - low
    r_, g_, b_ = ((high - c) / tf.maximum(chroma, 1.0) for c in (r, g, b))
    r64, g64, b64 = (tf.cast(c, tf.float64) for c in (r_, g_, b_))
    sixths = tf.where(r == high, tf.cast(b_ - g_, tf.float64), tf.where(g == high, 2.0 + r64 - b64, 4.0 + g64 - r64))
    turns = tf.cast(tf.cast(sixths, tf.float32), tf.float64) / 6.0 + 1.0  # from 5/6 to 11/6
    turns = tf.cast(tf.where(turns >= 1.0, turns - 1.0, turns), tf.float32)
    level = tf.cast(tf.cast(turns, tf.float64) * 255.0, tf.int32)
    saturation = tf.cast(tf.cast(chroma / tf.maximum(high, 1.0), tf.float64) * 255.0, tf.int32)
    level = (
        level + tf.cast(shift * 255.0, tf.int32)
    ) & 255  # the shift cut off towards zero, as the cast to a byte does

    # In each of six sectors Pillow gives one channel `high`, one the darkest shade, and one a shade between, which falls
    # in odd sectors and rises in even ones.
    sector = 6 * level // 255  # 6 at level 255, which is 0
    f = tf.cast(6 * level - 255 * sector, tf.float32) / 255.0
    strength = tf.cast(saturation, tf.float32) / 255.0
    falling = tf.cast(strength * f, tf.float64)
    rising = tf.cast(strength, tf.float64) * (1.0 - tf.cast(f, tf.float64))
    high64 = tf.cast(high, tf.float64)

    def shade(fraction):
        return tf.cast(high64 * (1.0 - fraction) + 0.5, tf.int32)

    middle = shade(tf.where(sector & 1 > 0, falling, rising))
    dark = shade(tf.cast(strength, tf.float64))
    high = tf.cast(high, tf.int32)

    def channel(sloping, darkest):
        return tf.where(
            (sector == sloping[0]) | (sector == sloping[1]),
            middle,
            tf.where((sector == darkest[0]) | (sector == darkest[1]), dark, high),
        )

    sector = tf.where(sector == 6, 0, sector)
    return _pack(channel((1, 4), (2, 3)), channel((0, 3), (4, 5)), channel((2, 5), (0, 1)))


def luma(x: tf.Tensor) -> tf.Tensor:
    """(H, W) int32: ITU-R 601 grey in Pillow's 16-bit fixed point."""
    r, g, b = _channels(x, tf.int32)
    return tf.bitwise.right_shift(r * 19595 + g * 38470 + b * 7471 + 32768, 16)


def grayscale(x: tf.Tensor) -> tf.Tensor:
    """Grey in all three channels."""
    grey = luma(x)
    return _pack(grey, grey, grey)


def solarize(x: tf.Tensor) -> tf.Tensor:
    """Pillow's ImageOps.solarize: inverts what is 128 or more."""
    return _pack(*(tf.minimum(c, 255 - c) for c in _channels(x, tf.int32)))


def gaussian_blur(x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """Pillow's GaussianBlur of radius `sigma` ≤ 2.4: three box blurs of fractional radius along each axis.

    The boxes are at most five taps wide, weigh in 24-bit fixed point, round to a level and repeat the edge (Pillow's
    BoxBlur.c; Gwosdek et al. 2011).
    """
    inside, near, far = tf.unstack(_box(sigma))

    def blurred(x, axis):
        n = x.shape[axis]
        first, last = _cut(x, axis, 0, 1), _cut(x, axis, n - 1, n)
        wide = tf.concat([first, first, x, last, last], axis)
        taps = [tf.cast(_cut(wide, axis, k, k + n), tf.int32) for k in range(5)]
        total = taps[2] * inside + (taps[1] + taps[3]) * near + (taps[0] + taps[4]) * far
        # Past 2³¹ the sum wraps: the eight bits wanted are the same.
        return tf.cast(tf.bitwise.right_shift(total + (1 << 23), 24), tf.uint8)

    x = tf.stack(_channels(x, tf.uint8))
    for axis in (2, 1):
        # A loop, as XLA would otherwise make one expression of the passes and compute each pixel of the first many times.
        x = tf.while_loop(lambda i, _: i < 3, lambda i, x, axis=axis: (i + 1, blurred(x, axis)), (0, x))[1]
    return _pack(*tf.unstack(x))


def _cut(x: tf.Tensor, axis: int, begin: int, end: int) -> tf.Tensor:
    return x[:, begin:end] if axis == 1 else x[:, :, begin:end]


def _box(sigma: tf.Tensor) -> tf.Tensor:
    """(3,) int32: weights, in 2⁻²⁴, of a box's middle, of those beside it, and of the next (Gwosdek's eq. 7, 11, 14)."""
    variance = tf.square(tf.cast(sigma, tf.float64)) / 3
    whole = tf.floor((tf.sqrt(12 * variance + 1) - 1) / 2)  # 0 or 1
    rest = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    radius = tf.cast(whole + rest, tf.float32)
    inside = tf.cast(float(1 << 24) / (radius * 2 + 1), tf.int32)
    whole = tf.cast(radius, tf.int32)
    edge = ((1 << 24) - (2 * whole + 1) * inside) // 2
    return tf.where(whole > 0, tf.stack([inside, inside, edge]), tf.stack([inside, edge, 0]))


def evaluation_view(image: tf.Tensor, resize: int, size: int) -> tf.Tensor:
    """The image as evaluations look at it.

    Args:
      image: (H, W, 3) uint8.
      resize: the shorter side is resized to this (antialiased bilinear, as the official evaluate.py) and the centre is
        cut out; 0: the whole image is resized to the square, unless that is its size already.

    Returns:
      (size, size, 3) uint8.
    """
    shape = tf.shape(image)
    height, width = shape[0], shape[1]

    def resized(new_height, new_width):
        return _levels(_resized(image, tf.stack([0, 0, height, width]), new_height, new_width, "triangle"))

    if not resize:
        same = (height == size) & (width == size)
        return tf.ensure_shape(tf.cond(same, lambda: image, lambda: resized(size, size)), (size, size, 3))
    short = tf.minimum(height, width)
    new_height, new_width = resize * height // short, resize * width // short
    top, left = (tf.cast(tf.round(tf.cast(n - size, tf.float64) / 2), tf.int32) for n in (new_height, new_width))
    return tf.ensure_shape(resized(new_height, new_width)[top : top + size, left : left + size], (size, size, 3))


def on_canvas(image: tf.Tensor, side: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The image in the upper left corner of a black square, for views that are made on the device.

    Args:
      image: (H, W, 3) uint8; what is larger than the square is reduced to fit it (antialiased bicubic).

    Returns:
      (side, side, 3) uint8, and the height and width that the image has there, (2,) int32.
    """
    shape = tf.shape(image)
    longest = tf.maximum(tf.maximum(shape[0], shape[1]), side)
    size = tf.maximum((2 * shape[:2] * side + longest) // (2 * longest), 1)  # rounded
    whole = tf.stack([0, 0, shape[0], shape[1]])
    fits = longest == side
    image = tf.cond(fits, lambda: image, lambda: _levels(_resized(image, whole, size[0], size[1])))
    padded = tf.pad(image, [[0, side - size[0]], [0, side - size[1]], [0, 0]])
    return tf.ensure_shape(padded, (side, side, 3)), size


def _levels(x: tf.Tensor) -> tf.Tensor:
    """The nearest whole numbers from 0 to 255."""
    return tf.cast(tf.clip_by_value(x + 0.5, 0.0, 255.0), tf.uint8)
