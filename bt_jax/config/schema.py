"""The fields of a run: those of its task, its method, and the method's optimizer.

`default(task, method)` makes the config of such a run. A file in `configs/` starts from it and changes what its run needs, and
the command line changes single fields (`--config.optimizer.weight_decay=1e-4`).
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from bt_jax.config.field import Contradiction, Field, Group, MethodFields, Task
from bt_jax.config.methods import METHOD, METHODS, method_fields
from bt_jax.config.optimizers import OPTIMIZERS
from bt_jax.config.rules import one_of
from bt_jax.config.tasks import TASK, TASKS
from bt_jax.errors import UserError


def default(task: str = "pretrain", method: str = "barlow_twins", *, optimizer: str | None = None) -> ConfigDict:
    """The config of a task, with all fields at their defaults: for `pretrain` the paper's recipe, without a data set.

    Args:
      task: one of `TASKS`.
      method: for pre-training, one of `METHODS` or an import path such as "my_package.my_module:MyMethod".
      optimizer: for pre-training, one of `OPTIMIZERS`, such as "adamw", in place of the method's own.

    Raises:
      UserError: an unknown task, method or optimizer (a similar name is suggested), or a method that cannot be imported or
        does not declare its fields.
    """
    return _config({name: field.default for name, field in declared(task, method, optimizer).items()})


def fields_of(config: ConfigDict) -> dict[str, Field]:
    """The fields that a config with this task, method and optimizer must have, by full name, in order.

    Raises:
      UserError: as `default`.
    """
    return declared(*_kind(config))


def groups_of(config: ConfigDict) -> list[Group]:
    """The groups of this config's fields, in order; raises as `default`."""
    return _groups(*_kind(config))


def contradictions_of(config: ConfigDict) -> list[Contradiction]:
    """The conditions on several fields of this config; raises as `default`."""
    own = _task(config.get("task")).contradictions
    return [*own, *(found for group in groups_of(config) for found in group.contradictions)]


def declared(task: str = "pretrain", method: str = "barlow_twins", optimizer: str | None = None) -> dict[str, Field]:
    """Like `fields_of`, for the arguments of `default`."""
    described = _task(task)
    fields: dict[str, Field] = {}
    for group in _groups(task, method, optimizer):
        if twice := fields.keys() & group.named().keys():
            raise UserError(f"the fields {', '.join(sorted(twice))} are declared twice; give one of them another name.")
        fields |= group.named()
    changed: dict[str, Any] = {"task": task, **described.defaults}
    if described.trains:
        brought = method_fields(method)
        own = optimizer in (None, brought.optimizer)
        changed["method"] = method
        changed |= {name: v for name, v in brought.defaults.items() if own or not name.startswith("optimizer.")}
    for name, value in changed.items():
        if name not in fields:
            raise UserError(f"the method {method!r} has a default for {name!r}, which is not a field.")
        fields[name] = dataclasses.replace(fields[name], default=value)
    for name in described.free:
        fields[name] = dataclasses.replace(fields[name], resume="free")
    return fields


def _groups(task: str, method: str, optimizer: str | None) -> list[Group]:
    described = _task(task)
    groups = [TASK, *described.groups]
    if described.trains:
        brought = method_fields(method)
        chosen = _optimizer(optimizer or brought.optimizer)
        after = next(i for i, group in enumerate(groups) if group.name == "model") + 1
        if brought.group.name in {group.name for group in groups} | {chosen.name}:
            raise UserError(
                f"the method {method!r} calls its group {brought.group.name!r}, but a config has that group already; rename it."
            )
        groups[1:after] = [METHOD, *groups[1:after], brought.group, chosen]
    return groups


def _task(name: str) -> Task:
    if name not in TASKS:
        raise UserError(f"task is {name!r}, but {one_of(TASKS)(name)}.")
    return TASKS[name]


def _optimizer(name: str) -> Group:
    if name not in OPTIMIZERS:
        raise UserError(f"optimizer.name is {name!r}, but {one_of(OPTIMIZERS)(name)}.")
    return OPTIMIZERS[name]


def _kind(config: ConfigDict) -> tuple[str, str, str | None]:
    """The task, method and optimizer of a config, as arguments for `default`."""
    task = config.get("task")
    method = config.get("method", "barlow_twins")
    optimizer = config.get("optimizer")
    name = optimizer.get("name") if isinstance(optimizer, ConfigDict) else None
    return task, method, name


def based_on(config: ConfigDict, task: str) -> ConfigDict:
    """The config of another task with the data, encoder and devices of `config`.

    The new config takes its values from `config` in all fields that both have, except a pre-training's `batch_size`, `epochs`
    and `init_from`, which mean something else in an evaluation.

    Args:
      config: for example of a pre-training; it is not modified.
      task: one of `TASKS`.
    """
    new, old = default(task), flatten(config)
    own = {"task", "method"} | ({"batch_size", "epochs", "init_from"} if "method" in old else set())
    new.update_from_flattened_dict({name: old[name] for name in flatten(new) if name in old and name not in own})
    return new


def complete(config: ConfigDict) -> None:
    """Adds the method's group to a config whose method was changed after `default` made it.

    The former method's group is removed, unless something in it was changed: `check` then reports it. The same goes for the
    optimizer's group if the new method has another optimizer. All other fields keep their values.

    Raises:
      UserError: as `default`.
    """
    task, method, _ = _kind(config)
    if task not in TASKS or not TASKS[task].trains or (brought := method_fields(method)).group.name in config:
        return
    before = next((known for known in METHODS.values() if known.group.name in config), None)
    fresh = default(task, method)
    with config.unlocked():
        if before is not None:
            _take_away(config, before.group)
            if before.optimizer != brought.optimizer and config.get("optimizer", {}).get("name") == before.optimizer:
                _take_away(config, OPTIMIZERS[before.optimizer], before)
        for group in (brought.group.name, "optimizer"):
            if group not in config:
                config[group] = fresh.get(group, ConfigDict())  # a method may have no fields
            else:  # changed fields stay, for `check` to report
                config[group] = ConfigDict({**fresh[group].to_dict(), **config[group].to_dict()})


def _take_away(config: ConfigDict, group: Group, method: MethodFields | None = None) -> None:
    """Removes the fields of a group that have their default values, and the group if none is left."""
    defaults = {name: field.default for name, field in group.named().items()}
    defaults |= {name: value for name, value in (method.defaults if method else {}).items() if name in defaults}
    changed = {
        n: v for n, v in flatten(config[group.name], f"{group.name}.").items() if plain(v) != plain(defaults.get(n))
    }
    del config[group.name]
    if changed:
        config[group.name] = _config(changed)[group.name]


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """The fields by full name, such as "data.source"."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {f"{prefix}{name}": value}
    return flat


def plain(value: Any) -> Any:
    """A value as it comes back from JSON, for comparisons."""
    return [plain(x) for x in value] if isinstance(value, (tuple, list)) else value


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`, as dictionaries."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[last] = value
    return tree


def _config(flat: dict[str, Any]) -> ConfigDict:
    return ConfigDict(nested(flat))
