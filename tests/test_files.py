"""bt_jax/runtime/files.py: small files, whole or as they were."""

import errno
import json
import os
import resource

import pytest
from etils import epath

from bt_jax.errors import UserError
from bt_jax.runtime.files import allow_open, read_object, sealed, write_whole


def test_the_old_stays_where_the_new_cannot_be_written(tmp_path, monkeypatch):
    """At whichever call the disk is full; no other file is left."""
    path = epath.Path(tmp_path / "file")
    write_whole(path, "old — 旧")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for where in ("os.fsync", "builtins.open", "etils.epath.gpath.PosixGPath.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(where, full)
            with pytest.raises(OSError, match="No space left"):
                write_whole(path, "new")
        assert path.read_text() == "old — 旧" and [p.name for p in path.parent.iterdir()] == ["file"]
    write_whole(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[]", "it holds a list instead of an object"),
        (b"null", "it holds null instead of"),
        (b'"text"', "it holds a string instead of"),
        (b"3", "it holds a number instead of"),
        (b"", "it is not JSON: Expecting value"),
        (b'{"a": 1', "it is not JSON: "),
        (b'{"a": "\xff"}', "it is not UTF-8"),
        (b"[" * 100_000, "it is nested too deeply"),
    ],
)
def test_what_is_no_object(tmp_path, content, why):
    path = epath.Path(tmp_path / "file")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=why) as found:
        read_object(path)
    assert len(str(found.value).splitlines()) == 1


def test_an_object(tmp_path):
    path = epath.Path(tmp_path / "file")
    write_whole(path, '{"a": [1]}')
    assert read_object(path) == {"a": [1]}


def test_a_seal(tmp_path):
    """Holds after JSON, whatever the order; any change shows."""
    content = {"b": [1, 0.1, None, float("nan")], "a": {"x": "é"}}
    found = json.loads(json.dumps(sealed(content, "sha256")))
    assert sealed(found, "sha256")["sha256"] == found["sha256"] and sorted(found) == ["a", "b", "sha256"]
    assert sealed(dict(reversed(found.items())), "sha256")["sha256"] == found["sha256"]
    for other in ({"a": {"x": "e"}}, {"b": [True, 0.1, None, float("nan")]}, {"c": 1}):
        assert sealed({**found, **other}, "sha256")["sha256"] != found["sha256"]


@pytest.mark.parametrize(("soft", "hard", "set_to"), [(1024, 4096, 4096), (5000, 9000, None), (-1, -1, None), (1024, -1, 16384),
                                                      (1024, 1900, 1900)])  # fmt: skip
def test_the_limit_of_open_files(monkeypatch, soft, hard, set_to):
    """Raised only where it is too low, as far as is allowed."""
    limits = []
    monkeypatch.setattr(os, "listdir", lambda place: ["0"] * 44)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, to: limits.append(to))
    allow_open(1700, "a set")
    assert limits == ([] if set_to is None else [(set_to, hard)])


def test_more_files_than_may_be_open(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, to: None)
    with pytest.raises(UserError) as error:
        allow_open(1024, "TFDS a_set, train,")
    assert str(error.value) == (
        "TFDS a_set, train, has 1024 files that are all held open, but this process may open 1024; raise its limit (ulimit -n), or "
        "store the set in fewer files."
    )
