"""Encoded images that lie one after the other in few files, of which each one's place is known."""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from bt_jax.data.sources.base import BytesCache, EncodedSource, Source
from bt_jax.data.sources.layout import in_test_part
from bt_jax.data.sources.ranges import Ranges
from bt_jax.errors import UserError


class PackedSource(EncodedSource):
    """Images in ranges of files, read at random places.

    Attributes:
      paths: names of the images.
      labels: (N,) int32; -1 without labels.
    """

    def __init__(
        self,
        name: str,
        ranges: Ranges,
        file_of: np.ndarray,
        starts: np.ndarray,
        sizes: np.ndarray,
        *,
        paths: Sequence[str],
        inside: Sequence[str],
        labels: np.ndarray,
        class_names: tuple[str, ...],
        labels_from: str = "",
        notices: tuple[str, ...] = (),
        digest: str,
        cache_bytes: int = 0,
    ):
        """Args:
        file_of, starts, sizes: (N,), for `ranges.read`.
        inside: the name of each file of `ranges`, for the names of images in results.
        labels_from: where the labels come from, in words.
        digest: of the images' names and sizes.
        cache_bytes: images are kept in memory once read, up to this many bytes in all; 0 keeps none.
        """
        super().__init__(name, len(paths), class_names, notices)
        self._ranges, self._file_of, self._starts, self._sizes = ranges, file_of, starts, sizes
        self.paths, self._inside, self.labels = paths, inside, labels
        self.labels_from, self._digest = labels_from, digest
        self._cache = BytesCache(cache_bytes)

    def _identity(self) -> Iterator[bytes]:
        yield self._digest.encode()

    def described(self) -> str:
        words = super().described()
        return f"{words} {self.labels_from}" if self.labels_from else words

    def place(self, example: int) -> str:
        return f"{self.paths[example]} in {self._ranges.files[self._file_of[example]]}"

    def path(self, example: int) -> str:
        return f"{self._inside[self._file_of[example]]}/{self.paths[example]}"

    def shared_with(self, other: Source) -> int:
        if not isinstance(other, PackedSource) or not set(self._ranges.files) & set(other._ranges.files):
            return 0
        theirs = set(other._positions())
        return sum(position in theirs for position in self._positions())

    def _positions(self) -> Iterator[tuple[str, int]]:
        """The file and the first byte of each image."""
        files = self._ranges.files
        return ((files[file], start) for file, start in zip(self._file_of.tolist(), self._starts.tolist(), strict=True))

    def check_there(self) -> None:
        for file in self._ranges.files:
            if "://" not in file and not os.path.exists(file):
                raise UserError(
                    f"{file} is gone; bring it back, and the same command resumes from the last checkpoint."
                )

    def fetch(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = np.empty(len(examples), object)
        found[:] = self._cache.get(examples, self._read)
        return found, self.labels[examples]

    def _read(self, examples: list[int]) -> list[bytes]:
        return self._ranges.read(self._file_of[examples], self._starts[examples], self._sizes[examples])


def part_of(names: Sequence[str], fraction: float, use: str, place: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """(which images belong to the train or test part, (n,) bool, or None for all; what to say about it).

    Args:
      fraction: `data.test_fraction`; 0 for no test part.
      use: "train" or "test".
      place: where the images are, for people.

    Raises:
      UserError: the part is empty.
    """
    if not fraction:
        return None, ()
    is_test = np.fromiter((in_test_part(name, fraction) for name in names), bool, len(names))
    keep = is_test if use == "test" else ~is_test
    if not keep.any():
        raise UserError(
            f"data.test_fraction is {fraction:g}, which leaves {place} with {len(keep)} images no {use} part; set it to another "
            "fraction."
        )
    aside = int(is_test.sum())
    return keep, (
        f"{aside} more images are set aside for tests, by data.test_fraction {fraction:g}",
    ) if use == "train" else ()
