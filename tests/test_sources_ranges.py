"""bt_jax/data/sources/ranges.py: ranges of bytes at random places, local and in an object store; what is kept survives kills."""

import io
import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
from etils.epath import gpath
from etils.epath.testing import mock_epath
from test_sources_tar import shards, source_of

from bt_jax.data.sources.ranges import Ranges, Stamp
from bt_jax.errors import UserError

OF_A_LIBRARY = type("ClientError", (Exception,), {})  # which is no OSError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that is gs://bucket too; yields it and the list of files that were opened there."""
    opened = []

    def local(path):
        return str(path).replace("gs://bucket", str(tmp_path / "bucket"))

    def remote(path):
        return str(path).replace(str(tmp_path / "bucket"), "gs://bucket")

    def opens(original, path, mode):
        opened.append(os.path.basename(path))
        return original(local(path), mode)

    def one(original, path):
        return original(local(path))

    def globs(original, path):
        return [remote(found) for found in original(local(path))]

    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)  # which would ask a server
    with mock_epath(open=opens, exists=one, isdir=one, listdir=one, stat=one, glob=globs):
        yield tmp_path / "bucket", opened


def files_of(folder):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in "ab"]
    for i, path in enumerate(paths):
        path.write_bytes(bytes(range(i, i + 200)))
    return paths


def test_ranges_in_any_order(tmp_path):
    paths = [str(path) for path in files_of(tmp_path)]
    ranges = Ranges(paths, [Stamp.of(path) for path in paths])
    rng = np.random.default_rng(0)
    file_of, starts, sizes = rng.integers(0, 2, 50), rng.integers(0, 190, 50), rng.integers(0, 10, 50)
    expected = [bytes(range(f + a, f + a + n)) for f, a, n in zip(file_of, starts, sizes, strict=True)]
    assert ranges.read(file_of, starts, sizes) == expected
    assert (
        ranges.read(file_of[:1], starts[:1], sizes[:1]) == expected[:1] and ranges.read(*[np.zeros(0, int)] * 3) == []
    )


def test_few_open_files_and_no_advice(tmp_path, monkeypatch):
    """More files in a batch than are opened at once; and a system without posix_fadvise."""
    paths = [str(path) for path in files_of(tmp_path)] * 2
    ranges = Ranges(paths, [Stamp.of(path) for path in paths])
    wanted = np.array([3, 0, 2, 1, 0]), np.array([9, 8, 7, 6, 0]), np.array([2, 2, 2, 2, 200])
    expected = ranges.read(*wanted)
    monkeypatch.setattr("bt_jax.data.sources.ranges._OPEN", 1)
    monkeypatch.delattr(os, "posix_fadvise")
    assert ranges.read(*wanted) == expected == [b"\x0a\x0b", b"\x08\x09", b"\x07\x08", b"\x07\x08", bytes(range(200))]


def test_files_that_change_or_go(tmp_path):
    path, other = map(str, files_of(tmp_path))
    ranges, first = (
        Ranges([path, other], [Stamp.of(path), Stamp.of(other)]),
        (np.array([0]), np.array([3]), np.array([2])),
    )
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="a has changed since its index was made"):
        ranges.read(*first)
    os.unlink(path)
    with pytest.raises(UserError, match=r"a cannot be read \(No such file or directory\); bring it back"):
        ranges.read(*first)
    with pytest.raises(UserError, match="a cannot be read"):
        Stamp.of(path)


def test_archives_in_an_object_store(bucket):
    """Only the shards that hold images of a batch are opened, once the index is made."""
    folder, opened = bucket
    local = source_of(shards(folder / "set"))
    source = source_of("gs://bucket/set")
    assert source.fingerprint == local.fingerprint and source.place(0) == "00000.jpg in gs://bucket/set/train-0000.tar"
    examples = np.array([9, 3, 12])
    del opened[:]
    assert source.fetch(examples)[0].tolist() == local.fetch(examples)[0].tolist()
    assert sorted(set(opened)) == ["train-0000.tar", "train-0001.tar"]
    del opened[:]
    assert source_of("gs://bucket/set").fingerprint == local.fingerprint and not opened
    assert (
        len(source_of("gs://bucket/set/train-000[01].tar"))
        == len(source_of("gs://bucket/set/train-{0000..0001}.tar"))
        == 16
    )


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError("503, Service Unavailable"),
            r"gs://bucket/a.tar cannot be reached \(503, Service Unavailable\), although",
        ),
        (TimeoutError(), r"gs://bucket/a.tar cannot be reached \(TimeoutError\), although"),
        (OF_A_LIBRARY("no connection"), r"gs://bucket/a.tar cannot be reached \(no connection\), although"),
        (FileNotFoundError("a.tar"), r"gs://bucket/a.tar cannot be read \(a.tar\); bring it back"),
    ],
)
def test_a_store_that_does_not_answer(monkeypatch, error, sentence):
    """It ends the run with a sentence, whatever its library raises; no image is bad for it."""

    def refuse(path, mode):
        raise error

    monkeypatch.setitem(sys.modules, "aiohttp", types.SimpleNamespace(ClientError=OF_A_LIBRARY))
    monkeypatch.setattr(gpath.PosixGPath, "open", refuse)
    with pytest.raises(UserError, match=sentence):
        Ranges(["gs://bucket/a.tar"], [Stamp(9, 9)]).read(np.array([0]), np.array([3]), np.array([2]))


