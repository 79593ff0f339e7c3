"""Errors of file systems and object stores: telling them from bugs, and describing them in a few words."""

import errno
import functools
import logging
import sys
from typing import Any

from etils import epath

from bt_jax.errors import first_line
from bt_jax.runtime.files import errors_of_files

_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EREMOTEIO,
    errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG,
}  # fmt: skip
# Texts in the errors of file systems, tensorstore and object stores.
_SIGNS = (
    "No space left", "RESOURCE_EXHAUSTED", "Disk quota", "Read-only file system", "Permission denied", "PERMISSION_DENIED",
    "No such file or directory", "NOT_FOUND", "Input/output error", "Stale file handle", "File too large", "UNAVAILABLE",
)  # fmt: skip
# Errors that say nothing about the content of a file: those of access, and of disks and stores that do not answer.
_SIGNS_OF_ACCESS = (
    "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "UNAUTHENTICATED", "PERMISSION_DENIED", "Permission denied",
    "Input/output error", "Stale file handle", "Connection timed out",
)  # fmt: skip
_OF_CONTENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_ERRNOS_OF_CONTENT = {errno.EBADMSG, errno.EUCLEAN}  # the file system's own checks


_COMPLETE = "commit_success.txt"  # orbax.checkpoint._src.path.atomicity_types.COMMIT_SUCCESS_FILE


def of_storage(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, comes from storage; all others are bugs."""
    while error is not None:
        if isinstance(error, errors_of_files()) or any(sign in str(error) for sign in _SIGNS):
            return True
        error = error.__cause__ or error.__context__
    return False


def of_access(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that something could not be read now, and not that it is missing or damaged."""
    while error is not None:
        of_files = isinstance(error, errors_of_files()) and not isinstance(error, _OF_CONTENT)
        if of_files and getattr(error, "errno", None) not in _ERRNOS_OF_CONTENT:
            return True
        if any(sign in str(error) for sign in _SIGNS_OF_ACCESS):
            return True
        error = error.__cause__ or error.__context__
    return False


def cause_of(error: BaseException) -> str:
    """The first cause in a few words, without tensorstore's file specification and source location."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if sign := next((sign for sign in _SIGNS if sign in text and sign[1].islower()), None):
        return sign
    return getattr(error, "strerror", None) or first_line(error).partition(" [")[0]


def storage_failure(workdir: epath.Path, error: BaseException) -> str:
    """The error message for a workdir that is full, no longer writable, gone, or in a store that does not answer; "" for errors
    about other files."""
    if not isinstance(error, OSError):  # of a library of object stores
        if "://" not in str(workdir):
            return ""
        return (
            f"the workdir {workdir} can no longer be reached ({first_line(error).strip(' ,') or type(error).__name__}), although it was asked "
            "again several times; the same command resumes from the last good checkpoint once it can be."
        )
    elsewhere = error.filename is not None and not str(error.filename).startswith(str(workdir))
    gone = not workdir.exists()
    if elsewhere or not (gone or error.errno in _ERRNOS):
        return ""
    good = steps_in(workdir / "checkpoints")
    kept = f"the last good checkpoint is step {good[-1]}" if good else "no checkpoint has been saved yet"
    what = "it no longer exists" if gone else f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    return f"the workdir {workdir} can no longer be written ({what}); {kept}."


def steps_in(folder: epath.Path) -> list[int]:
    """The complete steps, in increasing order.

    On a disk a step's folder gets its plain name only when it is complete. An object store has no renaming: there Orbax writes
    under that name, and a last file says that all others are there.
    """
    if not folder.exists():
        return []
    found = [path for path in folder.iterdir() if path.name.isdigit()]
    if "://" in str(folder):
        found = [path for path in found if (path / _COMPLETE).exists()]
    return sorted(int(path.name) for path in found)


def move_step(step: epath.Path, place: epath.Path) -> None:
    """Moves the folder of a step; in an object store, which has neither folders nor renaming, object by object."""
    if "://" not in str(step):
        step.rename(place)
        return
    _copy(step, place)
    step.rmtree()


def _copy(folder: epath.Path, place: epath.Path) -> None:
    for item in folder.iterdir():
        if item.is_dir():
            _copy(item, place / item.name)
        else:
            item.copy(place / item.name)


@functools.cache
def quiet_orbax() -> None:
    """Hides what follows a failed save on standard error besides our message; `--verbosity=0` shows what Orbax logs.

    That is Orbax's log, with its tracebacks, and Python's word of writes that fail after the one that was reported.
    """
    logger, show = logging.getLogger("absl"), sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    for name in ("gcsfs", "s3fs"):  # whose last error is ours to tell
        logging.getLogger(name).addFilter(lambda record: logger.isEnabledFor(logging.INFO))
    logger.addFilter(lambda record: logger.isEnabledFor(logging.INFO) or "/orbax/" not in record.pathname)
    sys.unraisablehook = show_others
