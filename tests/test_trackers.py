"""bt_jax/reporting/trackers.py: what W&B and MLflow have written offline is read back, and a failure of theirs ends no run."""

import sys
import time

import numpy as np
import pytest
from etils import epath

from bt_jax.errors import UserError
from bt_jax.reporting import trackers
from bt_jax.reporting.progress import Reporter
from bt_jax.reporting.trackers import MLflow, Tracker, WeightsAndBiases, check_tracker

CONFIG = {"batch_size": 16, "data": {"source": "arrays"}}
PICTURE = np.zeros((4, 6, 3), np.uint8)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"log.{name} needs .*pip install {name}.*set log.{name}=False"):
        check_tracker(name)


def test_mlflow(tmp_path, monkeypatch):
    """A resumed run goes on in the same place; a new one in the same workdir begins another."""
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    workdir = epath.Path(tmp_path / "a run")
    workdir.mkdir()
    first = MLflow(workdir, CONFIG)
    first.write({"step": 1, "epoch": 0.5, "loss": 2.0, "other": None})
    first.images(1, {"views/pair": PICTURE})
    first.close()
    second = MLflow(workdir, CONFIG, start_step=1)
    second.write({"step": 2, "epoch": 1.0, "loss": 1.0})
    second.close()
    client = MlflowClient(tracking_uri=f"file:{workdir}/mlruns")
    experiment = client.get_experiment_by_name("bt_jax").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.run_name == "a run" and run.info.status == "FINISHED"
    assert run.data.params == {"batch_size": "16", "data.source": "arrays"}
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [(1, 2.0), (2, 1.0)]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "views")] == ["views/pair_00000001.png"]
    MLflow(workdir, CONFIG).close()
    assert len(client.search_runs([experiment])) == 2


class Server:
    """A tracker whose server may be down, and takes seconds to say so."""

    def __init__(self, clock):
        self.clock, self.down, self.attempts, self.taken, self.closed = clock, False, 0, [], False

    def __call__(self, workdir, config, *, start_step=0):
        self._answer()
        return self

    def _answer(self):
        self.attempts += 1
        if self.down:
            self.clock[0] += 10.0
            raise RuntimeError("API request failed with HTTPConnectionPool(host='far').\nmore")

    def write(self, record):
        self._answer()
        self.taken.append(record["step"])

    def images(self, step, pictures):
        self._answer()
        self.taken.append(tuple(pictures))

    def close(self):
        self._answer()
        self.closed = True


@pytest.fixture
def server(monkeypatch):
    clock = [0.0]
    server = Server(clock)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(trackers._TRACKERS, name, server)
    return server


def test_a_server_that_is_down_for_a_while(tmp_path, capsys, server):
    """The run goes on, is told so once, and is delayed little; what was reported meanwhile is in metrics.jsonl alone."""
    report = Reporter(
        epath.Path(tmp_path), start_step=0, total_steps=99, steps_per_epoch=9, batch_size=1, every_steps=1, tensorboard=False,
        mlflow=True,
    )  # fmt: skip
    for step in range(1, 8):
        server.down = 2 <= step <= 5
        report.record(step, {"loss": 1.0})
        report.images(step, {"views": PICTURE})
        server.clock[0] += 150.0
    report.close()
    # Ten seconds in vain, and then a rest of two hundred, in which nothing is asked of it: steps 3 and 5.
    assert server.taken == [1, ("views",), 6, ("views",), 7, ("views",)] and server.closed
    assert server.attempts == 1 + 2 + 2 + 4 + 1
    assert capsys.readouterr().out.splitlines() == [
        "note      MLflow cannot be written (API request failed with HTTPConnectionPool(host='far')); the run goes on, "
        "metrics.jsonl has all records, and it is tried again from time to time",
        "note      MLflow lacks 4 records of this run; metrics.jsonl has all of them",
    ]
    assert [record["step"] for record in report.history()] == list(range(1, 8))


def test_a_server_that_is_down_at_the_end(tmp_path, server):
    """Closing raises nothing, and does not wait again for a server that has just not answered."""
    said = []
    tracker = Tracker("wandb", epath.Path(tmp_path), CONFIG, say=said.append)
    server.down = True
    tracker.write({"step": 1})
    tracker.close()
    assert server.attempts == 2 and said[1:] == [
        "note      Weights & Biases lacks 1 record of this run; metrics.jsonl has all of them"
    ]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "wandb",
            "Weights & Biases cannot be started (API request failed with HTTPConnectionPool(host='far')); run `wandb login`, or "
            "set WANDB_MODE=offline or log.wandb=False.",
        ),
        (
            "mlflow",
            "MLflow cannot be started (API request failed with HTTPConnectionPool(host='far')); see to it that what "
            "MLFLOW_TRACKING_URI names answers, or set log.mlflow=False.",
        ),
    ],
)
def test_a_server_that_is_down_at_the_start(tmp_path, server, name, sentence):
    server.down = True
    with pytest.raises(UserError) as error:
        Tracker(name, epath.Path(tmp_path), CONFIG, say=print)
    assert str(error.value) == sentence


def contents(file):
    """The records of a .wandb file: LevelDB's log format, after a header of 7 bytes."""
    at, part = 7, b""
    while at + 7 <= len(file):
        if 32768 - at % 32768 < 7:  # the rest of a block is padding
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(file[at + 4 : at + 6], "little"), file[at + 6]
        part += file[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield part
            part = b""


def test_wandb_offline(tmp_path, monkeypatch):
    """Its file has the config, the records and a picture, under one id for both starts."""
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2 as pb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    workdir = epath.Path(tmp_path / "a run")
    workdir.mkdir()
    for start, step in ((0, 1), (1, 2)):
        writer = WeightsAndBiases(workdir, CONFIG, start_step=start)
        writer.write({"step": step, "loss": 2.0 / step, "other": None})
        writer.images(step, {"views": PICTURE})
        writer.close()
        time.sleep(1.1)  # W&B names its files by the second
    ids, losses, config, pictures = set(), [], {}, 0
    for file in sorted((tmp_path / "a run" / "wandb").glob("offline-run-*/*.wandb")):
        for data in contents(file.read_bytes()):
            record = pb.Record.FromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                config |= {item.key: item.value_json for item in record.run.config.update}
            found = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            losses += [float(found["loss"])] if "loss" in found else []
            pictures += "views" in found
    assert len(ids) == 1 and losses == [2.0, 1.0] and pictures == 2 and config["batch_size"] == "16"
