"""Runs the cells of a grid: skips what is done, resumes what was interrupted, and goes on when one fails.

OUT/grid.json          the scale, and the code that the runs are made with
OUT/cells/CELL.json    what a finished run found: small, to be kept
OUT/again.json         what finished runs found when they were made again
OUT/running/CELL/      its workdir and log until then
"""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from bt_jax.errors import Preempted, UserError
from bt_jax.runtime.files import read_object, write_whole
from bt_jax.runtime.processes import code_fingerprint

from .claim import SCALES, Cell

ROOT = pathlib.Path(__file__).parents[3]
NEEDED_BYTES = 500 * 2**20  # for the workdirs of the runs that are begun
INTERRUPTED = 75  # main.py's status after it has saved
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
GUESSING = 10.0  # % of ten classes
_NO_TIME = {"cpu_seconds": 0.0, "seconds": 0.0, "attempts": 0}
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last when a terminal is closed
_NOT_FINITE = re.compile(r"the (loss|update) is not finite")


@dataclasses.dataclass
class Grid:
    """A folder of results.

    Attributes:
      out: the folder.
      scale: the name of the runs' scale.
      data_dir: where CIFAR-10 is: the folder of TFDS, or an .npz file, for machines without TensorFlow.
    """

    out: pathlib.Path
    scale: str
    data_dir: str = ""

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What a finished run found; None if it has not finished.

        Raises:
          UserError: its file is damaged, or of another run.
        """
        path = self.out / "cells" / f"{cell.name}.json"
        if not path.exists():
            return None
        try:
            found = read_object(path)
            theirs, ours = found["settings"], cell.settings()
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is not a result ({error}); remove it, and its run is made again") from None
        if differ := sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)):
            told = ", ".join(
                f"{name} {theirs.get(name, 'default')} there, {ours.get(name, 'default')} here" for name in differ[:3]
            )
            raise UserError(f"{path} is the result of another run ({told}); choose another --out")
        return found

    @contextlib.contextmanager
    def held(self, other_code: bool) -> Iterator[None]:
        """Holds the folder for one runner, and checks that its results go with this scale and code.

        Raises:
          UserError: another runner works in it; it has another scale, or runs of other code and not `other_code`.
        """
        try:
            (self.out / "cells").mkdir(parents=True, exist_ok=True)
            (self.out / "running").mkdir(exist_ok=True)
            lock = open(self.out / "running" / "lock", "w")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"--out={self.out} cannot be written ({error.strerror})") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"--out={self.out} is in use by another run.py; choose another") from None
            self._check_origin(other_code)
            yield

    def _check_origin(self, other_code: bool) -> None:
        path, code = self.out / "grid.json", code_fingerprint()
        if path.exists():
            there = _read(path, "it says which code and scale the results are of")
            if there.get("scale") != self.scale:
                raise UserError(f"--out={self.out} holds runs at the scale {there.get('scale')}; choose another")
            if there.get("code") != code and not other_code:
                raise UserError(
                    f"--out={self.out} holds runs made with other code of bt_jax ({there.get('code')}, now {code}); choose "
                    "another, or add --other-code, and each result says with which it was made"
                )
            if there == {"scale": self.scale, "code": code}:
                return  # also on a disk that is still full
        try:
            write_whole(epath.Path(path), json.dumps({"scale": self.scale, "code": code}, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror})") from None

    def made_again(self) -> list[dict[str, Any]]:
        """A record for each time that a finished run was made again; see `add_made_again`.

        Raises:
          UserError: their file is damaged.
        """
        path = self.out / "again.json"
        if not path.exists():
            return []
        found = _read(path, "it holds what runs found when they were made again").get("records")
        if not isinstance(found, list):
            raise UserError(f"{path} has no list of records; remove it, and only what was made again is lost")
        return found

    def add_made_again(self, cell: Cell, second: dict[str, Any]) -> dict[str, Any]:
        """Compares what a run found when it was made again with its result, which stays as it is.

        Returns:
          The record that is added: the run's name, whether both are the same in their bits, and of the first and the second time the
          accuracies in %, the machines, the versions of the code, the dates and the seconds of CPU time.
        """
        both = [self.result(cell), second]
        record: dict[str, Any] = {"run": cell.name, "same": _bits(both[0]) == _bits(both[1])}
        kept = ("accuracy", "machine", "code", "date", "cpu_seconds")
        record |= {what: [found[what] for found in both if found] for what in kept}
        with open(self.out / "running" / "again.lock", "w") as lock:  # `run.py` and `again` may work at the same time
            fcntl.flock(lock, fcntl.LOCK_EX)
            text = json.dumps({"records": [*self.made_again(), record]}, indent=1) + "\n"
            write_whole(epath.Path(self.out / "again.json"), text)
        return record

    def workdir(self, cell: Cell) -> pathlib.Path:
        return self.out / "running" / cell.name

    def command(self, cell: Cell) -> list[str]:
        where = [f"--config.data.data_dir={pathlib.Path(self.data_dir).resolve()}"] if self.data_dir else []
        if self.data_dir.endswith(".npz"):
            where.append("--config.data.source=arrays")
        if cell.base:
            where.append(f"--config.init_from={self.workdir(cell.base).resolve() / 'run'}")
        return [
            sys.executable,
            "main.py",
            *cell.arguments(),
            *where,
            f"--workdir={self.workdir(cell).resolve() / 'run'}",
        ]


def _bits(found: dict[str, Any] | None) -> tuple:
    assert found is not None
    return found.get("weights"), found["accuracy"], found["loss"], found["steps"]  # one that diverged keeps no weights


def _read(path: pathlib.Path, what: str) -> dict[str, Any]:
    try:
        return read_object(epath.Path(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); {what}") from None


def check_data(data_dir: str) -> None:
    """Raises UserError if CIFAR-10 is not there."""
    place = pathlib.Path(data_dir)
    if not data_dir or not (place.is_file() if data_dir.endswith(".npz") else (place / "cifar10").is_dir()):
        raise UserError(
            f'there is no CIFAR-10 in --data-dir={data_dir}; name the folder in which TFDS has prepared it (python -c "import '
            "tensorflow_datasets as tfds; tfds.load('cifar10', data_dir='DIR')\"), or an .npz file with x_train, y_train, "
            "x_test and y_test"
        )


class Runner:
    """Makes the runs of a grid, `jobs` at a time, each with its share of the cores."""

    def __init__(self, grid: Grid, *, jobs: int, minutes: float = 0, keep: bool = False, command=None):
        self._grid, self._jobs, self._keep = grid, jobs, keep
        self._command = command or grid.command
        self._ends = time.monotonic() + 60 * minutes if minutes else float("inf")
        self._lock = threading.Lock()
        self._children: dict[Cell, subprocess.Popen] = {}
        self._stopping = False
        self._made, self._began = 0, time.monotonic()
        self._failed: dict[Cell, str] = {}
        self._code = code_fingerprint()

    def run(self, cells: list[Cell]) -> None:
        """Makes all runs that have no result yet.

        Raises:
          UserError: some failed (all others were made), the disk is full, or the code was changed meanwhile.
          Preempted: it was asked to stop, or `minutes` are over; the same command goes on, and tries what failed again.
        """
        waiting = [cell for cell in cells if self._grid.result(cell) is None]
        self._all, self._done = len(cells), len(cells) - len(waiting)
        self._waiting = list(_by_base(waiting).values())
        _say(f"{self._all} runs, {self._done} of them done")
        stop = {number: signal.signal(number, self._stop) for number in _STOPS}
        workers = [threading.Thread(target=self._work, args=(share,)) for share in _shares(self._jobs)]
        try:
            for worker in workers:
                worker.start()
            while any(worker.is_alive() for worker in workers):
                if time.monotonic() > self._ends and not self._stopping:
                    self._stop()
                time.sleep(0.1)
        finally:
            for number, handler in stop.items():
                signal.signal(number, handler)
        told = "".join(f"\n  {cell.name}: {why}" for cell, why in self._failed.items())
        if self._problem:
            raise UserError(self._problem + told)
        if self._stopping:
            failed = f", {len(self._failed)} failed" * bool(self._failed)
            _say(f"stopped, {self._done} of {self._all} runs are done{failed}; the same command goes on{told}")
            raise Preempted
        left = [cell for cell in cells if self._grid.result(cell) is None]
        if left:
            others = f", {len(left) - len(self._failed)} wait for them" * (len(left) > len(self._failed))
            raise UserError(f"{len(self._failed)} of {self._all} runs failed{others}, all others are done:{told}")

    _problem = ""  # that stops all runs

    def _stop(self, *_: object) -> None:
        self._stopping = True
        with self._lock:
            for child in self._children.values():
                with contextlib.suppress(
                    ProcessLookupError
                ):  # not send_signal(), which would take its exit status from wait4
                    os.kill(child.pid, signal.SIGTERM)  # it saves its step

    def _work(self, cores: set[int]) -> None:
        while True:
            with self._lock:
                if not self._waiting or self._stopping or self._problem:
                    return
                group = self._waiting.pop(0)
            try:
                self._check_room()
                self._make_group(group, cores)
            except UserError as error:
                self._problem = str(error)
                return
            except Exception as error:  # whatever it is, it stops no other run
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    self._problem = f"{self._grid.out} cannot be written ({error.strerror}); make room, and the same command goes on"
                    return
                self._fail(group[0], f"{type(error).__name__}: {error}")

    def _check_room(self) -> None:
        free = shutil.disk_usage(self._grid.out).free
        if free < NEEDED_BYTES:
            raise UserError(
                f"the disk of {self._grid.out} has {free >> 20} MB left, and runs need {NEEDED_BYTES >> 20}; make room, "
                "and the same command goes on"
            )

    def _check_code(self) -> None:
        """So that each result is of the code that it names; children read the files of this moment."""
        if code_fingerprint() != self._code:
            raise UserError(
                "the code of bt_jax was changed while runs were made; the same command goes on with --other-code"
            )

    def _make_group(self, cells: list[Cell], cores: set[int]) -> None:
        """A pre-training and the evaluations of its encoder that are wanted; its workdir is kept until they are done.

        A finished pre-training whose weights are gone is made again for them, and its result stays.
        """
        wanted, base = set(cells), next((cell.base for cell in cells if cell.base), None)
        folder = self._grid.workdir(base or cells[0])
        if base and (self._grid.result(base) or {}).get("diverged"):
            self._none_to_evaluate(cells)
            return
        if base and base not in wanted and not (folder / "run" / "pretrain.json").exists():
            cells = [base, *cells]  # its weights are gone
        cells = sorted(cells, key=lambda cell: cell.measure)
        for cell in cells:
            if self._make(cell, cores) != "done":
                return  # its evaluations have nothing to evaluate
            with self._lock:
                self._done += cell in wanted
                self._made += 1
                _say(f"{self._done}/{self._all} {self._told(cell)}{self._left()}")
            if not cell.measure and (self._grid.result(cell) or {}).get("diverged"):
                self._none_to_evaluate(cells[1:])
                break
        if not self._keep:
            shutil.rmtree(folder, ignore_errors=True)

    def _none_to_evaluate(self, cells: list[Cell]) -> None:
        """Evaluations of an encoder that diverged find what guessing finds, as its own kNN does."""
        for cell in cells:
            self._keep_result(cell, _evaluated(cell, self._grid.workdir(cell), True) | _NO_TIME | {"code": self._code})
            with self._lock:
                self._done += 1
                _say(f"{self._done}/{self._all} {cell.name}: its encoder diverged")

    def _keep_result(self, cell: Cell, found: dict[str, Any]) -> None:
        path = self._grid.out / "cells" / f"{cell.name}.json"
        write_whole(epath.Path(path), json.dumps(found, indent=1, sort_keys=True) + "\n")

    def _told(self, cell: Cell) -> str:
        found = self._grid.result(cell) or {}
        accuracy = "diverged" if found.get("diverged") else f"{found['accuracy']:.2f} %"
        return f"{cell.name}: {accuracy}, {found['cpu_seconds'] / 60:.1f} core minutes"

    def _left(self) -> str:
        if not self._waiting:
            return ""
        each = (time.monotonic() - self._began) / self._made
        hours, minutes = divmod(round(each * (sum(map(len, self._waiting)) + len(self._children) / 2) / 60), 60)
        return f"; about {hours}:{minutes:02} h left"

    def _make(self, cell: Cell, cores: set[int]) -> str:
        """Runs a cell to its end: "done", "failed" or "interrupted"."""
        folder = self._grid.workdir(cell)
        folder.mkdir(exist_ok=True)
        began = time.monotonic()
        with open(folder / "log.txt", "a") as log:
            command = self._command(cell)
            with self._lock:
                if self._stopping:
                    return "interrupted"
                self._check_code()
                child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
                if cores:
                    with contextlib.suppress(ProcessLookupError):  # it has ended
                        os.sched_setaffinity(child.pid, cores)  # its threads, which begin later, inherit this
                self._children[cell] = child
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        with self._lock:
            del self._children[cell]
        spent = _spent(folder, usage.ru_utime + usage.ru_stime, time.monotonic() - began, self._code)
        self._check_code()  # modules may be read late
        if child.returncode == INTERRUPTED or (self._stopping and child.returncode):
            return "interrupted"
        diverged = _diverged(folder)
        if child.returncode and not diverged:
            last = [line for line in (folder / "log.txt").read_text(errors="replace").splitlines() if line.strip()][-1:]
            self._fail(cell, f"{''.join(last)[:300] or child.returncode} ({folder / 'log.txt'})")
            return "failed"
        found = (_evaluated if cell.measure else _found)(cell, folder / "run", diverged) | spent
        if cores:
            found["cores"] = len(cores)
        if cell.base:
            found["encoder"] = _weights(self._grid.workdir(cell.base) / "run")
        if self._grid.result(cell) is not None:
            with self._lock:
                record = self._grid.add_made_again(cell, found)
            _say(f"{cell.name} was made again for its weights: {'the same' if record['same'] else 'OTHER'} bits")
        else:
            self._keep_result(cell, found)
        if cell.measure and not self._keep:
            shutil.rmtree(folder)
        return "done"

    def _fail(self, cell: Cell, why: str) -> None:
        self._failed[cell] = why
        _say(f"failed: {cell.name}: {why}")


def _by_base(cells: list[Cell]) -> dict[Cell, list[Cell]]:
    """Pre-trainings with their evaluations, in the order of the first of them."""
    groups: dict[Cell, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.base or cell, []).append(cell)
    return groups


def cores() -> list[int]:
    """Those that runs may use; none where they cannot be chosen."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _shares(jobs: int) -> list[set[int]]:
    """The cores of each job; all of them if there are fewer cores than jobs."""
    return [set(cores()[job::jobs]) or set(cores()) for job in range(jobs)]


