"""What is drawn from each image: groups of views, their distributions, and single draws; shared by host and device."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bt_jax.errors import UserError
from bt_jax.pixels import PHOTOGRAPHS, Pixels

INTERPOLATIONS = ("bicubic", "bilinear")


@dataclasses.dataclass(frozen=True)
class ViewSpec:
    """The distribution of one view. Unless said otherwise a number is a probability; the defaults are the paper's view A."""

    crop_scale: tuple[float, float] = (0.08, 1.0)  # area over the image's
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height
    flip: float = 0.5
    quarter_turns: float = 0.0  # one, two or three of them
    jitter: float = 0.8
    brightness: float = 0.4  # the factor is uniform in 1 ∓ this; likewise contrast and saturation
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1  # the shift is uniform in ∓ this, in turns
    grayscale: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    solarize: float = 0.0
    drop_bands: float = 0.0  # for each channel; one always stays
    interpolation: str = "bicubic"  # of the crop's resizing (antialiased), or "bilinear"

    def __post_init__(self):
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):  # may be lists from a file; a spec must be hashable
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def draws_more(self) -> bool:
        """Whether it takes random numbers besides the `UNIFORMS` of every draw."""
        return self.quarter_turns > 0 or self.drop_bands > 0

    def described(self) -> str:
        """What is drawn, in words: `crop and flip`, or `crop, flip, colours, grey and blur`."""
        colours = self.jitter * max(self.brightness, self.contrast, self.saturation, self.hue)
        drawn = {
            "flip": self.flip, "turn": self.quarter_turns, "colours": colours, "grey": self.grayscale, "blur": self.blur,
            "solarise": self.solarize, "dropped bands": self.drop_bands,
        }  # fmt: skip
        *first, last = ["crop", *(name for name, chance in drawn.items() if chance > 0)]
        return f"{', '.join(first)} and {last}" if first else last

    def without_colours(self) -> "ViewSpec":
        """Without what only images of red, green and blue can have."""
        return dataclasses.replace(self, saturation=0.0, hue=0.0, grayscale=0.0)


# The two of Barlow Twins and BYOL (Zbontar et al. 2021, appendix A).
VIEW_A = ViewSpec()
VIEW_B = ViewSpec(blur=0.1, solarize=0.2)


@dataclasses.dataclass(frozen=True)
class Jigsaw:
    """The patches of one crop: a window in each cell of a grid, in a random order.

    The crop is resized to grid·cell pixels per side; a window lies at a random place in its cell; each patch has its own flip
    and colours. A window that is `room` pixels smaller than its cell starts at 0 to room - 1, never at the last place, as in vissl
    (`numpy.random.randint(0, 21)` for windows of 64 in cells of 85). At 224 pixels the windows are 64 wide and the cells 85; other sizes keep the proportions (64 pixels: cells of
    21, windows of 16; 32 pixels: 11 and 8).

    Source: Misra and van der Maaten 2020, arXiv 1912.01991, section 3.1; vissl's `ImgPilToPatchesAndImage` and
    `ImgPatchesFromTensor`.

    Attributes:
      view: its crop_scale, crop_ratio and interpolation are for the crop; the rest is for each patch.
      cell: side of a cell in pixels, at least that of a window.
      grid: cells per side.
    """

    view: ViewSpec = ViewSpec(crop_scale=(0.6, 1.0))
    cell: int = 85
    grid: int = 3


_GROUPS = 64  # of a batch
_VIEWS = 512  # draws of a group; a jigsaw takes two besides those of its patches
MAX_VIEWS = _VIEWS - 2


