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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from bt_jax.data.sources.listing import IMAGE_ENDINGS, Paths, is_image
from bt_jax.data.sources.ranges import Stamp, alone, arrays_of, cache_file, written_whole
from bt_jax.data.sources.shards import relative_names
from bt_jax.data.sources.tar_files import Entry, files_of, has_hidden, may_hold_labels
from bt_jax.errors import UserError, first_line, some

_VERSION = 2
REPLACED = "replaced"  # the kind of files that a later one in their archive replaces when it is unpacked
_READERS = 8  # archives in an object store that are read at once
_LABEL_BYTES = 64  # of a .cls; it holds a number
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
    images: list[tuple[Entry, int]]
    samples: bool
    passed: collections.Counter[str]


def _images_of(file: str) -> _Shard:
    """The images of one archive with their labels, in its order."""
    passed: collections.Counter[str] = collections.Counter()
    entries: list[Entry] = []
    for entry in files_of(file):
        base = entry.name.rpartition("/")[2]
        if has_hidden(entry.name):
            passed["hidden"] += 1
        elif is_image(base) or may_hold_labels(base):
            entries.append(entry)
        else:
            passed[os.path.splitext(base)[1].lower() or "without an ending"] += 1
    if any(entry.name.lower().endswith(".cls") for entry in entries) or _has_pairs(entries):
        return _Shard(_samples(file, entries, passed), True, passed)
    passed[".json"] += sum(not is_image(entry.name) for entry in entries)
    images = [entry for entry in entries if is_image(entry.name)]
    last = {entry.name: entry for entry in images}
    passed[REPLACED] += len(images) - len(last)
    return _Shard([(entry, NO_LABEL) for entry in last.values()], False, +passed)


def _has_pairs(entries: list[Entry]) -> bool:
    """Whether each .json lies beside an image of its name, as in shards without .cls."""
    keys = {_key(entry.name)[0] for entry in entries if is_image(entry.name)}
    described = [_key(entry.name)[0] for entry in entries if entry.name.lower().endswith(".json")]
    return bool(described) and all(key in keys for key in described)


def _key(name: str) -> tuple[str, str]:
    """(a path up to the first dot of its name, the rest in lower case)."""
    folder, slash, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def _samples(file: str, entries: list[Entry], passed: collections.Counter[str]) -> list[tuple[Entry, int]]:
    samples: dict[str, dict[str, Entry]] = {}
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


def _label(file: str, files: dict[str, Entry]) -> int:
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
