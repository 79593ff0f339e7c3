"""The distribution of a view and one draw of it: what the host's views (views.py) and the device's (device_views.py) share."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict


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
    """One draw of a view; scalars but for `crop` and `order`. On the device each has an axis of images in front."""

    crop: Any  # (4,) int32: top, left, height, width
    flip: Any  # bool, as are jitter, grayscale, blur and solarize
    jitter: Any
    order: Any  # (4,) int32: the order of brightness 0, contrast 1, saturation 2 and hue 3
    brightness: Any  # float32 factors
    contrast: Any
    saturation: Any
    hue: Any  # float32 shift, in turns
    grayscale: Any
    blur: Any
    sigma: Any  # float32, pixels
    solarize: Any


CROP_TRIES = 10  # of torchvision's RandomResizedCrop
UNIFORMS = 2 * CROP_TRIES + 16  # random numbers that a draw takes


def canvas_side(config: ConfigDict) -> int:
    """Side of the square on which the device is given an image: `canvas_size`, by default 16/7 of a view's, 512 for 224."""
    return config.canvas_size or config.image_size * 16 // 7


PAIR = ("view_a", "view_b")  # the fields of `config.data` that say how pre-training's views are drawn


def kernel_of(views: Sequence[str]) -> str:
    """How crops are resized: bicubic for pre-training (official main.py), bilinear for supervised training (evaluate.py)."""
    return "keyscubic" if tuple(views) == PAIR else "triangle"
