"""Source + order + views -> training batches on the host, by tf.data.

numpy chooses the examples of a batch and fetches what the source has of them: pixels, encoded images, or file names.
TensorFlow takes them one by one, reads, decodes and augments them in parallel, and returns them in the same order.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from bt_jax.data.bad_images import Batch, bad_images, bad_records, delivered_batches, with_stand_ins
from bt_jax.data.datasets import LABELS, NUMBERS, batched, in_parallel, one_by_one
from bt_jax.data.decode import decode
from bt_jax.data.items import items_spec, pixels_of
from bt_jax.data.order import Order, check_rows, single_seed
from bt_jax.data.sources.base import IndexedSource, Source, StreamSource
from bt_jax.data.tensorflow_import import tf
from bt_jax.data.views.host import make_views, on_canvas
from bt_jax.data.views.spec import ViewGroup, canvas_side, check_groups
from bt_jax.facts import Facts


def train_batches(
    source: Source,
    config: ConfigDict,
    groups: Sequence[ViewGroup],
    *,
    seed: int,
    batch_size: int,
    rows: np.ndarray,
    start_step: int = 0,
    num_steps: int | None = None,
) -> Iterator[Batch]:
    """Batches of views, each a pure function of (seed, step), for any number of threads, processes and restarts.

    Args:
      config: `config.data` of a run.
      groups: what is drawn of each image.
      batch_size: of the global batch.
      rows: the rows of the global batch to make, (n,), increasing: all of them, or this process's share.
      start_step: the step of the first batch.
      num_steps: how many; None: endlessly.

    Yields:
      {"views": {group: (n, V, S, S, C) uint8 or uint16}, "label": (n,) int32, "example": (n,) int64}. The example is the image's number
      in the source, or the stand-in's if the image does not decode; in a stream, its place in the epoch.

    Raises:
      UserError: the source has fewer images than a batch; groups that cannot be drawn together; (while iterating) too many
        images do not decode.
      ValueError: rows that are not rows of a batch.
    """
    groups = check_groups(groups)

    def load(image, label, example, slot, epoch):
        views = make_views(image, groups, seed=seed, epoch=epoch, example=slot)
        return {"views": views, "label": label, "example": example}

    return _batches(source, config, load, seed, batch_size, rows, start_step, num_steps)


def canvas_batches(
    source: Source,
    config: ConfigDict,
    *,
    seed: int,
    batch_size: int,
    rows: np.ndarray,
    start_step: int = 0,
    num_steps: int | None = None,
) -> Iterator[Batch]:
    """What a device needs to make the same batches: images on canvases. Arguments and errors as for `train_batches`.

    Yields:
      {"image": (n, side, side, C) uint8 or uint16, "size": (n, 2) int32, "label": (n,) int32, "example", "slot" and "epoch": (n,) int64}. Views
      are drawn by slot and epoch; the slot of a stand-in is the number of the image that it stands in for.
    """

    def load(image, label, example, slot, epoch):
        image, size = on_canvas(image, canvas_side(config), source.pixels)
        return {"image": image, "size": size, "label": label, "example": example, "slot": slot, "epoch": epoch}

    return _batches(source, config, load, seed, batch_size, rows, start_step, num_steps)


def _batches(
    source: Source,
    config: ConfigDict,
    load: Callable,
    seed: int,
    batch_size: int,
    rows: np.ndarray,
    start_step: int,
    num_steps: int | None,
) -> Iterator[Batch]:
    """Batches of what `load` makes of (image, label, example, slot, epoch)."""
    facts = Facts.of(source, batch_size=batch_size, epochs=1)
    check_rows(rows, batch_size)
    if isinstance(source, StreamSource):
        return _one_after_the_other(_stream_epochs(source, config, load, seed, facts, rows, start_step), num_steps)

    assert isinstance(source, IndexedSource)
    order = Order(seed, len(source), batch_size)
    end = np.iinfo(np.int64).max if num_steps is None else start_step + num_steps
    return _of_items(source, config, load, order, rows, start_step, end)


def _of_items(
    source: IndexedSource,
    config: ConfigDict,
    load: Callable,
    order: Order,
    rows: np.ndarray,
    start_step: int,
    end: int,
) -> Iterator[Batch]:
    """The batches of the steps from `start_step` to `end`."""
    pixels = pixels_of(source)

    def fetch(step):
        epoch, slots = order.batch(int(step))
        slots = slots[rows]
        examples = source.usable(slots)
        return *source.fetch(examples), examples, slots, np.full_like(slots, epoch)

    def from_batch(delivered):
        # TensorFlow counts steps and numpy says which examples they take: a resumed run starts counting at a later step.
        steps = tf.data.Dataset.range(start_step + delivered, end)
        dataset = one_by_one(steps, fetch, [items_spec(source), LABELS, NUMBERS, NUMBERS, NUMBERS])
        dataset = in_parallel(dataset, lambda item, *others: load(pixels(item), *others), config)
        return batched(dataset, config, len(rows))

    def bad_in(delivered):
        return bad_images(source, order.batch(start_step + delivered)[1][rows])

    return delivered_batches(from_batch, source, bad_in, config.max_bad_fraction)


def _stream_epochs(
    source: StreamSource,
    config: ConfigDict,
    load: Callable,
    seed: int,
    facts: Facts,
    rows: np.ndarray,
    start_step: int,
) -> Iterator[Iterator[Batch]]:
    """The batches of each epoch in turn, from `start_step` on; an example's number is its place in the epoch."""
    steps_per_epoch, batch_size = facts.steps_per_epoch, facts.batch_size
    first, skip = divmod(start_step, steps_per_epoch)
    is_mine = np.zeros(batch_size, bool)
    is_mine[rows] = True
    is_mine = tf.constant(is_mine)
    # Traced once and called by each epoch's pipeline, for which the epoch must be an argument.
    make = tf.function(
        lambda encoded, label, slot, epoch: load(decode(encoded, source.pixels), label, slot, slot, epoch),
        autograph=False,
    )
    for number in itertools.count(first):
        begin = skip * batch_size if number == first else 0
        epoch = tf.constant(number, tf.int64)

        def example(slot, record, epoch=epoch):
            return make(*record[:2], slot, epoch)

        def my_records(delivered, number=number, begin=begin):
            records = source.records(seed, number)
            records = records.shuffle(config.shuffle_buffer, single_seed(seed, number), reshuffle_each_iteration=False)
            records = with_stand_ins(records.take(steps_per_epoch * batch_size), source)
            records = records.enumerate().skip(begin + delivered * batch_size)
            return records.filter(lambda slot, _: is_mine[slot % batch_size])

        def from_batch(delivered, example=example, my_records=my_records):
            return batched(in_parallel(my_records(delivered), example, config), config, len(rows))

        def bad_in(delivered, my_records=my_records):
            return bad_records(my_records(delivered).take(len(rows)).map(lambda _, record: record), source)

        yield delivered_batches(from_batch, source, bad_in, config.max_bad_fraction)


def _one_after_the_other(epochs: Iterator[Iterator[Batch]], num_steps: int | None) -> Iterator[Batch]:
    yield from itertools.islice(itertools.chain.from_iterable(epochs), num_steps)
