"""bt_jax/runtime/workdir.py: a folder belongs to one config."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from etils import epath

from bt_jax import config as config_lib
from bt_jax.errors import UserError
from bt_jax.runtime import workdir as workdir_lib
from bt_jax.runtime.workdir import check_config, held, write_config


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path) / "run"


def test_same_config_goes_on(workdir):
    config = config_lib.default()
    write_config(config, workdir)
    check_config(config, workdir)
    assert config_lib.from_json((workdir / "config.json").read_text()).to_dict() == config.to_dict()


def test_another_config_is_refused_by_field(workdir):
    """The fields that differ are named, with both values, and nothing is written."""
    config = config_lib.default()
    write_config(config, workdir)
    before = (workdir / "config.json").read_text()
    config.optimizer.weight_decay, config.barlow_twins.projector = 1e-4, (64, 64)
    with pytest.raises(UserError) as error:
        check_config(config, workdir)
    assert "optimizer.weight_decay was 1e-06 and is now 0.0001" in str(error.value)
    assert "barlow_twins.projector was (8192, 8192, 8192) and is now (64, 64)" in str(error.value)
    assert "epochs" not in str(error.value)
    assert (workdir / "config.json").read_text() == before


def test_what_changes_no_weight_may_differ(workdir):
    config = config_lib.default()
    write_config(config, workdir)
    config.log.every_steps, config.mesh.data, config.checkpoint.keep = 7, 8, 9
    check_config(config, workdir)


@pytest.mark.parametrize(
    "content", [b'{"seed": 0', b"[]", b"null", b"7", b'"text"', b"{}", b"", b"\xff", b'{"task": []}', b"[" * 99999]
)
def test_unreadable_config(workdir, content):
    """An error names the file, and the file stays."""
    workdir.mkdir()
    (workdir / "config.json").write_bytes(content)
    with pytest.raises(
        UserError, match="config.json is not the config of a run .*; remove it if the run has a checkpoint"
    ):
        check_config(config_lib.default(), workdir)
    assert (workdir / "config.json").read_bytes() == content


@pytest.mark.parametrize("task", ["pretrain", "linear", "old"])
def test_an_odd_config(workdir, task):
    """For any value in a config of today or of before: it is the same run, or an error says why not."""
    workdir.mkdir()
    good = json.loads(config_lib.to_json(config_lib.default(task if task != "old" else "pretrain")))
    if task == "old":
        path = pathlib.Path(__file__).parent.parent / "experiments" / "results" / "cifar10_cpu" / "config.json"
        good = json.loads(path.read_text())
    config = config_lib.default("linear" if task == "linear" else "pretrain")
    places = [(name,) for name in good] + [
        (n, m) for n, group in good.items() if isinstance(group, dict) for m in group
    ]
    for place in places:
        for odd in ([], None, "x", 3, {}, {"a": {}}, {"a.b": 1}):
            changed = json.loads(json.dumps(good))
            (changed if len(place) == 1 else changed[place[0]])[place[-1]] = odd
            (workdir / "config.json").write_text(json.dumps(changed))
            with contextlib.suppress(UserError):
                check_config(config, workdir)


def test_workdir_that_cannot_be_written(tmp_path):
    """A file where the folder should be; root may write anywhere, so permissions cannot be tried."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_config(config_lib.default(), epath.Path(os.fspath(tmp_path / "file" / "run")))


def test_a_config_older_than_a_field(workdir):
    """A run whose config was written before a field existed resumes: it had the default."""
    config = config_lib.default()
    write_config(config, workdir)
    old = json.loads((workdir / "config.json").read_text())
    del old["barlow_twins"]["form"], old["seed"]
    (workdir / "config.json").write_text(json.dumps(old))
    check_config(config, workdir)
    config.seed = 1
    with pytest.raises(UserError, match="seed was 0 and is now 1"):
        check_config(config, workdir)


HOLD = """
import sys, time
from etils import epath
from bt_jax.runtime.workdir import held
with held(epath.Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


def test_one_run_at_a_time(workdir):
    """A second one gets the host and the process of the first; when that is killed, the next can start at once."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(workdir)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "in\n"
            with pytest.raises(
                UserError, match=f"another run is using .*: process {other.pid} on host {os.uname().nodename}"
            ):
                held(workdir).__enter__()
        finally:
            other.send_signal(signal.SIGKILL)
            other.wait()
    with held(workdir) as holder:
        holder.check()
        assert json.loads((workdir / "holder.json").read_text())["process"] == os.getpid()
    with held(workdir):
        pass


def elsewhere(beats):
    return json.dumps({"host": "far", "process": 7, "machine": "other", "id": "abc", "beats": beats})


