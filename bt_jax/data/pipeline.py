"""Source + order + views -> batches on the host, by tf.data. The mesh takes them from there (bt_jax/runtime/mesh.py).

numpy says which examples make a batch and fetches what their source holds of them: pixels, encoded images, or file names.
One by one they go through TensorFlow, are read, decoded and augmented in parallel, and come out in the order they went in.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from bt_jax.data.bad_images import Batch, bad_images, bad_records, delivered_batches, with_stand_ins
from bt_jax.data.decode import decode
from bt_jax.data.items import items_spec, pixels_of
from bt_jax.data.order import Order, evenly, single_seed, view_seeds
from bt_jax.data.sources.base import Source, StreamSource
from bt_jax.data.tensorflow_import import plain, tf
from bt_jax.data.views.host import ViewSpec, apply_views, evaluation_view, on_canvas, sample_view
from bt_jax.data.views.spec import VIEW_A, VIEW_B, canvas_side, kernel_of
from bt_jax.errors import UserError


def train_batches(
    source: Source,
    config: ConfigDict,
    *,
    seed: int,
    batch_size: int,
    rows: np.ndarray,
    start_step: int = 0,
    num_steps: int | None = None,
    specs: Sequence[ViewSpec] = (VIEW_A, VIEW_B),
    canvas: bool = False,
) -> Iterator[Batch]:
    """Batches of views, two unless said otherwise, each a pure function of (seed, step): not of threads, processes or restarts.

    Args:
      config: `config.data` of a run.
      batch_size: of the global batch.
      rows: the rows of the global batch to make, (n,), rising: all of them, or this process's share.
      start_step: the step of the first batch.
      num_steps: how many; None: without end.
      specs: how each of the V views is drawn; the paper's two unless said otherwise.
      canvas: whether to give what a device makes views of instead: images on canvases, their sizes and their places.

    Yields:
      {"views": (n, V, S, S, 3) uint8, "label": (n,) int32}; with `canvas` {"image": (n, C, C, 3) uint8,
      "size": (n, 2) int32, "epoch", "example", "label": (n,) int32}

    Raises:
      UserError: the source has fewer images than a batch; (while iterating) too many images do not decode.
      ValueError: rows that are not rows of a batch.
    """
    if len(source) < batch_size:
        raise UserError(
            f"{source.name} has {len(source)} images, fewer than a batch of {batch_size}; "
            f"set batch_size to at most {len(source)}."
        )
    _check_rows(rows, batch_size)

    def draw_views(image, label, seeds):
        height, width = tf.shape(image)[0], tf.shape(image)[1]
        parameters = [sample_view(seeds[v], height, width, spec) for v, spec in enumerate(specs)]
        return {"views": apply_views(image, parameters, config.image_size, kernel_of(specs)), "label": label}

    def put_on_canvas(image, label, seeds):
        image, size = on_canvas(image, canvas_side(config))
        # As order.view_seeds put them there.
        epoch, example = tf.bitwise.right_shift(seeds[0, 0], 32), seeds[0, 1] // len(specs)
        places = {"epoch": tf.cast(epoch, tf.int32), "example": tf.cast(example, tf.int32)}
        return {"image": image, "size": size, "label": label, **places}

    load = put_on_canvas if canvas else draw_views
    if isinstance(source, StreamSource):
        epochs = _stream_epochs(source, config, load, seed, batch_size, rows, start_step, len(specs))
        return _one_after_the_other(epochs, num_steps)

    order = Order(seed, len(source), batch_size)

    def examples(step):
        epoch, places = order.batch(step)
        return places[rows], epoch

    def fetch(step):
        mine, epoch = examples(int(step))
        return *source.fetch(source.usable(mine)), view_seeds(seed, epoch, mine, len(specs))

    specs_of_fetch = [items_spec(source), _LABEL, tf.TensorSpec((None, len(specs), 2), tf.int64)]
    pixels = pixels_of(source)

    def from_batch(delivered):
        # TensorFlow counts steps and numpy says who stands there: a resumed run starts to count further up.
        end = np.iinfo(np.int64).max if num_steps is None else start_step + num_steps
        dataset = _one_by_one(tf.data.Dataset.range(start_step + delivered, end), fetch, specs_of_fetch)
        dataset = dataset.map(plain(lambda item, label, seeds: load(pixels(item), label, seeds)), **_parallel(config))
        return _batched(dataset, config, len(rows))

    def bad_in(delivered):
        return bad_images(source, examples(start_step + delivered)[0])

    return delivered_batches(from_batch, source, bad_in, config.max_bad_fraction)


def eval_batches(
    source: Source,
    config: ConfigDict,
    *,
    batch_size: int,
    rows: np.ndarray,
    limit: int | None = None,
    canvas: bool = False,
) -> Iterator[Batch]:
    """The images of a source as evaluations look at them, each exactly once; the last batch is padded.

    Images that do not decode are left out by the mask, and counted in `source.bad`.

    Args:
      config, batch_size, rows: as for `train_batches`.
      limit: at most so many images, evenly spread over the source.
      canvas: whether to give images on canvases, as for training on views made by the device, and their sizes.

    Yields:
      {"image": (n, S, S, 3) uint8, "label": (n,) int32, "mask": (n,) bool: false where a row is padding or
      does not decode}, with `canvas` "size": (n, 2) int32 too; as many batches on every process.

    Raises:
      UserError: (while iterating) too many images do not decode.
      ValueError: rows that are not rows of a batch.
    """
    _check_rows(rows, batch_size)
    shown = evenly(len(source), limit)
    starts = np.arange(0, len(shown), batch_size)
    places = (starts[:, None] + rows[None, :]).reshape(-1)
    mine = shown[places[places < len(shown)]]
    n = len(rows)

    def examples_of(number):
        return mine[number * n : (number + 1) * n]

    def view(image, label):
        if canvas:
            image, size = on_canvas(image, canvas_side(config))
            return {"image": image, "size": size, "label": label}
        return {"image": evaluation_view(image, config.eval_resize, config.image_size), "label": label}

    def fetch(number):
        return source.fetch(source.usable(examples_of(int(number))))

    def record_view(record):
        encoded, label, stands_in = record
        return {**view(decode(encoded), label), "stands_in": stands_in}

    def wanted_records():
        wanted = np.zeros(len(source), bool)
        wanted[mine] = True
        wanted = tf.constant(wanted)
        records = with_stand_ins(source.records(None, 0), source).enumerate()
        return records.filter(lambda place, _: wanted[place]).map(lambda _, record: record)

    def from_batch(delivered):
        if isinstance(source, StreamSource):
            records = wanted_records().skip(delivered * n)
            dataset = records.map(plain(lambda *record: record_view(record)), **_parallel(config))
        else:
            pixels = pixels_of(source)
            dataset = _one_by_one(tf.data.Dataset.range(delivered, len(starts)), fetch, [items_spec(source), _LABEL])
            dataset = dataset.map(plain(lambda item, label: view(pixels(item), label)), **_parallel(config))
        return _batched(dataset, config, n)

    def bad_in(delivered):
        if isinstance(source, StreamSource):
            return bad_records(wanted_records().skip(delivered * n).take(n))
        return bad_images(source, examples_of(delivered))

    batches = delivered_batches(from_batch, source, bad_in, config.max_bad_fraction)
    side = canvas_side(config) if canvas else config.image_size
    nothing = {"image": np.zeros((0, side, side, 3), np.uint8), "label": np.zeros(0, np.int32)}
    nothing |= {"size": np.zeros((0, 2), np.int32)} if canvas else {}
    return _masked(batches, source, examples_of, len(starts), n, nothing)


def _check_rows(rows: np.ndarray, batch_size: int) -> None:
    if len(rows) == 0 or rows[0] < 0 or rows[-1] >= batch_size or np.any(np.diff(rows) <= 0):
        raise ValueError(f"rows are {rows}; they must be rising and lie in 0 to {batch_size - 1}.")


_LABEL = tf.TensorSpec((None,), tf.int32)


def _one_by_one(numbers: tf.data.Dataset, fetch: Callable, specs: list[tf.TensorSpec]) -> tf.data.Dataset:
    """What `fetch` gives for each number, arrays with an example a row, example by example.

    Nothing of the source is handed to TensorFlow but these rows: it would copy a large array twice over.
    """

    def batch(number):
        arrays = tf.numpy_function(fetch, [number], [spec.dtype for spec in specs], stateful=False)
        return tuple(tf.ensure_shape(array, spec.shape) for array, spec in zip(arrays, specs, strict=True))

    return numbers.map(plain(batch)).prefetch(1).unbatch()


def _stream_epochs(
    source: StreamSource,
    config: ConfigDict,
    make_example: Callable,
    seed: int,
    batch_size: int,
    rows: np.ndarray,
    start_step: int,
    views: int,
) -> Iterator[Iterator[Batch]]:
    """One epoch's batches after the other, from `start_step` on; an example is known by its place in the epoch."""
    steps_per_epoch = len(source) // batch_size
    first, skip = divmod(start_step, steps_per_epoch)
    is_mine = np.zeros(batch_size, bool)
    is_mine[rows] = True
    is_mine = tf.constant(is_mine)
    # Traced once and called by each epoch's pipeline; the seed's first half is an argument for that reason.
    load = tf.function(lambda encoded, label, seeds: make_example(decode(encoded), label, seeds), autograph=False)
    for epoch in itertools.count(first):
        begin = skip * batch_size if epoch == first else 0
        half = tf.constant(seed + (epoch << 32), tf.int64)

        def example(place, record, half=half):
            seeds = tf.stack([tf.stack([half, views * place + v]) for v in range(views)])  # as order.view_seeds
            return load(*record[:2], seeds)

        def my_records(delivered, epoch=epoch, begin=begin):
            records = source.records(seed, epoch)
            records = records.shuffle(config.shuffle_buffer, single_seed(seed, epoch), reshuffle_each_iteration=False)
            records = with_stand_ins(records.take(steps_per_epoch * batch_size), source)
            records = records.enumerate().skip(begin + delivered * batch_size)
            return records.filter(lambda place, _: is_mine[place % batch_size])

        def from_batch(delivered, example=example, my_records=my_records):
            return _batched(my_records(delivered).map(plain(example), **_parallel(config)), config, len(rows))

        def bad_in(delivered, my_records=my_records):
            return bad_records(my_records(delivered).take(len(rows)).map(lambda _, record: record))

        yield delivered_batches(from_batch, source, bad_in, config.max_bad_fraction)


