"""bt_jax/engine/storage.py: errors of storage are distinguished from bugs, and described in a few words."""

import errno
import logging
import subprocess
import sys
import types

import pytest
from etils import epath

from bt_jax.engine.storage import cause_of, of_storage, quiet_orbax, steps_in, storage_failure
from bt_jax.runtime.files import errors_of_files


def chained(error, cause):
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, "No space left on device")
TENSORSTORE = ValueError('RESOURCE_EXHAUSTED: Error writing "x": No space left on device [tensorstore_spec={…}]')


@pytest.mark.parametrize(
    ("error", "storage", "words"),
    [
        (FULL, True, "No space left"),
        (OSError(errno.EISDIR, "Is a directory"), True, "Is a directory"),
        (TENSORSTORE, True, "No space left"),
        (chained(RuntimeError("save failed"), FULL), True, "No space left"),
        (ValueError('NOT_FOUND: Error opening "x" [place]'), True, 'NOT_FOUND: Error opening "x"'),
        (ValueError("a bug\nsecond line"), False, "a bug"),
    ],
)
def test_storage_and_bugs(error, storage, words):
    assert of_storage(error) == storage and cause_of(error) == words


def test_the_workdirs_message(tmp_path):
    """For what goes wrong in it alone: full, gone, or with a folder where a file should be."""
    workdir = epath.Path(tmp_path)
    assert storage_failure(workdir, FULL) == (
        f"the workdir {workdir} can no longer be written (No space left on device); no checkpoint has been saved yet."
    )
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    odd = OSError(errno.EISDIR, "Is a directory", str(tmp_path / "metrics.jsonl"))
    assert f"(Is a directory: {tmp_path}/metrics.jsonl); the last good checkpoint is step 7." in storage_failure(
        workdir, odd
    )
    assert storage_failure(workdir, OSError(errno.ENOENT, "No such file", "/data/image.jpg")) == ""
    assert storage_failure(workdir, OSError(errno.ENOENT, "No such file")) == ""
    assert "it no longer exists" in storage_failure(workdir / "gone", OSError(errno.ENOENT, "No such file"))


def test_stores_that_do_not_answer(monkeypatch):
    """Their libraries have errors of their own, which are no OSErrors."""

    class HttpError(Exception):
        pass

    monkeypatch.setitem(sys.modules, "gcsfs.retry", types.SimpleNamespace(HttpError=HttpError))
    assert HttpError in errors_of_files() and OSError in errors_of_files()
    assert of_storage(HttpError(", 503")) and of_storage(chained(RuntimeError("save failed"), HttpError(", 503")))
    assert storage_failure(epath.Path("gs://bucket/run"), HttpError(", 503")) == (
        "the workdir gs://bucket/run can no longer be reached (503), although it was asked again several times; the same command "
        "resumes from the last good checkpoint once it can be."
    )
    assert storage_failure(epath.Path("/tmp/run"), HttpError(", 503")) == ""


def test_a_step_of_a_store_is_there_once_it_says_so(tmp_path):
    """On a disk its name says so; in a store, where nothing is renamed, its last file."""
    for name in ("7/commit_success.txt", "8/state/half", "9.orbax-checkpoint-tmp/x"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
    assert steps_in(epath.Path(tmp_path)) == [7, 8] and steps_in(epath.Path(tmp_path / "none")) == []

    class Store:
        exists = staticmethod(lambda: True)
        iterdir = staticmethod(epath.Path(tmp_path).iterdir)
        __str__ = staticmethod(lambda: "gs://bucket/run/checkpoints")

    assert steps_in(Store()) == [7]


def test_writes_that_fail_afterwards_are_quiet():
    """As is what tensorstore says when the loop that waited for it is closed; other words of Python's are not."""
    code = """
import sys
from bt_jax.engine.storage import quiet_orbax
quiet_orbax()
class Raises:
    def __init__(self, error): self.error = error
    def __del__(self): raise self.error
Raises(RuntimeError("Event loop is closed"))
Raises(RuntimeError("a bug"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "a bug" in done.stderr and "Event loop" not in done.stderr


def test_orbax_is_quiet(caplog):
    """Others are not, nor is it where --verbosity asks for more."""
    quiet_orbax()
    logger = logging.getLogger("absl")

    def logged(path):
        caplog.clear()
        with caplog.at_level(logging.NOTSET):
            logger.handle(logging.LogRecord("absl", logging.ERROR, path, 1, "words", None, None))
        return len(caplog.records)

    before = logger.level
    try:
        logger.setLevel(logging.WARNING)
        assert (logged("/x/orbax/checkpoint/a.py"), logged("/x/other/a.py")) == (0, 1)
        logger.setLevel(logging.INFO)
        assert logged("/x/orbax/checkpoint/a.py") == 1
    finally:
        logger.setLevel(before)
