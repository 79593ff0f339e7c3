"""bt_jax/reporting/writers.py: files of numbers that survive a restart."""

import json

import numpy as np
import pytest
from etils import epath

from bt_jax.errors import UserError
from bt_jax.reporting.writers import JsonLines, TensorBoard


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
