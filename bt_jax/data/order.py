"""Which examples make up a batch: a pure function of (seed, step).

An epoch is a permutation that is computed, not shuffled through a buffer, so step k does not need the steps before it. The
incomplete last batch of an epoch is dropped, as in the official program.
"""

from typing import Any

import numpy as np


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """A permutation of 0 … n-1, (n,) int64.

    The order of n 64-bit numbers from Philox with the key (seed, epoch). numpy guarantees the raw stream of a bit generator
    across versions, but not `Generator.permutation`.
    """
    # Stable: if two numbers are equal, the examples keep their order, on every machine.
    return np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(n), kind="stable")


class Order:
    """The batches of a run over `n` examples.

    Attributes:
      steps_per_epoch: n // batch_size.
    """

    def __init__(self, seed: int, n: int, batch_size: int):
        """Raises ValueError if there is not a single whole batch."""
        if not 1 <= batch_size <= n:
            raise ValueError(f"batch_size is {batch_size}; it must be from 1 to {n}, the number of examples.")
        self._seed, self._n, self._batch_size = seed, n, batch_size
        self.steps_per_epoch = n // batch_size
        self._cached: tuple[int, np.ndarray] | None = None

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """The epoch of a step (counted from 0), and the examples of the global batch, (batch_size,) int64."""
        epoch, place = divmod(step, self.steps_per_epoch)
        cached = self._cached  # read once: another thread may ask for another epoch meanwhile
        if cached is None or cached[0] != epoch:
            self._cached = cached = (epoch, permutation(self._seed, epoch, self._n))
        return epoch, cached[1][place * self._batch_size : (place + 1) * self._batch_size]


def check_rows(rows: np.ndarray, batch_size: int) -> None:
    """Raises ValueError unless `rows` are increasing rows of a batch."""
    if len(rows) == 0 or rows[0] < 0 or rows[-1] >= batch_size or np.any(np.diff(rows) <= 0):
        raise ValueError(f"rows are {rows}; they must be increasing and lie in 0 to {batch_size - 1}.")


def draw_seed(seed: int, epoch: Any, example: Any, draw: int) -> tuple[Any, Any]:
    """The seed of one draw of one example: (seed + epoch·2³², 2·example + draw mod 2 + (draw // 2)·2⁴⁸).

    Different for every (seed, epoch, example, draw), with seed below 2³², epoch below 2³¹, example below 2⁴⁷ and draw below
    2¹⁶. The pairs need not look random: Philox, the stateless generator that takes them, scrambles them.

    Args:
      epoch, example: int64, of numpy or TensorFlow.
      draw: its number among those of an image (bt_jax/data/views/spec.py, `draw_number`).
    """
    return seed + epoch * (1 << 32), example * 2 + (draw % 2 + (draw // 2 << 48))


def single_seed(seed: int, epoch: int) -> int:
    """One number from 0 to 2³¹-1, for shufflers that take only one."""
    return int(np.random.Philox(key=[seed, epoch]).random_raw() >> 33)


def evenly(n: int, limit: int | None) -> np.ndarray:
    """At most `limit` of 0 … n-1, evenly spread, increasing, int64: without a seed; of a set that is sorted or shuffled, it favours no class."""
    if limit is None or n <= limit:
        return np.arange(n, dtype=np.int64)
    return np.arange(limit, dtype=np.int64) * n // limit
