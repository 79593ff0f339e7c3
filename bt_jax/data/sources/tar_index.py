"""The index of tar archives: where in which archive each image lies, and its label if a file beside it has one.

It is made in one pass over the headers, and kept in the user's cache folder. It counts as long as each archive's size and
modification time are the same.

An archive with `.cls` or `.json` files holds samples, as WebDataset has them: the files of a sample have the same path up to the
first dot of the name. Any other archive holds images in folders. An archive in an archive, as in that of ImageNet's train images,
is a folder.
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast

import numpy as np
from etils import epath

from bt_jax.data.sources.base import LARGEST_IMAGE
from bt_jax.data.sources.listing import IMAGE_ENDINGS, Paths, is_hidden, is_image
from bt_jax.data.sources.ranges import Stamp, alone, arrays_of, cache_file, written_whole
from bt_jax.data.sources.shards import relative_names
from bt_jax.errors import UserError, first_line, some

_VERSION = 2
REPLACED = "replaced"  # the kind of files that a later one in their archive replaces when it is unpacked
_READERS = 8  # archives in an object store that are read at once
_BLOCK = 512
_COMPRESSIONS = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"(\xb5/\xfd": ("zstd", "unzstd"),
}
_LABEL_BYTES = 64  # of a .cls; it holds a number
_LABEL_FILE = 2**24  # bytes of a .cls or .json
_HEADER = 2**20  # bytes of a long name, or of a PAX header
_DEPTH = 8  # of archives in archives
_JSON_LABELS = ("label", "cls")
NO_LABEL = -1


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The images of some archives.

    Attributes:
      files: the archives.
      stamps: of the archives.
      names: of the images in them.
      file_of: the number of each one's archive, (N,) int32.
      starts, sizes: where its bytes are, (N,) int64.
      labels: of files beside them, (N,) int32; NO_LABEL without.
      samples: whether they are WebDataset's.
      passed: how many files that are no images there are, by kind; and how many images are REPLACED.
      digest: of names, sizes and labels.
      changed: the archives that changed since an earlier index of them.
    """

    files: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    names: Paths
    file_of: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    samples: bool
    passed: dict[str, int]
    digest: str
    changed: tuple[str, ...] = ()


def tar_index(archives: Sequence[epath.Path]) -> TarIndex:
    """The index of archives, kept or made.

    Raises:
      UserError: an archive cannot be read at random places, is damaged, or holds what cannot be taken: links, paths that lead out
        of it, samples without an image or with several, labels that are no numbers.
    """
    files = [str(a) if "://" in str(a) else os.path.abspath(a) for a in archives]
    kept = cache_file("archives", files, ".npz")
    stamps = [Stamp.of(file) for file in files]
    found, changed = _kept(kept, files, stamps)
    if found is not None:
        return found
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(alone(kept))
            writable = True
        except OSError:  # no room, or no home: the next start makes it again
            writable = False
        found, _ = _kept(kept, files, stamps)  # another process made it meanwhile
        if found is None:
            found = _made(files, stamps)
            if writable:
                with contextlib.suppress(OSError), written_whole(kept) as new:
                    _write(new, found)
    return dataclasses.replace(found, changed=changed)


@dataclasses.dataclass
class _Entry:
    """A file in an archive."""

    name: str
    start: int
    size: int
    content: bytes = b""  # of those with labels


