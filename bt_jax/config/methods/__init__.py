"""The fields of the methods, a module each. A method from elsewhere brings its own (imported.py)."""

from bt_jax.config.field import Field, Group, MethodFields
from bt_jax.config.methods import barlow_twins, supervised
from bt_jax.config.methods.imported import imported_fields
from bt_jax.config.rules import one_of_or_import_path
from bt_jax.errors import UserError

METHODS: dict[str, MethodFields] = {"barlow_twins": barlow_twins.METHOD, "supervised": supervised.METHOD}

_RULE = one_of_or_import_path(METHODS, "my_package.my_module:MyMethod")

METHOD = Group(
    "",
    "how the encoder is trained",
    {
        "method": Field(
            "barlow_twins",
            _RULE,
            f"Method of training: {', '.join(METHODS)}, or the import path of a class, package.module:Class. It brings a group "
            "of fields, so it is chosen with the config file: --config=FILE:METHOD, or default(method=…)",
        ),
    },
)


def method_fields(name: str) -> MethodFields:
    """The fields of a method, by its name or import path.

    Raises:
      UserError: there is no such method; it cannot be imported, or does not say what its fields are.
    """
    if name in METHODS:
        return METHODS[name]
    if problem := _RULE(name):
        raise UserError(f"method is {name!r}, but {problem}.")
    return imported_fields(name)
