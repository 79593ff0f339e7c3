"""Progress of a run: a bar on a terminal, a line in a notebook, plain lines in a log, nothing on processes other than the first."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tqdm
from etils import epath

from bt_jax import console
from bt_jax.reporting.notebook import Line, in_notebook
from bt_jax.reporting.trackers import Tracker
from bt_jax.reporting.writers import JsonLines, TensorBoard, Writer


class Reporter:
    """Reports the progress of a run: on a terminal and in a notebook at every step, in files and logs every `every_steps`."""

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
        wandb: bool = False,
        mlflow: bool = False,
        config: Mapping[str, Any] | None = None,
        short_names: Mapping[str, str] | None = None,
        active: bool = True,
        lines: bool = True,
        history: Sequence[Mapping[str, Any]] = (),
        history_is_all: bool = False,
    ):
        """Args:
        tensorboard, wandb, mlflow: whether records are also written there.
        config: the run's, for those that show it.
        short_names: of metrics, for the progress line.
        history: the records up to `start_step` that a checkpoint holds, in case the file has fewer.
        history_is_all: whether other records in the file are dropped.
        active: whether this process reports; on the others all methods do nothing.
        lines: whether progress is also printed, and not only written to files.

        Raises:
          UserError: a tracker cannot be started.
        """
        self._active, self._lines = active, lines
        self._total, self._steps_per_epoch, self._batch_size = total_steps, steps_per_epoch, batch_size
        self._every = every_steps
        self._short_names = short_names or {}
        # Step and time from which the speed is measured, separately for steps that are reported while the next one is
        # computed (False) and steps that are reported at once (True), as the delays of the two differ by a step.
        self._marks: dict[bool, tuple[int, float]] = {}
        self._rate: float | None = None
        self._unmeasured = False  # whether a line was due since the rate was last measured
        self._waited = 0.0  # seconds for batches since `_waited_from`
        self._waited_from = time.monotonic()
        self._bar = None
        self._notebook: Line | None = None
        self._writers: list[Writer] = []
        if not active:
            return
        records = {"start_step": start_step, "history": history, "history_is_all": history_is_all}
        self._history = JsonLines(workdir / "metrics.jsonl", **records, say=self.say)
        self._writers.append(self._history)
        for notice in self._history.notices:
            console.say(f"note      {notice}")
        if tensorboard:
            self._writers.append(TensorBoard(workdir / "tensorboard", start_step=start_step))
        for name, wanted in {"wandb": wandb, "mlflow": mlflow}.items():
            if wanted:
                tracker = Tracker(name, workdir, config or {}, start_step=start_step, say=self.say)
                self._writers.append(tracker)
        self._terminal: Any = console.Terminal()
        if lines and self._terminal.isatty():
            self._bar = tqdm.tqdm(
                initial=start_step, total=total_steps, ncols=_columns(), bar_format="{desc} {bar}", file=self._terminal
            )
        elif lines and in_notebook():
            self._notebook = Line()

    def history(self) -> list[dict]:
        """The records written so far, including those before a restart."""
        return self._history.records() if self._active else []

    def flush(self) -> None:
        """Waits until metrics.jsonl has all records; in an object store it may be some seconds behind."""
        if self._active:
            self._history.flush()

    def say(self, text: str) -> None:
        """Prints lines of text, above the bar if one is shown."""
        if not self._active:
            return
        if self._notebook is not None:
            self._notebook.end()
        if self._bar is None:
            console.say(text)
        else:
            with self._bar.external_write_mode(file=self._terminal):
                console.say(text)

    def step(
        self,
        step: int,
        metrics: dict[str, float],
        learning_rates: dict[str, float],
        *,
        timed: bool = True,
        at_once: bool = False,
    ) -> None:
        """Reports the metrics of a finished step, `step` updates after the start.

        Args:
          timed: whether it has only just finished; false for all but the last of several steps in one dispatch.
          at_once: whether it is reported before the next step starts, as at a save.
        """
        if not self._active:
            return
        if timed:  # the first step's time includes compiling
            self._marks.setdefault(at_once, (step, time.monotonic()))
        due = step % self._every == 0 or step == self._total
        self._unmeasured |= due
        if timed and self._unmeasured:
            self._unmeasured = not self._measure(step, at_once)
        if due:
            rate = {} if self._rate is None else {"images_per_second": round(self._rate, 2)}
            self.record(step, {**metrics, **learning_rates, **rate, **self._input_wait()})
        if self._bar is not None:
            self._bar.n, self._bar.ncols = step, _columns()  # a terminal's width may change
            self._bar.set_description_str(self._line(step, metrics, learning_rates), refresh=False)
            self._bar.update(0)
        elif self._notebook is not None:
            self._notebook.show(self._line(step, metrics, learning_rates))
        elif due and self._lines:
            console.say(self._line(step, metrics, learning_rates))

    def record(self, step: int, values: dict[str, float]) -> None:
        """Writes a step's values to the files."""
        for writer in self._writers:
            writer.write({"step": step, "epoch": round(step / self._steps_per_epoch, 4), **values})

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Shows pictures (H, W, 3) uint8 by name where there is a place for them; may be called from another thread."""
        for writer in self._writers:
            writer.images(step, pictures)

    def waited(self, seconds: float) -> None:
        """Counts time that the loop has waited for a batch."""
        self._waited += seconds

    def _input_wait(self) -> dict[str, float]:
        """The share of the time since the last record that was spent waiting for batches, 0 to 1."""
        now = time.monotonic()
        share = self._waited / max(now - self._waited_from, 1e-9)
        self._waited, self._waited_from = 0.0, now
        return {"input_wait": round(min(1.0, share), 4)} if self._rate is not None else {}

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes the time spent inside from the rate and the ETA."""
        start = time.monotonic()
        yield
        paused = time.monotonic() - start
        self._waited_from += paused
        self._marks = {kind: (step, moment + paused) for kind, (step, moment) in self._marks.items()}

    def _measure(self, step: int, at_once: bool) -> bool:
        """Measures the speed; returns whether there were enough steps."""
        before, moment = self._marks[at_once]
        now = time.monotonic()
        steps, seconds = step - before, now - moment
        # Not at the end, where the last report follows at once because nothing is left to wait for.
        again = steps >= self._every and step < self._total
        enough = again if self._rate is not None else steps >= min(self._every, 2)
        if enough and seconds > 0:
            self._rate = steps * self._batch_size / seconds
            self._marks[at_once] = (step, now)
        return enough

    def _line(self, step: int, metrics: dict[str, float], learning_rates: dict[str, float]) -> str:
        """A line that does not wrap: where there is no room for all values, the last ones are only in the files."""
        at = f"{step:{len(str(self._total))}}/{self._total} ep {step / self._steps_per_epoch:.1f}"
        values = [f" {self._short_names.get(name, name)} {value:.4g}" for name, value in metrics.items()]
        values.append(f" lr {next(iter(learning_rates.values())):.3g}")
        speed = ""
        if self._rate is not None:
            seconds = (self._total - step) * self._batch_size / self._rate
            rate = f"{self._rate:.3g}" if self._rate < 100 else f"{self._rate:.0f}"
            speed = f" {rate} images/s ETA {duration(seconds)}"
        width = _COLUMNS if self._bar is None else _columns()
        while len(values) > 1 and len(at) + len(speed) + sum(map(len, values)) > width:
            values.pop()
        return at + "".join(values) + speed

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._notebook is not None:
            self._notebook.end()
        for writer in self._writers:
            writer.close()


_COLUMNS = 79  # of a line in a log or a notebook


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
