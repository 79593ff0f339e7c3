"""One progress line: a bar on a terminal, plain lines in a log, nothing on processes other than the first."""

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import tqdm
from etils import epath

from bt_jax.reporting.writers import JsonLines, TensorBoard


class Reporter:
    """Tells of a run of `total_steps`: on the screen at every step, in files every `every_steps`."""

    def __init__(
        self,
        workdir: epath.Path,
        *,
        start_step: int,
        total_steps: int,
        steps_per_epoch: int,
        batch_size: int,
        every_steps: int,
        tensorboard: bool,
        active: bool = True,
        lines: bool = True,
        history: Sequence[dict] = (),
        history_is_all: bool = False,
    ):
        """Args:
        history: the records up to `start_step` as a checkpoint holds them, in case the file has fewer.
        history_is_all: what else the file has is dropped.
        active: whether this process reports at all; the others call the same methods and nothing happens.
        lines: whether progress is shown on the screen, or in the files alone.
        """
        self._active, self._lines = active, lines
        self._total, self._steps_per_epoch, self._batch_size = total_steps, steps_per_epoch, batch_size
        self._every = every_steps
        self._mark: tuple[int, float] | None = None  # where the rate is measured from
        self._rate = None
        self._unmeasured = False  # whether a line was due since the rate was last measured
        self._bar = None
        self._writers = []
        if not active:
            return
        records = {"start_step": start_step, "history": history, "history_is_all": history_is_all}
        self._history = JsonLines(workdir / "metrics.jsonl", **records)
        self._writers.append(self._history)
        if tensorboard:
            self._writers.append(TensorBoard(workdir / "tensorboard", start_step=start_step))
        if lines and sys.stderr.isatty():
            self._bar = tqdm.tqdm(initial=start_step, total=total_steps, ncols=_columns(), bar_format="{desc} {bar}")

    def history(self) -> list[dict]:
        """The records written so far, those before a restart included."""
        return self._history.records() if self._active else []

    def say(self, text: str) -> None:
        """Prints lines of text, above the bar where there is one."""
        if not self._active:
            return
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text)

    def step(
        self, step: int, metrics: dict[str, float], learning_rates: dict[str, float], *, timed: bool = True
    ) -> None:
        """Reports the metrics of a step that is done: `step` updates have been made.

        Args:
          timed: whether it was just now done; false for all but the last of several that were started at once.
        """
        if not self._active:
            return
        if self._mark is None and timed:  # the first step's time is the compiler's
            self._mark = (step, time.monotonic())
        due = step % self._every == 0 or step == self._total
        self._unmeasured |= due
        if timed and self._unmeasured:
            self._measure(step)
            self._unmeasured = False
        if due:
            rate = {} if self._rate is None else {"images_per_second": round(self._rate, 2)}
            self.record(step, {**metrics, **learning_rates, **rate})
        if self._bar is not None:
            self._bar.n, self._bar.ncols = step, _columns()  # a terminal may change its width
            self._bar.set_description_str(self._line(step, metrics, learning_rates), refresh=False)
            self._bar.update(0)
        elif due and self._lines:
            print(self._line(step, metrics, learning_rates), flush=True)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Writes values of a step to the files."""
        for writer in self._writers:
            writer.write({"step": step, "epoch": round(step / self._steps_per_epoch, 4), **values})

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside counts neither for the rate nor for the ETA."""
        start = time.monotonic()
        yield
        if self._mark is not None:
            self._mark = (self._mark[0], self._mark[1] + time.monotonic() - start)

    def _measure(self, step: int) -> None:
        now = time.monotonic()
        steps, seconds = step - self._mark[0], now - self._mark[1]
        # Not at the end: the last report follows the one before it at once, as nothing is left to wait for.
        if steps > 0 and seconds > 0 and (self._rate is None or (steps >= self._every and step < self._total)):
            self._rate = steps * self._batch_size / seconds
        self._mark = (step, now)

    def _line(self, step: int, metrics: dict[str, float], learning_rates: dict[str, float]) -> str:
        parts = [f"{step:{len(str(self._total))}}/{self._total}", f"ep {step / self._steps_per_epoch:.1f}"]
        # "on" and "off" for on_diagonal and off_diagonal: the line should fit 80 columns.
        parts += [f"{name.removesuffix('_diagonal')} {value:.4g}" for name, value in metrics.items()]
        parts.append(f"lr {next(iter(learning_rates.values())):.3g}")
        if self._rate is not None:
            seconds = (self._total - step) * self._batch_size / self._rate
            parts += [
                f"{self._rate:.3g} images/s" if self._rate < 100 else f"{self._rate:.0f} images/s",
                f"ETA {duration(seconds)}",
            ]
        return " ".join(parts)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        for writer in self._writers:
            writer.close()


def _columns() -> int:
    return shutil.get_terminal_size().columns - 1  # a line that fills the last column wraps on some terminals


def duration(seconds: float) -> str:
    """`0:07`, `12:34`, `5:06:07` or `2d 03:04`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h:02}:{m:02}"
    return f"{h}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
