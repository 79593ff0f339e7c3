"""Images in files: any folder of them, or a list."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath

from bt_jax.data.order import evenly
from bt_jax.data.sources.base import BytesCache, EncodedSource, Source, unreachable
from bt_jax.data.sources.layout import find_images, roots_of
from bt_jax.data.sources.lists import is_list
from bt_jax.errors import UserError
from bt_jax.runtime.files import errors_of_files

_COMPARED = 8  # files whose contents are compared
_SIZED = 256  # files whose sizes go into the fingerprint: takes a millisecond, or a second over a slow network


class FolderSource(EncodedSource):
    """Images in files, local or gs://, in the order of their names (layout.py); labelled or not.

    Attributes:
      paths: of the files, as text.
      relative: the same, relative to the split's folder.
      labels: (N,) int32; -1 without labels.
      labels_from: where they come from, in words; "" if each folder is a class.
    """

    def __init__(
        self,
        root: str,
        split: str,
        cache_bytes: int = 0,
        *,
        use: str = "train",
        other: str = "",
        labels: str = "auto",
        test_fraction: float = 0.0,
    ):
        """Args:
        root, labels, test_fraction: `data_dir`, `labels` and `test_fraction` of `config.data`.
        split, other: the names of this split and the other one, of train and test; "" for no other.
        use: of the split, "train" or "test".
        cache_bytes: files are kept in memory once read, up to this many bytes in all; 0 keeps none.

        Raises:
          UserError: as `find_images`.
        """
        found = find_images(root, split, other=other, use=use, labels=labels, test_fraction=test_fraction)
        super().__init__(found.name, len(found.paths), found.class_names, found.notices)
        self.paths, self.relative, self.labels = found.paths, found.relative, found.labels
        self.labels_from, self._places = found.labels_from, found.places
        self._roots = [str(top if top.is_dir() else top.parent) for top in roots_of(root)]
        remote = any("://" in folder for folder in self.paths.folders)  # which a local list may name too
        # Then TensorFlow reads them, on the threads that decode. It does not know all the stores that epath does.
        self.gives_paths = cache_bytes == 0 and not remote
        self._cache = BytesCache(cache_bytes)

    def _identity(self) -> Iterator[bytes]:
        """The files' relative names, and the sizes of evenly spread files."""
        yield b"\0".join(map(os.fsencode, self.relative))
        if "://" not in self.name:
            sizes = [os.stat(path).st_size if os.path.exists(path) else None for path in self._some_paths()]
            yield repr(sizes).encode()

    def shared_with(self, other: Source) -> int:
        if not isinstance(other, FolderSource):
            return 0
        if self.fingerprint == other.fingerprint and self._looks_like(other):
            return len(other)
        # Folders beside each other, such as those of splits, share no file; a list may name any, and so may links.
        places = [[_real(str(place)) for place in source._places] for source in (self, other)]
        nested = any(f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/") for a in places[0] for b in places[1])
        lists = any(map(is_list, (*self._places, *other._places)))
        if not nested and not lists and not self._has_links() and not other._has_links():
            return 0
        theirs = set(other._real_paths())
        return sum(path in theirs for path in self._real_paths())

    def _some_paths(self) -> list[str]:
        return [self.paths[i] for i in evenly(len(self), min(len(self), _SIZED))]

    def _looks_like(self, other: "FolderSource") -> bool:
        """Whether some files have the same contents as those of a set with the same names: sizes alone may be all the same."""
        places = evenly(len(self), min(len(self), _COMPARED))
        return all(_content(self.paths[i]) == _content(other.paths[i]) for i in places)

    def _has_links(self) -> bool:
        """Whether evenly spread files are links, or lie in folders that are."""
        folders = any("://" not in folder and _real(folder) != os.path.abspath(folder) for folder in self.paths.folders)
        return folders or any("://" not in path and os.path.islink(path) for path in self._some_paths())

    def _real_paths(self) -> Iterator[str]:
        """The files' paths, whatever links and spellings lead to them."""
        if any("://" not in path and os.path.islink(path) for path in self._some_paths()):
            yield from map(_real, self.paths)
        else:  # a query for each folder, not for each file
            yield from self.paths.within([_real(folder) for folder in self.paths.folders])

    def check_there(self) -> None:
        for place in self._places:
            if not place.exists():
                raise UserError(
                    f"the image folder {place} is gone; bring it back, and the same command resumes from the last checkpoint."
                )

    def described(self) -> str:
        words = super().described()
        return f"{words} {self.labels_from}" if self.labels_from else words

    def place(self, example: int) -> str:
        return self.paths[example]

    def path(self, example: int) -> str:
        path = self.paths[example]
        root = next((root for root in self._roots if path.startswith(f"{root}/")), None)
        return path if root is None else path[len(root) + 1 :]

    def fetch(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.gives_paths:
            items = [os.fsencode(self.paths[example]) for example in examples]
        else:
            items = self._cache.get(examples, self._read)
        return np.array(items, object), self.labels[examples]

    def _read(self, examples: list[int]) -> list[bytes]:
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(_content, [self.paths[example] for example in examples]))


def _real(path: str) -> str:
    return path if "://" in path else os.path.realpath(path)


_READERS = 16  # network storage answers many requests at once, and a disk is no slower for it


def _content(path: str) -> bytes:
    """The contents of a file; nothing, which is no image, if it is gone or the disk cannot read it.

    Raises:
      UserError: it is in a store that does not answer, which says nothing of the image.
    """
    try:
        return epath.Path(path).read_bytes()
    except errors_of_files() as error:
        # The libraries of most stores report with an OSError that one does not answer; only a missing file says something of the image.
        if isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and "://" not in path):
            return b""
        raise unreachable(path, error) from error
