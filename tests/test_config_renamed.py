"""bt_jax/config/renamed.py: configs written at 57dd817 (tests/golden/config_57dd817*.json), and old names."""

import json

import pytest
from conftest import GOLDEN
from etils import epath

from bt_jax import config as config_lib
from bt_jax.config.renamed import new_name
from bt_jax.errors import UserError
from bt_jax.runtime.workdir import check_config, write_config
from bt_jax.tasks.judge_at_end import _derived
from configs import knn, quickstart


def old_text(name=""):
    return (GOLDEN / f"config_57dd817{name}.json").read_text()


def of_now(name):
    """The config that the same command makes now."""
    if name == "":
        return quickstart.get_config()
    if name == "_knn":
        return knn.get_config("quickstart")
    config = _derived(quickstart.get_config(), epath.Path("runs/quickstart"), name[1:], 32)
    if name == "_finetune":
        config.finetune.per_class = 10
    return config


@pytest.mark.parametrize("name", ["", "_linear", "_finetune", "_knn"])
def test_an_old_config_is_that_of_now(name):
    """Every field that the old program read has its value under the new name; those of other tasks are gone."""
    migrated = config_lib.from_json(old_text(name))
    config_lib.check(migrated)
    expected = of_now(name)
    old, new = config_lib.flatten(migrated), config_lib.flatten(expected)
    assert old.keys() == new.keys()
    differ = {field for field in new if config_lib.plain(old[field]) != config_lib.plain(new[field])}
    free = {field for field, known in config_lib.fields_of(expected).items() if known.resume == "free"}
    assert differ <= free


@pytest.mark.parametrize("name", ["", "_linear", "_finetune", "_knn"])
def test_an_old_run_goes_on(tmp_path, name):
    """Its workdir accepts today's config, and still refuses what would change its weights or its result."""
    (tmp_path / "config.json").write_text(old_text(name))
    config = of_now(name)
    other = config.copy_and_resolve_references()
    other.seed = 1
    with pytest.raises(UserError, match=r"another config \(seed was 0 and is now 1\)"):
        check_config(other, epath.Path(tmp_path))
    check_config(config, epath.Path(tmp_path))
    write_config(config, epath.Path(tmp_path))
    assert config_lib.from_json((tmp_path / "config.json").read_text()).to_dict() == config.to_dict()


def test_values_stay_under_new_names():
    old = json.loads(old_text())
    old["loss"]["lambd"], old["data"]["view_b"]["flip"], old["model"]["projector"] = 0.1, 0.25, [32, 64]
    old["data"]["view_supervised"]["hue"], old["monitor"]["batch_size"] = 0.2, 64
    config = config_lib.from_json(json.dumps(old))
    assert (config.barlow_twins.lambd, config.barlow_twins.view_b.flip) == (0.1, 0.25)
    assert (
        config.barlow_twins.projector == (32, 64) and config.judge.view.hue == 0.2 and config.monitor.batch_size == 64
    )
    old["task"] = "linear"
    config = config_lib.from_json(json.dumps(old))
    assert config.supervised.view.hue == 0.2 and config.features.batch_size == 64 and "barlow_twins" not in config
    old["task"] = "knn"
    config = config_lib.from_json(json.dumps(old))
    assert config.pairs.view_b.flip == 0.25 and config.knn.pairs == 1024


def test_an_svm_was_not_trained_in_epochs():
    """Nothing read its batch size and epochs, so any values are accepted."""
    old = json.loads(old_text())
    old["task"], old["transfer"]["protocol"] = "transfer", "svm"
    config = config_lib.from_json(json.dumps(old))
    assert (config.batch_size, config.epochs) == (256, 100)


def test_every_old_name_leads_somewhere():
    """An old field still exists in some task, or has a new name that does."""
    known = {name for task in config_lib.TASKS for name in config_lib.flatten(config_lib.default(task))}
    old = json.loads(old_text())

    def names(tree, prefix=""):
        for name, value in tree.items():
            yield from names(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]

    for name in names(old):
        assert name in known or new_name(name, "pretrain") in known, name
