"""Operations on an image in TensorFlow, level by level Pillow's and torchvision's (official main.py, class Transform).

An image enters and leaves as (H, W, 3) uint8. After the crop it is (H, W) int32, one word per pixel (`packed`), and XLA compiles
all that follows into one program: words take a quarter of the memory of float planes, and operations do not pass images
through TensorFlow.
"""

from collections.abc import Callable

from bt_jax.data.tensorflow_import import tf
from bt_jax.data.views.value_operations import Library


def packed(image: tf.Tensor) -> tf.Tensor:
    """(H, W, 3) uint8 -> (H, W) int32, one word per pixel: red in the lowest byte, then green, then blue."""
    return _pack(*tf.unstack(tf.cast(image, tf.int32), axis=-1))


def unpacked(x: tf.Tensor) -> tf.Tensor:
    """The inverse of `packed`."""
    return tf.cast(tf.bitwise.right_shift(x[..., None], [0, 8, 16]), tf.uint8)


def _pack(red, green, blue) -> tf.Tensor:
    """Three (H, W) of whole numbers from 0 to 255, of any type."""
    red, green, blue = (tf.cast(c, tf.int32) for c in (red, green, blue))
    return red + green * (1 << 8) + blue * (1 << 16)


def _channels(x: tf.Tensor, dtype: tf.DType) -> list[tf.Tensor]:
    """Red, green and blue."""
    return [tf.cast(tf.bitwise.right_shift(x, 8 * k) & 255, dtype) for k in range(3)]


_KERNELS = {"bicubic": "keyscubic", "bilinear": "triangle"}  # TensorFlow's names


def resized(image: tf.Tensor, crop: tf.Tensor, new_height, new_width, interpolation: str = "bicubic") -> tf.Tensor:
    """A crop resized with antialiasing, before its last rounding: (new_height, new_width, 3) float32.

    Pillow's arithmetic: the cubic's a is -0.5, whole levels after each axis, the width before the height (Pillow 13 takes
    the height of tall images first; the official results are older). It weighs in 22-bit fixed point, this in float32,
    which changes one value in ten thousand by a level.

    Args:
      image: (H, W, 3) uint8.
      crop: (4,) int32: top, left, height, width.
      interpolation: "bicubic" or "bilinear".
    """
    return _resized(image, crop, new_height, new_width, interpolation, levels)


def resized_values(
    image: tf.Tensor, crop: tf.Tensor, new_height, new_width, interpolation: str = "bicubic"
) -> tf.Tensor:
    """Like `resized`, without rounding in between, for levels (H, W, C) of any type and number of channels."""
    return _resized(image, crop, new_height, new_width, interpolation, lambda x: x)


def resized_window(
    image: tf.Tensor,
    new_height,
    new_width,
    window: tf.Tensor,
    interpolation: str = "bicubic",
    *,
    whole_levels: bool = True,
) -> tf.Tensor:
    """A window of the image as `resized` gives the whole of it, or with `whole_levels` false `resized_values`: (h, w, C) float32.

    Only what the window is made of is read, in float32 more exactly than in the whole, where places are larger numbers; it need
    not be the same to the last bit.

    Args:
      image: (H, W, C).
      window: (4,) int32: top, left, h, w in the image that is resized.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    rows = _taps(height, new_height, window[0], window[2], interpolation)
    columns = _taps(width, new_width, window[1], window[3], interpolation)
    crop = tf.stack([rows[0], columns[0], rows[1], columns[1]])
    rounded = levels if whole_levels else lambda x: x
    return _resized(image, crop, window[2], window[3], interpolation, rounded, rows[2:], columns[2:])


_RADIUS = {"bicubic": 2, "bilinear": 1}  # of the kernels, in pixels of the larger scale


def _taps(size, new_size, first, count, interpolation: str):
    """What `count` pixels from `first` on are made of, along an axis that is resized: (its first pixel, how many, the scale, and
    the translation between the two)."""
    inverse = tf.cast(size, tf.float64) / tf.cast(new_size, tf.float64)
    reach = _RADIUS[interpolation] * tf.maximum(inverse, 1.0) + 1.0
    begin = tf.cast(first, tf.float64) * inverse
    start = tf.cast(tf.maximum(tf.floor(begin - reach), 0.0), tf.int32)
    end = tf.math.ceil(begin + tf.cast(count, tf.float64) * inverse + reach)
    stop = tf.cast(tf.minimum(end, tf.cast(size, tf.float64)), tf.int32)
    translation = (tf.cast(start, tf.float64) - begin) / inverse
    return start, stop - start, tf.cast(1.0 / inverse, tf.float32), tf.cast(translation, tf.float32)


def _resized(image, crop, new_height, new_width, interpolation: str, rounded: Callable, rows=None, columns=None):
    """`rows` and `columns`: (scale, translation) of each axis, if the crop is not to fill the new image."""
    kernel, channels = _KERNELS[interpolation], image.shape[2]
    height, width = crop[2], crop[3]
    x = tf.slice(image, [crop[0], crop[1], 0], [height, width, channels])
    # Transposed as matrices, several times faster than with a channel axis at the end.
    x = tf.transpose(tf.reshape(x, [height, width * channels]))
    x = rounded(_resized_rows(tf.reshape(x, [width, channels * height]), new_width, kernel, columns))
    x = tf.transpose(tf.reshape(x, [new_width * channels, height]))
    return tf.reshape(_resized_rows(x, new_height, kernel, rows), [new_height, new_width, channels])


def _resized_rows(x: tf.Tensor, size: tf.Tensor, kernel: str, placed=None) -> tf.Tensor:
    """(n, m) -> (size, m) float32. TensorFlow's kernel is fast along whole rows, and slow along columns of three."""
    scale, translation = placed or (tf.cast(size, tf.float32) / tf.cast(tf.shape(x)[0], tf.float32), 0.0)
    x = tf.raw_ops.ScaleAndTranslate(
        images=x[None, :, None, :],
        size=[size, 1],
        scale=tf.stack([scale, 1.0]),
        translation=tf.stack([translation, 0.0]),
        kernel_type=kernel,
        antialias=True,
    )
    return x[0, :, 0, :]


