"""What the tf.data pipelines share: examples one by one, in parallel and in order, then batched."""

import os
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from bt_jax.data.tensorflow_import import plain, tf

LABELS = tf.TensorSpec((None,), tf.int32)
NUMBERS = tf.TensorSpec((None,), tf.int64)


def one_by_one(numbers: tf.data.Dataset, fetch: Callable, specs: Sequence[tf.TensorSpec]) -> tf.data.Dataset:
    """What `fetch` returns for each number, arrays with one row per example, example by example.

    TensorFlow is given these rows only, never the whole source: it would copy a large array twice.
    """

    def batch(number):
        arrays = tf.numpy_function(fetch, [number], [spec.dtype for spec in specs], stateful=False)
        return tuple(tf.ensure_shape(array, spec.shape) for array, spec in zip(arrays, specs, strict=True))

    return numbers.map(plain(batch)).prefetch(1).unbatch()


def threads(config: ConfigDict) -> int:
    """The number of threads of the host's pipeline: `config.data.threads`, or one per core."""
    if config.threads:
        return config.threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS


def in_parallel(dataset: tf.data.Dataset, function: Callable, config: ConfigDict) -> tf.data.Dataset:
    """`function` applied to each example, on as many threads as `config` says; the order is kept."""
    return dataset.map(plain(function), num_parallel_calls=threads(config), deterministic=True)


def batched(dataset: tf.data.Dataset, config: ConfigDict, n: int) -> tf.data.Dataset:
    """Batches of n examples; `config.data.prefetch` of them are made ahead."""
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads(config)
    options.threading.max_intra_op_parallelism = 1  # there are many images: one thread for each is fastest
    return dataset.batch(n).prefetch(config.prefetch).with_options(options)
