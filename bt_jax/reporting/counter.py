"""Progress through a known number of images: a bar on a terminal, a line now and then in a log."""

import time

import tqdm

from bt_jax import console
from bt_jax.data.sources.base import counted
from bt_jax.reporting.progress import duration

_SECONDS = 10  # between lines in a log


class Counter:
    """Counts images that are done; a context manager."""

    def __init__(self, total: int, done: int = 0, *, active: bool = True):
        """Args:
        total: the images of the whole; done: those of earlier starts.
        active: whether this process reports.
        """
        self._total, self._first, self._done, self._active = total, done, done, active
        self._begin = self._said = time.monotonic()
        terminal = console.Terminal()
        self._bar = None
        if active and terminal.isatty():
            self._bar = tqdm.tqdm(initial=done, total=total, unit=" images", file=terminal, dynamic_ncols=True)

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, images: int) -> None:
        """Counts more images."""
        self._done += images
        if self._bar is not None:
            self._bar.update(images)
            return
        now = time.monotonic()
        if self._active and (now - self._said >= _SECONDS or self._done == self._total):
            self._said = now
            rate = self.rate()
            left = f", {duration((self._total - self._done) / rate)} left" if self._done < self._total and rate else ""
            console.say(f"{counted(self._done)} of {counted(self._total)} images, {rate:.3g} images/s{left}")

    def rate(self) -> float:
        """Images a second of this start."""
        return (self._done - self._first) / max(time.monotonic() - self._begin, 1e-9)