def levels(x: tf.Tensor) -> tf.Tensor:
    """The nearest whole numbers from 0 to 255."""
    return tf.cast(tf.clip_by_value(x + 0.5, 0.0, 255.0), tf.uint8)


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
    """Pillow's blend: base + factor·(x - base) in float32, clipped, then truncated rather than rounded.

    Compilers like to fuse a product and a sum into one operation with one rounding. The maximum, which changes no number
    here, prevents that.
    """

    def blend(c):
        return tf.clip_by_value(base + tf.maximum(factor * (c - base), -1e9), 0.0, 255.0)

    return _pack(*map(blend, _channels(x, tf.float32)))


def adjust_hue(x: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """torchvision's adjust_hue: to Pillow's 8-bit HSV, the hue turned by a whole number of 1/256 turns, and back.

    The roundings are those of Pillow's C code, step by step: floats, which C promotes to doubles when it adds a constant.
    They decide to which side a hue on the border of two levels falls.
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
    # The shift is truncated towards zero, as by the cast to a byte.
    level = (level + tf.cast(shift * 255.0, tf.int32)) & 255

    # In each of six sectors Pillow gives one channel `high`, one the darkest shade, and one a shade between them, which
    # falls in odd sectors and rises in even ones.
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
    """Pillow's ImageOps.solarize: inverts levels of 128 and more."""
    return _pack(*(tf.minimum(c, 255 - c) for c in _channels(x, tf.int32)))


def gaussian_blur(x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """Pillow's GaussianBlur of radius `sigma` ≤ 2.4: three box blurs of fractional radius along each axis.

    The boxes are at most five taps wide, weigh in 24-bit fixed point, round to a level and repeat the edge (Pillow's
    BoxBlur.c; Gwosdek et al. 2011).
    """
    inside, near, far = tf.unstack(box_weights(sigma))

    def blurred(x, axis):
        n = x.shape[axis]
        first, last = _cut(x, axis, 0, 1), _cut(x, axis, n - 1, n)
        wide = tf.concat([first, first, x, last, last], axis)
        taps = [tf.cast(_cut(wide, axis, k, k + n), tf.int32) for k in range(5)]
        total = taps[2] * inside + (taps[1] + taps[3]) * near + (taps[0] + taps[4]) * far
        # Beyond 2³¹ the sum wraps; the eight bits that are wanted stay the same.
        return tf.cast(tf.bitwise.right_shift(total + (1 << 23), 24), tf.uint8)

    x = tf.stack(_channels(x, tf.uint8))
    for axis in (2, 1):
        # A loop, as XLA would otherwise fuse the passes and compute each pixel of the first many times.
        x = tf.while_loop(lambda i, _: i < 3, lambda i, x, axis=axis: (i + 1, blurred(x, axis)), (0, x))[1]
    return _pack(*tf.unstack(x))


def _cut(x: tf.Tensor, axis: int, begin: int, end: int) -> tf.Tensor:
    return x[:, begin:end] if axis == 1 else x[:, :, begin:end]


def box_weights(sigma: tf.Tensor) -> tf.Tensor:
    """(3,) int32: weights, in 2⁻²⁴, of a box's middle tap, its neighbours, and the next ones (Gwosdek's eq. 7, 11, 14)."""
    variance = tf.square(tf.cast(sigma, tf.float64)) / 3
    whole = tf.floor((tf.sqrt(12 * variance + 1) - 1) / 2)  # 0 or 1
    rest = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    radius = tf.cast(whole + rest, tf.float32)
    inside = tf.cast(float(1 << 24) / (radius * 2 + 1), tf.int32)
    whole = tf.cast(radius, tf.int32)
    edge = ((1 << 24) - (2 * whole + 1) * inside) // 2
    return tf.where(whole > 0, tf.stack([inside, inside, edge]), tf.stack([inside, edge, 0]))


def _repeat(times: int, function: Callable, x: tf.Tensor) -> tf.Tensor:
    return tf.while_loop(lambda i, _: i < times, lambda i, x: (i + 1, function(x)), (0, x))[1]


# For images that are not photographs.
VALUES = Library(
    of=tf,
    mean=lambda x, axes: tf.reduce_mean(x, axes, keepdims=True),
    clip=tf.clip_by_value,
    concat=tf.concat,
    repeat=_repeat,
)
