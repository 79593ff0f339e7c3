"""Small files of a run: written whole or not at all, and read without trust in what they hold."""

import contextlib
import json
import os
from typing import Any

from etils import epath


def write_whole(path: epath.Path, text: str) -> None:
    """Replaces the file atomically: readers see either the old content or the new, and if it fails the old stays.

    Raises:
      OSError: it cannot be written.
    """
    if "://" in os.fspath(path):
        path.write_text(text)  # object stores replace an object only when all of the new one has arrived
        return
    new = path.with_name(path.name + ".new")
    try:
        with open(new, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # some file systems say only now that they are full
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def read_object(path: epath.Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      OSError: it cannot be read.
      ValueError: it holds something else; in one line, what.
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
        kind = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}.get(type(found), "a number")
        raise ValueError(f"it holds {kind} and not an object")
    return found
