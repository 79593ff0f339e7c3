"""Imports of packages that only some runs need, checked before such a run writes anything."""

import importlib
from types import ModuleType

from bt_jax.errors import UserError, first_line


def import_part(module: str, *, use: str, name: str, package: str = "", otherwise: str = "") -> ModuleType:
    """The module, if it can be imported.

    Args:
      use: what needs it, as the subject of a sentence, such as "reading images".
      name: the package's name, for people.
      package: its name for pip; by default `name` in lower case.
      otherwise: how to do without it, if possible, such as "set log.tensorboard=False".

    Raises:
      UserError: it is not installed, or its import fails.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # an incompatible package may raise anything
        why = first_line(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"{use} needs {name}, which cannot be imported ({why}); pip install {package or name.lower()}"
            f"{otherwise and ', or ' + otherwise}."
        ) from None