def _made(files: list[str], stamps: list[Stamp]) -> TarIndex:
    remote = any("://" in file for file in files)
    with ThreadPoolExecutor(_READERS if remote else 1) as pool:
        listed = list(pool.map(_images_of, files))
    samples = any(shard.samples for shard in listed)
    passed: collections.Counter[str] = collections.Counter()
    rows = []
    for number, shard in enumerate(listed):
        passed.update(shard.passed)
        rows += [(entry, number, label) for entry, label in shard.images]
    if not rows:
        raise UserError(
            f"{files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''} hold(s) no images "
            f"({', '.join(IMAGE_ENDINGS)}); {_kinds(passed) or 'nothing at all'} was found."
        )
    if not samples:  # in the order that a folder of them has
        rows.sort(key=lambda row: row[0].name.split("/"))
    names = Paths.of(row[0].name.rpartition("/")[::2] for row in rows)
    file_of = np.array([row[1] for row in rows], np.int32)
    starts, sizes = (np.array([getattr(row[0], name) for row in rows], np.int64) for name in ("start", "size"))
    labels = np.array([row[2] for row in rows], np.int32)
    digest = hashlib.sha256(b"\0".join(os.fsencode(row[0].name) for row in rows))
    digest.update(sizes.astype("<i8").tobytes() + labels.astype("<i4").tobytes())
    return TarIndex(
        tuple(files), tuple(stamps), names, file_of, starts, sizes, labels, samples,
        dict(sorted(passed.items())), digest.hexdigest()
    )  # fmt: skip


def _kinds(passed: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in passed.items())


@dataclasses.dataclass
class _Shard:
    images: list[tuple[_Entry, int]]
    samples: bool
    passed: collections.Counter[str]


def _images_of(file: str) -> _Shard:
    """The images of one archive with their labels, in its order."""
    passed: collections.Counter[str] = collections.Counter()
    entries: list[_Entry] = []
    try:
        with _opened(file) as opened:
            _check_compression(file, opened)
            for entry in _files_in(file, opened, 0, opened.seek(0, os.SEEK_END), ""):
                base = entry.name.rpartition("/")[2]
                if _has_hidden(entry.name):
                    passed["hidden"] += 1
                elif is_image(base) or base.lower().endswith((".cls", ".json")):
                    entries.append(entry)
                else:
                    passed[os.path.splitext(base)[1].lower() or "without an ending"] += 1
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}); make it readable.") from None
    if any(entry.name.lower().endswith(".cls") for entry in entries) or _has_pairs(entries):
        return _Shard(_samples(file, entries, passed), True, passed)
    passed[".json"] += sum(not is_image(entry.name) for entry in entries)
    images = [entry for entry in entries if is_image(entry.name)]
    last = {entry.name: entry for entry in images}
    passed[REPLACED] += len(images) - len(last)
    return _Shard([(entry, NO_LABEL) for entry in last.values()], False, +passed)


def _has_hidden(name: str) -> bool:
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


def _files_in(file: str, opened: BinaryIO, start: int, stop: int, inside: str, depth: int = 0) -> Iterator[_Entry]:
    """The files in the archive that lies from `start` to `stop`, and in the archives in it, which `inside` names.

    Raises:
      UserError: it is no tar archive, is truncated, or holds links or paths that lead out of it.
    """
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
                if name.endswith(".tar") and not _has_hidden(name):
                    yield from _files_in(
                        file,
                        opened,
                        member.offset_data,
                        member.offset_data + member.size,
                        name.removesuffix(".tar") + "/",
                        depth + 1,
                    )
                    continue
                labels = name.lower().endswith((".cls", ".json"))
                if member.size > (most := _LABEL_FILE if labels else LARGEST_IMAGE) and (labels or is_image(name)):
                    raise UserError(
                        f"{name[-200:]} in {where} has {member.size} bytes, but may have {most} at most; leave it out."
                    )
                yield _Entry(name, member.offset_data, member.size, _content(opened, member) if labels else b"")
            opened.seek(archive.offset)
            end = opened.read(max(0, min(_BLOCK, stop - archive.offset)))
    except (UserError, OSError) as error:
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


def _has_pairs(entries: list[_Entry]) -> bool:
    """Whether each .json lies beside an image of its name, as in shards without .cls."""
    keys = {_key(entry.name)[0] for entry in entries if is_image(entry.name)}
    described = [_key(entry.name)[0] for entry in entries if entry.name.lower().endswith(".json")]
    return bool(described) and all(key in keys for key in described)


