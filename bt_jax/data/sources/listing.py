"""The images below a folder, at any depth: found in one walk, which is kept for the next start.

A walk reads every folder once and asks for the kind of an entry only where the folder does not tell it. A listing of many
images is kept in the user's cache folder ($XDG_CACHE_HOME/bt_jax/listings, by default in ~/.cache), nowhere near the images. It
counts as long as each folder's modification time is the same: a file that comes, goes or is renamed changes that of its
folder.
"""

import collections
import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from etils import epath

from bt_jax.errors import UserError
from bt_jax.runtime.paths import cache_folder

IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff",
    ".jfif", ".ppm", ".pgm", ".avif", ".jp2", ".dcm",
)  # upper case too  # fmt: skip
_KEPT_FROM = 10_000  # images; fewer are found at once
_KEPT = 20  # listings; the oldest go
_COARSE = 2_000_000_000  # ns: a folder that changed so shortly before the walk may have changed again at the same time
_VERSION = 2


class Paths(Sequence[str]):
    """Paths of files, in a fraction of the memory of a list: folders once, and all names in one string of bytes.

    A path is its folder, "/" and its name; only the name if the folder is "".
    """

    def __init__(
        self, folders: Sequence[str], folder_of: np.ndarray, names: bytes, starts: np.ndarray, stops: np.ndarray
    ):
        """Args:
        folders: each once.
        folder_of: (n,) int32, the number of each file's folder.
        names: of the files, as bytes; that of file i is names[starts[i]:stops[i]], both (n,) int64.
        """
        self.folders, self.folder_of = folders, folder_of
        self._names, self._starts, self._stops = names, starts, stops

    @classmethod
    def of(cls, files: Iterable[tuple[str, str]]) -> "Paths":
        """From (folder, name) of each file."""
        numbers: dict[str, int] = {}
        folder_of, names = [], []
        for folder, name in files:
            folder_of.append(numbers.setdefault(folder, len(numbers)))
            names.append(name)
        return cls(list(numbers), np.array(folder_of, np.int32), *_joined(names))

    def __len__(self) -> int:
        return len(self.folder_of)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        folder = self.folders[self.folder_of[index]]
        name = os.fsdecode(self._names[self._starts[index] : self._stops[index]])
        return f"{folder}/{name}" if folder else name

    def __iter__(self) -> Iterator[str]:
        for folder, start, stop in zip(self.folder_of, self._starts.tolist(), self._stops.tolist(), strict=True):
            folder, name = self.folders[folder], os.fsdecode(self._names[start:stop])
            yield f"{folder}/{name}" if folder else name

    def within(self, folders: Sequence[str]) -> "Paths":
        """The same names, in other folders."""
        return Paths(folders, self.folder_of, self._names, self._starts, self._stops)

    def select(self, files: np.ndarray) -> "Paths":
        """Some of the files, by their numbers or a mask."""
        return Paths(self.folders, self.folder_of[files], self._names, self._starts[files], self._stops[files])

    def arrays(self) -> dict[str, np.ndarray]:
        """What `of_arrays` makes them of again."""
        return {
            "folders": np.frombuffer(os.fsencode("\0".join(self.folders)), np.uint8),
            "folder_of": self.folder_of,
            "names": np.frombuffer(self._names, np.uint8),
            "name_starts": self._starts,
            "name_stops": self._stops,
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Paths":
        """From what `arrays` gave."""
        folders = os.fsdecode(arrays["folders"].tobytes()).split("\0")
        names, starts, stops = arrays["names"].tobytes(), arrays["name_starts"], arrays["name_stops"]
        return cls(folders, arrays["folder_of"], names, starts, stops)


def _joined(names: list[str]) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Names as one string of bytes, and where each starts and stops."""
    joined = os.fsencode("\0".join(names))
    stops = np.append(np.flatnonzero(np.frombuffer(joined, np.uint8) == 0), len(joined)).astype(np.int64)
    stops = stops if names else stops[:0]
    return joined, np.concatenate([[0], stops + 1])[: len(stops)].astype(np.int64), stops


class Listing:
    """What is below a folder.

    Attributes:
      images: their paths relative to the folder, in the order of the names on their way, folder by folder.
      passed: how many other files there are, by kind: an ending, or in words.
      hidden: the number of hidden entries, which are not looked into.
      empty: the names of folders at the top without an image.
    """

    def __init__(self, images: Paths, passed: dict[str, int], hidden: int, empty: tuple[str, ...]):
        self.images, self.passed, self.hidden, self.empty = images, passed, hidden, empty


def images_below(folder: epath.Path) -> Listing:
    """The images below a folder, local or gs://, at any depth; links are followed.

    Raises:
      UserError: a folder cannot be listed, or a link leads to a folder above it.
    """
    place = str(folder)
    if "://" in place:
        walk = _Walk(place)
        walk.enter(place, "")
        return walk.listing()
    kept = _cache_file(place)
    if (found := _kept(kept, place)) is not None:
        return found
    walk = _Walk(place)
    walk.enter(place, "")
    found = walk.listing()
    if len(found.images) >= _KEPT_FROM:
        with contextlib.suppress(OSError):  # no room, or no home: the next start walks again
            _keep(kept, walk, found)
    return found


class _Walk:
    """One walk, and what it has found so far."""

    def __init__(self, top: str):
        self._top = top
        self._folders: list[str] = []
        self._folder_of: list[int] = []
        self._names: list[str] = []
        self._passed: collections.Counter[str] = collections.Counter()
        self._hidden = 0
        self._empty: list[str] = []
        self._above: dict[tuple[int, int], str] = {}  # the folders that the walk is in
        self.begun = time.time_ns()
        self.times: list[int] = []  # of modification, of each folder

    def enter(self, folder: str, relative: str) -> None:
        identity = self._enter(folder, relative)
        number = len(self._folders)
        self._folders.append(relative)
        for name, kind in _entries_of(folder):
            if is_hidden(name):
                self._hidden += 1
            elif kind == "folder":
                before = len(self._names)
                self.enter(f"{folder}/{name}", f"{relative}/{name}" if relative else name)
                if not relative and len(self._names) == before:
                    self._empty.append(name)
            elif kind == "file" and is_image(name):
                self._folder_of.append(number)
                self._names.append(name)
            else:
                self._passed[_kind_of_file(name, kind)] += 1
        self._above.pop(identity, None)

    def _enter(self, folder: str, relative: str) -> tuple[int, int]:
        if "://" in folder:
            return 0, 0
        try:
            status = os.stat(folder)
        except OSError as error:
            raise _not_listed(folder, error) from None
        identity = status.st_dev, status.st_ino
        if identity in self._above:
            raise UserError(
                f"{folder} leads back to {self._above[identity]}, a folder above it; remove this link, or name the folders or "
                "a list of the files that are to be read."
            )
        self._above[identity] = folder
        self.times.append(status.st_mtime_ns)
        return identity

    def listing(self) -> Listing:
        images = Paths(self._folders, np.array(self._folder_of, np.int32), *_joined(self._names))
        return Listing(images, dict(sorted(self._passed.items())), self._hidden, tuple(self._empty))


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini")


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def _kind_of_file(name: str, kind: str) -> str:
    if kind == "special":
        return "special (such as a pipe)"
    ending = os.path.splitext(name)[1].lower()
    return ending or "without an ending"


def listing(folder: epath.Path) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of all entries of a folder, sorted by name."""
    return [(name, kind == "folder") for name, kind in _entries_of(str(folder))]


def _entries_of(folder: str) -> list[tuple[str, str]]:
    """(name, kind) of all entries, sorted by name: "file", "folder", or "special", such as a pipe, which may never end.

    Raises:
      UserError: the folder cannot be listed.
    """
    try:
        if "://" not in folder:
            with os.scandir(folder) as entries:  # many times faster than a query for each of a million files
                return sorted((entry.name, _kind(entry)) for entry in entries)
        # A query for each entry would be one request each, so what is named like an image is taken for a file.
        return sorted(
            (entry.name, "folder" if not is_image(entry.name) and entry.is_dir() else "file")
            for entry in epath.Path(folder).iterdir()
        )
    except OSError as error:
        raise _not_listed(folder, error) from None


def _not_listed(folder: str, error: OSError) -> UserError:
    return UserError(
        f"the folder {folder} cannot be listed ({error.strerror or error}); make it readable, or move it elsewhere."
    )


def _kind(entry: os.DirEntry) -> str:
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        # A link that leads nowhere is a file that cannot be read.
        return "special" if os.path.exists(entry.path) else "file"
    except OSError:  # a link to itself, or to what may not be looked at
        return "file"


def _cache_file(place: str) -> pathlib.Path:
    name = hashlib.sha256(os.fsencode(os.path.abspath(place))).hexdigest()[:32]
    return cache_folder() / "listings" / f"{name}.npz"


def _rules() -> dict[str, Any]:
    """What a listing depends on besides the folders."""
    return {"version": _VERSION, "endings": IMAGE_ENDINGS}


def _keep(file: pathlib.Path, walk: _Walk, found: Listing) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    images = found.images
    about = {**_rules(), "begun": walk.begun, "passed": found.passed, "hidden": found.hidden, "empty": found.empty}
    new = file.with_name(f"{file.name}.{os.urandom(4).hex()}.new")
    try:
        with open(new, "wb") as opened:
            np.savez(
                opened,
                allow_pickle=False,
                about=np.frombuffer(json.dumps(about).encode(), np.uint8),
                times=np.array(walk.times, np.int64),
                **images.arrays(),
            )
        new.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    for old in sorted(file.parent.glob("*.npz"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        old.unlink()


def _kept(file: pathlib.Path, place: str) -> Listing | None:
    """The listing of an earlier start, if no folder has changed since."""
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as saved:
            about = json.loads(saved["about"].tobytes())
            if {name: about[name] for name in _rules()} != json.loads(json.dumps(_rules())):
                return None
            images, times = Paths.of_arrays(saved), saved["times"].tolist()
            if not all(time < about["begun"] - _COARSE for time in times):
                return None
            for folder, before in zip(images.folders, times, strict=True):
                if os.stat(f"{place}/{folder}" if folder else place).st_mtime_ns != before:
                    return None
            return Listing(images, about["passed"], about["hidden"], tuple(about["empty"]))
    except Exception:  # none, or a damaged one, from which numpy and zipfile may raise anything
        return None
