"""Whether images have the channels and the range of values that a run declares, before it begins."""

from collections.abc import Iterable, Iterator

import numpy as np

from bt_jax.data.order import evenly
from bt_jax.data.sources.base import EncodedSource, Source, StreamSource, import_tensorflow
from bt_jax.errors import UserError
from bt_jax.pixels import Pixels

LOOKED_AT = 32  # encoded images, evenly spread
MOST_OUTSIDE = 0.01  # of the values


def checked_levels(name: str, values: np.ndarray, pixels: Pixels) -> tuple[np.ndarray, tuple[str, ...]]:
    """The levels of images in memory, (N, H, W, C), and a sentence for each thing that a user should know of them.

    Args:
      name: of the images, for people.

    Raises:
      UserError: they do not have such pixels, or more than a hundredth of the values lie outside the range.
    """
    try:
        levels = pixels.levels(values)
    except ValueError as error:
        raise UserError(f"{name} holds {values.dtype} {values.shape}: {error}.") from None
    return levels, _seen(name, f"{len(values)} images", [values], pixels)


def check_declared(source: Source) -> None:
    """Looks at some images of an encoded source, and adds to its notices what a user should know.

    Raises:
      UserError: none of them has such pixels, or more than a hundredth of their values lie outside the range.
    """
    if not isinstance(source, (EncodedSource, StreamSource)):
        return
    looked_at = list(values_of(source, LOOKED_AT, source.pixels))
    values, problems = [], []
    for place, found in looked_at:
        try:
            if isinstance(found, str):
                raise ValueError(found)
            source.pixels.levels(found)
            values.append(found)
        except ValueError as error:
            problems.append(f"{place}: {error}")
    if problems and not values:
        raise UserError(
            f"{source.name}: none of {len(problems)} images that were looked at can be used; the first is {problems[0]}."
        )
    if source.pixels.range:
        source.notices += _seen(source.name, f"{len(values)} images that were looked at", values, source.pixels)


def values_of(
    source: EncodedSource | StreamSource, count: int, pixels: Pixels | None = None, *, inks_as_rgb: bool = False
) -> Iterator[tuple[str, np.ndarray | str]]:
    """Of at most `count` images, evenly spread, or of a stream the first: the place in words, and the values (H, W, C) or why there
    are none; as stored, or as `pixels` are declared (`read_values`); of four inks, with `inks_as_rgb`, the colours."""
    from bt_jax.data.values import inks_as_colours, read_values

    for place, encoded in _encoded(source, count):
        try:
            values = read_values(encoded, pixels)[0]
            yield place, inks_as_colours(encoded, values) if inks_as_rgb else values
        except ValueError as error:
            yield place, str(error)


def _encoded(source: EncodedSource | StreamSource, count: int) -> Iterator[tuple[str, bytes]]:
    if isinstance(source, StreamSource):
        for number, (encoded, *_) in enumerate(source.records(None, 0).take(count)):
            yield f"record {number}", encoded.numpy()
        return
    tf = import_tensorflow()
    for example in evenly(len(source), count).tolist():
        item = source.fetch(np.array([example]))[0][0]
        try:
            yield source.place(example), tf.io.read_file(item).numpy() if source.gives_paths else bytes(item)
        except tf.errors.OpError:
            yield source.place(example), b""


def _seen(name: str, what: str, parts: Iterable[np.ndarray], pixels: Pixels) -> tuple[str, ...]:
    """A sentence for each thing that a user should know of the values (…, C)."""
    parts = [part.reshape(-1, part.shape[-1]) for part in parts if part.shape[-1] == pixels.channels and part.size]
    if not parts:
        return ()
    low, high = (function([function(part, axis=0) for part in parts], axis=0) for function in (np.min, np.max))
    notices = []
    if pixels.range:
        size = sum(part.size for part in parts)
        outside = sum(pixels.outside(part) * part.size for part in parts) / size
        found = f"{name}: of the values of {what}, {outside:.2%} lie outside data.range"
        reach = f"they reach from {low.min():g} to {high.max():g}"
        if outside > MOST_OUTSIDE:
            raise UserError(f"{found}; {reach}: --config.task=statistics finds a range that holds them.")
        if outside:
            notices.append(f"{found}, and count as its ends; {reach}")
    constant = np.flatnonzero(low == high)
    if len(constant):
        several = len(constant) > 1
        numbers = ", ".join(map(str, constant.tolist()))
        notices.append(
            f"{name}: channel{'s' * several} {numbers} ha{'ve' if several else 's'} a single value in all of {what}"
        )
    return tuple(notices)
