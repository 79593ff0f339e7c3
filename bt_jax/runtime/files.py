"""Small files of a run: written completely or not at all, and checked when they are read."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from etils import epath

# What the libraries that reach object stores raise in place of an OSError.
_OF_STORES = {
    "gcsfs.retry": ("HttpError",),
    "aiohttp": ("ClientError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "tensorflow.python.framework.errors_impl": (
        "UnavailableError",
        "AbortedError",
        "DeadlineExceededError",
        "PermissionDeniedError",
    ),
}


def errors_of_files() -> tuple[type[BaseException], ...]:
    """The kinds of errors when files are read or written, here or in an object store: OSError, and those of the libraries that are loaded."""
    kinds: list[type[BaseException]] = [OSError]
    for module, names in _OF_STORES.items():
        loaded = sys.modules.get(module)
        kinds += [kind for name in names if isinstance(kind := getattr(loaded, name, None), type)]
    return tuple(kinds)


def write_whole(path: epath.Path, content: str | bytes) -> None:
    """Replaces the file atomically: readers see either the old content or the new, and after a failure the old.

    Args:
      content: text, which becomes UTF-8, or bytes.

    Raises:
      OSError: it cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    if "://" in os.fspath(path):
        path.write_bytes(data)  # object stores replace an object only when the new one is complete
        return
    new = path.with_name(path.name + ".new")
    try:
        with open(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # some file systems report only now that they are full
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def read_object(path: epath.Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      OSError: it cannot be read.
      ValueError: it holds something else, which the message names.
    """
    try:
        found = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(found, dict):
        kind = {list: "a list", str: "a string", type(None): "null", bool: "true or false"}.get(type(found), "a number")
        raise ValueError(f"it holds {kind} instead of an object")
    return found


def sealed(content: Mapping[str, Any], field: str) -> dict[str, Any]:
    """The content, to be written as JSON, with a sha256 of the rest of it in `field`."""
    said = {name: value for name, value in content.items() if name != field}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return said | {field: hashlib.sha256(text.encode()).hexdigest()}
