"""Runs of a few seconds that represent long ones; the other scripts in this folder start, signal and examine them.

Libraries are imported once, and each run is a fork of this process: a separate process that can be killed, without the seconds
that a start takes. Compiled programs are cached in a folder, so that all runs of a script use the same ones.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tensorflow  # noqa: F401  (before the forks)
from etils import epath

from bt_jax import config as config_lib
from bt_jax.engine.storage import steps_in
from bt_jax.errors import UserError
from bt_jax.tasks import pretrain as loop

STEPS_AN_EPOCH, EPOCHS = 10, 3


def prepare(folder: pathlib.Path) -> None:
    """Makes the folder with the images and the cache for compiled programs."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    labels = np.arange(8 * STEPS_AN_EPOCH) % 2
    images = (rng.integers(0, 160, (len(labels), 16, 16, 3)) + 80 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "set.npz", x_train=images, y_train=labels, x_test=images[:16], y_test=labels[:16])
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def config_of(folder: pathlib.Path, **changes):
    """A narrow ResNet-18 with the monitor every other epoch and a checkpoint at every step."""
    config = config_lib.default()
    config.batch_size, config.epochs = 8, EPOCHS
    config.data.update(source="arrays", data_dir=str(folder / "set.npz"), image_size=16, eval_resize=0, threads=2)
    config.model.update(arch="resnet18", width=4, small_images=True)
    config.barlow_twins.projector = (32, 32)
    config.optimizer.warmup_epochs = 1
    config.checkpoint.every_steps = 1
    config.monitor.update(every_epochs=2, batch_size=16, k=5)
    config.log.every_steps = 1
    config.update_from_flattened_dict(changes)
    return config


class Run:
    """A run in a separate process, with its output in a file."""

    def __init__(
        self,
        folder: pathlib.Path,
        workdir: epath.Path | pathlib.Path,
        before: Callable[[], None] = lambda: None,
        task: Callable[[], object] | None = None,
        **changes,
    ):
        """Args:
        before: called in the process first.
        task: instead of pre-training.
        """
        self.said_in = folder / f"said_{workdir.name}_{time.time_ns()}"
        self.start = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            said = os.open(self.said_in, os.O_WRONLY | os.O_CREAT)
            os.dup2(said, 1), os.dup2(said, 2)
            status = 1
            try:
                before()
                if task is None:
                    loop.pretrain(config_of(folder, **changes), str(workdir))
                else:
                    task()
                status = 0
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
            except SystemExit as left:
                status = left.code
            except BaseException as error:  # as Python would, but without this script's exit handlers
                sys.excepthook(type(error), error, error.__traceback__)
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(status)
        self.status: int | None = None

    def said(self) -> str:
        return self.said_in.read_text() if self.said_in.exists() else ""

    def last_words(self) -> str:
        errors = [line for line in self.said().splitlines() if line.startswith(("error:", "stopped by"))]
        return errors[-1] if errors else "(nothing) " + self.said()[-300:]

    def ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def wait(self, seconds: float = 900) -> int:
        until = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > until:
                self.signal(signal.SIGKILL)
                raise TimeoutError(f"still running after {seconds} s: {self.said()[-500:]}")
            time.sleep(0.005)
        return self.status

    def until(self, happened: Callable[[], bool], seconds: float = 900) -> bool:
        """Waits until something happens or the run ends; returns whether it happened."""
        until = time.monotonic() + seconds
        while not happened():
            if self.ended() or time.monotonic() > until:
                return False
            time.sleep(0.002)
        return True

    def training(self) -> bool:
        return "images/s" in self.said() or " lr " in self.said()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def newest(workdir: epath.Path | pathlib.Path) -> int:
    return max(steps_in(epath.Path(workdir) / "checkpoints"), default=0)


def final(folder: pathlib.Path, workdir: epath.Path | pathlib.Path) -> dict[str, str]:
    """The sha256 of every array of the last checkpoint, and the numbers in metrics.jsonl without the speed.

    Read in a fork, because after JAX has run in this process it cannot run in its forks.
    """
    found_in = folder / f"final_{workdir.name}.json"
    found_in.unlink(missing_ok=True)
    if (pid := os.fork()) == 0:
        try:
            found_in.write_text(json.dumps(_final(workdir)))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return json.loads(found_in.read_text())


def _as_numpy(saved) -> Any:
    import orbax.checkpoint as ocp

    return jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved.item_metadata.tree)


def _final(workdir: epath.Path | pathlib.Path) -> dict[str, str]:
    import orbax.checkpoint as ocp

    step = newest(workdir)
    place = epath.Path(workdir) / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader:  # on one device, on however many the run was
        tree = jax.tree.map(np.asarray, reader.restore(place, restore_args=_as_numpy(reader.metadata(place))))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {jax.tree_util.keystr(p): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest() for p, leaf in leaves}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    numbers = [{k: v for k, v in line.items() if k not in ("images_per_second", "input_wait")} for line in lines]
    return {**arrays, "step": str(step), "metrics": json.dumps(numbers)}
