"""The fields of a user's method, which is given by its import path."""

from collections.abc import Mapping
from typing import Any

from bt_jax.config.field import Contradiction, Field, Group, MethodFields
from bt_jax.config.optimizers import OPTIMIZERS
from bt_jax.config.rules import listed
from bt_jax.errors import UserError
from bt_jax.import_path import import_object


def imported_fields(path: str) -> MethodFields:
    """The fields that the class at "package.module:Class" declares in `config_group`, `fields` and `optimizer`.

    `config_group` is the name of its group, `fields` maps names to `bt_jax.config.Field` objects, and `optimizer` is a name in
    `OPTIMIZERS`. The attributes `defaults` and `contradictions` are optional, as in `MethodFields` and `Group`.

    Raises:
      UserError: the class cannot be imported, or one of these is missing or invalid (all are named).
    """
    found = import_object(path, "method")
    wrong = []
    group: Any = getattr(found, "config_group", None)
    fields: Any = getattr(found, "fields", None)
    optimizer: Any = getattr(found, "optimizer", None)
    if not isinstance(group, str) or not group.isidentifier():
        wrong.append(
            f"config_group is {_shown(group)}, but must be the name of its group of fields, such as 'my_method'"
        )
    if not isinstance(fields, Mapping) or not all(isinstance(field, Field) for field in fields.values()):
        wrong.append(f"fields is {_shown(fields)}, but must map names of fields to bt_jax.config.Field objects")
    else:
        for name, field in fields.items():
            if problem := field.rule(field.default):
                wrong.append(f"the default of its field {name} is {field.default!r}, but {problem}")
    if optimizer not in OPTIMIZERS:
        wrong.append(f"optimizer is {_shown(optimizer)}, but must be {listed(OPTIMIZERS)}")
    if wrong:
        raise UserError(f"method is {path!r}, which does not declare its fields correctly: {'; '.join(wrong)}.")
    contradictions: tuple[Contradiction, ...] = tuple(getattr(found, "contradictions", ()))
    doc = ((found.__doc__ or "").strip().splitlines() or [path])[0].rstrip(".")
    return MethodFields(
        Group(group, doc, dict(fields), contradictions), optimizer, dict(getattr(found, "defaults", {}))
    )


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:80]
