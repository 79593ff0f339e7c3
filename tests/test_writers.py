"""bt_jax/reporting/writers.py: files of numbers that survive a restart."""

import json
import threading
import time

import numpy as np
import pytest
from etils import epath

from bt_jax.errors import UserError
from bt_jax.reporting.progress import Reporter
from bt_jax.reporting.writers import JsonLines, TensorBoard, _Stored


@pytest.fixture
def path(tmp_path):
    return epath.Path(tmp_path) / "metrics.jsonl"


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_there_as_soon_as_it_is_written(path):
    writer = JsonLines(path)
    writer.write({"step": 1, "loss": 2.5})
    assert lines_of(path) == [{"step": 1, "loss": 2.5}]
    writer.close()


def test_resume_drops_what_will_be_written_again(path):
    """A run killed at step 7 that resumes at step 4 has each step once."""
    first = JsonLines(path)
    for step in range(8):
        first.write({"step": step})
    first.close()
    second = JsonLines(path, start_step=4)
    assert [r["step"] for r in second.records()] == [0, 1, 2, 3, 4]
    second.write({"step": 5})
    second.close()
    assert [r["step"] for r in lines_of(path)] == [0, 1, 2, 3, 4, 5]


def test_half_a_line_is_removed(path):
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    JsonLines(path, start_step=10).close()
    assert lines_of(path) == [{"step": 1}]


def test_lines_that_were_lost_come_back(path):
    """From a checkpoint's history, if the file has fewer; or instead of everything in the file."""
    history = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]
    path.write_text('{"step": 1, "loss": 2.5}\n{"step": 3}\n')
    JsonLines(path, start_step=2, history=history).close()
    assert lines_of(path) == history
    JsonLines(path, start_step=2, history=history[:1]).close()
    assert lines_of(path) == history
    JsonLines(path, start_step=2, history=history[:1], history_is_all=True).close()
    assert lines_of(path) == history[:1]


@pytest.mark.parametrize(
    "damage",
    [
        b'{"step": 2, "lo\xffs": 1.5}',
        b"",
        b"[]",
        b"7",
        b'{"loss": 1.5}',
        b'{"step": "2"}',
        b'{"step": -2}',
        b"\0\0",
        None,
    ],
)
def test_a_damaged_line_comes_back(path, damage):
    """From the checkpoint's history, with a notice that names it; without a history the line is left out."""
    history = [{"step": step, "loss": 0.1 * step} for step in (1, 2, 3)]
    lines = [json.dumps(record).encode() for record in [*history, {"step": 4}]]
    lines[1] = lines[1].replace(b"0.2", b"0.3") if damage is None else damage  # None: it still is a record
    for known in (history, []):
        path.write_bytes(b"\n".join(lines) + b"\n")
        writer = JsonLines(path, start_step=3, history=known)
        writer.write({"step": 4, "again": True})
        writer.close()
        left = (
            history if known else [history[0], {"step": 2, "loss": 0.3}, history[2]] if damage is None else history[::2]
        )
        assert json.loads(json.dumps(lines_of(path))) == [*left, {"step": 4, "again": True}]
        if damage is not None:
            how = "it was restored from the checkpoint" if known else "those lines are ignored"
            assert writer.notices == [f"{path} is damaged in line 2; {how}"]
        assert bool(writer.notices) == (damage is not None or bool(known))
        assert writer.records() == lines_of(path)


def test_a_new_run_says_nothing_of_what_it_replaces(path):
    path.write_bytes(b"\xff\n")
    writer = JsonLines(path, history_is_all=True)
    assert writer.notices == [] and path.read_bytes() == b""
    writer.close()


def test_a_full_disk(path, monkeypatch):
    """Raises once, where a line is written; closing raises nothing in its place."""
    writer = JsonLines(path)
    with open("/dev/full", "w") as full:
        writer._file = full
        with pytest.raises(OSError, match="No space left"):
            writer.write({"step": 1})
        writer.close()


class InStore:
    """A file in an object store: written as a whole, which may take long or fail."""

    def __init__(self, path):
        self.path, self.writes, self.answers, self.error = path, [], threading.Event(), None
        self.answers.set()

    def __str__(self):
        return "gs://bucket/run/metrics.jsonl"

    __fspath__ = __str__

    def exists(self):
        return self.path.exists()

    def read_bytes(self):
        return self.path.read_bytes()

    def write_bytes(self, content):
        self.path.write_bytes(content)

    def write_text(self, text):
        assert self.answers.wait(60)
        if self.error is not None:
            raise self.error
        self.writes.append(text)
        self.path.write_text(text)


