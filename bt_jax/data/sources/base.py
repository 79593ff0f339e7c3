"""Where images come from: photographs (embedded), an image folder, arrays in memory, TFDS by name (tfds_sources.py).

A source is a numbered list of labelled images. Those that can be read anywhere have `fetch`, which gives what they hold
of any examples: an `ArraySource` pixels, an `EncodedSource` encoded images. A `StreamSource` can only be read in a row.
"""

import os
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from bt_jax.data.sources.photographs import PHOTOGRAPHS, photograph_crops
from bt_jax.errors import UserError, first_line

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")  # upper case too


class Source:
    """What all sources have: `len()` examples, their classes, and sentences for the summary of a run.

    Attributes:
      name: for people.
      class_names: in the order of the labels.
      notices: what was passed over, a sentence each.
      bad: the examples that turned out not to decode, and why; others stand in for them.
    """

    def __init__(self, name: str, length: int, class_names: tuple[str, ...], notices: tuple[str, ...] = ()):
        self.name, self.class_names, self.notices = name, class_names, notices
        self.bad: dict[int, str] = {}
        self._length = length

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return self._length

    def usable(self, examples: np.ndarray) -> np.ndarray:
        """These examples, and in the place of each bad one the next that is not: a function of the example alone."""
        if not self.bad:
            return examples
        return np.array([self._next_good(int(example)) for example in examples], np.int64)

    def _next_good(self, example: int) -> int:
        while example in self.bad:
            example = (example + 1) % len(self)
        return example

    def place(self, example: int) -> str:
        """Where an example is, for people."""
        return f"image {example} of {self.name}"

    def exclude(self, found: dict[int, str], max_fraction: float) -> None:
        """Takes note of examples that do not decode, with the reasons.

        Raises:
          UserError: they are now more than `max_fraction` of all; names them.
        """
        bad = self.bad | found
        if len(bad) > max_fraction * len(self) or len(bad) == len(self):
            first, why = next(iter(bad.items()))
            others = [self.place(example) for example in bad if example != first]
            more = f", and so cannot {some(others)}" if others else ""
            raise UserError(
                f"{self.place(first)} cannot be read as an image ({why}){more}; mend or remove "
                f"{'them' if others else 'it'}, or raise data.max_bad_fraction, which is {max_fraction:g} of {len(self)}."
            )
        self.bad = bad


