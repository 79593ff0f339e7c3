"""Files of features: pieces while they are computed, then embeddings.npz and embeddings.parquet, in bounded memory."""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np
from etils import epath

from bt_jax.errors import UserError, first_line
from bt_jax.parts import import_part
from bt_jax.runtime.files import read_object, write_whole

Piece = dict[str, np.ndarray]  # "features" (n, F) float32, "labels" (n,) int32, "examples" (n,) int64


class Pieces:
    """The pieces of a task in WORKDIR/pieces, each written as a whole."""

    def __init__(self, workdir: epath.Path, size: int, total: int):
        """Args:
        size: images per piece; total: images of all.
        """
        self._folder, self._size, self._total = workdir / "pieces", size, total

    @property
    def count(self) -> int:
        """How many pieces there will be."""
        return -(-self._total // self._size)

    def claim(self, about: dict[str, Any], *, write: bool) -> None:
        """Checks that pieces of an earlier start are of the same images.

        Args:
          about: what pieces depend on; the encoder is checked elsewhere.
          write: whether this process writes it for the next start.

        Raises:
          UserError: they are not, or their description cannot be read.
        """
        path = self._folder / "about.json"
        if path.exists():
            try:
                before = read_object(path)
            except (OSError, ValueError) as error:
                raise UserError(f"{path} cannot be read ({error}); remove {self._folder}, and start again.") from None
            check_same(before, about, self._folder.parent)
        elif write:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(about) + "\n")

    def done(self) -> int:
        """How many pieces are there, from the first."""
        return next((i for i in range(self.count) if not self._path(i).exists()), self.count)

    def write(self, number: int, piece: Piece) -> None:
        file = io.BytesIO()
        np.savez(file, features=piece["features"], labels=piece["labels"], examples=piece["examples"])
        with _whole(self._path(number)) as opened:
            opened.write(file.getvalue())

    def read(self) -> Iterator[Piece]:
        """All pieces in turn.

        Raises:
          UserError: one is damaged; it has been removed, so that it is made again.
        """
        for number in range(self.count):
            path = self._path(number)
            try:
                with path.open("rb") as opened, np.load(opened, allow_pickle=False) as saved:
                    piece = {name: saved[name] for name in ("features", "labels", "examples")}
            except Exception as error:  # numpy and zipfile may raise anything
                with contextlib.suppress(OSError):
                    path.unlink()
                raise UserError(
                    f"{path} was damaged ({first_line(error)}) and has been removed; the same command makes it again."
                ) from None
            yield piece

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self._folder.rmtree()

    def _path(self, number: int) -> epath.Path:
        return self._folder / f"{number:06d}.npz"


def check_same(before: dict[str, Any], about: dict[str, Any], workdir: epath.Path) -> None:
    """Raises UserError if the embeddings in a workdir are of something else; the differences are named."""
    differ = [
        f"{name} was {before[name]} and is now {about[name]}" for name in about if before.get(name) != about[name]
    ]
    if differ:
        raise UserError(
            f"{workdir} holds embeddings of other images ({'; '.join(differ)}); choose another --workdir, or bring them back."
        )


def write_npz(
    path: epath.Path,
    pieces: Callable[[], Iterator[Piece]],
    name_of: Callable[[int], str],
    class_names: Sequence[str] = (),
) -> tuple[int, int]:
    """Writes an .npz of `features` (N, F) float32 and `paths` (N,), with labels also `labels` (N,) int32 and `class_names` (K,).

    Args:
      pieces: gives the pieces in turn, at every call.
      name_of: the path of an example.

    Returns:
      (N, F).
    """
    count, width, longest = 0, 0, 1
    for piece in pieces():
        count, width = count + len(piece["features"]), piece["features"].shape[1]
        longest = max([longest, *(len(name_of(example)) for example in piece["examples"].tolist())])
    kind = np.dtype(f"<U{longest}")
    with _whole(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:

        def add(name: str, dtype: np.dtype, shape: tuple[int, ...], parts: Iterator[np.ndarray]) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for part in parts:
                    member.write(np.ascontiguousarray(part, dtype).tobytes())

        add("features", np.dtype("<f4"), (count, width), (piece["features"] for piece in pieces()))
        names = (np.array([name_of(example) for example in piece["examples"].tolist()], kind) for piece in pieces())
        add("paths", kind, (count,), names)
        if class_names:
            add("labels", np.dtype("<i4"), (count,), (piece["labels"] for piece in pieces()))
            classes = np.array(class_names)
            add("class_names", classes.dtype, classes.shape, iter([classes]))
    return count, width


def check_parquet() -> None:
    """Raises UserError if Parquet cannot be written; to be called before anything is computed."""
    import_part("pyarrow.parquet", use="embed.parquet", name="pyarrow", otherwise="set embed.parquet=False")


def write_parquet(
    path: epath.Path,
    pieces: Callable[[], Iterator[Piece]],
    name_of: Callable[[int], str],
    class_names: Sequence[str] = (),
) -> None:
    """Writes a Parquet file with the columns path and features, a list of float32, and with labels label and class_name.

    Arguments as for `write_npz`; a piece is a row group.
    """
    import pyarrow
    from pyarrow import parquet

    writer = None
    with _whole(path) as file:
        for piece in pieces():
            width = piece["features"].shape[1]
            flat = pyarrow.array(piece["features"].ravel())
            # Arrow's texts are UTF-8; names that are not are escaped.
            names = [_utf8(name_of(example)) for example in piece["examples"].tolist()]
            columns = {"path": names, "features": pyarrow.FixedSizeListArray.from_arrays(flat, width)}
            if class_names:
                columns["label"] = pyarrow.array(piece["labels"])
                classes = [_name_of_class(label, class_names) for label in piece["labels"].tolist()]
                columns["class_name"] = pyarrow.array(classes, pyarrow.string())  # also where no image has a class
            table = pyarrow.table(columns)
            writer = writer or parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _name_of_class(label: int, class_names: Sequence[str]) -> str | None:
    """None for a label that is none of the classes, such as -1 in a test split whose labels are not public."""
    return _utf8(class_names[label]) if 0 <= label < len(class_names) else None


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def _whole(path: epath.Path) -> Iterator[IO[bytes]]:
    """The file, opened for writing; on local disks it gets its name when it is complete."""
    if "://" in os.fspath(path):
        with path.open("wb") as file:
            yield file
        return
    new = path.with_name(path.name + ".new")
    try:
        with open(new, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
