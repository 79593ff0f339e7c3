"""Source + order + views -> batches on the host, as a tf.data pipeline. (The mesh takes them from there: bt_jax/mesh.py.)"""

import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from bt_jax.data.order import Order, evenly, view_seeds
from bt_jax.data.sources import ArraySource, FolderSource, Source, TfdsStream
from bt_jax.data.views import ViewSpec, apply_view, evaluation_view, sample_view
from bt_jax.errors import UserError

Batch = dict[str, np.ndarray]


def train_batches(
    source: Source,
    config: ConfigDict,
    *,
    seed: int,
    batch_size: int,
    rows: np.ndarray,
    start_step: int = 0,
    num_steps: int | None = None,
) -> Iterator[Batch]:
    """Batches of two views, each a pure function of (seed, step): not of threads, processes or restarts.

    Args:
      config: `config.data` of a run.
      batch_size: of the global batch.
      rows: the rows of the global batch to make, (n,): all of them, or this process's share.
      start_step: the step of the first batch.
      num_steps: how many; None: without end.

    Yields:
      {"views": (n, 2, S, S, 3) uint8, "label": (n,) int32}

    Raises:
      UserError: the source has fewer images than a batch, or (while iterating) an image cannot be decoded.
    """
    if len(source) < batch_size:
        raise UserError(
            f"{source.name} has {len(source)} images, fewer than a batch of {batch_size}; "
            f"set batch_size to at most {len(source)}."
        )
    specs = [ViewSpec(**config[name]) for name in ("view_a", "view_b")]

    def two_views(image, label, seeds):
        height, width = tf.shape(image)[0], tf.shape(image)[1]
        views = [
            apply_view(image, sample_view(seeds[v], height, width, spec), config.image_size) for v, spec in enumerate(specs)
        ]
        return {"views": tf.stack(views), "label": label}

    steps = range(start_step, start_step + num_steps) if num_steps is not None else _count(start_step)
    order = Order(seed, len(source), batch_size)
    if isinstance(source, TfdsStream):
        raw = _streamed(source, config, seed, batch_size, rows, order.steps_per_epoch, steps)
        load: Callable = lambda encoded, label, seeds: two_views(_decode(encoded), label, seeds)  # noqa: E731
    else:
        raw = _numbered(order, seed, rows, steps)
        example = _loader(source)
        load = lambda index, seeds: two_views(*example(index), seeds)  # noqa: E731
    return _run(raw.map(load, **_parallel(config)), config, len(rows), source)


def eval_batches(
    source: Source, config: ConfigDict, *, batch_size: int, rows: np.ndarray, limit: int | None = None
) -> Iterator[Batch]:
    """The images of a source as evaluations look at them, each exactly once; the last batch is padded.

    Args:
      config, batch_size, rows: as for `train_batches`.
      limit: at most so many images, evenly spread over the source.

    Yields:
      {"image": (n, S, S, 3) uint8, "label": (n,) int32, "mask": (n,) bool: false where a row is padding}
    """
    indices = evenly(len(source), len(source) if limit is None else limit)
    padded = -len(indices) % batch_size
    shown = np.concatenate([indices, np.zeros(padded, np.int64)])
    masks = np.arange(len(shown)) < len(indices)
    mine = (np.arange(0, len(shown), batch_size)[:, None] + rows[None, :]).reshape(-1)

    def view(image, label, mask):
        return {"image": evaluation_view(image, config.eval_resize, config.image_size), "label": label, "mask": mask}

    if isinstance(source, TfdsStream):
        wanted = np.zeros(len(source), bool)
        wanted[indices] = True
        records = source.records(None, 0).enumerate()
        kept = records.filter(lambda i, _: tf.constant(wanted)[i]).map(lambda _, record: (*record, True))
        last = kept.take(1).map(lambda encoded, label, _: (encoded, label, False)).repeat(padded)
        place = np.zeros(batch_size, bool)
        place[rows] = True
        kept = kept.concatenate(last).enumerate().filter(lambda i, _: tf.constant(place)[i % batch_size])
        dataset = kept.map(lambda _, r: view(_decode(r[0]), r[1], r[2]), **_parallel(config))
    else:
        example = _loader(source)
        dataset = tf.data.Dataset.from_tensor_slices((shown[mine], masks[mine]))
        dataset = dataset.map(lambda index, mask: view(*example(index), mask), **_parallel(config))
    return _run(dataset, config, len(rows), source)


