"""Fields of a config, and how they are grouped."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

Rule = Callable[[Any], str | None]  # what is wrong with a value, such as "must be an integer"; None if nothing is


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting of a run.

    Attributes:
      default: its value unless set; its type is the field's type.
      rule: returns what is wrong with a value of that type, or None; bt_jax/config/rules.py has the usual rules.
      doc: what the field means, in a sentence or two without a full stop at the end.
      resume: "free" if a resumed run may change it, because no weight depends on it; else "fixed".
      own: whether the processes of a run may have different values.
    """

    default: Any
    rule: Rule
    doc: str
    resume: Literal["fixed", "free"] = "fixed"
    own: bool = False


@dataclasses.dataclass(frozen=True)
class Contradiction:
    """A condition on several fields.

    Attributes:
      fields: their full names, such as "data.source"; configs without one of them are not checked.
      find: takes their values, each valid by itself; returns what is wrong with the combination, or None.
    """

    fields: tuple[str, ...]
    find: Callable[..., str | None]


def contradiction(*fields: str) -> Callable[[Callable[..., str | None]], Contradiction]:
    """Decorator that turns a function into a `Contradiction` between `fields`."""
    return lambda find: Contradiction(fields, find)


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of fields.

    Attributes:
      name: of the group in a config; "" for fields at the top level.
      doc: what the fields are about, in one line.
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
    """A method's part of a config.

    Attributes:
      group: its own fields.
      optimizer: the optimizer that it is trained with, one of `bt_jax.config.optimizers.OPTIMIZERS`.
      defaults: its defaults for other fields, by full name, where they differ from the fields' own.
    """

    group: Group
    optimizer: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Task:
    """Something that a run can do, and its fields.

    Attributes:
      name: the value of `config.task`.
      doc: what it does, in one line.
      groups: the groups of its fields, in the order in which they are shown.
      trains: whether it trains with a method; its config then has the method's and the optimizer's fields too.
      defaults: its defaults by full name, where they differ from the fields' own.
      free: fields that a resumed run of this task may change, although runs of other tasks may not.
      contradictions: between fields of several groups.
    """

    name: str
    doc: str
    groups: tuple[Group, ...]
    trains: bool = False
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    free: tuple[str, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()
