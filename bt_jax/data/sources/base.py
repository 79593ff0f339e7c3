"""What a source of images is: a numbered list of labelled images.

An `IndexedSource` can be read at random: its `fetch` takes any examples; an `ArraySource` returns their pixels, an
`EncodedSource` their encoded images. A `StreamSource` can only be read in sequence.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from bt_jax.errors import UserError, first_line, some
from bt_jax.parts import import_part
from bt_jax.pixels import PHOTOGRAPHS, Pixels

MOST_CLASSES = 2**16  # of a set with fewer images than that: three times ImageNet-21k's
LARGEST_IMAGE = 2**30  # bytes, encoded or not; headers of damaged and hostile files claim more
_HASHED_BYTES = 2**28  # of an array, for a fingerprint: a fifth of a second


class Source:
    """What all sources have: `len()` examples, their classes, and sentences for the summary of a run.

    Attributes:
      name: for people.
      class_names: in the order of the labels; () without labels, which are then -1.
      notices: a sentence for each thing that was skipped.
      bad: the examples that turned out not to decode, and why; others stand in for them.
      allowance: words about the bad images of a small set, of which more than data.max_bad_fraction may be bad; or "".
      stable_examples: whether a number names the same image in every epoch.
      pixels: of its images.
    """

    stable_examples: ClassVar[bool] = True
    pixels: Pixels = PHOTOGRAPHS

    def __init__(self, name: str, length: int, class_names: tuple[str, ...], notices: tuple[str, ...] = ()):
        self.name, self.class_names, self.notices = name, class_names, notices
        self.bad: dict[int, str] = {}
        self.allowance = ""
        self._length = length

    @property
    def num_classes(self) -> int:
        """0 without labels."""
        return len(self.class_names)

    def described(self) -> str:
        """How many images and classes there are: `48 213 images, no labels`."""
        images = f"{counted(len(self))} image{'s' * (len(self) != 1)}"
        return f"{images}, {self.num_classes} classes" if self.class_names else f"{images}, no labels"

    def __len__(self) -> int:
        return self._length

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen characters that tell these examples from as many others, wherever they are stored.

        Made from the names of the classes, the labels if they are known, and `_identity`. It is cheap: no file is read.
        """
        digest = hashlib.sha256("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        labels = getattr(self, "labels", None)
        if labels is not None:
            digest.update(np.asarray(labels, "<i4").tobytes())
        for part in self._identity():
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()[:16]

    def _identity(self) -> Iterator[bytes]:
        """What else distinguishes the examples."""
        yield str(len(self)).encode()

    def usable(self, examples: np.ndarray) -> np.ndarray:
        """These examples, each bad one replaced by the next good one: a function of the example alone."""
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

    def path(self, example: int) -> str:
        """An example's name in files of results: a path relative to `data.data_dir`, or its number where there are no files."""
        return str(example)

    def shared_with(self, other: "Source") -> int:
        """How many of the other source's images are among these; only where they are known by name, or all are the same."""
        return len(other) if self.fingerprint == other.fingerprint else 0

    def check_there(self) -> None:
        """Raises UserError if the images as a whole are no longer where they were: then no single image is bad."""

    def exclude(self, found: dict[int, str], max_fraction: float) -> None:
        """Records examples that do not decode, with the reasons.

        Raises:
          UserError: they are now more than `max_fraction` of all, and more than one; names them.
        """
        self.check_there()
        bad = self.bad | found
        least = 1 if max_fraction else 0  # a thousandth of a small set is no image
        if len(bad) > max(max_fraction * len(self), least) or len(bad) == len(self):
            first, why = next(iter(bad.items()))
            others = [self.place(example) for example in bad if example != first]
            more = f", and so cannot {some(others)}" if others else ""
            allowed = f"{max_fraction:g} of {len(self)}" + (", and one image at least" if max_fraction else "")
            raise UserError(
                f"{self.place(first)} cannot be read as an image ({why}){more}; repair or remove "
                f"{'them' if others else 'it'}, or raise data.max_bad_fraction, which is {allowed}."
            )
        self.bad = bad
        if len(bad) > max_fraction * len(self):
            self.allowance = f"; data.max_bad_fraction, {max_fraction:g} of {len(self)}, allows one image at least"


class IndexedSource(Source):
    """Images that can be read at random."""

    def fetch(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """These examples, (n, …), and their labels, (n,) int32."""
        raise NotImplementedError


class ArraySource(IndexedSource):
    """Images of one size in memory.

    Attributes:
      images: levels (N, H, W, C), uint8 or uint16.
      labels: (N,) int32.
    """

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: tuple[str, ...] | None = None,
        pixels: Pixels = PHOTOGRAPHS,
    ):
        """Raises UserError for other shapes or types, or labels outside the classes.

        Args:
          images: levels (N, H, W, C), as `pixels` says.
        """
        images, labels = np.asarray(images), np.asarray(labels)
        if images.dtype != pixels.dtype or images.ndim != 4 or images.shape[-1] != pixels.channels:
            real = images.size and np.issubdtype(images.dtype, np.floating)
            levels = f" from {images.min():g} to {images.max():g}" if real else ""
            declare = "" if images.ndim != 4 or pixels.range else "; or declare data.channels and data.range"
            raise UserError(
                f"{name}: the images are {images.dtype} {images.shape}{levels}; they must be {pixels.dtype} "
                f"(N, H, W, {pixels.channels}){declare}."
            )
        if images.size == 0:
            raise UserError(f"{name}: the images are {images.shape}; none of these numbers may be 0.")
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"{name}: the labels are {labels.dtype} {labels.shape}; "
                f"they must be integers ({len(images)},), one per image."
            )
        if class_names is None:
            class_names = numbers_as_names(name, labels)
        lowest, highest = int(labels.min()), int(labels.max())
        if highest < 0:
            raise UserError(f"{name} has no labels (all are below 0); name a labelled split.")
        if lowest < 0 or highest >= len(class_names):
            raise UserError(
                f"{name}: the labels run from {lowest} to {highest}; they must lie in 0 to {len(class_names) - 1}."
            )
        super().__init__(name, len(images), tuple(class_names))
        self.images, self.labels, self.pixels = images, labels.astype(np.int32), pixels

    def _identity(self) -> Iterator[bytes]:
        """The pixels; of a set above `_HASHED_BYTES`, those of evenly spread images."""
        yield repr(self.images.shape).encode()
        step = -(-self.images.nbytes // _HASHED_BYTES)
        for start in range(0, len(self), 1024 * step):
            yield np.ascontiguousarray(self.images[start : start + 1024 * step : step]).tobytes()

    def fetch(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pixels of these examples, levels (n, H, W, C), and their labels, (n,) int32."""
        return self.images[examples], self.labels[examples]


class EncodedSource(IndexedSource):
    """Encoded images in files or in records; some may turn out not to decode.

    Attributes:
      gives_paths: whether `fetch` returns the names of files to be read, rather than their contents.
      exif_orientation: whether images are turned as their EXIF data say.
    """

    gives_paths = False
    exif_orientation = False

    def fetch(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """These examples, encoded or as file names, (n,) bytes objects, and their labels, (n,) int32."""
        raise NotImplementedError


class StreamSource(Source):
    """Encoded images that can only be read in sequence: an example's number is its place in the epoch.

    In `bad`, those that do not decode are identified by a fingerprint.
    """

    stable_examples = False

    def place(self, example: int) -> str:
        return f"the record of {self.name} with fingerprint {example:016x}"

    def records(self, seed: int | None, epoch: int) -> Any:
        """A tf.data.Dataset of (encoded image, label int32), in the order of an epoch, or without a seed in that of the files."""
        raise NotImplementedError


class BytesCache:
    """Keeps in memory what has been read of a source, up to a limit.

    What came first stays: each epoch reads every example once, in another order, so replacing old contents with new ones
    would gain nothing.
    """

    def __init__(self, limit: int):
        """Args: limit: bytes of encoded images; 0 keeps nothing."""
        self._limit, self._contents, self.size = limit, {}, 0

    def get(self, examples: np.ndarray, read: Callable[[list[int]], Sequence[bytes]]) -> list[bytes]:
        """The contents of these examples; `read` is called only for those that are not kept.

        Args:
          read: returns the contents of examples; empty ones are not kept.
        """
        kept = self._contents
        missing = [example for example in examples.tolist() if example not in kept]
        found = dict(zip(missing, read(missing), strict=True)) if missing else {}
        for example, content in found.items():
            if 0 < len(content) <= self._limit - self.size:
                kept[example] = content
                self.size += len(content)
        return [found[example] if example in found else kept[example] for example in examples.tolist()]


def unreachable(path: str, error: BaseException) -> UserError:
    """The error for a file in a store that does not answer, which says nothing of the images in it."""
    return UserError(
        f"{path} cannot be reached ({first_line(error).strip(' ,') or type(error).__name__}), although it was asked for several "
        "times; the same command resumes from the last checkpoint once it can be."
    )


def import_tensorflow() -> Any:
    """Imports TensorFlow when it is first needed: training from memory works without it."""
    return import_part("bt_jax.data.tensorflow_import", use="reading images", name="TensorFlow").tf


def import_tfds() -> Any:
    """Imports TFDS, after TensorFlow, which would otherwise take the accelerators."""
    import_tensorflow()
    return import_part("tensorflow_datasets", use="data.source 'tfds'", name="TFDS", package="tensorflow-datasets")


def counted(n: int) -> str:
    """`5100`, `48 213`."""
    return f"{n:,}".replace(",", " ") if n >= 10_000 else str(n)


def numbers_as_names(name: str, *labels: np.ndarray) -> tuple[str, ...]:
    """A class for each number from 0 to the highest label, of arrays of any integer type.

    Args:
      name: of the labels, for people.

    Raises:
      UserError: the highest is too high for classes that are numbered from 0.
    """
    highest = max((int(part.max()) for part in labels if part.size), default=-1)
    images = sum(part.size for part in labels)
    if highest >= max(images, MOST_CLASSES):
        raise UserError(
            f"{name}: a label is {highest}, but there are {images} labels; number the classes from 0, without gaps."
        )
    return tuple(str(i) for i in range(highest + 1))


USUAL_SPLITS = frozenset(("train", "training", "test", "val", "validation", "valid"))  # names of folders


def other_split(split: str, there: Iterable[str], use: str) -> str:
    """For messages about a missing split: what to do if it has another usual name; else "".

    Args:
      there: the splits that exist.
      use: of the split that is missing: "train" or "test", as in data.test_split.
    """
    usual = ("test", "val", "validation", "valid") if use == "test" else ("train", "training")
    found = next((name for name in usual if name in set(there) - {split}), "")
    return f"set data.{use}_split to {found!r}" if found else ""
