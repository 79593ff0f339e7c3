"""Writers of metrics: JSON lines for programs, TensorBoard events for people.

When a run resumes, both drop what it wrote after its checkpoint's step, because those steps are run again.
"""

import contextlib
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from bt_jax import console
from bt_jax.errors import UserError, first_line, some
from bt_jax.parts import import_part
from bt_jax.runtime.files import write_whole


class Writer(Protocol):
    """Something that takes a run's records, and pictures where it can show them."""

    def write(self, record: dict[str, Any]) -> None: ...

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """WORKDIR/metrics.jsonl: one line per report, `{"step": …, "epoch": …, "loss": …, …}`; flushed, never half a line.

    In an object store, where a file cannot grow, the whole file is written anew: in the background, and only so often.

    Attributes:
      notices: messages about faults of the file, and how they were repaired.
    """

    def __init__(
        self,
        path: epath.Path,
        *,
        start_step: int = 0,
        history: Sequence[Mapping[str, Any]] = (),
        history_is_all: bool = False,
        say: Callable[[str], None] = console.say,
    ):
        """Args:
        start_step: lines of later steps, and an incomplete last line, are removed.
        history: the records up to that step in a checkpoint, from which damaged or missing lines are restored.
        history_is_all: whether the file must have exactly these.
        say: called with a sentence, maybe from another thread, if an object store does not take the file.
        """
        self.notices: list[str] = []
        text = path.read_bytes() if path.exists() else b""
        lines = text.split(b"\n")[:-1]  # text after the last newline is an incomplete line
        records = [_record(line) for line in lines]
        damaged = [number for number, record in enumerate(records, 1) if record is None]
        kept = [
            (line, record)
            for line, record in zip(lines, records, strict=True)
            if record and record["step"] <= start_step
        ]
        whole = [record for _, record in kept[: len(history)]] == list(history)
        if history_is_all or not whole or (damaged and history):
            self._lines = [json.dumps(record) + "\n" for record in history]
        else:
            self._lines = [f"{line.decode()}\n" for line, _ in kept]
        if start_step and (damaged or not whole):
            what = f"is damaged in line {some(damaged)}" if damaged else "has changed since the last checkpoint"
            how = "it was restored from the checkpoint" if history else "those lines are ignored"
            self.notices.append(f"{path} {what}; {how}")
        if text != "".join(self._lines).encode():
            write_whole(path, "".join(self._lines))
        in_store = "://" in str(path)
        self._stored = _Stored(path, lambda: "".join(self._lines), say) if in_store else None
        self._file = None if in_store else open(path, "a", encoding="utf-8")  # noqa: SIM115

    def records(self) -> list[dict[str, Any]]:
        """All lines so far, in order."""
        return [json.loads(line) for line in self._lines]

    def write(self, record: dict[str, Any]) -> None:
        """Writes one line; numbers that are not finite become null, as JSON has no NaN."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        line = json.dumps(clean, allow_nan=False) + "\n"
        self._lines.append(line)
        if self._file is not None:
            self._file.write(line)  # one write and one flush, so that no reader sees half a line
            self._file.flush()
        elif self._stored is not None:
            self._stored.changed()

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Does nothing: a line holds numbers."""

    def flush(self) -> None:
        """Waits until an object store has every line; a failure is told, and raises nothing."""
        if self._stored is not None:
            self._stored.flush()

    def close(self) -> None:
        if self._stored is not None:
            self._stored.close()
        if self._file is not None:
            with contextlib.suppress(OSError):  # every line was flushed, and `write` raised any error
                self._file.close()


class _Stored:
    """Keeps a file in an object store up to date from a thread, as each write sends all of it and may take seconds."""

    PAUSE = 10.0  # seconds between two writes

    def __init__(self, path: epath.Path, text: Callable[[], str], say: Callable[[str], None]):
        """Args: text: returns what the file should hold."""
        self._path, self._text, self._say = path, text, say
        self._told = False
        self._changed, self._closing, self._writing = threading.Event(), threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._keep_writing, daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """To be called after the text has grown."""
        self._changed.set()

    def flush(self) -> None:
        """Writes what has not been written yet."""
        with self._writing:  # so that no older text replaces a newer one
            if not self._changed.is_set():
                return
            self._changed.clear()
            try:
                self._path.write_text(self._text())
            except Exception as error:  # stores' libraries raise types of their own
                self._changed.set()  # to be tried again
                if not self._told:
                    self._told = True
                    why = first_line(error).strip(" ,") or type(error).__name__
                    self._say(f"note      {self._path} cannot be written ({why}); its lines are kept until it can be")

    def close(self) -> None:
        """Writes the rest."""
        self._closing.set()
        self._thread.join()
        self.flush()

    def _keep_writing(self) -> None:
        while not self._closing.wait(self.PAUSE):
            self.flush()


def _record(line: bytes) -> dict[str, Any] | None:
    """The record in a line, or None if it has none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and type(found.get("step")) is int and found["step"] >= 0 else None


def check_tensorboard(folder: epath.Path) -> None:
    """Raises UserError if TensorBoard events cannot be written to a folder; to be called before anything is written."""
    set_off = "set log.tensorboard=False"
    import_part("tensorboardX", use="log.tensorboard", name="tensorboardX", package="tensorboardX", otherwise=set_off)
    for scheme, module, package in _CLIENTS:
        if str(folder).startswith(scheme):
            use = f"log.tensorboard in {folder}"
            import_part(module, use=use, name=package, otherwise=set_off)


# Packages that tensorboardX needs for object stores.
_CLIENTS = (("gs://", "google.cloud.storage", "google-cloud-storage"), ("s3://", "boto3", "boto3"))


class TensorBoard:
    """TensorBoard event files, with a scalar for each number of a record."""

    def __init__(self, folder: epath.Path, *, start_step: int = 0):
        from tensorboardX import SummaryWriter  # takes half a second to import, and may not be wanted

        try:
            self._writer = SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None, flush_secs=30)
        except ImportError as error:  # of the package that writes to gs:// or s3://
            raise UserError(
                f"TensorBoard events cannot be written to {folder} ({first_line(error)}); install the missing package (for "
                "gs://: pip install google-cloud-storage), or set log.tensorboard=False."
            ) from None

    def write(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, record["step"])

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Pictures (H, W, 3) uint8 by name."""
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()
