"""Evaluation batches from any source, by tf.data; `bt_jax/data/eval_batches.py` is the entry point."""

from collections.abc import Callable, Iterator

import numpy as np
from ml_collections import ConfigDict

from bt_jax.data.bad_images import Batch, bad_images, bad_records, delivered_batches, with_stand_ins
from bt_jax.data.datasets import LABELS, batched, in_parallel, one_by_one
from bt_jax.data.decode import decode
from bt_jax.data.items import items_spec, pixels_of
from bt_jax.data.order import check_rows, evenly
from bt_jax.data.sources.base import IndexedSource, Source, StreamSource
from bt_jax.data.tensorflow_import import tf
from bt_jax.data.views.host import evaluation_view, on_canvas
from bt_jax.data.views.spec import canvas_side

# The first and third arguments of `delivered_batches`.
Pipeline = tuple[Callable[[int], tf.data.Dataset], Callable[[int], dict[int, str]]]


def eval_batches(
    source: Source, config: ConfigDict, *, batch_size: int, rows: np.ndarray, limit: int | None = None, first: int = 0
) -> Iterator[Batch]:
    """As bt_jax.data.eval_batches.eval_batches."""
    pixels = source.pixels

    def view(image, label):
        return {"image": evaluation_view(image, config.eval_resize, config.image_size, pixels), "label": label}

    side = config.image_size
    nothing = {"image": np.zeros((0, side, side, pixels.channels), pixels.dtype), "label": np.zeros(0, np.int32)}
    return _batches(source, config, view, nothing, batch_size, rows, limit, first)


def canvas_batches(source: Source, config: ConfigDict, *, batch_size: int) -> Iterator[Batch]:
    """All images of a source in its order, on canvases, for views made on the device.

    Yields:
      {"image": (batch_size, side, side, C) uint8 or uint16, "size": (batch_size, 2) int32, "label": (batch_size,) int32,
      "mask": (batch_size,) bool}, the last of them padded.
    """
    side, pixels = canvas_side(config), source.pixels

    def canvas(image, label):
        image, size = on_canvas(image, side, pixels)
        return {"image": image, "size": size, "label": label}

    nothing = {"image": np.zeros((0, side, side, pixels.channels), pixels.dtype), "size": np.zeros((0, 2), np.int32)}
    nothing |= {"label": np.zeros(0, np.int32)}
    return _batches(source, config, canvas, nothing, batch_size, np.arange(batch_size), None)


def _batches(
    source: Source,
    config: ConfigDict,
    load: Callable,
    nothing: Batch,
    batch_size: int,
    rows: np.ndarray,
    limit: int | None,
    first: int = 0,
) -> Iterator[Batch]:
    """Batches of what `load` makes of (image, label), with a mask; `nothing` is such a batch without rows."""
    check_rows(rows, batch_size)
    shown = evenly(len(source), limit)
    starts = np.arange(0, len(shown), batch_size)
    places = (starts[:, None] + rows[None, :]).reshape(-1)
    mine = shown[places[places < len(shown)]]
    n, count = len(rows), len(starts)
    if isinstance(source, StreamSource):
        from_batch, bad_in = _of_records(source, config, load, mine, n)
    else:
        assert isinstance(source, IndexedSource)
        from_batch, bad_in = _of_items(source, config, load, mine, n, count)
    batches = delivered_batches(
        lambda delivered: from_batch(first + delivered),
        source,
        lambda delivered: bad_in(first + delivered),
        config.max_bad_fraction,
    )
    return _masked(batches, source, mine, range(first, count), n, nothing)


def _of_items(
    source: IndexedSource, config: ConfigDict, load: Callable, mine: np.ndarray, n: int, count: int
) -> Pipeline:
    """The examples `mine`, n per batch, in `count` batches."""
    pixels = pixels_of(source)

    def fetch(number):
        return source.fetch(source.usable(_nth(mine, int(number), n)))

    def from_batch(delivered):
        items = one_by_one(tf.data.Dataset.range(delivered, count), fetch, [items_spec(source), LABELS])
        return batched(in_parallel(items, lambda item, label: load(pixels(item), label), config), config, n)

    return from_batch, lambda delivered: bad_images(source, _nth(mine, delivered, n))


def _of_records(source: StreamSource, config: ConfigDict, load: Callable, mine: np.ndarray, n: int) -> Pipeline:
    """The records at the places `mine`, n per batch; stand-ins are marked."""
    wanted = np.zeros(len(source), bool)
    wanted[mine] = True
    wanted = tf.constant(wanted)

    def records(delivered):
        numbered = with_stand_ins(source.records(None, 0), source).enumerate()
        return numbered.filter(lambda place, _: wanted[place]).map(lambda _, record: record).skip(delivered * n)

    def load_record(encoded, label, stands_in):
        return {**load(decode(encoded, source.pixels), label), "stands_in": stands_in}

    def from_batch(delivered):
        return batched(in_parallel(records(delivered), load_record, config), config, n)

    return from_batch, lambda delivered: bad_records(records(delivered).take(n), source)


def _nth(examples: np.ndarray, number: int, n: int) -> np.ndarray:
    return examples[number * n : (number + 1) * n]


def _masked(
    batches: Iterator[Batch],
    source: Source,
    mine: np.ndarray,
    numbers: range,
    n: int,
    nothing: Batch,
) -> Iterator[Batch]:
    """The batches with these numbers, of n rows each, with a mask that is false for padding and for stand-ins."""
    for number in numbers:
        batch = next(batches, nothing)
        real = len(batch["label"])
        if real < n:
            batch = {k: np.concatenate([v, np.zeros((n - real, *v.shape[1:]), v.dtype)]) for k, v in batch.items()}
        mask = np.arange(n) < real
        if "stands_in" in batch:
            mask &= ~batch.pop("stands_in")
        elif source.bad:
            mask[:real] &= [int(example) not in source.bad for example in _nth(mine, number, n)]
        yield {**batch, "mask": mask}
