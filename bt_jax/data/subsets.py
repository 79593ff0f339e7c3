"""Parts of a labelled set: some labels of each class by a seed, or the files that a published list names.

A part is a source like any other; its examples are identified by their numbers in the whole set.
"""

import hashlib
import os
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from bt_jax.data.order import permutation
from bt_jax.data.sources.base import ArraySource, EncodedSource, IndexedSource, Source, StreamSource
from bt_jax.data.sources.folder import FolderSource
from bt_jax.data.sources.lists import plain
from bt_jax.data.sources.packed import PackedSource
from bt_jax.errors import UserError, some
from bt_jax.runtime.paths import as_path


class Part(EncodedSource):
    """Some examples of an encoded source.

    Attributes:
      examples: their numbers in the whole, (n,) int64.
      labels: (n,) int32.
    """

    def __init__(self, whole: EncodedSource, name: str, examples: np.ndarray, labels: np.ndarray):
        super().__init__(name, len(examples), whole.class_names, whole.notices)
        self._whole, self.examples, self.labels = whole, examples, labels
        self.gives_paths, self.exif_orientation = whole.gives_paths, whole.exif_orientation
        self.pixels = whole.pixels

    def _identity(self) -> Iterator[bytes]:
        yield f"{self._whole.fingerprint} {fingerprint(self.examples)}".encode()

    def check_there(self) -> None:
        self._whole.check_there()

    def place(self, example: int) -> str:
        return self._whole.place(int(self.examples[example]))

    def fetch(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._whole.fetch(self.examples[examples])


class KeptPart(EncodedSource):
    """Some examples of a stream, kept encoded in memory: a stream itself cannot be read at random."""

    def __init__(self, whole: StreamSource, name: str, examples: np.ndarray):
        super().__init__(name, len(examples), whole.class_names, whole.notices)
        self.pixels = whole.pixels
        wanted = dict(zip(examples.tolist(), range(len(examples)), strict=True))
        self._encoded = np.empty(len(examples), object)
        self.labels = np.empty(len(examples), np.int32)
        for place, (encoded, label) in enumerate(whole.records(None, 0).as_numpy_iterator()):
            if place in wanted:
                self._encoded[wanted[place]], self.labels[wanted[place]] = encoded, label

    def _identity(self) -> Iterator[bytes]:
        yield from self._encoded

    def place(self, example: int) -> str:
        return f"image {example} of {self.name}"

    def fetch(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._encoded[examples], self.labels[examples]


def labels_of(source: Source) -> np.ndarray:
    """The labels of all examples, (n,) int32; for them, a set in records is read through once, but not decoded."""
    labels = getattr(source, "labels", None)
    if labels is not None:
        return labels
    if (labels := _read_labels.get(source)) is None:
        labels = _read_labels[source] = _labels_in_records(source)
    return labels


_read_labels: weakref.WeakKeyDictionary[Source, np.ndarray] = weakref.WeakKeyDictionary()
_BLOCK = 4096  # examples that are read at once for their labels


def _labels_in_records(source: Source, examples: np.ndarray | None = None) -> np.ndarray:
    """The labels of examples, or of all; of their images no more than a block is held."""
    if isinstance(source, StreamSource):
        labels = np.fromiter((label for _, label in source.records(None, 0).as_numpy_iterator()), np.int32)
        if len(labels) != len(source):
            raise UserError(f"{source.name} holds {len(labels)} examples, but says {len(source)}.")
        return labels
    assert isinstance(source, IndexedSource)
    examples = np.arange(len(source)) if examples is None else examples
    blocks = [examples[i : i + _BLOCK] for i in range(0, len(examples), _BLOCK)]
    return np.concatenate([source.fetch(block)[1] for block in blocks]) if blocks else np.zeros(0, np.int32)


def check_labels(labels: np.ndarray, source: Source, *, all_classes: bool = True) -> None:
    """Raises UserError if labels are outside the classes, or there are none, or (if `all_classes`) a class has no image."""
    lowest, highest = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if highest < 0:
        raise UserError(f"{source.name} has no labels (all are {highest}); name a labelled split.")
    if lowest < 0 or highest >= source.num_classes:
        raise UserError(
            f"the labels of {source.name} run from {lowest} to {highest}; they must lie in 0 to {source.num_classes - 1}."
        )
    if not all_classes:
        return
    # Not as unsigned 64 bits, which bincount does not take.
    absent = np.flatnonzero(np.bincount(labels.astype(np.int64), minlength=source.num_classes) == 0)
    if len(absent):
        names = some([source.class_names[i] for i in absent])
        raise UserError(
            f"{len(absent)} of the {source.num_classes} classes have no image in {source.name}: {names}; "
            "each class needs at least one."
        )


def check_apart(train: Source, test: Source) -> None:
    """Raises UserError if test images are among the train images, as the accuracy would then say nothing of new images."""
    if count := train.shared_with(test):
        which = "all" if count == len(test) else f"{count} of the {len(test)}"
        raise UserError(
            f"{which} test images ({test.name}) are also train images ({train.name}); name splits without common images in "
            "data.train_split and data.test_split."
        )


def with_checked_labels(batches: Iterable[dict[str, Any]], source: Source) -> Iterator[dict[str, Any]]:
    """The batches unchanged, with their labels checked: labels in records are not known before they are read.

    Raises:
      UserError: (while iterating) as `check_labels`.
    """
    for batch in batches:
        check_labels(batch["label"][batch["mask"]] if "mask" in batch else batch["label"], source, all_classes=False)
        yield batch


def take(source: Source, examples: np.ndarray, name: str) -> Source:
    """These examples of a source, as a source.

    Args:
      examples: (n,) integers, their numbers in `source`.
      name: of the new source, for people.
    """
    examples = np.asarray(examples, np.int64)
    if isinstance(source, ArraySource):
        images, labels = source.images[examples], source.labels[examples]
        return ArraySource(name, images, labels, source.class_names, source.pixels)
    if isinstance(source, StreamSource):
        return KeptPart(source, name, examples)
    assert isinstance(source, EncodedSource)
    labels = getattr(source, "labels", _read_labels.get(source))
    return Part(source, name, examples, _labels_in_records(source, examples) if labels is None else labels[examples])


def stratified(
    labels: np.ndarray, num_classes: int, *, seed: int, percent: float = 0.0, per_class: int = 0
) -> np.ndarray:
    """The same share of each class, by a seed, at least one image per class.

    Args:
      labels: (n,) integers from 0 to num_classes - 1.
      percent: of the images of each class, rounded to a whole number.
      per_class: if above 0, this many images of each class instead.

    Returns:
      (m,) int64, increasing. With the same seed, a smaller share is part of every larger one.

    Raises:
      UserError: a class has fewer than `per_class` images.
    """
    chosen = []
    order = permutation(seed, 0, len(labels))
    shuffled = np.asarray(labels)[order].astype(np.int64)
    by_class = order[np.argsort(shuffled, kind="stable")]
    ends = np.cumsum(np.bincount(shuffled, minlength=num_classes))
    for label, own in enumerate(np.split(by_class, ends[:-1])):
        if len(own) < per_class:
            raise UserError(
                f"class {label} has only {len(own)} images; lower finetune.per_class, which is {per_class}."
            )
        count = per_class or max(1, int(np.floor(len(own) * percent / 100 + 0.5)))
        chosen.append(own[:count])
    return np.sort(np.concatenate(chosen))


def listed(source: Source, list_file: str) -> np.ndarray:
    """The examples whose files a list names, one per line: `name`, as in SimCLR's `1percent.txt`, `class/name`, or more of the path.

    Returns:
      (m,) int64, increasing.

    Raises:
      UserError: the list cannot be read or is empty, names a file twice, names files that are missing (the message says how
        many), or gives a name that several files have; or the source is not an image folder.
    """
    if not isinstance(source, FolderSource | PackedSource):
        raise UserError(
            f"{source.name} is not an image folder, and finetune.list_file names files; set data.source to 'folder' or 'tar', or for "
            "TFDS data.name to 'imagenet2012_subset/1pct' or '/10pct' and finetune.chosen_by to 'source'."
        )
    path = as_path(list_file, "finetune.list_file")
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()  # some editors begin a file with a mark
        names = [plain(line.strip()) for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the list {path} cannot be read ({error}); finetune.list_file must name a text file."
        ) from None
    if not names:
        raise UserError(f"the list {path} is empty; it must name one image file per line.")
    paths = source.paths if isinstance(source, PackedSource) else source.relative
    found = _ending_in(names, paths)
    missing = [name for name, numbers in found.items() if not numbers]
    if isinstance(source, PackedSource) and missing:  # shards have other endings than the files that they were made of
        without = {name: os.path.splitext(name)[0] for name in missing}
        others = _ending_in(without.values(), [os.path.splitext(file)[0] for file in paths])
        found |= {name: others[without[name]] for name in missing}
        missing = [name for name, numbers in found.items() if not numbers]
    clash = [name for name, numbers in found.items() if len(numbers) > 1]
    if clash and isinstance(source, PackedSource):
        places = [" and ".join(map(source.place, found[name][:2])) for name in clash]
        raise UserError(
            f"{len(clash)} of the {len(names)} files that {path} names are each several images of {source.name}: {some(places)}; "
            "name them by all of the path with its ending, or rename those that have the same path in several archives."
        )
    if clash:
        raise UserError(
            f"{len(clash)} of the {len(names)} files that {path} names are in more than one folder of {source.name}: "
            f"{some([' and '.join(paths[number] for number in found[name][:2]) for name in clash])}; name them as class/name, or by "
            "all of the path."
        )
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(names)} files that {path} names are missing in {source.name}: {some(missing)}; "
            "all of them must exist."
        )
    chosen = [found[name][0] for name in names]
    twice = [paths[number] for number, count in Counter(chosen).items() if count > 1]
    if twice:
        raise UserError(f"the list {path} names {len(twice)} file(s) more than once: {some(twice)}; name each once.")
    return np.sort(np.array(chosen, np.int64))


def _ending_in(names: Iterable[str], paths: Iterable[str]) -> dict[str, list[int]]:
    """The numbers of the paths that end in each name; where a name is all of a path, of this one only."""
    found: dict[str, list[int]] = {name: [] for name in names}
    whole: dict[str, list[int]] = {}
    for number, file in enumerate(paths):
        parts = file.split("/")
        for depth in range(1, len(parts) + 1):
            if (numbers := found.get("/".join(parts[-depth:]))) is not None:
                numbers.append(number)
        if file in found:
            whole.setdefault(file, []).append(number)
    return found | whole


def fingerprint(examples: np.ndarray) -> str:
    """Sixteen characters, equal for equal examples: shows whether two runs used the same labels."""
    return hashlib.sha256(np.asarray(examples, "<i8").tobytes()).hexdigest()[:16]