class ArraySource(Source):
    """Images of one size in memory.

    Attributes:
      images: (N, H, W, 3) uint8.
      labels: (N,) int32.
    """

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...] | None = None):
        """Raises UserError for other shapes or types, or labels outside the classes."""
        images, labels = np.asarray(images), np.asarray(labels)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            real = images.size and np.issubdtype(images.dtype, np.floating)
            levels = f" from {images.min():g} to {images.max():g}" if real else ""
            raise UserError(
                f"{name}: the images are {images.dtype} {images.shape}{levels}; they must be uint8 (N, H, W, 3)."
            )
        if images.size == 0:
            raise UserError(
                f"{name}: the images are {images.shape}; there must be at least one, of at least one pixel."
            )
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"{name}: the labels are {labels.dtype} {labels.shape}; "
                f"they must be integers ({len(images)},), one an image."
            )
        if class_names is None:
            class_names = _numbers_as_names(labels)
        if labels.max() < 0:
            raise UserError(f"{name} has no labels (all are below 0); name a labelled split.")
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise UserError(
                f"{name}: the labels run from {labels.min()} to {labels.max()}; "
                f"they must lie in 0 to {len(class_names) - 1}."
            )
        super().__init__(name, len(images), tuple(class_names))
        self.images, self.labels = images, labels.astype(np.int32)

    def fetch(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pixels of these examples, (n, H, W, 3) uint8, and their labels, (n,) int32."""
        return self.images[examples], self.labels[examples]


class EncodedSource(Source):
    """Images that are encoded and within reach one by one, in files or in records; some may turn out not to decode.

    Attributes:
      gives_paths: whether `fetch` gives the names of files, to be read, or what is in them.
    """

    gives_paths = False

    def fetch(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """These examples encoded, or their files' names, (n,) bytes objects, and their labels, (n,) int32."""
        raise NotImplementedError


class StreamSource(Source):
    """Encoded images that can only be read in a row. Those that do not decode are known in `bad` by a fingerprint."""

    def place(self, example: int) -> str:
        return f"the record of {self.name} with fingerprint {example:016x}"

    def records(self, seed: int | None, epoch: int) -> Any:
        """A tf.data.Dataset of (encoded image, label int32) in the order of an epoch; in the files' without a seed."""
        raise NotImplementedError


class BytesCache:
    """What has been read of a source, in memory, until that is full.

    What came first stays: an epoch asks for each example once, in an order of its own, and so to throw out what is old
    for what is new would gain nothing.
    """

    def __init__(self, limit: int):
        """Args: limit: bytes, of the encoded images; 0 keeps nothing."""
        self._limit, self._held, self.size = limit, {}, 0

    def get(self, examples: np.ndarray, read: Callable[[list[int]], list]) -> list:
        """What `read` gives for these examples, asking it only for those that are not held.

        Args:
          read: what it returns has a length in bytes; what is empty is not kept.
        """
        held = self._held
        missing = [example for example in examples.tolist() if example not in held]
        found = dict(zip(missing, read(missing), strict=True)) if missing else {}
        for example, content in found.items():
            if 0 < len(content) <= self._limit - self.size:
                held[example] = content
                self.size += len(content)
        return [found[example] if example in found else held[example] for example in examples.tolist()]


class FolderSource(EncodedSource):
    """Images in files, `ROOT/<split>/<class>/<file>`, local or gs://; classes and files in the order of their names.

    Attributes:
      paths: of the files, as text.
      labels: (N,) int32.
    """

    def __init__(self, root: str, split: str, cache_bytes: int = 0):
        """Raises UserError if the folder or its classes are missing or empty, or other files stand among them.

        Args:
          cache_bytes: files up to so many bytes in all are kept in memory once read; 0: none are.
        """
        if not root:
            raise UserError("data.data_dir is empty; it must name the folder that holds <split>/<class>/<image files>.")
        top = epath.Path(root).expanduser()
        folder = top / split
        if not folder.is_dir():
            here = [name for name, is_folder in listing(top) if is_folder] if top.is_dir() else None
            found = f"{top} does not exist" if here is None else f"{top} holds {some(here) if here else 'no folders'}"
            raise UserError(
                f"there is no image folder {folder} ({found}); it must hold a folder of images for each class."
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
            for file, is_inner_folder in listing(folder / name):
                if _is_hidden(file):
                    hidden += 1
                elif is_inner_folder or not _is_image(file):
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
                f"but {len(stray)} stray file(s) or folder(s) stand there: {some(stray)}; move them elsewhere."
            )
        if not classes:
            raise UserError(f"the image folder {folder} is empty; it must hold a folder of images for each class.")
        if empty:
            raise UserError(
                f"{len(empty)} class folder(s) in {folder} hold no images: {some(empty)}; fill or remove each of them."
            )
        notices = (f"{hidden} hidden file(s) in {folder} were passed over",) if hidden else ()
        super().__init__(str(folder), len(paths), tuple(classes), notices)
        self.paths, self.labels = paths, np.repeat(np.arange(len(classes), dtype=np.int32), counts)
        self.gives_paths = cache_bytes == 0  # TensorFlow reads them then, on as many threads as decode
        self._cache = BytesCache(cache_bytes)

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


_READERS = 16  # a store on the network answers many at once; a disk does not mind


def _content(path: str) -> bytes:
    """What is in a file; nothing, which is no image, if it cannot be read."""
    try:
        return epath.Path(path).read_bytes()
    except OSError:
        return b""


def make_source(config: ConfigDict, split: str) -> Source:
    """The source that `config.data` names.

    Args:
      config: `config.data` of a run.
      split: "train" or "test", which `config.train_split` and `config.test_split` translate.

    Raises:
      UserError: it is not there, or not what it should be.
    """
    theirs = config[f"{split}_split"]
    if not theirs:
        raise UserError(f"data.{split}_split is empty; name the {split} split, or set monitor.every_epochs to 0.")
    if config.source == "photographs":
        crops = config.photographs
        images, labels = photograph_crops(split, size=crops.size, per_class=crops[f"{split}_per_class"])
        return ArraySource(f"crops of {len(PHOTOGRAPHS)} photographs, {split}", images, labels, tuple(PHOTOGRAPHS))
    if config.source == "folder":
        return FolderSource(config.data_dir, theirs, config.cache_bytes)
    if config.source == "arrays":
        return _arrays(config.data_dir, theirs)
    if config.source == "tfds":
        import_tensorflow()  # first, as TFDS would let it have the accelerators
        from bt_jax.data.sources.tfds import tfds_source

        return tfds_source(config, theirs)
    raise UserError(f"data.source is {config.source!r}; it must be photographs, tfds, folder or arrays.")


def import_tensorflow() -> Any:
    """TensorFlow, when it is first needed: in-memory training does without."""
    try:
        from bt_jax.data.tensorflow_import import tf
    except ImportError as error:
        raise UserError(
            f"reading images needs TensorFlow, which cannot be imported ({error}); pip install tensorflow."
        ) from None
    return tf


def _numbers_as_names(labels: np.ndarray) -> tuple[str, ...]:
    return tuple(str(i) for i in range(int(labels.max(initial=-1)) + 1))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini")


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def listing(folder: epath.Path) -> list[tuple[str, bool]]:
    """(name, is it a folder) of all entries, in the order of their names."""
    if "://" not in str(folder):
        with os.scandir(folder) as entries:  # for a million files many times faster than asking each path
            return sorted((entry.name, entry.is_dir()) for entry in entries)
    # A question for each entry would be a request each: what is named like an image is taken for a file.
    return sorted((entry.name, not _is_image(entry.name) and entry.is_dir()) for entry in folder.iterdir())


def some(names: list[str]) -> str:
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _arrays(file: str, split: str) -> ArraySource:
    path = epath.Path(file).expanduser()
    if not file or not path.is_file():
        raise UserError(f"there is no file {str(path)!r}; data.data_dir must name an .npz file of arrays.")
    images, labels = f"x_{split}", f"y_{split}"
    try:
        with path.open("rb") as opened, np.load(opened) as arrays:
            missing = [name for name in (images, labels) if name not in arrays]
            if not missing:
                # Both splits have the same classes, though one may lack the last of them.
                known = [_numbers_as_names(arrays[name]) for name in arrays.files if name.startswith("y_")]
                return ArraySource(f"{path}, {split}", arrays[images], arrays[labels], max(known, key=len))
            held = ", ".join(arrays.files)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        why = "images of mixed sizes make no array" if "Object arrays" in str(error) else first_line(error)
        raise UserError(f"{path} cannot be read as an .npz file of arrays ({why}).") from None
    raise UserError(f"{path} holds {held or 'no arrays'}; it must hold {images} and {labels}.")
