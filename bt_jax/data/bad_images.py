"""Images that do not decode: which ones, and what replaces them, so that a batch stays a function of (seed, step).

In a source that can be read anywhere, the next example that decodes stands in. A record of a stream has no number that
outlives an epoch: it is identified by a fingerprint, and the record before it in the epoch stands in.
"""

import atexit
import functools
import weakref
from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np

from bt_jax.data.decode import decode
from bt_jax.data.items import pixels_of
from bt_jax.data.sources.base import EncodedSource, Source, StreamSource, unreachable
from bt_jax.data.tensorflow_import import SAID, plain, tf
from bt_jax.errors import UserError, first_line

Batch = dict[str, Any]  # arrays, or trees of them, with the batch's rows in front
Batches = Generator[Batch, None, None]

_AGAIN = 3  # times a batch is tried once more, if all that failed in it went well when it was looked at
_open: weakref.WeakSet[Batches] = weakref.WeakSet()


@atexit.register
def _close_open() -> None:
    """A pipeline waits for its Python functions: one still open when the interpreter shuts down would hang it."""
    for batches in list(_open):
        batches.close()


def _closed_at_exit(make: Callable[..., Batches]) -> Callable[..., Batches]:
    @functools.wraps(make)
    def made(*args):
        batches = make(*args)
        _open.add(batches)
        return batches

    return made


@_closed_at_exit
def delivered_batches(
    from_batch: Callable[[int], tf.data.Dataset],
    source: Source,
    bad_in: Callable[[int], dict[int, str]],
    max_bad_fraction: float,
) -> Batches:
    """The batches as numpy arrays that share TensorFlow's memory.

    When an image does not decode, another stands in for it from then on, and the pipeline restarts at the batch that
    failed: a batch stays a function of (seed, step) and of the files. It restarts there too if a file could not be read once, as
    on a network, and can be read then.

    Args:
      from_batch: makes the pipeline that starts at a batch, counted from 0.
      bad_in: what does not decode in a batch, and why; called only when that batch fails.

    Raises:
      UserError: too many images do not decode, or a file cannot be read time and again.
    """
    batches, delivered, known = from_batch(0).as_numpy_iterator(), 0, len(source.bad)
    broken, again = tf.errors.OpError, 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except broken as error:
            found = bad_in(delivered)
            # An evaluation of the same source may have found it first; this pipeline had chosen its images before.
            found_elsewhere = len(source.bad) > known
            if not found and not found_elsewhere and isinstance(source, StreamSource):
                raise UserError(f"{source.name} cannot be read ({first_line(error)}).") from None
            if not found and not found_elsewhere:
                if said := SAID.search(str(error)):  # by the first reading; the second went well
                    raise UserError(said[1]) from None
                again += 1
                if again > _AGAIN:
                    # Of the node that reads: "{{which part of the pipeline}} which: path; why".
                    if "ReadFile" in str(error):
                        path, _, why = str(error).splitlines()[0].rpartition("}} ")[2].rpartition("; ")
                        raise unreachable(path.rpartition(": ")[2], OSError(why)) from None
                    raise  # not caused by what was read
            if found:
                source.exclude(found, max_bad_fraction)
            batches, known = from_batch(delivered).as_numpy_iterator(), len(source.bad)
            continue
        yield batch
        delivered, again = delivered + 1, 0


def bad_records(records: tf.data.Dataset, source: StreamSource) -> dict[int, str]:
    """The fingerprints of the records that do not decode, and why; none if the files themselves are damaged."""
    found = {}
    try:
        for encoded, *_ in records:
            try:
                decode(encoded, source.pixels)
            except (tf.errors.OpError, ValueError) as error:
                found[int(_fingerprint(encoded))] = first_line(error)
    except tf.errors.OpError:
        return {}
    return found


def bad_images(source: Source, examples: Iterable[int]) -> dict[int, str]:
    """The examples that do not decode, and why. TensorFlow does not say which failed, so each of the batch is tried."""
    if not isinstance(source, EncodedSource):
        return {}
    examples, pixels, found = source.usable(np.asarray(examples)), pixels_of(source), {}
    for example, item in zip(examples, source.fetch(examples)[0], strict=True):
        try:
            pixels(item)
        except (tf.errors.OpError, ValueError) as error:
            found[int(example)] = first_line(error)
    return found


def with_stand_ins(records: tf.data.Dataset, source: StreamSource) -> tf.data.Dataset:
    """(encoded image, label, whether it stands in for another): a good record replaces the known bad ones that follow it.

    So a place in an epoch has the same image in every process and after every restart, whichever met the bad one first.
    """
    if not source.bad:  # no record is looked at, so this costs nothing
        return records.map(lambda encoded, label: (encoded, label, False))
    bad = tf.constant(sorted(source.bad), tf.int64)

    def step(last, record):
        is_bad = tf.reduce_any(_fingerprint(record[0]) == bad)
        now = tuple(tf.where(is_bad, old, new) for old, new in zip(last, record, strict=True))
        return now, (*now, is_bad)

    first = next(iter(records.filter(lambda encoded, _: tf.reduce_all(_fingerprint(encoded) != bad)).take(1)), None)
    return records.scan(first or (tf.constant(b""), tf.constant(0, tf.int32)), plain(step))


def _fingerprint(encoded: tf.Tensor) -> tf.Tensor:
    """A hash of an image's bytes, from 0 to 2⁶²-1."""
    return tf.strings.to_hash_bucket_fast(encoded, 2**62)