def _key(name: str) -> tuple[str, str]:
    """(a path up to the first dot of its name, the rest in lower case)."""
    folder, slash, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def _samples(file: str, entries: list[_Entry], passed: collections.Counter[str]) -> list[tuple[_Entry, int]]:
    samples: dict[str, dict[str, _Entry]] = {}
    for entry in entries:
        key, ending = _key(entry.name)
        if ending in samples.setdefault(key, {}):
            raise UserError(f"{file} holds {entry.name} twice; the files of a sample must differ in their endings.")
        samples[key][ending] = entry
    images, without = [], []
    for key, files in samples.items():
        found = [e for ending, e in files.items() if f".{ending}" in IMAGE_ENDINGS] or [
            e for e in files.values() if is_image(e.name)
        ]
        if len(found) > 1:
            raise UserError(
                f"{file} has several images of the sample {key}: {some([e.name for e in found])}; each sample must have one."
            )
        if not found:
            without.append(f"{key} (only .{', .'.join(files)})")
            continue
        images.append((found[0], _label(file, files)))
    if without:
        raise UserError(
            f"{file} has {len(without)} sample(s) without an image: {some(without)}; each must have one beside its .cls or .json."
        )
    lacking = [entry.name for entry, label in images if label == NO_LABEL]
    if lacking and len(lacking) < len(images):
        raise UserError(
            f"{len(lacking)} of the {len(images)} images in {file} have no label in a .cls or .json file, such as {lacking[0]}; "
            "all or none must have one."
        )
    return images


def _label(file: str, files: dict[str, _Entry]) -> int:
    """The number in a sample's .cls, or that named label or cls in its .json; NO_LABEL if there is none."""
    if (entry := files.get("cls")) is not None:
        text = entry.content.decode("utf-8", "replace").strip()
        if not (text.isascii() and text.isdecimal()) or len(text) > _LABEL_BYTES or int(text) >= 2**31:
            raise UserError(
                f"{entry.name} in {file} holds {text[:_LABEL_BYTES]!r}; a .cls must hold the number of a class, from 0."
            )
        return int(text)
    if (entry := files.get("json")) is None:
        return NO_LABEL
    try:
        facts = json.load(io.BytesIO(entry.content))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{entry.name} in {file} is no JSON ({first_line(error)}).") from None
    value = next((facts[name] for name in _JSON_LABELS if name in facts), None) if isinstance(facts, dict) else None
    return value if type(value) is int and 0 <= value < 2**31 else NO_LABEL


def _about(index: TarIndex) -> dict[str, Any]:
    stamps = [[stamp.size, stamp.time] for stamp in index.stamps]
    return {
        "version": _VERSION, "endings": list(IMAGE_ENDINGS), "files": list(index.files), "stamps": stamps,
        "samples": index.samples, "passed": index.passed, "digest": index.digest,
    }  # fmt: skip


def _write(new: Any, index: TarIndex) -> None:
    with open(new, "wb") as opened:
        arrays = {
            name: getattr(index, name) for name in ("file_of", "starts", "sizes", "labels")
        } | index.names.arrays()
        np.savez(
            opened, allow_pickle=False, about=np.frombuffer(json.dumps(_about(index)).encode(), np.uint8), **arrays
        )


def _kept(file: Any, files: list[str], stamps: list[Stamp]) -> tuple[TarIndex | None, tuple[str, ...]]:
    """(the index of an earlier start, if all archives are as they were; else None; those that are not)."""
    try:
        with arrays_of(file) as saved:
            about = json.loads(saved["about"].tobytes())
            if about["version"] != _VERSION or about["endings"] != list(IMAGE_ENDINGS) or about["files"] != files:
                return None, ()
            before = [Stamp(*stamp) for stamp in about["stamps"]]
            changed = tuple(f for f, old, new in zip(files, before, stamps, strict=True) if old != new)
            if changed:
                return None, changed
            names = Paths.of_arrays(saved)
            columns: dict[str, Any] = {name: saved[name] for name in ("file_of", "starts", "sizes", "labels")}
            facts = {name: about[name] for name in ("samples", "passed", "digest")}
            return TarIndex(tuple(files), tuple(stamps), names, **columns, **facts), ()
    except Exception:  # none, or a damaged one, from which numpy and zipfile may raise anything
        return None, ()


def archive_names(index: TarIndex) -> list[str]:
    """The archives' names for people."""
    return relative_names([epath.Path(file) for file in index.files])
