"""What all pipelines of tf.data here have in common: examples one by one, in parallel, in order, by the batch."""

import os
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from bt_jax.data.tensorflow_import import plain, tf

LABELS = tf.TensorSpec((None,), tf.int32)
NUMBERS = tf.TensorSpec((None,), tf.int64)


def one_by_one(numbers: tf.data.Dataset, fetch: Callable, specs: Sequence[tf.TensorSpec]) -> tf.data.Dataset:
    """What `fetch` gives for each number, arrays with an example a row, example by example.

    Nothing of the source is handed to TensorFlow but these rows: it would copy a large array twice over.
    """

    def batch(number):
        arrays = tf.numpy_function(fetch, [number], [spec.dtype for spec in specs], stateful=False)
        return tuple(tf.ensure_shape(array, spec.shape) for array, spec in zip(arrays, specs, strict=True))

    return numbers.map(plain(batch)).prefetch(1).unbatch()


def threads(config: ConfigDict) -> int:
    """How many of them the host's pipeline has: `config.data.threads`, or as many as there are cores."""
    if config.threads:
        return config.threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS


def in_parallel(dataset: tf.data.Dataset, function: Callable, config: ConfigDict) -> tf.data.Dataset:
    """`function` of each example, on as many threads as `config` says; they come out in the order they went in."""
    return dataset.map(plain(function), num_parallel_calls=threads(config), deterministic=True)


def batched(dataset: tf.data.Dataset, config: ConfigDict, n: int) -> tf.data.Dataset:
    """Batches of n examples, some of them made ahead."""
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads(config)
    options.threading.max_intra_op_parallelism = 1  # images are many: one thread each is the best division of labour
    return dataset.batch(n).prefetch(config.prefetch).with_options(options)
