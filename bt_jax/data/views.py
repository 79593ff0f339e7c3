"""Host augmentation in TensorFlow ops: the paper's two asymmetric views, and the evaluation view.

The arithmetic is Pillow's and torchvision's, level by level (official main.py, class Transform). Drawing parameters
(`sample_view`) is separate from applying them (`apply_view`), so that the same parameters can be tried on another
implementation. Inside, an image is three planes, (3, H, W) float32 holding whole numbers from 0 to 255: operations on
colours then run over whole planes, several times faster than over pixels of three. It enters and leaves as (H, W, 3) uint8.
"""

import dataclasses
import math
from typing import NamedTuple

from bt_jax.data.tensorflow_import import tf


@dataclasses.dataclass(frozen=True)
class ViewSpec:
    """The distribution of one view. Unless said otherwise a number is a probability; the defaults are view A's."""

    crop_scale: tuple[float, float] = (0.08, 1.0)  # area over the image's
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4  # the factor is uniform in 1 ∓ this; likewise contrast and saturation
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1  # the shift is uniform in ∓ this, in turns
    grayscale: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    solarize: float = 0.0


VIEW_A = ViewSpec()
VIEW_B = ViewSpec(blur=0.1, solarize=0.2)


class ViewParameters(NamedTuple):
    """One draw of a view; scalars but for `crop` and `order`."""

    crop: tf.Tensor  # (4,) int32: top, left, height, width
    flip: tf.Tensor  # bool, as are jitter, grayscale, blur and solarize
    jitter: tf.Tensor
    order: tf.Tensor  # (4,) int32: the order of brightness 0, contrast 1, saturation 2 and hue 3
    brightness: tf.Tensor  # float32 factors
    contrast: tf.Tensor
    saturation: tf.Tensor
    hue: tf.Tensor  # float32 shift, in turns
    grayscale: tf.Tensor
    blur: tf.Tensor
    sigma: tf.Tensor  # float32, pixels
    solarize: tf.Tensor


_TRIES = 10
_UNIFORMS = 2 * _TRIES + 16


