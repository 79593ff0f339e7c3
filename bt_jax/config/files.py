"""Config files: found by their paths or names, and read.

A clone has those of this package in configs/. A wheel has them in bt_jax/recipes/ (setup.cfg says so), because a package `configs`
in site-packages would be in the way of the users' own. In both they import one another as `from configs import NAME`: while a
file is read, and only then, `configs` is made of the configs/ of the current folder, if there is one, and of those.
"""

import ast
import contextlib
import difflib
import importlib.machinery
import os
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Iterator

from ml_collections import ConfigDict

from bt_jax.config.checks import unknown_fields
from bt_jax.config.schema import complete, default
from bt_jax.errors import UserError, first_line

_PACKAGE = pathlib.Path(__file__).parents[1]
PACKAGED = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent / "configs"
_IS_CONFIG = "a config is a Python file with a function get_config, such as configs/quickstart.py"


def read(config: str | os.PathLike) -> ConfigDict:
    """The config of a file, with the fields of its method.

    Args:
      config: as for `find`.

    Raises:
      UserError: there is no such file, it cannot be read or is no config, or what it says is wrong.
    """
    path, argument = find(config)
    try:
        with _configs():
            module = sys.modules["bt_jax_config_file"] = types.ModuleType("bt_jax_config_file")
            importlib.machinery.SourceFileLoader(module.__name__, str(path)).exec_module(module)
            found = module.get_config(*argument)
        if not isinstance(found, ConfigDict):
            raise UserError(
                f"get_config in {path} gives a {type(found).__name__}, but must give a ConfigDict; {_IS_CONFIG}."
            )
        complete(found)
    except UserError as error:
        raise error from None
    except Exception as error:  # what is in a config file may raise anything
        if words := _wrong_in(path, argument, error):
            raise UserError(words) from error
        raise
    return found


def find(config: str | os.PathLike) -> tuple[pathlib.Path, tuple[str, ...]]:
    """The file of a config, and what it says after a colon for `get_config`.

    A path that exists is that file. Otherwise NAME, NAME.py, configs/NAME and configs/NAME.py are those of the current folder,
    NAME.py or configs/NAME.py, and then those of the package.

    Args:
      config: "PATH" or "NAME", or either with ":ARGUMENT", such as "quickstart:simclr".

    Raises:
      UserError: there is no such file; a similar name is suggested.
    """
    text, colon, argument = _parted(config)
    given = pathlib.Path(os.path.expanduser(text))
    found = given if given.is_file() else None
    if found is None and given.parent in (pathlib.Path(), pathlib.Path("configs")) and given.suffix in ("", ".py"):
        found = _by_name(given.stem)
    if found is not None:
        return found, (argument,) if colon else ()
    if given.exists():
        raise UserError(f"config file {text} cannot be read, as it is no file; {_IS_CONFIG}.")
    near = difflib.get_close_matches(given.stem, listed(), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    if given.name == given.stem:
        raise UserError(f"there is no config named {text}{hint}; --list names those that there are.")
    raise UserError(f"config file {text} does not exist{hint}.")


def name_of(config: str | os.PathLike) -> str:
    """The name of a run of a config: that of the file, and its argument after a hyphen."""
    path, _, argument = _parted(config)
    return "-".join(filter(None, (pathlib.Path(path).name.replace(".py", ""), argument))).replace(":", "-")


def _parted(config: str | os.PathLike) -> tuple[str, str, str]:
    """(path or name, a colon if there is one after it, the argument); the path of a file may have colons itself."""
    text = os.fspath(config)
    for end in (len(text), *(place for place, letter in enumerate(text) if letter == ":")):
        if os.path.isfile(os.path.expanduser(text[:end])):
            return text[:end], text[end : end + 1], text[end + 1 :]
    return text.partition(":")


def listed() -> dict[str, str]:
    """The names of all configs, those of the current folder first, and the first line of each docstring."""
    found: dict[str, str] = {}
    for path in [path for folder in _folders() for path in sorted(folder.glob("*.py"))]:
        if path.stem not in found and _is_config(path):
            found[path.stem] = _first_words(path)
    return found


def _by_name(name: str) -> pathlib.Path | None:
    own = [pathlib.Path(f"{name}.py"), pathlib.Path("configs", f"{name}.py")]
    # Other programs have files with such names too, such as a user's own embed.py.
    return next((path for path in (*own, PACKAGED / f"{name}.py") if path.is_file() and _is_config(path)), None)


def _folders() -> list[pathlib.Path]:
    own = pathlib.Path("configs")
    return [own, PACKAGED] if own.is_dir() and own.resolve() != PACKAGED.resolve() else [PACKAGED]


def _is_config(path: pathlib.Path) -> bool:
    try:
        return (
            re.search(
                rb"^\s*def get_config\b|^get_config\b|\bimport\b.*\bget_config\b", path.read_bytes(), re.MULTILINE
            )
            is not None
        )
    except OSError:
        return False


def _first_words(path: pathlib.Path) -> str:
    try:
        words = ast.get_docstring(ast.parse(path.read_bytes()))
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes, in Python 3.11
        return f"(cannot be read: {first_line(error)})"
    return words.splitlines()[0] if words else ""


@contextlib.contextmanager
def _configs() -> Iterator[None]:
    """Makes `configs` a package of the folders in which configs are found by name; what it was before comes back."""

    def take_away() -> dict[str, types.ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "configs"}

    before, package = take_away(), types.ModuleType("configs")
    package.__path__ = [str(folder.absolute()) for folder in _folders()]
    sys.modules["configs"] = package
    try:
        yield
    finally:
        take_away()
        sys.modules.update(before)


def _wrong_in(path: pathlib.Path, argument: tuple[str, ...], error: Exception) -> str:
    """What is wrong with a config file that raised an error, with the line; "" if it is not its fault."""
    if isinstance(error, SyntaxError) and error.filename and _same_file(error.filename, path):
        return f"{path}, line {error.lineno}: {error.msg}; {_IS_CONFIG}."
    if isinstance(error, AttributeError) and error.name == "get_config":
        return f"{path} has no function get_config; {_IS_CONFIG}."
    if isinstance(error, (UnicodeDecodeError, SyntaxError)) or "null bytes" in str(error):
        return f"config file {path} is no text in Python ({first_line(error)}); {_IS_CONFIG}."
    if isinstance(error, TypeError) and argument and "positional argument" in str(error):
        return f"get_config in {path} takes nothing after a colon, but the command gives it {argument[0]!r}."
    if isinstance(error, AttributeError) and (words := _field_that_is_not(path, error)):
        return words
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _same_file(frame.filename, path):
            return f"{path}, line {frame.lineno}: {type(error).__name__}: {first_line(error)}."
    return f"config file {path} cannot be read ({error.strerror})." if isinstance(error, OSError) else ""


def _same_file(one: str, other: pathlib.Path) -> bool:
    return pathlib.Path(one).resolve() == other.resolve()


def _field_that_is_not(path: pathlib.Path, error: AttributeError) -> str:
    """What a config file spoke of that is no field, where that is why it failed; "" else."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _same_file(frame.filename, path):
            names = [name.removesuffix(".update") for name in re.findall(r"\bconfig\.([\w.]*\w)", frame.line or "")]
            wrong = unknown_fields(names, default())
            return f"{path}, line {frame.lineno}: {'; '.join(wrong)}." if wrong else ""
    return ""
