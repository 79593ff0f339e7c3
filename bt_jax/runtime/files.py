"""Small files of a run: written completely or not at all, and checked when they are read."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from etils import epath

from bt_jax.errors import UserError

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


_SPARE = 256  # files, sockets and libraries besides
_PLENTY = 2**14  # files, for further sets


def allow_open(count: int, what: str) -> None:
    """Lets this process hold so many more files open: it raises its own limit, which is often 1024, if the system lets it.

    Args:
      what: holds them open, as the subject of a sentence.

    Raises:
      UserError: the system does not.
    """
    try:
        import resource
    except ImportError:  # on Windows, which has no such limit
        return
    try:
        open_now = len(os.listdir("/dev/fd"))
    except OSError:
        open_now = _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = open_now + count + _SPARE
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    for wanted in (max(needed, _PLENTY), needed):
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):  # macOS has a further limit
            continue
        soft = most
        break
    if soft < open_now + count:
        raise UserError(
            f"{what} has {count} files that are all held open, but this process may open {soft}; raise its limit (ulimit -n), or "
            "store the set in fewer files."
        )


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