def until(happened):
    start = time.monotonic()
    while not happened():
        assert time.monotonic() - start < 60
        time.sleep(0.01)


def test_an_object_store_that_is_slow(path, monkeypatch):
    """No report waits for it, it is written only so often, and it has every line once it is flushed or closed."""
    stored = InStore(path)
    writer = JsonLines(stored)
    for step in range(100):
        writer.write({"step": step})
    assert stored.writes == [] and [r["step"] for r in writer.records()] == list(range(100))
    writer.flush()
    writer.flush()
    assert len(stored.writes) == 1 and lines_of(path) == writer.records()
    writer.write({"step": 100})
    writer.close()
    assert len(stored.writes) == 2 and lines_of(path) == writer.records()
    monkeypatch.setattr(_Stored, "PAUSE", 0.01)
    writer = JsonLines(stored, start_step=100)
    stored.answers.clear()
    writer.write({"step": 101})
    time.sleep(0.1)
    writer.write({"step": 102})  # while the thread is writing
    assert len(stored.writes) == 2
    stored.answers.set()
    until(lambda: lines_of(path) == writer.records())
    writer.close()


def test_an_object_store_that_fails(path, monkeypatch):
    """The run goes on, is told so once, and the file is written when it can be."""
    monkeypatch.setattr(_Stored, "PAUSE", 0.01)
    stored, said = InStore(path), []
    stored.error = RuntimeError("503, Service Unavailable")
    writer = JsonLines(stored, say=said.append)
    writer.write({"step": 1})
    writer.flush()
    writer.write({"step": 2})
    time.sleep(0.1)
    writer.flush()
    assert said == [
        f"note      {stored} cannot be written (503, Service Unavailable); its lines are kept until it can be"
    ]
    stored.error = None
    until(lambda: path.exists() and [r["step"] for r in lines_of(path)] == [1, 2])
    stored.error = RuntimeError("503, Service Unavailable")
    writer.write({"step": 3})
    writer.close()
    assert len(said) == 1


def test_a_report_that_is_flushed(path):
    """As before a checkpoint, whose notes have the records too."""

    class Workdir:
        def __truediv__(self, name):
            return stored

    stored = InStore(path)
    report = Reporter(
        Workdir(), start_step=0, total_steps=9, steps_per_epoch=3, batch_size=1, every_steps=1, tensorboard=False
    )
    report.record(1, {"loss": 1.0})
    report.flush()
    assert lines_of(path) == report.history() == [{"step": 1, "epoch": 0.3333, "loss": 1.0}]
    report.close()


def test_not_finite_is_null(path):
    """NaN is not JSON: other programs must be able to read the line."""
    writer = JsonLines(path)
    writer.write({"step": 1, "loss": float("nan"), "other": float("inf")})
    writer.close()
    assert lines_of(path) == [{"step": 1, "loss": None, "other": None}]


def test_tensorboard_holds_the_scalars(tmp_path):
    """Read back with the format's own reader, record by record."""
    from tensorboardX.proto.event_pb2 import Event

    writer = TensorBoard(epath.Path(tmp_path))
    writer.write({"step": 3, "loss": 1.5, "epoch": None})
    writer.close()
    (file,) = tmp_path.glob("events.*")
    data, values, at = file.read_bytes(), {}, 0
    while at < len(data):
        length = int(np.frombuffer(data[at : at + 8], np.uint64)[0])
        event = Event.FromString(data[at + 12 : at + 12 + length])
        values |= {v.tag: (event.step, v.simple_value) for v in event.summary.value}
        at += 12 + length + 4
    assert values == {"loss": (3, 1.5)}


def test_tensorboard_without_what_a_place_takes(monkeypatch):
    """An error, before a run begins."""

    def absent(*_, **__):
        raise ImportError("'google-cloud-storage' must be installed in order to use the 'gs://' protocol")

    monkeypatch.setattr("tensorboardX.SummaryWriter", absent)
    with pytest.raises(
        UserError, match=r"cannot be written to gs://bucket/x .*google-cloud-storage.* log.tensorboard=False"
    ):
        TensorBoard(epath.Path("gs://bucket/x"))