def _count(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1


def _numbered(order: Order, seed: int, rows: np.ndarray, steps) -> tf.data.Dataset:
    """(example, seeds of its views) one by one, in the order of the run; numpy does it a batch at a time."""

    def batches():
        for step in steps:
            epoch, examples = order.batch(step)
            mine = examples[rows]
            yield mine, view_seeds(seed, epoch, mine)

    n = len(rows)
    signature = (tf.TensorSpec((n,), tf.int64), tf.TensorSpec((n, 2, 2), tf.int64))
    return tf.data.Dataset.from_generator(batches, output_signature=signature).unbatch()


def _streamed(source, config, seed, batch_size, rows, steps_per_epoch, steps) -> tf.data.Dataset:
    """(encoded image, label, seeds of its views); an example is known by its place in the epoch."""
    start, num = steps.start if isinstance(steps, range) else next(steps), len(steps) if isinstance(steps, range) else -1
    mine = np.zeros(batch_size, bool)
    mine[rows] = True

    def epoch_of(epoch: int, skip: int) -> tf.data.Dataset:
        records = source.records(seed, epoch)
        records = records.shuffle(config.shuffle_buffer, seed=seed + 1, reshuffle_each_iteration=False)
        records = records.take(steps_per_epoch * batch_size).enumerate().skip(skip * batch_size)
        records = records.filter(lambda place, _: tf.constant(mine)[place % batch_size])

        def with_seeds(place, record):
            first = tf.constant(seed + (epoch << 32), tf.int64)
            seeds = tf.stack([tf.stack([first, 2 * place + v]) for v in range(2)])
            return (*record, seeds)

        return records.map(with_seeds)

    # One epoch's dataset after the other, each built when it is reached: its file order depends on the epoch.
    def epochs():
        done, epoch, skip = 0, *divmod(start, steps_per_epoch)
        while num < 0 or done < num:
            yield from epoch_of(epoch, skip).prefetch(64).as_numpy_iterator()
            done, epoch, skip = done + steps_per_epoch - skip, epoch + 1, 0

    signature = (tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int32), tf.TensorSpec((2, 2), tf.int64))
    examples = tf.data.Dataset.from_generator(epochs, output_signature=signature)
    return examples if num < 0 else examples.take(num * len(rows))


def _loader(source: ArraySource | FolderSource) -> Callable:
    """index -> (image (H, W, 3) uint8, label). Arrays are captured by the graph, not written into it."""
    labels = tf.constant(source.labels)
    if isinstance(source, ArraySource):
        images = tf.constant(source.images)
        return lambda index: (images[index], labels[index])
    paths = tf.constant(source.paths)
    return lambda index: (_decode(tf.io.read_file(paths[index])), labels[index])


def _decode(encoded: tf.Tensor) -> tf.Tensor:
    """(H, W, 3) uint8 of an image file; JPEGs by the exact inverse transform, as Pillow decodes them."""
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image, (None, None, 3))


def _parallel(config: ConfigDict) -> dict:
    return {"num_parallel_calls": _threads(config), "deterministic": True}


def _threads(config: ConfigDict) -> int:
    return config.threads or len(os.sched_getaffinity(0))


def _run(dataset: tf.data.Dataset, config: ConfigDict, batch: int, source: Source) -> Iterator[Batch]:
    tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = _threads(config)
    options.threading.max_intra_op_parallelism = 1
    dataset = dataset.batch(batch, drop_remainder=True).prefetch(config.prefetch).with_options(options)
    return _iterate(dataset, source)


def _iterate(dataset: tf.data.Dataset, source: Source) -> Iterator[Batch]:
    try:
        yield from dataset.as_numpy_iterator()
    except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError, tf.errors.UnknownError) as error:
        if isinstance(source, FolderSource):
            bad = _first_bad_file(source)
            if bad:
                raise UserError(f"{bad} cannot be decoded as an image; mend or remove it.") from None
        raise UserError(f"an example of {source.name} cannot be decoded ({_first_line(error)}).") from error


def _first_bad_file(source: FolderSource) -> str | None:
    """TensorFlow does not say which file it was: the files are tried until one fails."""
    for path in source.paths:
        try:
            _decode(tf.io.read_file(path))
        except (tf.errors.OpError, ValueError):
            return path
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
