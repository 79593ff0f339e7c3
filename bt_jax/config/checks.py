"""Checks of a config: one sentence names everything that is wrong in it."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from bt_jax.config.field import Field
from bt_jax.config.methods import METHODS
from bt_jax.config.optimizers import OPTIMIZERS
from bt_jax.config.renamed import new_name
from bt_jax.config.rules import is_number, listed, nearest
from bt_jax.config.schema import complete, contradictions_of, declared, default, fields_of, flatten
from bt_jax.config.tasks import LIKE_PRETRAIN, TASKS
from bt_jax.errors import UserError


def check(config: ConfigDict) -> None:
    """Checks every field, after completing the config with its method's fields as `complete` does.

    Raises:
      UserError: everything that is wrong, together: fields that are unknown, missing, or belong to another task or method;
        values of the wrong type, out of range, or in contradiction to others.
    """
    complete(config)
    given, expected = flatten(config), fields_of(config)
    _is_of_its_kind(config, given, expected)
    wrong = unknown_fields(given, config) + _missing(given, expected)
    sound = {}
    for name, field in expected.items():
        if name not in given:
            continue
        value, kind = given[name], type(field.default)
        if not _has_type(value, kind):
            wrong.append(f"{name} is {value!r}, but must be {_TYPE_NAMES[kind]}")
        elif problem := field.rule(value):
            wrong.append(f"{name} is {value!r}, but {problem}")
        else:
            sound[name] = value
    for found in contradictions_of(config):
        if sound.keys() >= set(found.fields) and (problem := found.find(*(sound[name] for name in found.fields))):
            wrong.append(problem)
    if wrong:
        raise _wrong(wrong)


def check_overrides(argv: Iterable[str], config: ConfigDict | None = None) -> None:
    """Checks the names in `--config.a.b=value` arguments before they are parsed, to report all wrong ones at once.

    Args:
      config: the config that they change; by default that of a pre-training.

    Raises:
      UserError: names that are not fields of it, or the method, which cannot be changed this way.
    """
    found = (re.match(r"--?(?:no)?config\.([^=]*)", arg) for arg in argv)  # absl takes --noconfig.NAME for False
    check_names([name.group(1) for name in found if name], default() if config is None else config)


def check_names(names: Iterable[str], config: ConfigDict) -> None:
    """Raises UserError for names of changes that are not fields of a config, or that only its file can change."""
    names = list(names)
    wrong = unknown_fields(names, config)
    for group in sorted(set(names) & _groups(fields_of(config))):
        field = next(name for name in fields_of(config) if name.startswith(f"{group}."))
        wrong.append(f"{group} is a group of fields, which are set one by one, as in --config.{field}=VALUE")
    if "method" in names:
        wrong.append(
            "the method has its own fields, so it is chosen with the config file and not by --config.method: "
            "--config=FILE:METHOD, such as --config=configs/quickstart.py:supervised"
        )
    if "optimizer.name" in names:
        wrong.append(
            "the optimizer has its own fields, so it is chosen in a config file and not by --config.optimizer.name: "
            "default(optimizer=…)"
        )
    if wrong:
        raise _wrong(wrong)


def unknown_fields(names: Iterable[str], config: ConfigDict) -> list[str]:
    """A sentence for each name that is neither a field nor a group of such a config; fields of an unknown group share one."""
    fields = fields_of(config)
    known = _groups(fields)
    wrong = [name for name in names if name not in fields and name not in known]
    groups = [next((group for group in sorted(_groups([name]), key=len) if group not in known), "") for name in wrong]
    together = [group if group and groups.count(group) > 1 else name for name, group in zip(wrong, groups, strict=True)]
    return list(dict.fromkeys(_unknown(name, fields, is_group=name in groups) for name in together))


def _unknown(name: str, fields: Mapping[str, Field], is_group: bool) -> str:
    now = new_name(name, fields["task"].default)
    if now != name:
        return f"{name} is now called {now}" + ("" if _has(fields, now) else f", which {_belongs(now, fields)}")
    if words := _belongs(name, fields):
        return f"{name} {words}"
    if is_group:
        return f"there is no group {name!r}{nearest(name, _groups(fields))}"
    return f"there is no field {name!r}{nearest(name, fields)}"


def _belongs(name: str, fields: Mapping[str, Field]) -> str:
    """The task, method or optimizer that a name belongs to, if not to `fields`, in words; "" if to none."""
    task = fields["task"].default
    if TASKS[task].trains:
        for method, brought in METHODS.items():
            if _has(brought.group.named(), name):
                return f"belongs to the method {method!r}, but this run's method is {fields['method'].default!r}"
        for optimizer, group in OPTIMIZERS.items():
            if _has(group.named(), name):
                return f"belongs to the optimizer {optimizer!r}, but this run's is {fields['optimizer.name'].default!r}"
    owners = [other for other in TASKS if other not in LIKE_PRETRAIN and _has(declared(other), name)]
    if not owners and any(_has(declared("pretrain", method), name) for method in METHODS):
        owners = ["pretrain"]
    if not owners:
        return ""
    several = "s" if len(owners) > 1 else ""
    return f"belongs to the task{several} {listed(owners, 'and')}, but this run's task is {task!r}"


def _has(fields: Mapping[str, Field], name: str) -> bool:
    return name in fields or name in _groups(fields)


def _groups(fields: Iterable[str]) -> set[str]:
    """The names of all groups, and groups within groups, of these fields."""
    return {".".join(parts[:n]) for parts in (name.split(".") for name in fields) for n in range(1, len(parts))}


def _is_of_its_kind(config: ConfigDict, given: Mapping[str, Any], expected: Mapping[str, Field]) -> None:
    """Raises a single sentence for a config whose `task` or `optimizer.name` was changed, so that all its fields are wrong."""
    if given.keys() == expected.keys():
        return
    task, method = config.task, given.get("method", "barlow_twins")
    others = [name for name in TASKS if TASKS[name].groups != TASKS[task].groups]
    made_for = next((name for name in others if given.keys() == declared(name, method).keys()), None)
    if made_for is not None:
        raise UserError(
            f"task is {task!r}, but this config has the fields of the task {made_for!r}; make it with default({task!r}) "
            f"or based_on(config, {task!r}) from bt_jax.config."
        )
    for optimizer in OPTIMIZERS:
        if TASKS[task].trains and given.keys() == declared(task, method, optimizer).keys():
            raise UserError(
                f"optimizer.name is {given['optimizer.name']!r}, but this config has the fields of the optimizer {optimizer!r}; "
                f"make it with default(optimizer={given['optimizer.name']!r})."
            )


def _missing(given: Mapping[str, Any], expected: Mapping[str, Field]) -> list[str]:
    missing = [name for name in expected if name not in given]
    there = _groups(given)
    return list(dict.fromkeys(
        f"the group {group} is missing" if (group := name.partition(".")[0]) != name and group not in there
        else f"{name} is missing"
        for name in missing
    ))  # fmt: skip


def _wrong(sentences: list[str]) -> UserError:
    return UserError("the config is wrong: " + "; ".join(sentences) + ".")


_TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string", tuple: "a tuple"}


def _has_type(value: Any, kind: type) -> bool:
    if kind is float:
        return is_number(value) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, (tuple, list)) if kind is tuple else isinstance(value, kind)