def _one_after_the_other(epochs: Iterator[Iterator[Batch]], num_steps: int | None) -> Iterator[Batch]:
    yield from itertools.islice(itertools.chain.from_iterable(epochs), num_steps)


def _threads(config: ConfigDict) -> int:
    if config.threads:
        return config.threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # not on macOS


def _parallel(config: ConfigDict) -> dict:
    return {"num_parallel_calls": _threads(config), "deterministic": True}


def _batched(dataset: tf.data.Dataset, config: ConfigDict, n: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = _threads(config)
    options.threading.max_intra_op_parallelism = 1  # images are many: one thread each is the best division of labour
    return dataset.batch(n).prefetch(config.prefetch).with_options(options)


def _masked(
    batches: Iterator[Batch],
    source: Source,
    examples_of: Callable[[int], np.ndarray],
    count: int,
    n: int,
    nothing: Batch,
) -> Iterator[Batch]:
    """Exactly `count` batches of n rows, and a mask that is false for padding and for what stands in for bad images."""
    for number in range(count):
        batch = next(batches, nothing)
        real = len(batch["label"])
        if real < n:
            batch = {k: np.concatenate([v, np.zeros((n - real, *v.shape[1:]), v.dtype)]) for k, v in batch.items()}
        mask = np.arange(n) < real
        if "stands_in" in batch:
            mask &= ~batch.pop("stands_in")
        elif source.bad:
            mask[:real] &= [int(example) not in source.bad for example in examples_of(number)]
        yield {**batch, "mask": mask}
