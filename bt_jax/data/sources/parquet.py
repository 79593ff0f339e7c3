"""Images in Parquet files, as Hugging Face data sets keep them: a column of {"bytes", "path"}, and one of labels.

A value in a Parquet file cannot be read alone: its pages are compressed, and a group of 100 to 1000 rows is decoded at once. So the
images are copied once, as they are encoded, into one file for each table in the user's cache folder, and read there at random places.
Any order of whole groups would be quicker to begin with and take no room, but would draw batches from some groups only, and the parts
of a set, such as 1 % of the labels, would decode a hundred times what they need.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import posixpath
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from bt_jax.data.sources.base import LARGEST_IMAGE, counted, numbers_as_names
from bt_jax.data.sources.listing import Paths
from bt_jax.data.sources.lists import numbered
from bt_jax.data.sources.packed import PackedSource, part_of
from bt_jax.data.sources.ranges import Ranges, Stamp, alone, arrays_of, cache_file, written_whole
from bt_jax.data.sources.shards import find_shards, has_shards, relative_names
from bt_jax.errors import UserError, first_line, some
from bt_jax.parts import import_part

_VERSION = 1
_ROWS, _BYTES = 64, 2**26  # decoded at once, whichever is less
_RATIO = 1000  # of a group of images to the file's bytes; blank ones, not compressed, may reach some hundreds
_LABEL_ROWS, _LABEL = 4096, 1024  # decoded at once; bytes of a label on average
_TRIED = 8  # images of a table, of which one must be an image
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")


def parquet_source(config: ConfigDict, split: str, use: str) -> PackedSource:
    """The images of a split in Parquet files (shards.py), in the order of the files' names and of their rows.

    Args:
      config: `config.data` of a run.
      split: its name.
      use: of the split: "train" or "test".

    Raises:
      UserError: pyarrow is missing; as `find_shards`; a file is damaged; no column holds images, or several; the labels are not
        what they should be; there is no room for the images.
    """
    import_part("pyarrow.parquet", use="data.source 'parquet'", name="pyarrow")
    fraction, other = config.test_fraction, config.test_split if use == "train" else config.train_split
    if fraction and has_shards(config.data_dir, config.test_split, ".parquet"):
        fraction = 0.0  # there are test images
    wanted = other if use == "test" and fraction else split
    files = find_shards(config.data_dir, wanted, ".parquet", use="train" if fraction else use)
    name = str(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    tables = [_table(file, config.labels) for file in files]
    labels, class_names, words = _labelled(name, tables)
    file_of = np.repeat(np.arange(len(tables), dtype=np.int32), [len(table.starts) for table in tables])
    starts, sizes = (np.concatenate([getattr(t, field) for t in tables]) for field in ("starts", "sizes"))
    paths = Paths.of(posixpath.split(path) for table in tables for path in table.names)
    keep, said = part_of(_with_files(files, tables), fraction, use, name)
    rows = slice(None) if keep is None else keep
    digest = hashlib.sha256("".join(table.digest for table in tables).encode() + labels.tobytes()).hexdigest()
    return PackedSource(
        name if keep is None or use == "train" else f"{name}, test part",
        Ranges([str(table.file) for table in tables], [table.stamp for table in tables]),
        file_of[rows],
        starts[rows],
        sizes[rows],
        paths=paths if keep is None else paths.select(keep),
        inside=relative_names(files),
        labels=labels[rows],
        class_names=class_names,
        labels_from=words,
        notices=said,
        digest=digest if keep is None else f"{digest} {use} {fraction!r}",
        cache_bytes=config.cache_bytes,
    )


def _with_files(files: Sequence[epath.Path], tables: "Sequence[_Table]") -> list[str]:
    names = relative_names(files)
    return [f"{name}/{path}" for name, table in zip(names, tables, strict=True) for path in table.names]


@dataclasses.dataclass(frozen=True)
class _Table:
    """The images of one Parquet file.

    Attributes:
      file: their copy.
      stamp: of the copy.
      names: of the images: their paths in the table, or the numbers of their rows.
      starts, sizes: where they are in the copy, (n,) int64.
      labels: integers or texts; None without.
      classes: their names by the table itself; () if it does not say.
      digest: of the images' sizes and last bytes.
    """

    file: pathlib.Path
    stamp: Stamp
    names: list[str]
    starts: np.ndarray
    sizes: np.ndarray
    labels: list[int] | list[str] | None
    classes: tuple[str, ...]
    digest: str


def _labelled(name: str, tables: list[_Table]) -> tuple[np.ndarray, tuple[str, ...], str]:
    nothing = np.full(sum(len(table.starts) for table in tables), -1, np.int32), (), ""
    lists = [table.labels for table in tables if table.labels is not None]
    if len(lists) < len(tables):
        if lists:
            raise UserError(
                f"only {len(lists)} of the {len(tables)} files of {name} have labels; set data.labels to 'none'."
            )
        return nothing
    values = [value for part in lists for value in part]
    if texts := [value for value in values if isinstance(value, str)]:
        if len(texts) < len(values):
            raise UserError(
                f"the labels in {name} are text in some files and numbers in others; set data.labels to 'none'."
            )
        return *numbered(texts), "from the table"
    labels = np.array(values, np.int64)
    if labels.max() < 0:
        return nothing  # as in the test splits of contests
    if labels.min() < 0:
        raise UserError(
            f"{int((labels < 0).sum())} of the {len(labels)} labels in {name} are below 0; set data.labels to 'none'."
        )
    classes = tables[0].classes
    if classes and labels.max() >= len(classes):
        raise UserError(f"a label in {name} is {labels.max()}, but its table has {len(classes)} classes.")
    return labels.astype(np.int32), classes or numbers_as_names(name, labels), "from the table"


def _table(file: epath.Path, labels: str) -> _Table:
    """The images of a file, copied now or by an earlier start, and their labels."""
    from pyarrow import ArrowException, parquet

    place = str(file) if "://" in str(file) else os.path.abspath(file)
    stamp = Stamp.of(place)
    about = cache_file("tables", [place], ".npz")
    copy = about.with_suffix(".images")
    try:
        with file.open("rb") as opened, parquet.ParquetFile(opened) as table:
            if table.metadata.num_rows > stamp.size:  # which repetitions of one value could be, in no room at all
                raise UserError(
                    f"{file} says that it has {counted(table.metadata.num_rows)} rows, more than it has bytes; copy or make it again."
                )
            image, label, classes = _columns(file, table, labels)
            found = _label_values(file, table, label)
            copied = _kept(about, copy, stamp, image)
            if copied is None:
                with alone(about):
                    copied = _kept(about, copy, stamp, image)  # another process may have made it meanwhile
                    if copied is None:
                        _check_room(file, table, copy)
                        about.unlink(missing_ok=True)  # the copy that it describes is about to go
                        with written_whole(copy) as new:
                            names, sizes, digest = _copied(file, stamp.size, table, image, new)
                        facts = {"names": names, "digest": digest, "copy": _stamped(copy), **_rules(stamp, image)}
                        _write(about, facts, sizes)
                        copied = _kept(about, copy, stamp, image)
    except (ArrowException, EOFError, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # others are pyarrow's
            raise UserError(
                f"the images of {file} cannot be copied into {about.parent} ({error.strerror}); set the environment variable "
                "XDG_CACHE_HOME to a folder on a disk with room for them."
            ) from None
        raise UserError(
            f"{file} cannot be read as a Parquet file ({first_line(error)}); copy or make it again."
        ) from None
    if copied is None:
        raise UserError(f"{copy} changed while it was made; leave its folder alone, and run the same command again.")
    if found is not None and len(found) != len(copied.starts):
        raise UserError(
            f"{file} cannot be read as a Parquet file (it has {len(copied.starts)} images and {len(found)} labels); copy or make it again."
        )
    return dataclasses.replace(copied, labels=found, classes=classes)


def _label_values(file: epath.Path, table: Any, column: str) -> list[int] | list[str] | None:
    if not column:
        return None
    values: list[Any] = []
    for batch in table.iter_batches(_LABEL_ROWS, columns=[column]):
        if batch.nbytes > _LABEL * max(batch.num_rows, 64):
            raise UserError(
                f"the labels in the column {column!r} of {file} have {batch.nbytes // batch.num_rows} bytes on average, more than "
                "names of classes have; set data.labels to 'none', or to another column."
            )
        values += batch.column(0).to_pylist()
    if None in values:
        raise UserError(
            f"row {values.index(None)} of {file} has no label in the column {column!r}; set data.labels to 'none'."
        )
    return values


def _copied(
    file: epath.Path, size: int, table: Any, column: str, new: pathlib.Path
) -> tuple[list[str], np.ndarray, str]:
    """Writes the images of a table, a file of `size` bytes, one after the other: (their names, their sizes, a digest)."""
    paths: list[Any] = []  # text, where they are paths
    sizes: list[int] = []
    missing, digest, tried = [], hashlib.sha256(), []
    with open(new, "wb") as written:
        for batch in table.iter_batches(_rows_at_once(file, table, size), columns=[column]):
            for value in batch.column(0).to_pylist():
                content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
                if not content:
                    missing.append(len(sizes))
                    content = b""
                if len(tried) < _TRIED:
                    tried.append(content)
                    if len(tried) == min(_TRIED, table.metadata.num_rows):
                        _check_images(file, column, tried, path)
                digest.update(len(content).to_bytes(8, "little") + content[-64:])
                written.write(content)
                sizes.append(len(content))
                paths.append(path)
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(sizes)} rows of {file} have no image in the column {column!r}, the first is row "
            f"{missing[0]}; remove them."
        )
    if not sizes:
        raise UserError(f"{file} has no rows; remove it.")
    names = [path for path in paths if isinstance(path, str) and path and "\0" not in path]
    if len(set(names)) < len(paths):
        names = [f"{row:08d}" for row in range(len(paths))]
    return names, np.array(sizes, np.int64), digest.hexdigest()


def _rules(stamp: Stamp, column: str) -> dict[str, Any]:
    """What a copy depends on."""
    return {"version": _VERSION, "of": [stamp.size, stamp.time], "column": column}


def _stamped(copy: pathlib.Path) -> list[int]:
    stamp = Stamp.of(str(copy))
    return [stamp.size, stamp.time]


def _write(about: pathlib.Path, facts: dict[str, Any], sizes: np.ndarray) -> None:
    with written_whole(about) as new, open(new, "wb") as opened:
        np.savez(opened, allow_pickle=False, about=np.frombuffer(json.dumps(facts).encode(), np.uint8), sizes=sizes)


def _check_images(file: epath.Path, column: str, contents: list[bytes], path: str | None) -> None:
    """Raises UserError if none of these is an image."""
    from PIL import Image

    from bt_jax.data.values import is_dicom

    if not any(contents) and path:
        raise UserError(
            f"the column {column!r} of {file} has paths, such as {path}, but no bytes; write the table with the images in it, as "
            "Hugging Face's push_to_hub does, or set data.source to 'folder'."
        )
    for content in contents:
        with contextlib.suppress(Exception):  # Pillow raises many kinds
            if not is_dicom(content):
                Image.open(io.BytesIO(content)).close()
            return
    raise UserError(
        f"the column {column!r} of {file} holds no images: none of its first {len(contents)} values is one, the first begins with "
        f"{contents[0][:8]!r}."
    )


def _columns(file: epath.Path, table: Any, labels: str) -> tuple[str, str, tuple[str, ...]]:
    """(the column of images, that of labels or "", the names of the classes or ())."""
    from pyarrow import types

    schema = table.schema_arrow

    def is_binary(kind):
        return types.is_binary(kind) or types.is_large_binary(kind)

    def holds_bytes(kind):
        return types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_binary(kind.field("bytes").type)

    images = [field.name for field in schema if holds_bytes(field.type)] or [
        f.name for f in schema if is_binary(f.type)
    ]
    if not images:
        there = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise UserError(
            f"{file} has no column of images, of bytes or of {{'bytes', 'path'}}; its columns are {there[:300]}."
        )
    chosen = [name for name in _IMAGE_COLUMNS if name in images] or images
    if len(chosen) > 1:
        raise UserError(
            f"{file} has several columns of images: {some(images)}; name the one to be read 'image', or drop the others."
        )
    if labels == "none":
        return chosen[0], "", ()

    def holds_labels(kind):
        kind = kind.value_type if types.is_dictionary(kind) else kind  # as pandas writes a categorical column
        return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)

    usable = [field.name for field in schema if holds_labels(field.type)]
    if labels == "auto":
        label = next((name for name in _LABEL_COLUMNS if name in usable), "")
    elif labels in usable:
        label = labels
    else:
        raise UserError(
            f"data.labels is {labels!r}, but must be 'auto', 'none' or a column of integers or text of {file}: {some(usable) or 'it has none'}."
        )
    return chosen[0], label, _classes(schema, label)


def _classes(schema: Any, column: str) -> tuple[str, ...]:
    """The names of the classes, as Hugging Face's data sets write them into a table."""
    with contextlib.suppress(Exception):  # others may write anything there
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[column]["names"]))
    return ()


