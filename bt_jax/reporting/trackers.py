"""Weights & Biases and MLflow: a run's records and pictures for those who watch many runs.

Both are optional packages, and both work offline: W&B with WANDB_MODE=offline, MLflow in WORKDIR/mlruns. A resumed run goes on in
the same place; unlike metrics.jsonl, what it wrote after its checkpoint stays there.
"""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from bt_jax.parts import import_part
from bt_jax.runtime.files import read_object, write_whole

_NAMES = {"wandb": ("Weights & Biases", "wandb"), "mlflow": ("MLflow", "mlflow-skinny")}
PROJECT = "bt_jax"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME is set


def check_tracker(name: str) -> None:
    """Raises UserError if its package cannot be imported; to be called before anything is written."""
    title, package = _NAMES[name]
    import_part(name, use=f"log.{name}", name=title, package=package, otherwise=f"set log.{name}=False")


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
