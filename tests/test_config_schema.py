"""bt_jax/config/schema.py: the fields of each task and method, configs made from others, methods from elsewhere."""

import ast
import collections
import pathlib
import sys

import pytest

from bt_jax import config as config_lib
from bt_jax.config.methods import METHODS
from bt_jax.config.optimizers import OPTIMIZERS
from bt_jax.config.tasks import TASKS
from bt_jax.errors import UserError

OWN = '''
from bt_jax.config import Field, contradiction
from bt_jax.config.rules import at_least

@contradiction("mine.rank", "batch_size")
def _small(rank, batch_size):
    return None if rank < batch_size else f"mine.rank is {rank}, but must be less than batch_size"

class Mine:
    """A user's method."""
    config_group = "mine"
    fields = {"rank": Field(4, at_least(1), "A number"), "view.flip": Field(0.5, at_least(0, float), "A probability")}
    optimizer = "sgd"
    defaults = {"optimizer.learning_rate": 0.05}
    contradictions = (_small,)

class Lacking:
    config_group = "not a name"
    fields = {"rank": 4}

class Taken:
    config_group = "data"
    fields = {}
    optimizer = "lars"

class Unsound:
    config_group = "unsound"
    fields = {"rank": Field(0, at_least(1), "A number")}
    optimizer = "lars"
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A module with methods, where Python finds it."""
    (tmp_path / "users_methods.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "users_methods"
    sys.modules.pop("users_methods", None)


def test_the_room_is_at_the_bottom():
    """No JAX, no TensorFlow, and nothing of bt_jax but errors and import paths: --fields answers at once."""
    room = pathlib.Path(config_lib.__file__).parent
    found = set()
    for path in room.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found |= {node.module} if isinstance(node, ast.ImportFrom) else set()
            found |= {name.name for name in node.names} if isinstance(node, ast.Import) else set()
    outside = {name for name in found if not name.startswith("bt_jax.config")}
    assert {name for name in outside if name.startswith("bt_jax")} == {"bt_jax.errors", "bt_jax.import_path"}
    assert {name for name in outside if name.partition(".")[0] not in sys.stdlib_module_names | {"bt_jax"}} == {
        "absl", "ml_collections"
    }  # fmt: skip


def test_no_field_is_declared_twice():
    """One place for each name: among all tasks, methods and, each by itself, optimizers."""
    for optimizer in OPTIMIZERS.values():
        groups = {id(g): g for task in TASKS.values() for g in task.groups}
        groups |= {id(m.group): m.group for m in METHODS.values()} | {id(optimizer): optimizer}
        names = collections.Counter(name for group in groups.values() for name in group.named())
        assert [name for name, count in names.items() if count > 1] == []


def test_defaults_are_the_papers_pretraining():
    config = config_lib.default()
    assert (config.task, config.method, config.optimizer.name) == ("pretrain", "barlow_twins", "lars")
    assert config.to_dict() == config_lib.default("pretrain", "barlow_twins").to_dict()


@pytest.mark.parametrize(
    ("task", "there", "absent"),
    [
        (
            "pretrain",
            ["method", "optimizer", "barlow_twins", "monitor", "judge", "pod"],
            ["sgd", "features", "repeats"],
        ),
        ("pod_plan", ["method", "optimizer", "barlow_twins", "pod"], ["sgd"]),
        ("linear", ["supervised", "sgd", "linear", "features"], ["method", "optimizer", "barlow_twins", "finetune"]),
        ("finetune", ["supervised", "sgd", "finetune", "repeats"], ["linear", "monitor"]),
        ("transfer", ["supervised", "sgd", "linear", "transfer"], ["finetune"]),
        ("knn", ["knn", "pairs", "features"], ["batch_size", "sgd", "checkpoint"]),
        ("export", ["export", "init_from"], ["data", "model", "seed"]),
    ],
)
def test_a_task_has_its_own_groups(task, there, absent):
    config = config_lib.default(task)
    assert config.task == task and set(there) <= set(config) and not set(absent) & set(config)


def test_supervised():
    config = config_lib.default(method="supervised")
    assert (config.optimizer.name, config.optimizer.learning_rate, config.epochs) == ("sgd", 0.1, 90)
    assert config.supervised.view.interpolation == "bilinear" and "barlow_twins" not in config


def test_another_optimizer():
    """Its fields, with its own defaults."""
    config = config_lib.default(optimizer="sgd")
    config.data.data_dir = "images"
    assert config.optimizer.name == "sgd" and "trust_coefficient" not in config.optimizer
    config_lib.check(config)
    with pytest.raises(UserError, match=r"optimizer.name is 'adm', but must be 'lars', 'larc', 'sgd' or 'adamw'"):
        config_lib.default(optimizer="adm")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"task": "lineer"}, "task is 'lineer', but must be .* \\(did you mean 'linear'\\?\\)"),
        ({"method": "barlow"}, "method is 'barlow', but must be 'barlow_twins', 'simclr', .* or an import path"),
        ({"method": "no_such_package.module:Class"}, "there is no module 'no_such_package'"),
        ({"method": "users_methods:Mien"}, "users_methods has no 'Mien' \\(did you mean 'Mine'\\?\\)"),
        ({"method": "users_methods:Lacking"}, "config_group is 'not a name'.* fields is .* optimizer is missing"),
        ({"method": "users_methods:Taken"}, "calls its group 'data', but a config has that group already"),
        ({"method": "users_methods:Unsound"}, "default of its field rank is 0, but must be an integer of at least 1"),
    ],
)
def test_what_is_not_known(package, arguments, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        config_lib.default(**arguments)
    assert "\n" not in str(error.value)


def test_a_method_by_import_path(package):
    """Its fields, its optimizer and its defaults; its contradictions count."""
    config = config_lib.default(method="users_methods:Mine")
    assert (config.mine.rank, config.mine.view.flip, config.optimizer.learning_rate) == (4, 0.5, 0.05)
    config.data.data_dir = "images"
    config_lib.check(config)
    config.mine.rank = 4000
    with pytest.raises(UserError, match="mine.rank is 4000, but must be less than batch_size"):
        config_lib.check(config)
    assert config_lib.from_json(config_lib.to_json(config)).to_dict() == config.to_dict()


def test_a_config_that_is_given_another_method(package):
    """The groups of the new one are added, those of the old one removed; common fields keep their values."""
    config = config_lib.default()
    config.data.data_dir, config.batch_size, config.seed = "images", 64, 7
    config.method = "users_methods:Mine"
    config.lock()
    config_lib.check(config)
    assert config.mine.rank == 4 and "barlow_twins" not in config
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("sgd", 0.05)
    assert (config.batch_size, config.seed, config.epochs) == (64, 7, 1000)
    assert config.is_locked


def test_what_was_changed_in_another_methods_group_is_told(package):
    config = config_lib.default()
    config.data.data_dir, config.barlow_twins.lambd, config.optimizer.trust_coefficient = "images", 0.1, 0.1
    config.method = "users_methods:Mine"
    with pytest.raises(UserError) as error:
        config_lib.check(config)
    text = str(error.value)
    assert (
        "barlow_twins.lambd belongs to the method 'barlow_twins', but this run's method is 'users_methods:Mine'" in text
    )
    assert "optimizer.trust_coefficient belongs to the optimizer 'lars', but this run's is 'sgd'" in text
    assert text.count(";") == 1, "nothing else is told"


def test_based_on():
    """Data, encoder and devices stay the same; fields with another meaning in an evaluation are not copied."""
    config = config_lib.default()
    config.update(batch_size=64, epochs=5, seed=3, init_from="elsewhere", dtype="bfloat16")
    config.data.update(source="photographs", image_size=48)
    config.model.width, config.mesh.data, config.checkpoint.keep = 16, 4, 9
    linear = config_lib.based_on(config, "linear")
    assert (linear.task, linear.seed, linear.dtype, linear.data.image_size) == ("linear", 3, "bfloat16", 48)
    assert (linear.model.width, linear.mesh.data, linear.checkpoint.keep) == (16, 4, 9)
    assert (linear.batch_size, linear.epochs, linear.init_from) == (256, 100, "")
    linear.batch_size, linear.init_from = 32, "runs/x"
    transfer = config_lib.based_on(linear, "transfer")
    assert (transfer.batch_size, transfer.init_from) == (32, "runs/x")


def test_what_a_resumed_run_may_change():
    """The encoder of an evaluation is known by its hash; that of a pre-training is part of the run."""
    fields = config_lib.fields_of(config_lib.default())
    assert fields["init_from"].resume == "fixed" and fields["optimizer.momentum"].resume == "fixed"
    assert {"mesh.data", "log.every_steps", "judge.epochs", "data.threads"} <= {
        n for n, f in fields.items() if f.resume == "free"
    }
    assert config_lib.fields_of(config_lib.default("knn"))["init_from"].resume == "free"
    assert {name for name, field in fields.items() if field.own} == {
        "mesh.process_index", "mesh.coordinator", "data.data_dir", "data.threads", "data.prefetch", "data.download"
    }  # fmt: skip