def test_a_holder_on_another_host(workdir, monkeypatch):
    """The workdir is refused if the holder gives a sign of life while it is watched, and free if it gives none."""
    monkeypatch.setattr(workdir_lib, "SILENT_SECONDS", 0.5)
    workdir.mkdir()
    path = workdir / "holder.json"
    path.write_text(elsewhere(1))
    beats = iter(range(2, 100))
    sleep = workdir_lib.time.sleep
    monkeypatch.setattr(workdir_lib.time, "sleep", lambda s: (sleep(s), path.write_text(elsewhere(next(beats)))))
    with pytest.raises(UserError, match="process 7 on host far; wait for it or stop it first"):
        held(workdir).__enter__()
    monkeypatch.setattr(workdir_lib.time, "sleep", sleep)
    with held(workdir) as holder:
        holder.check()
        path.write_text(elsewhere(200))  # it was only stopped for a while, and thinks that it is still the one
        with pytest.raises(UserError, match="process 7 on host far"):
            holder.check()
    assert path.read_text() == elsewhere(200), "not ours to free"


@pytest.mark.parametrize("torn", ["", '{"host": "far", "pro'])
@pytest.mark.parametrize("first", [True, False])
def test_a_holder_that_is_just_writing(workdir, monkeypatch, torn, first):
    """A text that is no content, at the first reading or a later one, does not mean that it has left."""
    monkeypatch.setattr(workdir_lib, "SILENT_SECONDS", 0.5)
    workdir.mkdir()
    path = workdir / "holder.json"
    path.write_text(torn if first else elsewhere(1))
    later = iter([torn, torn, elsewhere(2), torn, elsewhere(3)])
    sleep = workdir_lib.time.sleep
    monkeypatch.setattr(workdir_lib.time, "sleep", lambda s: (sleep(s), path.write_text(next(later))))
    with pytest.raises(UserError, match="process 7 on host far; wait for it or stop it first"):
        held(workdir).__enter__()


@pytest.mark.parametrize("content", ["", '{"host": "far", "pro', "{}", None])
def test_a_holder_that_was_killed_while_it_was_writing(workdir, monkeypatch, content):
    """Its workdir is free once it has been silent for long enough; one that was left, or a new one, at once."""
    monkeypatch.setattr(workdir_lib, "SILENT_SECONDS", 0.5)
    workdir.mkdir()
    if content is not None:
        (workdir / "holder.json").write_text(content)
    watched, sleep = [], workdir_lib.time.sleep
    monkeypatch.setattr(workdir_lib.time, "sleep", lambda s: (sleep(s), watched.append(s)))
    with held(workdir) as holder:
        holder.check()
        assert bool(watched) == (content not in ("{}", None))
        (workdir / "holder.json").write_text("")  # this run is just writing it
        holder.check()


def test_signs_of_life(workdir, monkeypatch):
    """The holder counts up; a workdir that disappears does not end the run by itself."""
    monkeypatch.setattr(workdir_lib, "BEAT_SECONDS", 0.05)
    with held(workdir):
        path = workdir / "holder.json"
        until = workdir_lib.time.monotonic() + 10
        while json.loads(path.read_text() or "{}").get("beats", 0) < 3:
            assert workdir_lib.time.monotonic() < until
            workdir_lib.time.sleep(0.01)
        workdir.rmtree()
        workdir_lib.time.sleep(0.2)


def test_a_system_without_locks(workdir, monkeypatch):
    """On Windows one sentence."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(UserError, match="bt_jax runs on Linux and macOS; on Windows run it in WSL"), held(workdir):
        pass


def test_a_holder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the workdir .* cannot be written"):
        held(epath.Path(tmp_path / "file" / "run")).__enter__()


def test_an_object_store_that_cannot_be_written(monkeypatch):
    """Whatever its library raises, in the first line of what that says; a bug stays one."""
    workdir = epath.Path("gs://bucket/run")
    error = RuntimeError("Unable to locate credentials\n\twhen reading gs://bucket/run")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(epath.gpath.PosixGPath, "mkdir", fail)
    for write in (lambda: held(workdir).__enter__(), lambda: workdir_lib.write_config(config_lib.default(), workdir)):
        with pytest.raises(
            UserError, match="the workdir gs://bucket/run cannot be written: Unable to locate credentials.$"
        ):
            write()
    for write in (
        lambda: held(epath.Path("run")).__enter__(),
        lambda: workdir_lib.write_config(config_lib.default(), epath.Path("run")),
    ):
        with pytest.raises(RuntimeError, match="Unable to locate"):
            write()
