"""A field of a config, and the groups that fields stand in."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

Rule = Callable[[Any], str | None]  # what is wrong with a value, such as "must be an integer"; None if nothing is


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting of a run.

    Attributes:
      default: its value where nobody sets it; its type is the field's type.
      rule: what is wrong with a value of that type, or None. Rules to choose from are in bt_jax/config/rules.py.
      doc: what the field is, in a sentence or two without a full stop at the end.
      resume: "free" if a resumed run may have another value, because no weight depends on it; else "fixed".
      own: whether the processes of a run may have different values.
    """

    default: Any
    rule: Rule
    doc: str
    resume: Literal["fixed", "free"] = "fixed"
    own: bool = False


@dataclasses.dataclass(frozen=True)
class Contradiction:
    """What fields must not be together.

    Attributes:
      fields: their full names, such as "data.source". A run that lacks one of them is not looked at.
      find: takes their values, each sound by itself; returns what is wrong with them together, or None.
    """

    fields: tuple[str, ...]
    find: Callable[..., str | None]


def contradiction(*fields: str) -> Callable[[Callable[..., str | None]], Contradiction]:
    """Makes a `Contradiction` between `fields` of the function that it decorates."""
    return lambda find: Contradiction(fields, find)


@dataclasses.dataclass(frozen=True)
class Group:
    """Fields that stand together.

    Attributes:
      name: of the group in a config; "" for fields on top.
      doc: what they are about, in one line.
      fields: by their names in the group; "photographs.size" is a field of a group within the group.
      contradictions: between these fields, or between these and others.
    """

    name: str
    doc: str
    fields: Mapping[str, Field]
    contradictions: tuple[Contradiction, ...] = ()

    def named(self) -> dict[str, Field]:
        """The fields by their full names."""
        return {f"{self.name}.{name}" if self.name else name: field for name, field in self.fields.items()}


@dataclasses.dataclass(frozen=True)
class MethodFields:
    """What a method brings to a config.

    Attributes:
      group: its own fields.
      optimizer: the optimiser that it is trained with: one of `bt_jax.config.optimizers.OPTIMIZERS`.
      defaults: where it departs from the defaults of other fields, by full names.
    """

    group: Group
    optimizer: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Task:
    """What a run can do, and the fields that this takes.

    Attributes:
      name: the value of `config.task`.
      doc: what it does, in one line.
      groups: the groups of its fields, in the order in which they are shown.
      trains: whether it trains by a method; then the fields of the method and of its optimiser belong to it too.
      defaults: where it departs from the fields' own defaults, by full names.
      free: fields that a resumed run of this task may change though those of others may not.
      contradictions: between fields of several groups.
    """

    name: str
    doc: str
    groups: tuple[Group, ...]
    trains: bool = False
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    free: tuple[str, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()
