"""Images in files, a folder for each class."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath

from bt_jax.data.order import evenly
from bt_jax.data.sources.base import BytesCache, EncodedSource, other_split
from bt_jax.errors import UserError, some
from bt_jax.runtime.paths import as_path

_SIZED = 256  # files whose sizes go into the fingerprint: takes a millisecond, or a second over a slow network
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")  # upper case too


class FolderSource(EncodedSource):
    """Images in files, `ROOT/<split>/<class>/<file>`, local or gs://; classes and files in the order of their names.

    Attributes:
      paths: of the files, as text.
      labels: (N,) int32.
    """

    def __init__(self, root: str, split: str, cache_bytes: int = 0, *, use: str = "train"):
        """Raises UserError if the folder or its classes are missing or empty, or contain other files.

        Args:
          cache_bytes: files are kept in memory once read, up to this many bytes in all; 0 keeps none.
          use: of the split, "train" or "test", for messages.
        """
        if not root:
            raise UserError("data.data_dir is empty; it must name the folder that holds <split>/<class>/<image files>.")
        top = as_path(root, "data.data_dir")
        folder = top / split
        if not folder.is_dir():
            here = [name for name, is_folder in listing(top) if is_folder] if top.is_dir() else []
            if top.is_dir():
                found = f"{top} holds {some(here) if here else 'no folders'}"
            else:
                found = f"{top} is a file" if top.exists() else f"{top} does not exist"
            hint = other_split(split, here, use)
            raise UserError(
                f"there is no image folder {folder} ({found}); it must hold a folder of images for each class"
                f"{hint and ', or ' + hint}."
            )
        classes, counts, paths, empty, stray, hidden = [], [], [], [], [], 0
        for name, is_folder in listing(folder):
            if _is_hidden(name):
                hidden += 1
                continue
            if not is_folder:
                stray.append(name)
                continue
            files = []
            for file, kind in _entries(folder / name):
                if _is_hidden(file):
                    hidden += 1
                elif kind != "file" or not _is_image(file):
                    stray.append(f"{name}/{file}")
                else:
                    files.append(os.path.join(str(folder), name, file))
            classes.append(name)
            counts.append(len(files))
            paths += files
            if not files:
                empty.append(name)
        if stray:
            raise UserError(
                f"{folder} must hold a folder of images ({', '.join(IMAGE_ENDINGS)}) for each class and nothing else, "
                f"but {len(stray)} stray file(s) or folder(s) are there: {some(stray)}; move them elsewhere."
            )
        if not classes:
            raise UserError(f"the image folder {folder} is empty; it must hold a folder of images for each class.")
        if empty:
            raise UserError(
                f"{len(empty)} class folder(s) in {folder} hold no images: {some(empty)}; fill or remove each of them."
            )
        notices = (f"{hidden} hidden file(s) in {folder} were skipped",) if hidden else ()
        super().__init__(str(folder), len(paths), tuple(classes), notices)
        self.paths, self.labels = paths, np.repeat(np.arange(len(classes), dtype=np.int32), counts)
        self.gives_paths = cache_bytes == 0  # then TensorFlow reads them, on the threads that decode
        self._cache = BytesCache(cache_bytes)

    def _identity(self) -> Iterator[bytes]:
        """The files' names below the folder, and the sizes of evenly spread files."""
        begin = len(self.name) + 1
        yield b"\0".join(os.fsencode(path[begin:]) for path in self.paths)
        if "://" not in self.name:
            some_paths = [self.paths[i] for i in evenly(len(self), min(len(self), _SIZED))]
            yield repr([os.stat(path).st_size if os.path.exists(path) else None for path in some_paths]).encode()

    def check_there(self) -> None:
        if not epath.Path(self.name).is_dir():
            raise UserError(
                f"the image folder {self.name} is gone; bring it back, and the same command resumes from the last checkpoint."
            )

    def place(self, example: int) -> str:
        return self.paths[example]

    def fetch(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.gives_paths:
            items = [os.fsencode(self.paths[example]) for example in examples]
        else:
            items = self._cache.get(examples, self._read)
        return np.array(items, object), self.labels[examples]

    def _read(self, examples: list[int]) -> list[bytes]:
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(_content, [self.paths[example] for example in examples]))


_READERS = 16  # network storage answers many requests at once, and a disk is no slower for it


def _content(path: str) -> bytes:
    """The contents of a file; nothing, which is no image, if it cannot be read."""
    try:
        return epath.Path(path).read_bytes()
    except OSError:
        return b""


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini")


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def listing(folder: epath.Path) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of all entries, sorted by name."""
    return [(name, kind == "folder") for name, kind in _entries(folder)]


def _entries(folder: epath.Path) -> list[tuple[str, str]]:
    """(name, kind) of all entries, sorted by name: "file", "folder", or "special", such as a pipe, which may never end."""
    if "://" not in str(folder):
        with os.scandir(folder) as entries:  # many times faster than a query for each of a million files
            return sorted((entry.name, _kind(entry)) for entry in entries)
    # A query for each entry would be one request each, so what is named like an image is taken for a file.
    return sorted(
        (entry.name, "folder" if not _is_image(entry.name) and entry.is_dir() else "file") for entry in folder.iterdir()
    )


def _kind(entry: os.DirEntry) -> str:
    if entry.is_file():
        return "file"
    if entry.is_dir():
        return "folder"
    # A link that leads nowhere is a file that cannot be read.
    return "special" if os.path.exists(entry.path) else "file"
