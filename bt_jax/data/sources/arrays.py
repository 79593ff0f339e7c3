"""Images in an .npz file of arrays."""

import math
import re
import zipfile
from collections.abc import Callable

import numpy as np
from etils import epath

from bt_jax.data.sources.base import ArraySource, numbers_as_names, other_split
from bt_jax.data.sources.declared import checked_levels
from bt_jax.data.values import NPY_HEADERS
from bt_jax.errors import UserError, first_line
from bt_jax.pixels import PHOTOGRAPHS, Pixels
from bt_jax.runtime.paths import as_path


def array_source(file: str, split: str, use: str = "train", pixels: Pixels = PHOTOGRAPHS) -> ArraySource:
    """The arrays `x_<split>` (N, H, W, C), or (N, H, W) for one channel, and `y_<split>` (N,) integers of a file, local or gs://.

    Args:
      split: such as "train", or a part of it as in TFDS: "train[:90%]", "train[100:200]".
      use: of the split, "train" or "test", for messages.
      pixels: of the images: uint8, or of any real type if a range is declared.

    Raises:
      UserError: the file does not exist, cannot be read, or lacks these arrays; arrays of another shape or type; a part that holds no image; arrays that are
        larger than the file says (nothing is read then); labels that cannot be classes numbered from 0; values outside the range.
    """
    name, values, labels, classes = read_arrays(file, split, use)
    notices: tuple[str, ...] = ()
    if pixels.channels == 1 and values.ndim == 3:
        values = values[..., None]
    if not pixels.are_photographs and values.ndim == 4 and values.size:
        values, notices = checked_levels(name, values, pixels)
    source = ArraySource(name, values, labels, classes, pixels)
    source.notices += notices
    return source


def read_arrays(file: str, split: str, use: str) -> tuple[str, np.ndarray, np.ndarray, tuple[str, ...]]:
    """A name for people, the images and labels as they are, and the classes; arguments and errors as of `array_source`."""
    path = as_path(file, "data.data_dir")
    if not file or not path.is_file():
        found = f"{str(path)!r} is a folder" if file and path.is_dir() else f"there is no file {str(path)!r}"
        raise UserError(f"{found}; data.data_dir must name an .npz file of arrays.")
    whole, part = _part_of(split)
    images, labels = f"x_{whole}", f"y_{whole}"
    try:
        with path.open("rb") as opened:
            _check_kind(path, opened.read(6))
            opened.seek(0)
            _check_sizes(path, opened)
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as arrays:
                there = list(arrays.files)
                if images in there and labels in there:
                    own = {name: _read(path, arrays, name) for name in (images, labels)}
                    # Both splits have the same classes, though one may lack the last of them.
                    others = [_read(path, arrays, n) for n in there if n.startswith("y_") and n != labels]
                    known = [found for found in (own[labels], *others) if np.issubdtype(found.dtype, np.integer)]
                    name, chosen = f"{path}, {split}", part(len(own[images]))
                    if len(own[images]) and not len(own[images][chosen]):
                        raise UserError(f"{name} holds none of the {len(own[images])} images.")
                    names = numbers_as_names(str(path), *known)
                    return name, own[images][chosen], own[labels][chosen], names
    except UserError:
        raise
    # A broken or hostile file can make the parsers of archives and arrays fail anywhere.
    except Exception as error:
        raise UserError(f"{path} cannot be read as an .npz file of arrays ({first_line(error)}).") from None
    splits = [name[2:] for name in there if name.startswith("x_") and f"y_{name[2:]}" in there]
    hint = other_split(split, splits, use)
    found = ", ".join(there) or "no arrays"
    raise UserError(f"{path} holds {found}; it must hold {images} and {labels}{hint and ', or ' + hint}.")


def _part_of(split: str) -> tuple[str, Callable[[int], slice]]:
    """The name of a split, and of its number of images the part that is meant; percentages are rounded as in TFDS."""
    found = re.fullmatch(r"(.+)\[(\d*%?):(\d*%?)\]", split)
    if not found:
        return split, lambda n: slice(None)

    def place(text: str, n: int) -> int | None:
        if not text.strip("%"):
            return None
        return round(int(text[:-1]) * n / 100) if text.endswith("%") else int(text)

    return found[1], lambda n: slice(place(found[2], n), place(found[3], n))


def _check_kind(path: epath.Path, begin: bytes) -> None:
    """Raises UserError for what is not an .npz file, before numpy advises loading it as a pickle."""
    if begin.startswith(b"PK"):
        return
    what = "holds a single array (.npy)" if begin == b"\x93NUMPY" else "is not an .npz file of arrays"
    raise UserError(
        f"{path} cannot be read as an .npz file of arrays: it {what}; write one with "
        "numpy.savez(FILE, x_train=…, y_train=…, x_test=…, y_test=…)."
    )


def _check_sizes(path: epath.Path, opened) -> None:
    """Raises UserError if the header of an array claims more bytes than the file holds: numpy would allocate them."""
    with zipfile.ZipFile(opened) as archive:
        for part in archive.infolist():
            if not part.filename.endswith(".npy"):
                continue
            with archive.open(part) as member:
                reader = NPY_HEADERS.get(np.lib.format.read_magic(member))
                if reader is None:
                    continue
                shape, _, dtype = reader(member)
            if not dtype.hasobject and math.prod(shape) * dtype.itemsize > part.file_size:
                raise UserError(
                    f"{path} cannot be read as an .npz file of arrays: {part.filename} says it is {dtype} {shape}, but holds "
                    f"{part.file_size} bytes."
                )


def _read(path: epath.Path, arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        return arrays[name]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        what = "images of mixed sizes make no array" if name.startswith("x_") else "labels must be integers"
        raise UserError(f"{path}: {name} is an array of Python objects ({what}).") from None
