"""Operations on images of any number of channels and any depth: floats from 0 to 1 in the range of their values.

For what is not a photograph, in place of host_operations.py and device_operations.py, and with the same meaning: there levels are
rounded after each operation, as Pillow rounds them, here never before the end. They are written once for TensorFlow and JAX:
images are (…, H, W, C), and a parameter is a number for an image, or has its axes with H, W and C of length 1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

Array = Any

_GREY = (0.299, 0.587, 0.114)  # ITU-R 601


@dataclasses.dataclass(frozen=True)
class Library:
    """TensorFlow or JAX: what both have by the same name, and what they name differently.

    Attributes:
      of: the module.
      mean: (x, axes), which keeps the axes.
      clip: (x, low, high).
      concat: (arrays, axis).
      repeat: (times, function, x): a loop, as XLA would otherwise merge the passes and compute each pixel of the first many times.
    """

    of: Any
    mean: Callable[..., Array]
    clip: Callable[..., Array]
    concat: Callable[..., Array]
    repeat: Callable[..., Array]


def adjust_brightness(lib: Library, x: Array, factor: Array) -> Array:
    """Blends with the low end of the range."""
    return lib.clip(x * factor, 0.0, 1.0)


def adjust_contrast(lib: Library, x: Array, factor: Array) -> Array:
    """Blends with the mean: of the grey image, or where there is none of each channel."""
    base = lib.mean(luma(x) if x.shape[-1] == 3 else x, (-3, -2))
    return lib.clip(base + factor * (x - base), 0.0, 1.0)


def adjust_saturation(lib: Library, x: Array, factor: Array) -> Array:
    """Blends with the grey image; C is 3."""
    base = luma(x)
    return lib.clip(base + factor * (x - base), 0.0, 1.0)


def adjust_hue(lib: Library, x: Array, shift: Array) -> Array:
    """To HSV, the hue turned by `shift` turns, and back; C is 3.

    Back by the closed form v - v·s·max(0, min(k, 4 - k, 1)), k = (n + 6·hue) mod 6, n = 5, 3, 1 for red, green and blue.
    """
    xp = lib.of
    r, g, b = (x[..., c : c + 1] for c in range(3))
    high, low = xp.maximum(xp.maximum(r, g), b), xp.minimum(xp.minimum(r, g), b)
    chroma = high - low
    divisor = xp.where(chroma > 0, chroma, xp.ones_like(chroma))
    sixths = xp.where(
        r == high, (g - b) / divisor, xp.where(g == high, 2.0 + (b - r) / divisor, 4.0 + (r - g) / divisor)
    )
    sixths = sixths + 6.0 * shift

    def channel(n):
        k = sixths + n
        k = k - 6.0 * xp.floor(k / 6.0)
        return high - chroma * lib.clip(xp.minimum(k, 4.0 - k), 0.0, 1.0)

    return lib.concat([channel(5.0), channel(3.0), channel(1.0)], -1)


def grayscale(lib: Library, x: Array) -> Array:
    """The grey image in all channels; C is 3."""
    return lib.concat([luma(x)] * 3, -1)


def luma(x: Array) -> Array:
    """(…, H, W, 1): ITU-R 601 grey of (…, H, W, 3)."""
    return sum(weight * x[..., c : c + 1] for c, weight in enumerate(_GREY))


def solarize(lib: Library, x: Array) -> Array:
    """Inverts the upper half of the range."""
    return lib.of.minimum(x, 1.0 - x)


def gaussian_blur(lib: Library, x: Array, weights: tuple[Array, Array, Array]) -> Array:
    """Pillow's GaussianBlur: three box blurs of fractional radius along each axis, edges repeated.

    Args:
      weights: of a box's middle tap, of those next to it, and of the next, which together are 1.
    """
    inside, near, far = weights

    def blurred(x, axis):
        def cut(x, begin, end):
            return x[..., begin:end, :, :] if axis == -3 else x[..., begin:end, :]

        n = x.shape[axis]
        first, last = cut(x, 0, 1), cut(x, n - 1, n)
        wide = lib.concat([first, first, x, last, last], axis)
        taps = [cut(wide, k, k + n) for k in range(5)]
        return taps[2] * inside + (taps[1] + taps[3]) * near + (taps[0] + taps[4]) * far

    for axis in (-2, -3):
        x = lib.repeat(3, lambda x, axis=axis: blurred(x, axis), x)
    return x
