"""The files in a tar archive: where in it each lies.

tarfile reads the headers, one after the other; what a damaged or a hostile archive claims is checked first.
"""

import dataclasses
import os
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from etils import epath

from bt_jax.data.sources.base import LARGEST_IMAGE
from bt_jax.data.sources.listing import is_hidden, is_image
from bt_jax.errors import UserError, first_line
from bt_jax.runtime.files import errors_of_files

_BLOCK = 512
_COMPRESSIONS = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"(\xb5/\xfd": ("zstd", "unzstd"),
}
_LABEL_FILE = 2**24  # bytes of a .cls or .json
_HEADER = 2**20  # bytes of a long name, or of a PAX header
_DEPTH = 8  # of archives in archives


@dataclasses.dataclass
class Entry:
    """A file in an archive.

    Attributes:
      name: its path; the archive in which it lies, if that is in another one, is a folder of it.
      start, size: where its bytes are.
      content: these bytes, of files that may hold labels.
    """

    name: str
    start: int
    size: int
    content: bytes = b""


def files_of(file: str) -> Iterator[Entry]:
    """The files in an archive, and in the archives in it, in their order.

    Raises:
      UserError: it cannot be read, or not at random places; it is no tar archive, is truncated, or holds links or paths that lead
        out of it.
    """
    try:
        with _opened(file) as opened:
            _check_compression(file, opened)
            yield from _files_in(file, opened, 0, opened.seek(0, os.SEEK_END), "")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}); make it readable.") from None


def may_hold_labels(name: str) -> bool:
    """Whether it is a .cls or .json file, as WebDataset has them."""
    return name.lower().endswith((".cls", ".json"))


def has_hidden(name: str) -> bool:
    """Whether a file or a folder on the way to it is hidden."""
    return any(map(is_hidden, name.split("/")))


def _opened(file: str) -> Any:
    return epath.Path(file).open("rb") if "://" in file else open(file, "rb")


def _check_compression(file: str, opened: BinaryIO) -> None:
    begin = opened.read(8)
    opened.seek(0)
    for magic, (name, tool) in _COMPRESSIONS.items():
        if begin.startswith(magic):
            raise UserError(
                f"{file} is compressed by {name}, and so cannot be read at random places; decompress it, such as by {tool} (images "
                "are compressed already)."
            )


class _Headers:
    """A file of which tarfile reads headers: what they claim to be long is refused, as tarfile would allocate it."""

    def __init__(self, where: str, opened: BinaryIO):
        self._where, self._opened = where, opened
        self.seek, self.tell = opened.seek, opened.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEADER:
            raise UserError(
                f"{self._where} is damaged: at byte {self.tell()} a header claims to have {size} bytes; make it again."
            )
        return self._opened.read(size)


def _files_in(file: str, opened: BinaryIO, start: int, stop: int, inside: str, depth: int = 0) -> Iterator[Entry]:
    """The files in the archive that lies from `start` to `stop`, and in the archives in it, which `inside` names."""
    where = f"{inside[:-1][-200:]} in {file}" if inside else file
    if depth > _DEPTH:
        raise UserError(f"{where} is an archive within {depth} others; unpack some of them.")
    opened.seek(start)
    before = start - 1
    try:
        # tarfile only calls these three methods
        with tarfile.TarFile(fileobj=cast(Any, _Headers(where, opened))) as archive:
            while (member := archive.next()) is not None:
                vars(archive)["members"].clear()  # or it keeps all of them
                if member.size < 0 or archive.offset <= before:  # some versions of tarfile would go round for ever
                    raise tarfile.ReadError(f"at byte {before} it leads back")
                before = archive.offset
                if member.isdir():
                    continue
                if member.offset_data + member.size > stop:
                    raise _truncated(where)
                name = inside + _plain(where, member.name)
                if not member.isreg() or member.issparse():
                    raise _not_a_file(where, member)
                if name.endswith(".tar") and not has_hidden(name):
                    yield from _files_in(
                        file,
                        opened,
                        member.offset_data,
                        member.offset_data + member.size,
                        name.removesuffix(".tar") + "/",
                        depth + 1,
                    )
                    continue
                labels = may_hold_labels(name)
                if member.size > (most := _LABEL_FILE if labels else LARGEST_IMAGE) and (labels or is_image(name)):
                    raise UserError(
                        f"{name[-200:]} in {where} has {member.size} bytes, but may have {most} at most; leave it out."
                    )
                yield Entry(name, member.offset_data, member.size, _content(opened, member) if labels else b"")
            opened.seek(archive.offset)
            end = opened.read(max(0, min(_BLOCK, stop - archive.offset)))
    except (UserError, *errors_of_files()) as error:
        if isinstance(error, tarfile.ReadError):
            raise _damaged(where, error) from None
        raise
    except Exception as error:  # a damaged header makes tarfile fail anywhere
        raise _damaged(where, error) from None
    if len(end) < _BLOCK:
        raise _truncated(where)
    if end.strip(b"\0"):
        raise UserError(f"{where} is damaged: at byte {archive.offset} there is no header of a file; make it again.")


def _damaged(where: str, error: Exception) -> UserError:
    if str(error) == "unexpected end of data":
        return _truncated(where)
    return UserError(f"{where} is no tar archive, or a damaged one ({first_line(error)}); make it again.")


def _truncated(where: str) -> UserError:
    return UserError(
        f"{where} is truncated: it ends without the empty blocks that end a tar archive; copy or make it again."
    )


def _plain(where: str, name: str) -> str:
    """A path as it is meant, without ./ in front."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise UserError(
            f"{where} holds {name!r}, a path that leads out of the archive; make it again with paths inside a folder, as by tar -C."
        )
    return "/".join(part for part in parts if part not in ("", "."))


def _not_a_file(where: str, member: tarfile.TarInfo) -> UserError:
    if member.issym() or member.islnk():
        return UserError(
            f"{where} holds a link, {member.name!r} to {member.linkname!r}; make it again with the files themselves, by tar "
            "--dereference --hard-dereference."
        )
    kind = "a sparse file" if member.issparse() else "a special file"
    return UserError(f"{where} holds {kind}, {member.name!r}, which cannot be read as an image; make it again without.")


def _content(opened: BinaryIO, member: tarfile.TarInfo) -> bytes:
    opened.seek(member.offset_data)
    return opened.read(member.size)
