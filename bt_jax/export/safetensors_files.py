"""safetensors files: eight bytes with the length of a JSON header, the header, and the tensors' bytes.

This replaces the package safetensors: the format needs few lines, files in gs:// can be read too, and bfloat16 becomes the
dtype that JAX uses. Everything that a header claims is checked.
Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np
from etils import epath

from bt_jax.errors import UserError, first_line
from bt_jax.export.other_files import START, other_kind

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_LARGEST_HEADER = 100_000_000  # bytes; the limit of the package safetensors


def write_safetensors(path: epath.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes arrays by name; the file is assembled in memory.

    Args:
      metadata: strings by name, stored in the header.
    """
    header: dict[str, dict[str, Any]] = {"__metadata__": dict(metadata)}
    parts, end = [], 0
    # The largest items first, which keeps every tensor aligned.
    for name, array in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
        parts.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *parts]))


def read_safetensors(path: epath.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays of a file by name, and its metadata.

    Raises:
      UserError: the header is invalid, or the file does not match it.
    """
    try:
        with path.open("rb") as file:
            if (kind := other_kind(file.read(START))) is not None:
                raise ValueError(f"it is {kind}")
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                raise ValueError(f"its header claims {length:,} bytes, but the file has {size:,}")
            header = json.loads(file.read(length), object_pairs_hook=_once_each)
            if not isinstance(header, dict):
                raise ValueError("its header is not a JSON object")
            metadata = header.pop("__metadata__", {})
            places = _checked(header, size - 8 - length)
            tensors = {}
            for name, (dtype, shape, begin, end) in places.items():
                file.seek(8 + length + begin)
                tensors[name] = np.frombuffer(file.read(end - begin), dtype.newbyteorder("<")).reshape(shape)
            return tensors, metadata if isinstance(metadata, dict) else {}
    except (ValueError, OSError, RecursionError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({first_line(error)}).") from None


def _once_each(pairs: list) -> dict:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("its header has a duplicate name")
    return dict(pairs)


def _checked(header: dict, size: int) -> dict[str, tuple]:
    """(dtype, shape, begin, end) of each tensor; they must fill `size` bytes without overlaps or gaps."""
    places = {}
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise ValueError(f"the entry of {name[:80]!r} is not a JSON object")
        dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if dtype not in _DTYPES:
            raise ValueError(f"{name[:80]} has dtype {str(dtype)[:20]!r}; known dtypes: {', '.join(_DTYPES)}")
        if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
            raise ValueError(f"the shape or offsets of {name[:80]} are not lists of natural numbers")
        if math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize != offsets[1] - offsets[0]:
            raise ValueError(
                f"{name[:80]} is {dtype} {str(tuple(shape))[:60]} but has {offsets[1] - offsets[0]:,} bytes"
            )
        places[name] = (np.dtype(_DTYPES[dtype]), tuple(shape), *offsets)
    end = 0
    for name, (_, _, begin, until) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise ValueError(f"{name[:80]} begins at byte {begin:,}, but the previous tensor ends at {end:,}")
        end = until
    if end != size:
        raise ValueError(f"its tensors take {end:,} bytes, but the file has {size:,}")
    return places


def _naturals(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**60 for v in values) and len(values) <= 32
