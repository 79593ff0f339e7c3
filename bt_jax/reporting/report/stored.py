"""What a run keeps in WORKDIR/report, so that its page can be drawn without its data.

    run.json     what was run: data, devices, versions, levels of the loss, starts
    views.npz    images, and the views that the network saw of them
    first.npz    the look before training: cross-correlation and spectrum
    last.npz     the newest look: the same, features of some images, small copies of these, and nearest neighbours

Every file is replaced as a whole. Images are JPEG files in one array of bytes.
"""

import contextlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from bt_jax.runtime.files import read_object, write_whole

FOLDER = "report"
Arrays = dict[str, np.ndarray]


def write_arrays(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Replaces the .npz file at `path`, compressed.

    Raises:
      OSError: it cannot be written.
    """
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **dict(arrays))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())


def read_arrays(path: epath.Path) -> Arrays | None:
    """The arrays in a .npz file; None if it is not there or damaged."""
    with contextlib.suppress(OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        if path.exists():
            with np.load(io.BytesIO(path.read_bytes())) as file:
                return {name: file[name] for name in file.files}
    return None


def write_facts(path: epath.Path, facts: Mapping[str, Any]) -> None:
    """Replaces run.json; raises OSError as `write_arrays`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(dict(facts), indent=1) + "\n")


def read_facts(path: epath.Path) -> dict[str, Any]:
    """The content of run.json; {} if it is not there or damaged."""
    with contextlib.suppress(OSError, ValueError):
        return read_object(path)
    return {}


def packed(name: str, images: Sequence[np.ndarray], quality: int = 88) -> Arrays:
    """Images (H, W, 3) uint8 as JPEG files, in two arrays of a .npz file: the bytes of all, and where each ends."""
    files = [encoded(image, quality) for image in images]
    ends = np.cumsum([len(file) for file in files]).astype(np.int64)
    return {name: np.frombuffer(b"".join(files), np.uint8), f"{name}_ends": ends}


def unpacked(name: str, arrays: Arrays) -> list[bytes]:
    """The JPEG files that `packed` put into `arrays`."""
    data, ends = arrays[name].tobytes(), arrays[f"{name}_ends"].tolist()
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def encoded(image: np.ndarray, quality: int = 88) -> bytes:
    """An image (H, W, 3) uint8 as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()
