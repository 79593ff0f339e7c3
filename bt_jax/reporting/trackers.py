"""Weights & Biases and MLflow: a run's records and pictures for those who watch many runs.

Both are optional packages, and both work offline: W&B with WANDB_MODE=offline, MLflow in WORKDIR/mlruns. A resumed run goes on in
the same place; unlike metrics.jsonl, what it wrote after its checkpoint stays there. A tracker that fails never ends a run.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from bt_jax.errors import UserError, first_line
from bt_jax.parts import import_part
from bt_jax.reporting.writers import Writer
from bt_jax.runtime.files import read_object, write_whole

_NAMES = {"wandb": ("Weights & Biases", "wandb"), "mlflow": ("MLflow", "mlflow-skinny")}
_REMEDIES = {
    "wandb": "run `wandb login`, or set WANDB_MODE=offline or",
    "mlflow": "see to it that what MLFLOW_TRACKING_URI names answers, or set",
}
PROJECT = "bt_jax"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME is set


def check_tracker(name: str) -> None:
    """Raises UserError if its package cannot be imported; to be called before anything is written."""
    title, package = _NAMES[name]
    import_part(name, use=f"log.{name}", name=title, package=package, otherwise=f"set log.{name}=False")


class Tracker:
    """A tracker whose failures never end a run: they are told in one sentence, and it is tried again later."""

    PAUSE = 60  # seconds after a failure, at least
    PATIENCE = 20  # times as long as the failed attempt took, so that a server that is down delays a run by a twentieth at most

    def __init__(
        self,
        name: str,
        workdir: epath.Path,
        config: Mapping[str, Any],
        *,
        start_step: int = 0,
        say: Callable[[str], None],
    ):
        """Args:
        name: "wandb" or "mlflow".
        config: the run's.
        say: called with a sentence at the first failure, and at the end with how much is missing.

        Raises:
          UserError: it cannot be started.
        """
        self._title, self._say = _NAMES[name][0], say
        self._lock = threading.Lock()  # pictures come from another thread
        self._resting_until = float("-inf")
        self._told, self._missing = False, 0
        try:
            self._writer: Writer = _TRACKERS[name](workdir, config, start_step=start_step)
        except Exception as error:  # of many kinds: no key, no server, no place in the store
            raise UserError(
                f"{self._title} cannot be started ({_reason(error)}); {_REMEDIES[name]} log.{name}=False."
            ) from None

    def write(self, record: dict[str, Any]) -> None:
        self._missing += not self._try(lambda: self._writer.write(record))

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Pictures (H, W, 3) uint8 by name."""
        self._try(lambda: self._writer.images(step, pictures))

    def close(self) -> None:
        self._try(self._writer.close)
        if self._missing:
            these = "1 record" if self._missing == 1 else f"{self._missing} records"
            self._say(f"note      {self._title} lacks {these} of this run; metrics.jsonl has all of them")

    def _try(self, work: Callable[[], None]) -> bool:
        """Whether it was done: not while the tracker rests after a failure."""
        begin = time.monotonic()
        if begin < self._resting_until:
            return False
        try:
            work()
        except Exception as error:  # no log is worth a run
            now = time.monotonic()
            with self._lock:
                self._resting_until = now + max(self.PAUSE, self.PATIENCE * (now - begin))
                first, self._told = not self._told, True
            if first:
                self._say(
                    f"note      {self._title} cannot be written ({_reason(error)}); the run goes on, metrics.jsonl has "
                    "all records, and it is tried again from time to time"
                )
            return False
        return True


def _reason(error: Exception) -> str:
    return first_line(error).rstrip(".") or type(error).__name__


class WeightsAndBiases:
    """A run of Weights & Biases; its axis is the field "step" of the records, as looks and steps come in no fixed order."""

    def __init__(self, workdir: epath.Path, config: Mapping[str, Any], *, start_step: int = 0):
        import wandb

        self._wandb, ids = wandb, _Ids(workdir, "wandb", start_step)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=workdir.name,
            id=ids.known,
            resume="allow" if ids.known else None,
            config=json.loads(json.dumps(dict(config), default=str)),
            dir=None if "://" in str(workdir) else str(workdir),
        )
        ids.keep(self._run.id)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, record: dict[str, Any]) -> None:
        self._run.log({name: value for name, value in record.items() if value is not None})

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        self._run.log({"step": step, **{name: self._wandb.Image(picture) for name, picture in pictures.items()}})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow; its config becomes parameters, and pictures become artifacts."""

    def __init__(self, workdir: epath.Path, config: Mapping[str, Any], *, start_step: int = 0):
        from mlflow import MlflowClient

        where = (
            os.environ.get("MLFLOW_TRACKING_URI")
            or f"{'' if '://' in str(workdir) else 'file:'}{_absolute(workdir)}/mlruns"
        )
        # MLflow 3.7 and later refuse a folder unless told that it is meant.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client, ids = MlflowClient(tracking_uri=where), _Ids(workdir, "mlflow", start_step)
        if ids.known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self._client.get_experiment_by_name(name)
            number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
            self._id: str = self._client.create_run(number, run_name=workdir.name).info.run_id
            ids.keep(self._id)
            for field, value in _flat(config).items():
                self._client.log_param(self._id, field, str(value)[:500])
        else:
            self._id = ids.known
            self._client.update_run(self._id, status="RUNNING")

    def write(self, record: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = {name: value for name, value in record.items() if name != "step" and value is not None}
        self._client.log_batch(self._id, [Metric(name, value, now, record["step"]) for name, value in values.items()])

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        from PIL import Image

        for name, picture in pictures.items():
            self._client.log_image(self._id, Image.fromarray(picture), f"{name}_{step:08d}.png")

    def close(self) -> None:
        self._client.set_terminated(self._id)


_TRACKERS: dict[str, Callable[..., Writer]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}


class _Ids:
    """WORKDIR/trackers.json: the ids under which a run is logged, so that it goes on there when it resumes.

    Attributes:
      known: the id; None of a new run.
    """

    def __init__(self, workdir: epath.Path, name: str, start_step: int):
        self._path, self._name = workdir / "trackers.json", name
        try:
            self._all = read_object(self._path) if self._path.exists() else {}
        except (OSError, ValueError):
            self._all = {}
        self.known: str | None = self._all.get(name) if start_step else None

    def keep(self, number: str) -> None:
        write_whole(self._path, json.dumps(self._all | {self._name: number}) + "\n")


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _absolute(workdir: epath.Path) -> str:
    return str(workdir) if "://" in str(workdir) else os.path.abspath(workdir)
