"""bt_jax/engine/session.py: one task at a time in a workdir, and signals while it works."""

import os
import signal

import pytest
from etils import epath

from bt_jax import config as config_lib
from bt_jax.engine.session import session
from bt_jax.errors import Preempted, UserError


@pytest.fixture
def config():
    config = config_lib.default("knn")
    config.init_from = "somewhere"
    return config


def test_one_task_at_a_time(config, tmp_path):
    """An evaluation's workdir is locked and its config kept, like a run's; when it has ended another may start."""
    workdir = epath.Path(tmp_path) / "out"
    with session(config, workdir) as held:
        assert not (workdir / "config.json").exists(), "something may still speak against the task"
        held.claim()
        assert config_lib.from_json((workdir / "config.json").read_text()).to_dict() == config.to_dict()
        with pytest.raises(UserError, match="another run is using"), session(config, workdir):
            pass
    with session(config, workdir) as held:
        held.check()


def test_another_config(config, tmp_path):
    with session(config, epath.Path(tmp_path)) as held:
        held.do(lambda: None, "the kNN search")
    config.knn.temperature = 0.5
    with (
        pytest.raises(UserError, match=r"knn.temperature was 0.1 and is now 0.5"),
        session(config, epath.Path(tmp_path)),
    ):
        pass


def test_a_signal_breaks_off_what_cannot_be_saved_half_done(config, tmp_path, capsys):
    """With a message and status 75, also inside other work that may be interrupted."""

    def told():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the signal came too late")

    with pytest.raises(Preempted) as ended, session(config, epath.Path(tmp_path)) as held:
        held.do(told, "the kNN search")
    assert ended.value.code == 75
    assert (
        "stopped by SIGTERM: the kNN search was not finished; the same command starts it again"
        in capsys.readouterr().err
    )

    with pytest.raises(Preempted), session(config, epath.Path(tmp_path)) as held:
        held.do(lambda: (held.do(lambda: None, "inner"), told()), "outer")
    assert "outer was not finished" in capsys.readouterr().err


def test_a_workdir_that_fails(config, tmp_path):
    """A full disk becomes a message; errors about other files stay as they are."""
    with pytest.raises(UserError, match="can no longer be written"), session(config, epath.Path(tmp_path)):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError), session(config, epath.Path(tmp_path)):
        raise FileNotFoundError(2, "No such file or directory", "/elsewhere/file")
