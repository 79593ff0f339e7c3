"""bt_jax/data/sources/make.py: every kind of source by its name in a config, with and without TensorFlow."""

import subprocess
import sys
import types

import numpy as np
import pytest
from etils.epath import gpath
from test_sources_folder import write_folder

from bt_jax.config import default
from bt_jax.data.sources.base import ArraySource
from bt_jax.data.sources.make import make_source
from bt_jax.data.sources.make import test_source as source_of_tests
from bt_jax.data.sources.photographs import PHOTOGRAPHS
from bt_jax.errors import UserError


def data_config(**fields):
    config = default().data
    config.update(fields)
    return config


def test_make_source_of_photographs():
    config = data_config(source="photographs")
    config.photographs.update(size=20, train_per_class=4, test_per_class=2)
    train, test = make_source(config, "train"), make_source(config, "test")
    assert (len(train), len(test)) == (68, 34)
    assert train.images.shape == (68, 20, 20, 3)
    assert train.class_names == test.class_names == tuple(PHOTOGRAPHS)
    assert train.notices == ()


def test_no_test_split():
    with pytest.raises(UserError, match="data.test_split is empty.*monitor.every_epochs"):
        make_source(data_config(source="folder", data_dir="anywhere", test_split=""), "test")


@pytest.mark.parametrize("train_split", ["train", "."])
def test_a_whole_folder_of_classes_needs_no_test_images(tmp_path, train_split):
    """Whether it is so for lack of splits, or by the field; where there are test images they are tested."""
    write_folder(tmp_path, {"a": 2, "b": 2})
    config = data_config(source="folder", data_dir=str(tmp_path), train_split=train_split)
    train = make_source(config, "train")
    assert train.num_classes == 2 and source_of_tests(config, train) is None
    write_folder(tmp_path / "test", {"a": 1, "b": 1})
    if train_split == ".":
        assert len(source_of_tests(config, train)) == 2


def test_unknown_kind_of_source():
    with pytest.raises(
        UserError, match="data.source is 'foto'; it must be photographs, tfds, folder, tar, parquet or arrays"
    ):
        make_source(data_config(source="foto"), "train")


def test_sources_without_tensorflow(tmp_path):
    """`import bt_jax` and images in memory must work where TensorFlow is absent."""
    write_folder(tmp_path / "train", {"a": 1, "b": 1})
    program = f"""
import sys
sys.modules["tensorflow"] = None  # an import of it fails
from bt_jax.config import default
from bt_jax.data.sources.make import make_source
from bt_jax.errors import UserError
config = default().data
config.update(source="folder", data_dir={str(tmp_path)!r})
assert len(make_source(config, "train")) == 2
config.source = "photographs"
config.photographs.train_per_class = 1
assert len(make_source(config, "train")) == 17
config.update(source="tfds", name="cifar10")
try:
    make_source(config, "train")
except UserError as error:
    assert "pip install tensorflow" in str(error), error
else:
    raise AssertionError("no error")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", ["folder", "tar", "parquet"])
@pytest.mark.parametrize("library", [True, False], ids=["of a library", "OSError"])
def test_a_store_that_refuses_at_the_start(monkeypatch, source, library):
    """A sentence, whichever library says so and whatever is asked first; errors of local files keep theirs."""
    kind = type("ClientError", (Exception,), {}) if library else PermissionError

    def refuse(*_):
        raise kind("403, no access")

    if library:
        monkeypatch.setitem(sys.modules, "aiohttp", types.SimpleNamespace(ClientError=kind))
    if source == "parquet":
        pytest.importorskip("pyarrow")
    config = data_config(source=source, data_dir="gs://bucket/set")
    few = ArraySource("few", np.zeros((1, 1, 1, 3), np.uint8), np.zeros(1, np.int32))
    for names in (("exists", "is_dir"), ("iterdir",), ("is_dir",)):
        with monkeypatch.context() as patch:
            for name in ("exists", "is_dir", "iterdir"):
                patch.setattr(gpath.PosixGPath, name, refuse if name in names else lambda path: True)
            sentence = r"gs://bucket/set\S* cannot be (reached|listed) \(403, no access\)"
            with pytest.raises(UserError, match=sentence):
                make_source(config, "train")
            with pytest.raises(UserError, match=sentence):
                source_of_tests(config, few)


def test_a_list_of_files_in_a_store_that_does_not_answer(tmp_path, monkeypatch):
    """Its files are not missing."""

    def fail(path):
        raise OSError("503")

    monkeypatch.setattr(gpath.PosixGPath, "iterdir", fail)
    (tmp_path / "list.csv").write_text("path\ngs://bucket/a/1.jpg\n")
    with pytest.raises(UserError, match=r"^gs://bucket/a cannot be reached \(503\)"):
        make_source(data_config(source="folder", data_dir=str(tmp_path / "list.csv")), "train")
