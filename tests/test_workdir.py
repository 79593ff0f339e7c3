"""bt_jax/workdir.py: a folder belongs to one config."""

import os

import pytest
from etils import epath

from bt_jax import config as config_lib
from bt_jax.errors import UserError
from bt_jax.workdir import claim_workdir


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path) / "run"


def test_same_config_goes_on(workdir):
    config = config_lib.default()
    claim_workdir(config, workdir, write=True)
    claim_workdir(config, workdir, write=True)
    assert config_lib.from_json((workdir / "config.json").read_text()).to_dict() == config.to_dict()


def test_another_config_is_refused_by_field(workdir):
    """The fields that differ are named, with both values, and nothing is written."""
    config = config_lib.default()
    claim_workdir(config, workdir, write=True)
    before = (workdir / "config.json").read_text()
    config.optimizer.weight_decay, config.model.projector = 1e-4, (64, 64)
    with pytest.raises(UserError) as error:
        claim_workdir(config, workdir, write=True)
    assert "optimizer.weight_decay was 1e-06 and is now 0.0001" in str(error.value)
    assert "model.projector was (8192, 8192, 8192) and is now (64, 64)" in str(error.value)
    assert "epochs" not in str(error.value)
    assert (workdir / "config.json").read_text() == before


def test_what_changes_no_weight_may_differ(workdir):
    config = config_lib.default()
    claim_workdir(config, workdir, write=True)
    config.log.every_steps, config.mesh.data, config.checkpoint.keep = 7, 8, 9
    claim_workdir(config, workdir, write=True)


def test_unreadable_config(workdir):
    workdir.mkdir()
    (workdir / "config.json").write_text('{"seed": 0')
    with pytest.raises(UserError, match="config.json is not readable as JSON"):
        claim_workdir(config_lib.default(), workdir, write=True)


def test_workdir_that_cannot_be_written(tmp_path):
    """A file where the folder should be; root may write anywhere, so permissions cannot be tried."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        claim_workdir(config_lib.default(), epath.Path(os.fspath(tmp_path / "file" / "run")), write=True)
