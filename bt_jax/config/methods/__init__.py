"""The fields of the methods, one module each. A user's method declares its own (imported.py)."""

from bt_jax.config.field import Field, Group, MethodFields
from bt_jax.config.methods import barlow_twins, byol, pirl, simclr, supervised, swav, vicreg
from bt_jax.config.methods.imported import imported_fields
from bt_jax.config.rules import one_of_or_import_path
from bt_jax.errors import UserError

METHODS: dict[str, MethodFields] = {
    "barlow_twins": barlow_twins.METHOD,
    "simclr": simclr.METHOD,
    "byol": byol.METHOD,
    "swav": swav.METHOD,
    "pirl": pirl.METHOD,
    "vicreg": vicreg.METHOD,
    "supervised": supervised.METHOD,
}

_RULE = one_of_or_import_path(METHODS, "my_package.my_module:MyMethod")

METHOD = Group(
    "",
    "how the encoder is trained",
    {
        "method": Field(
            "barlow_twins",
            _RULE,
            f"Training method: {', '.join(METHODS)}, or the import path of a class, package.module:Class. It has its own group "
            "of fields, so it is chosen with the config file: --config=FILE:METHOD, or default(method=…)",
        ),
    },
)


def method_fields(name: str) -> MethodFields:
    """The fields of a method, by its name or import path.

    Raises:
      UserError: the method is unknown, cannot be imported, or does not declare its fields.
    """
    if name in METHODS:
        return METHODS[name]
    if problem := _RULE(name):
        raise UserError(f"method is {name!r}, but {problem}.")
    return imported_fields(name)