class Store:
    """A file system as fsspec's, which counts what is transferred; an opened file reads five megabytes ahead."""

    content = bytes(range(256)) * 4096

    def __init__(self):
        self.transferred, self.info_of = 0, {}

    def cat_file(self, path, start=None, end=None):
        assert path == "bucket/a.tar"
        self.transferred += end - start
        return self.content[start:end]

    def info(self, path):
        return self.info_of

    def open(self, path, mode):
        store, opened = self, io.BytesIO(self.content)

        class Opened:
            fs, path = store, "bucket/a.tar"
            seek = opened.seek

            def read(self, size):
                store.transferred += len(store.content)
                return opened.read(size)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                return None

        return Opened()


def test_only_what_is_wanted_is_transferred(monkeypatch):
    """Of a file in a store, in whatever order, and again in the next batch."""
    store = Store()
    monkeypatch.setattr(gpath.PosixGPath, "open", lambda path, mode: store.open(path, mode))
    starts, sizes = np.array([5000, 3, 900_000, 70]), np.array([100, 50, 1000, 0])
    ranges = Ranges(["s3://bucket/a.tar"], [Stamp(9, 9)])
    for times in (1, 2):
        found = ranges.read(np.zeros(4, int), starts, sizes)
        assert found == [store.content[a : a + n] for a, n in zip(starts, sizes, strict=True)]
        assert store.transferred == times * 1150


def test_stamps_of_stores_that_tell_no_time(monkeypatch):
    """Another version of the same size has another; what does not belong to the version has no part in it."""
    fsspec, store = pytest.importorskip("fsspec"), Store()
    monkeypatch.setattr(gpath.PosixGPath, "stat", lambda path: types.SimpleNamespace(length=7, mtime=0))
    monkeypatch.setattr(fsspec, "filesystem", lambda scheme: {"s3": store}[scheme])
    found = []
    for info in (
        {"ETag": "a"},
        {"ETag": "b"},
        {"ETag": "a", "size": 7},
        {"generation": 3},
        {"LastModified": 1},
        {"size": 7},
    ):
        monkeypatch.setattr(store, "info_of", info)
        found.append(Stamp.of("s3://bucket/a.tar"))
    assert found[0] == found[2] and len(set(found)) == 5 and found[5] == Stamp(7, 0)
    monkeypatch.setattr(gpath.PosixGPath, "stat", lambda path: types.SimpleNamespace(length=7, mtime=12))
    assert Stamp.of("s3://bucket/a.tar") == Stamp(7, 12)


def test_tables_in_an_object_store(bucket):
    pytest.importorskip("pyarrow")
    from test_sources_parquet import source_of as table_of
    from test_sources_parquet import tables

    folder, _ = bucket
    local, source = table_of(tables(folder / "set")), table_of("gs://bucket/set")
    assert source.fingerprint == local.fingerprint and len(source) == 24
    assert source.fetch(np.arange(24))[0].tolist() == local.fetch(np.arange(24))[0].tolist()


_KILLED = """
import os, signal, sys
import numpy as np
from bt_jax.config import default
from bt_jax.data.sources.make import make_source

def half(opened, **arrays):
    opened.write(b"PK half of an index")
    opened.flush()
    os.kill(os.getpid(), signal.SIGKILL)

np.savez = half
config = default().data
config.update(source="tar", data_dir=sys.argv[1])
make_source(config, "train")
"""


def test_a_kill_while_an_index_is_written(tmp_path):
    """Nothing half made is used, or left once the next start has made it; the lock of the killed process is free."""
    place = shards(tmp_path / "set")
    done = subprocess.run([sys.executable, "-c", _KILLED, str(place)], timeout=120)
    kept = tmp_path / "cache" / "bt_jax" / "archives"
    assert done.returncode == -signal.SIGKILL
    assert len(list(kept.glob("*.new"))) == 1 and not list(kept.glob("*.npz"))
    assert len(source_of(place)) == 24
    assert not list(kept.glob("*.new")) and len(list(kept.glob("*.npz"))) == 1


def test_processes_that_start_together_make_one_index(tmp_path):
    """The others wait for it."""
    place = shards(tmp_path / "set")
    program = """
import sys, time
from bt_jax.config import default
from bt_jax.data.sources import tar_index
from bt_jax.data.sources.make import make_source

inner = tar_index._made
def made(*arguments):
    print("made")
    time.sleep(1)
    return inner(*arguments)

tar_index._made = made
config = default().data
config.update(source="tar", data_dir=sys.argv[1])
print(make_source(config, "train").fingerprint)
"""
    command = [sys.executable, "-c", program, str(place)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in both]
    assert said[0][-1] == said[1][-1] == source_of(place).fingerprint
    assert sum(words.count("made") for words in said) == 1