def _spent(folder: pathlib.Path, cpu: float, wall: float, code: str) -> dict[str, Any]:
    """Adds the seconds of an attempt, and the code that it was made with, to those of earlier ones."""
    path = folder / "spent.json"
    before = read_object(epath.Path(path)) if path.exists() else _NO_TIME
    codes = before.get("code", code).split(" then ")
    spent = {
        "cpu_seconds": round(before["cpu_seconds"] + cpu, 2),
        "seconds": round(before["seconds"] + wall, 1),
        "attempts": before["attempts"] + 1,
        "code": " then ".join(codes if codes[-1] == code else [*codes, code]),
    }
    write_whole(epath.Path(path), json.dumps(spent) + "\n")
    return spent


def _records(run: pathlib.Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _diverged(folder: pathlib.Path) -> bool:
    """Whether a loss or an update was not finite: the run's last line says so, as such a step is not among those that are reported."""
    return bool(_NOT_FINITE.search((folder / "log.txt").read_text(errors="replace")))


def _found(cell: Cell, run: pathlib.Path, diverged: bool) -> dict[str, Any]:
    """What is kept of a run: how it was made, and what it found.

    A run whose loss is not finite has the accuracy of guessing.
    """
    records = _records(run)
    looks = [record for record in records if "knn_accuracy" in record]
    losses = [record for record in records if record.get("loss") is not None]
    found = _made_by(cell) | {
        "diverged": diverged,
        "untrained": round(100 * looks[0]["knn_accuracy"], 2),
        "loss": losses[-1]["loss"] if losses else None,
        "steps": losses[-1]["step"] if losses else 0,
    }
    if diverged:
        return found | {"accuracy": GUESSING}
    result = read_object(epath.Path(run / "pretrain.json"))
    return found | {
        "accuracy": round(100 * result["knn_accuracy_after"], 2),
        "rankme": round(looks[-1]["rankme"], 1),
        "dead_features": looks[-1]["dead_features"],
        "raw_pixels": round(100 * result["knn_accuracy_raw_pixels"], 2),
        "steps": result["step"],
        "weights": _weights(run),
        "data": _notes(run)["data"]["fingerprint"],
        "devices": _devices(run),
    }


def _devices(run: pathlib.Path) -> str:
    path = epath.Path(run / "report" / "run.json")
    return read_object(path).get("devices", "") if path.exists() else ""


def _evaluated(cell: Cell, run: pathlib.Path, diverged: bool) -> dict[str, Any]:
    """The same of an evaluation."""
    if diverged:
        return _made_by(cell) | {"accuracy": GUESSING, "diverged": True}
    task = cell.config().task
    result = read_object(epath.Path(run / f"{task}.json"))
    mean = {name: round(100 * value, 2) for name, value in result["mean"].items() if "top" in name}
    accuracy = mean["top1.200" if task == "knn" else "final.top1"]
    found = _made_by(cell) | {"accuracy": accuracy, "accuracies": mean, "diverged": diverged}
    if search := result["runs"][0].get("search"):
        found["rates"] = search["chosen"]
    return found


def _made_by(cell: Cell) -> dict[str, Any]:
    return {
        "scale": cell.scale,
        "method": cell.method,
        "measure": cell.measure,
        "fields": dict(cell.fields),
        "seed": cell.seed,
        "settings": cell.settings(),
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "machine": f"{os.cpu_count()} cores, {processor()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _weights(run: pathlib.Path) -> str:
    """A fingerprint of the last checkpoint's arrays: equal for equal bits."""
    text = json.dumps(_notes(run)["fingerprints"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _notes(run: pathlib.Path) -> dict[str, Any]:
    """What the last checkpoint says of the run besides its arrays."""
    last = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name) if path.name.isdigit() else -1)
    return read_object(epath.Path(last / "run" / "metadata"))


def processor() -> str:
    """Its name; on x86 also whether it has AVX-512, by which two of one name may round sums differently."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    return name + ("" if flags is None else ", AVX-512" if "avx512f" in flags else ", no AVX-512")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M')} {text}", flush=True)


def scale_of(out: pathlib.Path) -> str:
    """The scale of a folder's results.

    Raises:
      UserError: it holds none.
    """
    try:
        scale = read_object(epath.Path(out / "grid.json"))["scale"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"--out={out} holds no results of run.py") from None
    if scale not in SCALES:
        raise UserError(f"--out={out} holds results at an unknown scale, {scale!r}")
    return scale
