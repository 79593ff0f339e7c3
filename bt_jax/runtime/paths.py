"""Paths from users, and errors for those that a library would misinterpret."""

import glob
import importlib.util
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from bt_jax.errors import UserError
from bt_jax.parts import import_part

# The object stores that epath supports, each with the package that it needs wherever it does not use TensorFlow.
SCHEMES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}
_WITH_ARRAYS = ("gs", "s3")  # that tensorstore, the library that writes arrays, supports
_Local: Any = type(epath.Path("/"))


class _Literal(_Local):
    """A local path whose own name is not part of the pattern in `glob`.

    Orbax finds the parts of a checkpoint with `glob` in its folder, and epath's version treats the folder's name as a pattern
    too: in runs/lr=[0.1] it finds none, and in runs/a* also those of runs/ab.
    """

    def glob(self, pattern: str) -> Iterator[epath.Path]:
        for name in glob.iglob(pattern, root_dir=os.fspath(self)):
            yield self / name


def cache_folder(environment: Mapping[str, str] = os.environ) -> pathlib.Path:
    """$XDG_CACHE_HOME/bt_jax, by default ~/.cache/bt_jax.

    Without a home, as some containers have none, it is a path at which nothing can be read or made: all that is tried there is an
    OSError.
    """
    usual = os.path.expanduser("~/.cache")
    return (
        pathlib.Path(environment.get("XDG_CACHE_HOME") or (os.devnull if usual.startswith("~") else usual)) / "bt_jax"
    )


def as_path(text: str | os.PathLike, what: str) -> epath.Path:
    """A path with `~` expanded, not made absolute.

    Args:
      what: the path's name for errors, such as "--workdir" or "init_from".

    Raises:
      UserError: the URL has an unknown scheme, or one that needs a package that is missing; or epath would take the local
        path for a URL.
    """
    text = os.path.expanduser(os.fspath(text))
    scheme, remote, _ = text.partition("://")
    if remote and scheme in SCHEMES:
        _check_reader(scheme, f"{what}, {text},")
        return epath.Path(text)
    if remote:
        known = ", ".join(f"{s}://" for s in SCHEMES)
        raise UserError(f"{what}, {text}, is neither a local path nor one that begins with {known}.")
    top, *rest = os.path.abspath(text).split("/")[1:]
    if top in SCHEMES and rest:
        raise UserError(f"{what}, {text}, would be taken for {top}://{'/'.join(rest)}; choose a folder outside /{top}.")
    return _Literal(text)


def _check_reader(scheme: str, subject: str) -> None:
    """Raises UserError if epath lacks what it reads and writes an object store with; no server is asked.

    It uses TensorFlow wherever that is installed, unless a variable says otherwise, and else fsspec. TensorFlow has gs://, and
    the others only once tensorflow_io is imported.
    """
    wanted = os.environ.get("EPATH_USE_TF", "").lower() not in ("false", "no", "f", "0")
    if not wanted or importlib.util.find_spec("tensorflow") is None:
        name = SCHEMES[scheme]
        import_part(name, use=subject, name=name)
    elif scheme != "gs" and "tensorflow_io" not in sys.modules:
        raise UserError(
            f"{subject} cannot be reached through TensorFlow, which such paths go through if it is installed; pip install "
            f"{SCHEMES[scheme]}, and set the environment variable EPATH_USE_TF=false."
        )


def as_folder(text: str | os.PathLike, what: str) -> epath.Path:
    """Like `as_path`, for a folder that checkpoints can be written to.

    Raises:
      UserError: as `as_path`, or a library would change or cannot read the name of the folder, or of one above it, or
        cannot write to such an object store.
    """
    scheme = os.fspath(text).partition("://")[0]
    if "://" in os.fspath(text) and scheme in SCHEMES and scheme not in _WITH_ARRAYS:
        known = " or ".join(f"{s}://" for s in _WITH_ARRAYS)
        raise UserError(
            f"{what}, {text}, cannot hold checkpoints or weights; choose a local folder, or one in {known}."
        )
    path = as_path(text, what)
    if scheme == "gs":  # with which Orbax lists and removes checkpoints, whatever else reaches the store
        import_part("google.cloud.storage", use=f"{what}, {text},", name="google-cloud-storage")
    if "://" in str(path):
        whole, bad, why = str(path), "[]*?", "which object stores' libraries take for a pattern"
    else:
        whole, bad, why = (
            os.path.abspath(path),
            "\\",
            "which tensorstore, the library that writes arrays, takes for a /",
        )
    if found := [letter for letter in bad if letter in whole]:
        raise UserError(f"{what}, {whole}, has a {found[0]} in its name, {why}; choose a path without it.")
    try:
        whole.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{what}, {whole!r}, is not UTF-8, but names of folders with arrays must be; choose another."
        ) from None
    return path


def absolute(path: epath.Path) -> epath.Path:
    """An absolute path or URL, as Orbax accepts no other.

    Raises:
      UserError: as `as_folder`.
    """
    path = as_folder(path, "the folder")
    return path if "://" in str(path) else _Literal(os.path.abspath(path))
