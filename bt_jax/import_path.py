"""Objects by import path, `package.module:Name`, such as a user's own method or encoder."""

import difflib
import importlib
from typing import Any

from bt_jax.errors import UserError, first_line


def is_import_path(name: str) -> bool:
    """Whether a name is an import path; bt_jax's own names have no colon."""
    return ":" in name


def import_object(path: str, field: str) -> Any:
    """The object at `path`, `package.module:Name`.

    Args:
      field: the config field that holds the path, for errors.

    Raises:
      UserError: the path is malformed, the module is not found or fails when imported, or has no such name.
    """
    module_name, _, name = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise UserError(f"{field} is {path!r}, but must be an import path of the form 'package.module:Name'.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(
            f"{error.name}."
        ):  # one of its own imports is missing
            raise UserError(f"{field} is {path!r}, but {module_name} cannot be imported ({error}).") from error
        raise UserError(
            f"{field} is {path!r}, but there is no module {error.name!r}; install its package, or add its folder to "
            "PYTHONPATH."
        ) from None
    except Exception as error:  # importing a user's module may raise anything
        why = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{field} is {path!r}, but {module_name} cannot be imported ({why}).") from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, vars(module), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"{field} is {path!r}, but {module_name} has no {name!r}{hint}.")
    return getattr(module, name)