def sample_view(seed: tf.Tensor, height: tf.Tensor, width: tf.Tensor, spec: ViewSpec) -> ViewParameters:
    """Draws a view of an image of this size; a pure function of its arguments.

    Args:
      seed: (2,) int64.
    """
    # Philox is named because the default algorithm may differ between kinds of device.
    u = tf.random.stateless_uniform([_UNIFORMS], seed, dtype=tf.float32, alg="philox")
    tries, u = u[: 2 * _TRIES], tf.unstack(u[2 * _TRIES :])

    def between(uniform, low, high):
        return low + uniform * (high - low)

    def factor(uniform, strength):
        return between(uniform, max(0.0, 1 - strength), 1 + strength)

    return ViewParameters(
        crop=crop_from_uniforms(tries[:_TRIES], tries[_TRIES:], u[0], u[1], height, width, spec),
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
    p = parameters
    x = resized_crop(image, p.crop, size)
    x = tf.cond(p.flip, lambda: tf.reverse(x, [2]), lambda: x)
    x = tf.cond(p.jitter, lambda: _jitter(x, p), lambda: x)
    x = tf.cond(p.grayscale, lambda: grayscale(x), lambda: x)
    x = tf.cond(p.blur, lambda: gaussian_blur(x, p.sigma), lambda: x)
    x = tf.cond(p.solarize, lambda: solarize(x), lambda: x)
    return tf.transpose(tf.cast(x, tf.uint8), [1, 2, 0])


def _jitter(x: tf.Tensor, p: ViewParameters) -> tf.Tensor:
    for place in range(4):
        x = tf.switch_case(
            p.order[place],
            [
                lambda x=x: adjust_brightness(x, p.brightness),
                lambda x=x: adjust_contrast(x, p.contrast),
                lambda x=x: adjust_saturation(x, p.saturation),
                lambda x=x: adjust_hue(x, p.hue),
            ],
        )
    return x


def planes(image: tf.Tensor) -> tf.Tensor:
    """(H, W, 3) of any type -> (3, H, W) float32."""
    return tf.transpose(tf.cast(image, tf.float32), [2, 0, 1])


def resized_crop(image: tf.Tensor, crop: tf.Tensor, size: int) -> tf.Tensor:
    """The crop (top, left, height, width) of a (H, W, 3) uint8 image as planes of (size, size), antialiased bicubic.

    The cubic's a is -0.5. Pillow rounds between its two passes, this only at the end: at most a level or two apart.
    """
    part = image[crop[0] : crop[0] + crop[2], crop[1] : crop[1] + crop[3]]
    return _levels(planes(tf.image.resize(part, (size, size), method="bicubic", antialias=True)))


def adjust_brightness(x: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Pillow's ImageEnhance.Brightness: blends with black."""
    return _truncated(x * factor)


def adjust_contrast(x: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Pillow's ImageEnhance.Contrast: blends with the mean grey, itself a whole level."""
    # The sum of 50 176 levels passes what float32 counts exactly.
    mean = tf.cast(tf.floor(tf.reduce_mean(tf.cast(luma(x), tf.float64)) + 0.5), tf.float32)
    return _truncated(mean + factor * (x - mean))


def adjust_saturation(x: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Pillow's ImageEnhance.Color: blends with the grey image."""
    grey = luma(x)
    return _truncated(grey + factor * (x - grey))


def adjust_hue(x: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """torchvision's adjust_hue: to Pillow's 8-bit HSV, the hue turned by a whole number of 1/256 turns, and back."""
    r, g, b = tf.unstack(x)
    high, low = tf.maximum(tf.maximum(r, g), b), tf.minimum(tf.minimum(r, g), b)
    chroma = high - low
    # The roundings are Pillow's C code's, step by step: floats, with the turn itself in doubles. A hue that lies on a level
    # falls to this side or that by them.
    chroma_or_1 = tf.maximum(chroma, 1.0)
    r_, g_, b_ = ((high - c) / chroma_or_1 for c in (r, g, b))
    sixths = tf.where(r == high, b_ - g_, tf.where(g == high, 2.0 + r_ - b_, 4.0 + g_ - r_))
    turns = tf.cast(sixths, tf.float64) / 6.0 + 1.0  # from 5/6 to 11/6: less one where that leaves a turn
    turns = tf.cast(tf.where(turns >= 1.0, turns - 1.0, turns), tf.float32)
    level = tf.cast(tf.floor(tf.cast(turns, tf.float64) * 255.0), tf.float32)
    saturation = tf.cast(tf.floor(tf.cast(chroma / tf.maximum(high, 1.0), tf.float64) * 255.0), tf.float32)
    turn = tf.cast(tf.cast(shift * 255.0, tf.int32), tf.float32)  # towards zero, as the cast to an unsigned byte
    level += turn
    level = tf.where(level < 0.0, level + 256.0, tf.where(level >= 256.0, level - 256.0, level))

    sixth = level * (6.0 / 255.0)
    strength = saturation / 255.0
    # In each of six sectors Pillow gives one channel `high`, one the darkest shade, and one a shade between, which falls
    # in odd sectors and rises in even ones.
    sector = tf.floor(sixth + 1e-6)
    f = sixth - sector
    sector = tf.where(sector >= 6.0, sector - 6.0, sector)
    odd = tf.math.floormod(sector, 2.0) > 0.0
    slope = tf.where(odd, f, 1.0 - f)  # the one fraction of a sector that is neither 0 nor 1

    def shade(fraction):
        return tf.floor(high * (1.0 - strength * fraction) + 0.5)

    middle, dark = shade(slope), shade(1.0)
    is_in = [sector == float(k) for k in range(6)]

    def channel(sloping, darkest):
        return tf.where(
            is_in[sloping[0]] | is_in[sloping[1]],
            middle,
            tf.where(is_in[darkest[0]] | is_in[darkest[1]], dark, high),
        )

    return tf.stack([channel((1, 4), (2, 3)), channel((0, 3), (4, 5)), channel((2, 5), (0, 1))])


def luma(x: tf.Tensor) -> tf.Tensor:
    """(H, W): ITU-R 601 grey in Pillow's 16-bit fixed point. Every sum is below 2²⁴, so float32 holds it exactly."""
    r, g, b = tf.unstack(x)
    return tf.floor((r * 19595.0 + g * 38470.0 + b * 7471.0 + 32768.0) * (1.0 / 65536.0))


def grayscale(x: tf.Tensor) -> tf.Tensor:
    """Three equal planes of grey."""
    grey = luma(x)
    return tf.stack([grey, grey, grey])


def solarize(x: tf.Tensor) -> tf.Tensor:
    """Pillow's ImageOps.solarize: inverts what is 128 or more."""
    return tf.minimum(x, 255.0 - x)


def gaussian_blur(x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """Pillow's GaussianBlur of radius `sigma` ≤ 2: along each axis three box blurs of fractional radius.

    The three boxes are one kernel of 13 taps here, a product with a banded matrix; Pillow rounds between them, which
    differs by a level at most, and extends the edge before each, which differs only within six pixels of it.
    """
    kernel = _blur_kernel(sigma)
    height, width = tf.shape(x)[1], tf.shape(x)[2]
    x = tf.concat([tf.repeat(x[:, :1], _REACH, 1), x, tf.repeat(x[:, -1:], _REACH, 1)], 1)
    x = _levels(tf.matmul(_band(kernel, height), x))
    x = tf.concat([tf.repeat(x[:, :, :1], _REACH, 2), x, tf.repeat(x[:, :, -1:], _REACH, 2)], 2)
    return _levels(tf.matmul(x, _band(kernel, width), transpose_b=True))


_REACH = 6  # three boxes of at most five taps


def _blur_kernel(sigma: tf.Tensor) -> tf.Tensor:
    """(13,) float32: Pillow's box (Gwosdek et al. 2011, equations 7, 11 and 14) with itself, three times."""
    variance = sigma * sigma / 3.0
    length = tf.sqrt(12.0 * variance + 1.0)
    radius = tf.floor((length - 1.0) / 2.0)  # 0 or 1
    fraction = (2 * radius + 1) * (radius * (radius + 1) - 3 * variance) / (6 * (variance - (radius + 1) ** 2))
    inside = 1.0 / (2 * (radius + fraction) + 1)
    edge = (1.0 - (2 * radius + 1) * inside) / 2.0
    near = tf.where(radius > 0, inside, edge)
    far = tf.where(radius > 0, edge, 0.0)
    box = tf.reshape(tf.stack([far, near, inside, near, far]), [5, 1, 1])
    kernel = tf.reshape(box, [1, 5, 1])
    for _ in range(2):
        kernel = tf.nn.conv1d(tf.pad(kernel, [[0, 0], [4, 4], [0, 0]]), box, stride=1, padding="VALID")
    return tf.reshape(kernel, [2 * _REACH + 1])


def _band(kernel: tf.Tensor, n: tf.Tensor) -> tf.Tensor:
    """(n, n + 12): row i holds the kernel from column i on, the same numbers, one further in each row."""
    row = tf.pad(kernel, [[0, n]])  # as long as a row and one more
    return tf.reshape(tf.tile(row, [n])[: n * (n + 2 * _REACH)], [n, n + 2 * _REACH])


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
    if not resize:
        same = (height == size) & (width == size)
        return tf.ensure_shape(
            tf.cond(same, lambda: image, lambda: _resize_bilinear(image, size, size)), (size, size, 3)
        )
    short = tf.minimum(height, width)
    new_height, new_width = resize * height // short, resize * width // short
    image = _resize_bilinear(image, new_height, new_width)
    top, left = (tf.cast(tf.round(tf.cast(n - size, tf.float64) / 2), tf.int32) for n in (new_height, new_width))
    return tf.ensure_shape(image[top : top + size, left : left + size], (size, size, 3))


def _resize_bilinear(image: tf.Tensor, height, width) -> tf.Tensor:
    return tf.cast(_levels(tf.image.resize(image, (height, width), method="bilinear", antialias=True)), tf.uint8)


def _levels(x: tf.Tensor) -> tf.Tensor:
    """The nearest whole numbers from 0 to 255."""
    return tf.clip_by_value(tf.floor(x + 0.5), 0.0, 255.0)


def _truncated(x: tf.Tensor) -> tf.Tensor:
    """Pillow's blend: clipped, then cut off rather than rounded."""
    return tf.floor(tf.clip_by_value(x, 0.0, 255.0))
