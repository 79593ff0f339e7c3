"""What the values of images are, channel by channel, and which range to declare for them."""

import collections
import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from bt_jax.errors import UserError, some
from bt_jax.pixels import Pixels

_SAMPLE = 2**21  # pixels, of which quantiles, means and deviations are taken
_TAIL = 0.001  # of the values, at either end, may lie outside a range
_FAR = 20.0  # times the width of another channel's range: then each channel has its own


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of the values of images.

    Attributes:
      images: how many were looked at and could be used.
      channels: C.
      kinds: the types of their values, and the sizes (H, W), the most frequent first.
      lowest, highest: of each channel, (C,) float64.
      low, high: its quantiles at a thousandth from either end.
      constant: the channels with a single value.
      not_finite: how many values are not, by the places of the images that have some.
      taken_as_rgb: how many are grey, or have alpha besides, which training takes as red, green and blue, as it is done here.
      others: the places of images with another number of channels.
      unusable: the places of images without values, and why.
      range: as for `data.range`: () if all values are of 8 bits.
      mean, std: of each channel, on a scale of 0 to 1 in this range.
      outside: the share of all values outside the range.
    """

    images: int
    channels: int
    kinds: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    lowest: np.ndarray
    highest: np.ndarray
    low: np.ndarray
    high: np.ndarray
    constant: tuple[int, ...]
    not_finite: dict[str, int]
    taken_as_rgb: int
    others: tuple[str, ...]
    unusable: dict[str, str]
    range: tuple[float, ...]
    mean: np.ndarray
    std: np.ndarray
    outside: float


def statistics_of(images: Iterable[tuple[str, np.ndarray | str]], count: int, declared: Pixels) -> Statistics:
    """The statistics of images.

    Args:
      images: of each its place in words, and its values (H, W, C) or why it has none.
      count: how many there are at most.
      declared: where a range is declared, it is taken; else one is found.

    Raises:
      UserError: no image can be used.
    """
    per_image = max(16, _SAMPLE // max(count, 1))
    by_channels: dict[int, list] = collections.defaultdict(list)
    unusable: dict[str, str] = {}
    not_finite: dict[str, int] = {}
    for place, values in images:
        if isinstance(values, str):
            unusable[place] = values
            continue
        if wrong := 0 if values.dtype.kind in "uib" else int(np.sum(~np.isfinite(values))):
            not_finite[place] = wrong
        else:
            by_channels[values.shape[-1]].append((place, _Seen.of(values, per_image)))
    if not by_channels:
        wrong = {place: f"{count} of its values are NaN or infinite" for place, count in not_finite.items()} | unusable
        place, why = next(iter(wrong.items()), ("the set", "it is empty"))
        raise UserError(f"none of the images can be used; the first is {place}: {why}.")
    channels = max(by_channels, key=lambda c: len(by_channels[c]))
    taken = _as_photographs(by_channels) if channels == 3 and declared.are_photographs else 0
    others = tuple(place for c, found in by_channels.items() if c != channels for place, _ in found)
    seen = [found for _, found in by_channels[channels]]
    sample = np.concatenate([found.sample for found in seen])
    lowest, highest = np.min([s.lowest for s in seen], axis=0), np.max([s.highest for s in seen], axis=0)
    low, high = np.quantile(sample, (_TAIL, 1 - _TAIL), axis=0)
    kinds = _frequent(found.kind for found in seen)
    ends = declared.range
    if not ends and kinds != ("uint8",):
        ends = _range(lowest, highest, low, high, all(kind.startswith("uint") for kind in kinds))
    pixels = Pixels(channels, ends if len(ends) in (0, 2, 2 * channels) else ends[:2])
    bottom, top = pixels.ends
    scaled = np.clip((sample - bottom) / (top - bottom), 0, 1)
    return Statistics(
        images=len(seen),
        channels=channels,
        kinds=kinds,
        sizes=_frequent(found.size for found in seen),
        lowest=lowest,
        highest=highest,
        low=low,
        high=high,
        constant=tuple(np.flatnonzero(lowest == highest).tolist()),
        not_finite=not_finite,
        taken_as_rgb=taken,
        others=others,
        unusable=unusable,
        range=pixels.range,
        mean=scaled.mean(axis=0),
        std=scaled.std(axis=0),
        outside=pixels.outside(sample),
    )


@dataclasses.dataclass(frozen=True)
class _Seen:
    """Of one image; `sample` (n, C) are some of its pixels, evenly spread."""

    kind: str
    size: tuple[int, int]
    lowest: np.ndarray
    highest: np.ndarray
    sample: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, pixels: int) -> "_Seen":
        flat = values.reshape(-1, values.shape[-1])
        step = max(1, len(flat) // pixels) | 1  # odd, so that columns are not preferred in images of the usual widths
        lowest, highest = (f(flat, axis=0).astype(np.float64) for f in (np.min, np.max))
        return cls(
            str(values.dtype), (values.shape[0], values.shape[1]), lowest, highest, flat[::step].astype(np.float32)
        )


def _as_photographs(by_channels: dict[int, list]) -> int:
    """Moves images of 8 bits with one, two or four channels to those with three, as training decodes them: how many."""
    taken = 0
    for channels in (1, 2, 4):
        found = by_channels.pop(channels, [])
        for place, seen in found:
            if seen.kind != "uint8":
                by_channels[channels].append((place, seen))
                continue
            kept = [0, 0, 0] if channels < 3 else [0, 1, 2]  # alpha is dropped
            lowest, highest, sample = seen.lowest[kept], seen.highest[kept], seen.sample[:, kept]
            by_channels[3].append((place, _Seen(seen.kind, seen.size, lowest, highest, sample)))
            taken += 1
    return taken


def _frequent(found: Iterable) -> tuple:
    return tuple(value for value, _ in collections.Counter(found).most_common())


def _range(lowest, highest, low, high, unsigned: bool) -> tuple[float, ...]:
    """Round numbers that hold nearly all values: one pair, or one for each channel if these are of very different widths."""
    widths = np.maximum(high - low, 1e-30)
    each = widths.max() > _FAR * widths.min()
    pairs = (
        zip(lowest, highest, low, high, strict=True) if each else [(lowest.min(), highest.max(), low.min(), high.max())]
    )
    return tuple(end for pair in pairs for end in _one_range(*pair, unsigned))


def _one_range(lowest: float, highest: float, low: float, high: float, unsigned: bool) -> tuple[float, float]:
    lowest, highest, low, high = map(float, (lowest, highest, low, high))
    width = high - low
    # All values, unless a few outliers would take more than half of the range.
    low = lowest if low - lowest < width / 2 else low
    high = highest if highest - high < width / 2 else high
    if unsigned and low < (high - low) / 4:
        low = 0.0
    if high <= low:  # a constant channel
        return low, low + 1.0
    unit = 10.0 ** (math.floor(math.log10(high - low)) - 1)
    return float(f"{math.floor(low / unit) * unit:.6g}"), float(f"{math.ceil(high / unit) * unit:.6g}")


def notices(found: Statistics) -> list[str]:
    """A sentence for each thing that a user should know of the values."""
    lines = []
    if found.taken_as_rgb:
        lines.append(
            f"{found.taken_as_rgb} images are grey or have alpha; they count as red, green and blue, as which training takes them"
        )
    if found.others:
        lines.append(
            f"{len(found.others)} images do not have {found.channels} channels, and cannot be used with the others: {some(list(found.others))}"
        )
    if found.unusable:
        place, why = next(iter(found.unusable.items()))
        lines.append(f"{len(found.unusable)} images cannot be read, such as {place} ({why})")
    if found.not_finite:
        lines.append(
            f"{sum(found.not_finite.values())} values are NaN or infinite, in {len(found.not_finite)} images, which cannot be used: "
            f"{some(list(found.not_finite))}"
        )
    if found.constant:
        several = len(found.constant) > 1
        numbers = ", ".join(map(str, found.constant))
        lines.append(
            f"channel{'s' * several} {numbers} ha{'ve' if several else 's'} a single value in all images; leave "
            f"{'them' if several else 'it'} out"
        )
    if found.outside:
        lines.append(f"{found.outside:.2%} of the values lie outside the range, and count as its ends")
    return lines
