"""Ranges of bytes in files, read at random places; and what is kept about the files in the user's cache folder."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from bt_jax.data.sources.base import unreachable
from bt_jax.errors import UserError
from bt_jax.runtime.files import errors_of_files
from bt_jax.runtime.paths import cache_folder

_OPEN = 256  # files at once, which every system allows
_READERS = 16  # of files in an object store, which answers many requests at once


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What changes when a file does: its size in bytes, and its modification time in ns.

    In object stores the time is in s; of those that tell none it is a number made of what else they say of a version.
    """

    size: int
    time: int

    @classmethod
    def of(cls, path: str | epath.Path) -> "Stamp":
        """Raises UserError if there is no such file."""
        try:
            if "://" in str(path):
                status = epath.Path(path).stat()
                return cls(status.length, int(status.mtime or 0) or _version(str(path)))
            status = os.stat(path)
            return cls(status.st_size, status.st_mtime_ns)
        except OSError as error:
            raise _gone(path, error) from None


# What stores say of a version of an object: S3, Azure, Google's, Hugging Face's.
_OF_A_VERSION = (
    "ETag", "etag", "LastModified", "last_modified", "generation", "md5Hash", "blob_id", "lfs", "VersionId",
)  # fmt: skip


def _version(path: str) -> int:
    """A number made of what fsspec knows of a remote file's version; 0 if it says nothing."""
    try:
        import fsspec
    except ImportError:
        return 0
    info = fsspec.filesystem(path.partition("://")[0]).info(path)
    said = {name: str(info[name]) for name in _OF_A_VERSION if info.get(name) is not None}
    return int.from_bytes(hashlib.sha256(repr(said).encode()).digest()[:7], "big") if said else 0


def _gone(path: str | epath.Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be read ({error.strerror or error}); bring it back, and the same command resumes from the last checkpoint."
    )


class Ranges:
    """Reads ranges of some files, which must stay as they are; of local ones this is checked whenever they are opened."""

    def __init__(self, files: Sequence[str], stamps: Sequence[Stamp]):
        self.files, self._stamps = files, stamps
        # Of remote files that fsspec reads: its file system, and their path in it.
        self._stores: dict[int, tuple[Any, str]] = {}
        self._remote = np.array(["://" in file for file in files], bool)

    def read(self, file_of: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> list[bytes]:
        """The bytes of each range, in this order.

        Args:
          file_of: the number of each one's file, (n,).
          starts, sizes: in bytes, (n,).

        Raises:
          UserError: a file is gone, a local one has changed, or one is in a store that does not answer.
        """
        found: list[bytes] = [b""] * len(file_of)
        order = np.lexsort((starts, file_of))
        remote = self._remote[file_of[order]]
        local = order[~remote]
        for part in np.split(local, np.flatnonzero(np.diff(file_of[local], prepend=-1))[_OPEN::_OPEN]):
            self._read_local(part, file_of, starts, sizes, found)
        if parts := [part for part in np.array_split(order[remote], _READERS) if len(part)]:
            with ThreadPoolExecutor(_READERS) as pool:
                list(pool.map(lambda part: self._read_remote(part, file_of, starts, sizes, found), parts))
        return found

    def _read_local(
        self, order: np.ndarray, file_of: np.ndarray, starts: np.ndarray, sizes: np.ndarray, found: list[bytes]
    ) -> None:
        """One after the other, once the system has been told of all: threads hold each other up, and take three times as long."""
        with contextlib.ExitStack() as opened:
            handles = {file: self._opened(file, opened) for file in np.unique(file_of[order]).tolist()}
            wanted = [
                (i, handles[file], size, start)
                for i, file, size, start in zip(
                    order.tolist(), file_of[order].tolist(), sizes[order].tolist(), starts[order].tolist(), strict=True
                )
            ]
            if hasattr(os, "posix_fadvise"):  # not on macOS
                with contextlib.suppress(OSError):  # only advice
                    for _, handle, size, start in wanted:
                        os.posix_fadvise(handle, start, size, os.POSIX_FADV_WILLNEED)
            for i, handle, size, start in wanted:
                found[i] = _at(handle, start, size)

    def _opened(self, file: int, opened: contextlib.ExitStack) -> int:
        path = self.files[file]
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise _gone(path, error) from None
        opened.callback(os.close, handle)
        status = os.fstat(handle)
        if Stamp(status.st_size, status.st_mtime_ns) != self._stamps[file]:
            raise UserError(
                f"{path} has changed since its index was made at the start of this run; put back the file as it was, or start a "
                "new run."
            )
        return handle

    def _read_remote(
        self, order: np.ndarray, file_of: np.ndarray, starts: np.ndarray, sizes: np.ndarray, found: list[bytes]
    ) -> None:
        files = file_of[order]
        for file in np.unique(files).tolist():
            own, path = order[files == file], self.files[file]
            try:
                wanted = list(zip(own.tolist(), starts[own].tolist(), sizes[own].tolist(), strict=True))
                if file not in self._stores:
                    with epath.Path(path).open("rb") as opened:
                        store, name = getattr(opened, "fs", None), getattr(opened, "path", "")
                        if hasattr(store, "cat_file"):
                            self._stores[file] = store, name
                        else:  # TensorFlow's, which keeps little ahead (tensorflow_import.py)
                            for i, start, size in wanted:
                                opened.seek(start)
                                found[i] = opened.read(size)
                if file in self._stores:  # an opened file would read megabytes ahead of each image
                    store, name = self._stores[file]
                    for i, start, size in wanted:
                        found[i] = store.cat_file(name, start=start, end=start + size) if size else b""
            except FileNotFoundError as error:
                raise _gone(path, error) from None
            except errors_of_files() as error:
                raise unreachable(path, error) from error


def _at(handle: int, start: int, size: int) -> bytes:
    """Nothing, which is no image, if the disk cannot read it."""
    try:
        return os.pread(handle, size, start)
    except OSError:
        return b""


def cache_file(kind: str, identity: Sequence[str], ending: str) -> pathlib.Path:
    """A file in the user's cache folder for what has this identity; there may be no such folder (`cache_folder`)."""
    name = hashlib.sha256(os.fsencode("\0".join(identity))).hexdigest()[:32]
    return cache_folder() / kind / f"{name}{ending}"


@contextlib.contextmanager
def alone(file: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a file: of several processes, one makes it, and the others find it. A killed process holds none.

    Raises:
      OSError: there is no writing in its folder.
    """
    import fcntl  # not on Windows

    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file.with_name(f"{file.name}.lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def arrays_of(file: pathlib.Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of a file that numpy.savez wrote, which have no more bytes than the file.

    Raises:
      ValueError: some are compressed.
      Exception: any other that numpy and zipfile raise for a damaged file.
    """
    with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
        if any(part.compress_type != zipfile.ZIP_STORED for part in arrays.zip.infolist()):
            raise ValueError(f"{file} has compressed arrays")
        yield arrays


@contextlib.contextmanager
def written_whole(file: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where to write what is to be this file: it takes its place only once it is complete and on the disk."""
    new = file.with_name(f"{file.name}.{os.urandom(4).hex()}.new")
    for left in file.parent.glob(f"{file.name}.*.new"):  # by a process that was killed, as this one holds the lock
        left.unlink()
    try:
        yield new
        with open(new, "rb") as written:
            os.fsync(written.fileno())
        new.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
