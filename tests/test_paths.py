"""bt_jax/runtime/paths.py: what is written under a name is found under it, or the name is refused."""

import importlib.machinery
import sys
import types

import pytest

from bt_jax.errors import UserError
from bt_jax.runtime.paths import absolute, as_folder, as_path, cache_folder


@pytest.fixture(autouse=True)
def client_of_google(monkeypatch):
    """Is there, whether installed or not."""
    name = "google.cloud.storage"
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


@pytest.mark.parametrize("name", ["lr=[0.1]", "[", "a*", "a?", "**", "{a,b}"])
def test_a_name_is_no_pattern(tmp_path, name):
    """Its parts are found, and none of a neighbour's."""
    for folder in (tmp_path / name, tmp_path / "ab"):
        folder.mkdir(exist_ok=True)
        (folder / "part_0").write_text("")
        (folder / "other").write_text("")
    path = as_folder(tmp_path / name, "--workdir")
    assert list(path.glob("part_*")) == [path / "part_0"]
    assert list((path / "part_0").parent.glob("part_*")) == [path / "part_0"]


def test_relative_and_home(tmp_path, monkeypatch):
    """A relative path stays so, and Orbax gets an absolute one, in which the parents' names are no patterns either."""
    (tmp_path / "[a]" / "run").mkdir(parents=True)
    (tmp_path / "[a]" / "run" / "part").write_text("")
    monkeypatch.chdir(tmp_path / "[a]")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(as_folder("run", "--workdir")) == "run"
    assert [str(found) for found in absolute(as_folder("run", "--workdir")).glob("*")] == [f"{tmp_path}/[a]/run/part"]
    assert str(as_path("~/x", "--workdir")) == f"{tmp_path}/x"
    assert str(absolute(as_folder("gs://bucket/run", "--workdir"))) == "gs://bucket/run"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("runs/a\\b", r"--workdir, /.*/runs/a.b, has a .* in its name, which tensorstore, .* takes for a /; choose"),
        ("runs/\udcff", r"'/.*/runs/\\udcff', is not UTF-8"),
        ("gs://bucket/lr=[0.1]", "gs://bucket/lr=.0.1., has a .* in its name, which object stores' libraries take for a pattern"),
        ("file:///runs", "file:///runs, is neither a local path nor one that begins with gs://, s3://, az://, hf://"),
        ("runs/a://b", "is neither a local path"),
        ("/gs/runs", "would be taken for gs://runs; choose a folder outside /gs"),
    ],
)  # fmt: skip
def test_names_that_cannot_be(name, sentence):
    with pytest.raises(UserError, match=sentence):
        as_folder(name, "--workdir")


def test_parents_count(tmp_path, monkeypatch):
    (tmp_path / "a\\b").mkdir()
    monkeypatch.chdir(tmp_path / "a\\b")
    with pytest.raises(UserError, match="tensorstore"):
        as_folder("run", "--workdir")


@pytest.mark.parametrize(
    ("scheme", "package"), [("s3", "s3fs"), ("az", "adlfs"), ("hf", "huggingface_hub"), ("gs", "gcsfs")]
)
def test_object_stores_without_their_package(monkeypatch, scheme, package):
    """What to install; with it, and with TensorFlow where that has such a file system, the path itself."""
    name = f"{scheme}://bucket/x"
    spec = importlib.machinery.ModuleSpec("tensorflow", None)
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(__spec__=spec))
    monkeypatch.delitem(sys.modules, "tensorflow_io", raising=False)
    monkeypatch.delenv("EPATH_USE_TF", raising=False)
    if scheme != "gs":
        with pytest.raises(UserError, match=f"data.data_dir, {name}, cannot be reached through TensorFlow, .*; pip install "
                                            f"{package}, and set the environment variable EPATH_USE_TF=false"):  # fmt: skip
            as_path(name, "data.data_dir")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorflow_io", types.ModuleType("tensorflow_io"))
        assert str(as_path(name, "data.data_dir")) == name
    monkeypatch.setitem(sys.modules, package, None)
    sentence = f"data.data_dir, {name}, needs {package}, which cannot be imported .*; pip install {package}."
    with monkeypatch.context() as patch:
        patch.setenv("EPATH_USE_TF", "false")
        with pytest.raises(UserError, match=sentence):
            as_path(name, "data.data_dir")
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # not installed
    with pytest.raises(UserError, match=sentence):
        as_path(name, "data.data_dir")
    monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    assert str(as_path(name, "data.data_dir")) == name


def test_stores_that_take_no_checkpoints():
    for name in ("az://bucket/run", "hf://bucket/run"):
        with pytest.raises(
            UserError, match=f"--workdir, {name}, cannot hold checkpoints or weights; .* gs:// or s3://."
        ):
            as_folder(name, "--workdir")


def test_checkpoints_in_googles_store_need_its_client(monkeypatch):
    """Which Orbax would miss only when it looks for the first."""
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(
        UserError, match="--workdir, gs://b/run, needs google-cloud-storage, .*; pip install google-cloud-storage"
    ):
        as_folder("gs://b/run", "--workdir")
    assert str(as_path("gs://b/images", "data.data_dir")) == "gs://b/images"


def test_the_cache_folder(monkeypatch, tmp_path):
    """Where the user says, or in the home; without one, as in some containers, nothing can be made, and no folder "~" is."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "bt_jax"
    assert cache_folder({"XDG_CACHE_HOME": "/elsewhere"}).as_posix() == "/elsewhere/bt_jax"
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(OSError):
        cache_folder().mkdir(parents=True)
    with pytest.raises(OSError):
        (cache_folder() / "a file").read_bytes()