def _groups(table: Any) -> list[tuple[int, int]]:
    """(rows, bytes once they are unpacked, of all columns) of each group of rows.

    What the file says of single columns is not asked for: pyarrow ends the process if that is damaged.
    """
    groups = map(table.metadata.row_group, range(table.metadata.num_row_groups))
    return [(group.num_rows, group.total_byte_size) for group in groups]


def _rows_at_once(file: epath.Path, table: Any, size: int) -> int:
    """As many rows as have `_BYTES` in the group with the largest images.

    Args:
      size: of the file, in bytes.

    Raises:
      UserError: the images would take too much memory.
    """
    largest = 0
    for rows, unpacked in _groups(table):
        largest = max(largest, unpacked // max(rows, 1))
        if unpacked > _BYTES and unpacked > _RATIO * size:  # images are compressed already
            raise UserError(
                f"{file} has {size} bytes that unpack to {unpacked} in one group of rows, which are no images; copy or make it again."
            )
    if largest > LARGEST_IMAGE:
        raise UserError(f"the rows of {file} have {largest} bytes on average, but may have {LARGEST_IMAGE} at most.")
    return max(1, min(_ROWS, _BYTES // max(largest, 1)))


def _check_room(file: epath.Path, table: Any, copy: pathlib.Path) -> None:
    needed = sum(size for _, size in _groups(table))
    free = shutil.disk_usage(copy.parent).free
    if needed > free:
        raise UserError(
            f"the images of {file} have up to {counted(needed // 10**6)} MB, but {copy.parent}, into which they are copied once, has "
            f"{counted(free // 10**6)} MB left; set the environment variable XDG_CACHE_HOME to a folder on another disk."
        )


def _kept(about: pathlib.Path, copy: pathlib.Path, stamp: Stamp, column: str) -> _Table | None:
    """The copy of an earlier start, if it is whole and the table is as it was; without labels."""
    try:
        with arrays_of(about) as saved:
            facts, sizes = json.loads(saved["about"].tobytes()), saved["sizes"]
        rules = _rules(stamp, column)
        if {name: facts[name] for name in rules} != rules or _stamped(copy) != facts["copy"]:
            return None
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        return _Table(copy, Stamp(*facts["copy"]), facts["names"], starts, sizes, None, (), facts["digest"])
    except Exception:  # none, or a damaged one, from which numpy and zipfile may raise anything
        return None
