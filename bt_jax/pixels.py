"""What the pixels of images are: their channels, and how their values become the levels that a network is given."""

import dataclasses
from typing import Any

import numpy as np

_BLOCK = 2**24  # values that are converted at once
_PICTURE_STDS = 2.5  # of a channel, to either side of its mean, are shown


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Images (H, W, C) are kept as levels, whole numbers from 0 to `top`.

    Without a declared range their values are levels already, of 8 bits, as in photographs. With one they may be any numbers, such
    as 16-bit, signed or float ones; their levels have 16 bits, from 0 at the low end of the range to 65535 at the high end.

    Attributes:
      channels: C.
      range: () for 8 bits; or the low and the high end of all channels, or of each in turn, 2·C numbers.
    """

    channels: int = 3
    range: tuple[float, ...] = ()

    @classmethod
    def of(cls, data: Any) -> "Pixels":
        """From a run's `config.data`."""
        return cls(data.channels, tuple(float(end) for end in data.range))

    @property
    def dtype(self) -> np.dtype:
        """Of levels: uint8 or uint16."""
        return np.dtype(np.uint16 if self.range else np.uint8)

    @property
    def top(self) -> int:
        """The highest level, 255 or 65535."""
        return int(np.iinfo(self.dtype).max)

    @property
    def are_photographs(self) -> bool:
        """Whether they are red, green and blue of 8 bits: then all arithmetic is Pillow's."""
        return self.channels == 3 and not self.range

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The low and the high end of each channel, (C,) float64."""
        ends = np.array(self.range or (0, 255), np.float64).reshape(-1, 2)
        low, high = np.broadcast_to(ends, (self.channels, 2)).T
        return low, high

    def levels(self, values: np.ndarray) -> np.ndarray:
        """The levels of values (…, C); those outside the range are taken as its ends.

        Raises:
          ValueError: in words for a sentence: another number of channels, NaN or infinite values, what is no real number, or, where no range is
            declared, not uint8.
        """
        self._check(values)
        if not self.range or (values.dtype == np.uint16 and self.range == (0, self.top)):
            return values
        low, high = self.ends
        exact = np.float32 if values.dtype.itemsize <= 2 else np.float64
        scale, shift = (self.top / (high - low)).astype(exact), low.astype(exact)
        flat, step = values.reshape(-1, self.channels), max(1, _BLOCK // self.channels)
        found = np.empty(flat.shape, np.uint16)
        for start in range(0, len(flat), step):
            part = flat[start : start + step]
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                raise ValueError(
                    f"{np.sum(~np.isfinite(flat))} of its {flat.size} values are NaN or infinite; replace them"
                )
            found[start : start + step] = np.clip((part.astype(exact) - shift) * scale + 0.5, 0, self.top)
        return found.reshape(values.shape)

    def _check(self, values: np.ndarray) -> None:
        if values.ndim < 1 or values.shape[-1] != self.channels:
            channels = values.shape[-1] if values.ndim else 0
            raise ValueError(f"it has {channels} channel{'s' * (channels != 1)}, but data.channels is {self.channels}")
        if values.dtype.kind not in "uifb":
            raise ValueError(f"its values are {values.dtype}; they must be real numbers")
        if not self.range and values.dtype != np.uint8:
            raise ValueError(
                f"its values are {values.dtype}, but without data.range images have 8 bits; declare their range, "
                "which --config.task=statistics finds"
            )

    def outside(self, values: np.ndarray) -> float:
        """The share of values (…, C) that lie outside the range."""
        low, high = self.ends
        return float(np.mean((values < low) | (values > high))) if values.size else 0.0

    @property
    def pictured(self) -> str:
        """How `picture` shows them, in a sentence; "" for photographs."""
        if self.are_photographs:
            return ""
        which = f"Of {self.channels} channels the first three are shown as red, green and blue"
        which = "Two channels are shown as red and green" if self.channels == 2 else which
        which = {1: "The channel is shown as grey", 3: "The channels are shown as red, green and blue"}.get(
            self.channels, which
        )
        reach = f", from {_PICTURE_STDS:g} standard deviations below the mean to as many above" if self.range else ""
        return f"{which}{reach}."

    def picture(self, levels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
        """Something to look at, (…, 3) uint8, of levels (…, C).

        Photographs stay as they are. One channel is shown as grey, of several the first three as red, green and blue. Values with a
        declared range, of which images often fill a small part, are shown from 2.5 standard deviations below a channel's mean to as
        many above.

        Args:
          mean, std: (C,) each, of the set, on a scale of 0 to 1.
        """
        if self.are_photographs:
            return levels
        x = levels[..., :3].astype(np.float32) / self.top
        if self.range:
            x = 0.5 + (x - np.asarray(mean[:3], np.float32)) / (2 * _PICTURE_STDS * np.asarray(std[:3], np.float32))
        x = np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)
        return x if x.shape[-1] == 3 else np.concatenate([x, np.repeat(x[..., -1:], 3 - x.shape[-1], axis=-1)], axis=-1)


PHOTOGRAPHS = Pixels()