@dataclasses.dataclass(frozen=True)
class ViewGroup:
    """Views of one size: (N, V, S, S, C) in a batch, under the group's name.

    Attributes:
      name: a Python identifier.
      draws: a distribution for each view, or a jigsaw.
      size: side of a view in pixels, S.
      pixels: says what C is, and the type: uint8 or uint16.
    """

    name: str
    draws: tuple[ViewSpec, ...] | Jigsaw
    size: int
    pixels: Pixels = PHOTOGRAPHS

    def __post_init__(self):
        """Raises UserError for a group that cannot be drawn."""
        if not (isinstance(self.name, str) and self.name.isidentifier()):
            raise UserError(
                f"a view group is called {self.name!r}; its name must be a Python identifier, such as 'global'."
            )
        if self.size < 1:
            raise UserError(f"the views of group {self.name!r} are {self.size} pixels wide; they must be at least 1.")
        if isinstance(self.draws, Jigsaw):
            if self.draws.grid < 1 or self.draws.cell < self.size:
                raise UserError(
                    f"the jigsaw of view group {self.name!r} has {self.draws.grid} × {self.draws.grid} cells of "
                    f"{self.draws.cell} pixels for windows of {self.size}; it needs at least one, as wide as a window."
                )
        else:
            object.__setattr__(self, "draws", tuple(self.draws))
        if not 1 <= self.num_views <= MAX_VIEWS:
            raise UserError(
                f"view group {self.name!r} has {self.num_views or 'no'} draws; it must have 1 to {MAX_VIEWS}."
            )
        for spec in self.specs:
            if spec.interpolation not in INTERPOLATIONS:
                raise UserError(
                    f"a view of group {self.name!r} has the interpolation {spec.interpolation!r}; "
                    f"it must be {' or '.join(INTERPOLATIONS)}."
                )
            self._check_colours(spec)

    def _check_colours(self, spec: ViewSpec) -> None:
        if self.pixels.channels == 3:
            return
        changed = {"saturation": spec.jitter and spec.saturation, "hue": spec.jitter and spec.hue}
        wrong = {name: value for name, value in (changed | {"grayscale": spec.grayscale}).items() if value}
        if wrong:
            found = " and ".join(f"{name} {value:g}" for name, value in wrong.items())
            raise UserError(
                f"a view of group {self.name!r} has {found}, which only images of red, green and blue can have, and data.channels is "
                f"{self.pixels.channels}; set {'it' if len(wrong) == 1 else 'them'} to 0, or begin with configs/channels.py."
            )

    @property
    def num_views(self) -> int:
        """V."""
        return self.draws.grid**2 if isinstance(self.draws, Jigsaw) else len(self.draws)

    @property
    def specs(self) -> tuple[ViewSpec, ...]:
        """The distributions that occur."""
        return (self.draws.view,) if isinstance(self.draws, Jigsaw) else self.draws

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of an image's views, (V, S, S, C)."""
        return (self.num_views, self.size, self.size, self.pixels.channels)


def check_groups(groups: Sequence[ViewGroup]) -> tuple[ViewGroup, ...]:
    """The groups, as a tuple.

    Raises:
      UserError: there is none, or two have the same name.
    """
    names = [group.name for group in groups]
    if not 1 <= len(names) <= _GROUPS:
        raise UserError(f"there are {len(names) or 'no'} view groups; a batch has 1 to {_GROUPS}.")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two view groups are called {twice!r}; rename one of them.")
    return tuple(groups)


def group_named(groups: Sequence[ViewGroup], name: str) -> ViewGroup:
    """The group of that name.

    Raises:
      UserError: there is none.
    """
    for group in groups:
        if group.name == name:
            return group
    known = ", ".join(repr(group.name) for group in groups)
    raise UserError(f"there is no view group {name!r}; the groups of a batch are {known}.")


def batch_spec(groups: Sequence[ViewGroup], batch_size: int, sharding: Any = None) -> dict[str, Any]:
    """A batch's shapes and types on the devices.

    Args:
      sharding: of all of it, as `runtime.mesh.over_batch` gives it; None where it does not matter.

    Returns:
      {"views": {group: (N, V, S, S, C) uint8 or uint16}, "label": (N,) int32, "example": (N,) int32}, as jax.ShapeDtypeStruct.

    Raises:
      UserError: as `check_groups`.
    """

    def struct(shape, dtype):
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)

    views = {group.name: struct(group.shape, group.pixels.dtype) for group in check_groups(groups)}
    return {"views": views, "label": struct((), np.int32), "example": struct((), np.int32)}


class ViewParameters(NamedTuple):
    """One draw of a view: scalars except for `crop` and `order`. On the device each has an axis of images in front."""

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
    turns: Any = None  # int32, quarter turns; None: none are drawn
    dropped: Any = None  # (C,) bool; None likewise


class JigsawParameters(NamedTuple):
    """One draw of a jigsaw."""

    crop: Any  # (4,) int32, in the image
    patches: Any  # a ViewParameters per patch, in the order of the views; `crop` is a window of the resized crop


CROP_TRIES = 10  # of torchvision's RandomResizedCrop
UNIFORMS = 2 * CROP_TRIES + 16  # random numbers in a draw
MORE = 2  # besides those for `turns`, one per channel for `dropped`: of a draw with a number of its own, `more_of`


def draw_number(group: int, view: int) -> int:
    """The number of a draw among all draws of an image, from the places of its group and view, counted from 0.

    Adding a view, or a group after the others, does not change the numbers of the other draws.

    Args:
      view: its place in the group; the places after the last view are for what the views share.
    """
    return group * _VIEWS + view


def more_of(draw: int) -> int:
    """The number of the draw of what only some views have (`ViewSpec.draws_more`), from the number of the view's draw."""
    return draw + _GROUPS * _VIEWS


def canvas_side(config: ConfigDict) -> int:
    """Side of the square on which a device receives an image: `canvas_size`, by default 16/7 of a view's side, 512 for 224."""
    return config.canvas_size or config.image_size * 16 // 7
