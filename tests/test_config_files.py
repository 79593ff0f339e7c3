"""bt_jax/config/files.py: which file a name is, and that config files find one another."""

import sys

import pytest

from bt_jax import UserError
from bt_jax.config import files

OWN = '"""{}"""\nfrom bt_jax.config import default\ndef get_config():\n    config = default()\n    config.seed = {}\n    return config\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["quickstart", "quickstart.py", "configs/quickstart", "configs/quickstart.py"])
def test_names_of_the_package(folder, name):
    """With the paths of a clone too, where there is none; the current folder's own file comes first."""
    assert files.find(name) == (files.PACKAGED / "quickstart.py", ())
    assert files.find(f"{name}:a:b") == (files.PACKAGED / "quickstart.py", ("a:b",))
    (folder / "configs").mkdir()
    (folder / "configs" / "quickstart.py").write_text(OWN.format("Mine.", 7))
    assert files.read(name).seed == 7
    (folder / "quickstart.py").write_text(OWN.format("Mine.", 8))
    assert files.read(name).seed == (7 if name == "configs/quickstart.py" else 8)


def test_programs_of_the_same_name_are_no_configs(folder):
    """But a path with its ending is taken at its word."""
    (folder / "embed.py").write_text("print('a program')\n")
    assert files.find("embed")[0] == files.PACKAGED / "embed.py"
    assert "embed" in files.listed() and files.listed()["embed"].startswith("The features of all images")
    with pytest.raises(UserError, match=r"embed\.py has no function get_config"):
        files.read("embed.py")


def test_config_files_import_one_another(folder, monkeypatch):
    """The folder's own first, and then those of the package; a user's package `configs` is neither in the way nor touched."""
    theirs = folder / "elsewhere" / "configs"
    theirs.mkdir(parents=True)
    (theirs / "__init__.py").write_text("theirs = True\n")
    monkeypatch.syspath_prepend(theirs.parent)
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    import configs

    assert configs.theirs
    assert files.read("resnet18_cifar10_cpu").model.width == 16
    assert files.read("knn:quickstart").init_from == "runs/quickstart"
    (folder / "configs").mkdir()
    (folder / "configs" / "mine.py").write_text(
        "from configs import quickstart, shared\ndef get_config():\n"
        "    config = quickstart.get_config()\n    config.seed = shared.SEED\n    return config\n"
    )
    (folder / "configs" / "shared.py").write_text("SEED = 9\n")
    mine = files.read("mine")
    assert (mine.seed, mine.model.width) == (9, 16)
    assert sys.modules["configs"] is configs and "configs.quickstart" not in sys.modules


def test_a_config_file_is_a_module(folder):
    """What looks for itself in sys.modules finds itself, such as a dataclass; an earlier file's get_config does not stay."""
    (folder / "mine.py").write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom bt_jax.config import default\n"
        "@dataclasses.dataclass\nclass Sizes:\n    seed: int = 3\n"
        "def get_config():\n    config = default()\n    config.seed = Sizes().seed\n    return config\n"
    )
    assert files.read("mine").seed == 3
    (folder / "mine.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="has no function get_config"):
        files.read("mine.py")


def test_list(folder):
    """Own ones first, by the first lines of their docstrings; no file is run for that."""
    (folder / "configs").mkdir()
    (folder / "configs" / "mine.py").write_text(OWN.format("Mine.\n\nAnd more.", 1) + "raise SystemExit\n")
    (folder / "configs" / "bare.py").write_text("def get_config(): pass\n")
    (folder / "configs" / "broken.py").write_text("def get_config(:\n")
    (folder / "configs" / "shared.py").write_text("x = 1\n")
    (folder / "configs" / "quickstart.py").write_text(OWN.format("My quickstart.", 1))
    found = files.listed()
    assert list(found)[:4] == ["bare", "broken", "mine", "quickstart"] and "shared" not in found
    assert (found["bare"], found["mine"], found["quickstart"]) == ("", "Mine.", "My quickstart.")
    assert found["broken"] == "(cannot be read: invalid syntax (<unknown>, line 1))"
    packaged = {path.stem for path in files.PACKAGED.glob("*.py")} - {"__init__"}
    assert found.keys() == packaged | {"bare", "broken", "mine"}
    assert all(found[name] for name in packaged)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("quikstart", r"there is no config named quikstart \(did you mean quickstart\?\); --list names those that there are\."),
        ("xyz:simclr", r"there is no config named xyz; --list names"),
        ("configs/quikstart.py", r"config file configs/quikstart\.py does not exist \(did you mean quickstart\?\)\."),
        ("elsewhere/quickstart.py", r"config file elsewhere/quickstart\.py does not exist"),
        (".", r"config file \. cannot be read, as it is no file; a config is a Python file"),
        ("none.py", r"get_config in none\.py gives a NoneType, but must give a ConfigDict"),
    ],
)  # fmt: skip
def test_what_is_no_config(folder, name, sentence):
    (folder / "none.py").write_text("def get_config():\n    pass\n")
    with pytest.raises(UserError, match=sentence) as caught:
        files.read(name)
    assert len(str(caught.value).splitlines()) == 1


def test_paths_with_colons(folder):
    """What stands before a colon is the file, if there is one; all of it may be one too."""
    (folder / "d:1").mkdir()
    for name in ("cfg.py", "odd:name.py"):
        (folder / "d:1" / name).write_text("def get_config(method='own'):\n    pass\n")
    for text, expected in {
        "d:1/cfg.py": ("d:1/cfg.py", ()),
        "d:1/cfg.py:my.module:Method": ("d:1/cfg.py", ("my.module:Method",)),
        "d:1/odd:name.py": ("d:1/odd:name.py", ()),
    }.items():
        path, argument = files.find(text)
        assert (path.as_posix(), argument) == expected
    assert files.name_of("d:1/cfg.py:my.module:Method") == "cfg-my.module-Method"
    assert files.name_of("d:1/cfg.py") == "cfg"


def test_names_of_runs():
    assert files.name_of("configs/quickstart.py:simclr") == files.name_of("quickstart:simclr") == "quickstart-simclr"
