"""Fields for people: those of a run for the terminal, and all of them for docs/fields.md.

python -m bt_jax.config.fields_page > docs/fields.md
"""

import os
import sys
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from bt_jax.config.field import Field, Group
from bt_jax.config.groups.views import view_fields
from bt_jax.config.methods import METHOD, METHODS
from bt_jax.config.optimizers import OPTIMIZERS
from bt_jax.config.schema import fields_of, flatten, groups_of, plain
from bt_jax.config.tasks import LIKE_PRETRAIN, TASK, TASKS

WIDTH = 100
_VALUE_WIDTH = 14  # of the columns for values; after a longer value the meaning starts on the next line


def show(config: ConfigDict) -> None:
    """Prints `table(config)`; stops quietly if the reader (such as `head`) closes the pipe."""
    encoding = sys.stdout.encoding or "ascii"
    try:
        sys.stdout.write(table(config).encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again at exit


def table(config: ConfigDict) -> str:
    """All fields of a run by group: name, value, default and meaning; `*` marks values that are not the default."""
    given, fields = flatten(config), fields_of(config)
    sections: dict[str, list[str]] = {}
    for name in fields:
        sections.setdefault(name.rpartition(".")[0], []).append(name)
    docs = {group.name: group.doc for group in groups_of(config) if group.name}
    width = max(len(name.rpartition(".")[2]) for name in fields)
    kind = f"{config.task} with {config.method}" if "method" in fields else config.task
    changed = sum(_changed(given, name, field) for name, field in fields.items())
    lines = [f"{kind}: {len(fields)} fields, {changed} of them changed (*)", ""]
    lines.append(_line("", "field", "value", "default", "meaning", width))
    for section, names in sections.items():
        heading = section + (f": {docs[section]}" if section in docs else "")
        lines += ["", *textwrap.wrap(heading, WIDTH)] if section else [""]
        for name in names:
            field = fields[name]
            mark = "*" if _changed(given, name, field) else ""
            value = shown(given[name]) if name in given else "(missing)"
            lines.append(_line(mark, name.rpartition(".")[2], value, shown(field.default), field.doc, width))
    return "\n".join(lines) + "\n"


def _changed(given: Mapping[str, Any], name: str, field: Field) -> bool:
    return name not in given or plain(given[name]) != plain(field.default)


def _line(mark: str, name: str, value: str, default: str, doc: str, width: int) -> str:
    start, indent = f"{mark:<2}{name:<{width}}  ", 2 + width + 2 + 2 * (_VALUE_WIDTH + 2)
    words = textwrap.wrap(doc, WIDTH - indent)
    if max(len(value), len(default)) > _VALUE_WIDTH:
        text = f"{start}{value}  {default}".rstrip()
    else:
        text = f"{start}{value:<{_VALUE_WIDTH}}  {default:<{_VALUE_WIDTH}}  {words.pop(0)}"
    return "\n".join([text, *(" " * indent + line for line in words)])


def shown(value: Any) -> str:
    """A value in the syntax of the command line."""
    if isinstance(value, (tuple, list)):
        inner = (repr(x) if isinstance(x, str) else shown(x) for x in value)
        return f"({','.join(inner)}{',' if len(value) == 1 else ''})"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else f"{value:.6g}"
    return '""' if value == "" else str(value)


def page() -> str:
    """The content of docs/fields.md: all groups, methods and tasks, as tables."""
    own = {name: _groups_of_task(name) for name in TASKS if name not in LIKE_PRETRAIN}
    homes: dict[str, list[str]] = {}
    for task, groups in own.items():
        for group in groups:
            if group.name:
                homes.setdefault(group.name, []).append(task)
    distinct = {group.name: group for groups in own.values() for group in groups if group.name}
    of_methods = {brought.group.name for brought in METHODS.values()}
    common = [name for name in distinct if len(homes[name]) > 1 and name not in of_methods]
    parts = [_INTRODUCTION, "## Top level\n\n" + _top_table(own)]
    parts += [_section(distinct[name], f"In {_listed(homes[name])}.") for name in common]
    parts.append("## Views\n\n" + _VIEWS + _table(view_fields("view")))
    parts.append("## Methods\n\n" + _METHODS)
    for name, brought in METHODS.items():
        also = [task for task in homes.get(brought.group.name, []) if task != "pretrain"]
        words = f"Trained with {brought.optimizer}." + (f" In {_listed(also)} too." if also else "")
        parts.append(_section(brought.group, words + _departures(brought.defaults), title=name, level=3))
    for name, group in OPTIMIZERS.items():
        users = [method for method, brought in METHODS.items() if brought.optimizer == name]
        of_whom = f"The optimizer of {_listed(users)}; for another method" if users else "For any method"
        words = f'{of_whom} use `default(optimizer="{name}")`.'
        parts.append(_section(group, words, title=f"optimizer: {name}", level=3))
    parts.append("## Tasks\n\n" + _TASKS)
    for name, task in TASKS.items():
        groups = [g for g in own.get(name, []) if g.name and len(homes[g.name]) == 1]
        shared = [g.name for g in own.get(name, []) if g.name and len(homes[g.name]) > 1]
        words = f"{task.doc[0].upper()}{task.doc[1:]}."
        if name in LIKE_PRETRAIN:
            words += f" It has the fields of `pretrain`: `--config.task={name}` with its config."
        elif shared:
            words += f" Groups above: {', '.join(f'`{g}`' for g in shared)}."
        free = f" A resumed run may change {_listed(task.free)}." if task.free else ""
        parts.append(f"### {name}\n\n{words}{_departures(task.defaults)}{free}")
        parts += [_section(group, level=4) for group in groups]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


_INTRODUCTION = """# Fields

All fields of all configs, generated from the code by `python -m bt_jax.config.fields_page > docs/fields.md`.
`python main.py --config=FILE --fields` prints the fields of one run with their values. Set a field on the command line by its
full name, such as `--config.optimizer.weight_decay=1e-4`, or in a config file, `config.optimizer.weight_decay = 1e-4`.

A resumed run must have the same values, except for fields marked *free*, on which no weight depends. Fields marked *own* may
differ between the processes of a run."""

_VIEWS = """A group that draws views has these fields for each view, for example `barlow_twins.view_a.crop_scale`. The defaults here are
the paper's view A (Zbontar et al. 2021, appendix A); a group's table names its differences.

"""

_METHODS = """The method of a pre-training has its own group, and determines the optimizer. It is chosen with the config file,
`--config=configs/quickstart.py:METHOD`, or by `default(method=METHOD)` in a file. `METHOD` is one of those below, or the import
path of a class, `package.module:Class`."""

_TASKS = """`config.task` is what a run does. A config has only the fields of its task."""


def _groups_of_task(task: str) -> list[Group]:
    return [TASK, *([METHOD] if TASKS[task].trains else []), *TASKS[task].groups]


def _top_table(own: Mapping[str, list[Group]]) -> str:
    """The fields at the top level of a config, and the tasks that have them."""
    fields, homes = {}, {}
    for task, groups in own.items():
        for group in groups:
            if not group.name:
                fields |= group.named()
                for name in group.fields:
                    homes.setdefault(name, []).append(task)
    return _table(
        fields, {name: "" if len(tasks) == len(own) else f"In {_listed(tasks)}." for name, tasks in homes.items()}
    )


def _section(group: Group, words: str = "", *, title: str = "", level: int = 2) -> str:
    """A group as a heading, a sentence and a table."""
    text = f"{'#' * level} {title or group.name}\n\n{group.doc[0].upper()}{group.doc[1:]}. {words}".rstrip()
    return f"{text}\n\n{_table(group.named())}"


def _table(fields: Mapping[str, Field], remarks: Mapping[str, str] | None = None) -> str:
    views = view_fields("view")
    rows = ["| field | default | resumed | meaning |", "|---|---|---|---|"]
    of_views: dict[str, dict[str, Field]] = {}
    for name, field in fields.items():
        prefix, _, last = name.rpartition(".")
        if prefix.count(".") >= 1 and f"view.{last}" in views:
            of_views.setdefault(prefix, {})[last] = field
    for name, field in fields.items():
        prefix, _, last = name.rpartition(".")
        if prefix not in of_views:
            remark = (remarks or {}).get(name, "")
            rows.append(
                f"| `{name}` | {_code(field.default)} | {_resumed(field)} | {field.doc}.{' ' if remark else ''}{remark} |"
            )
        elif last == next(iter(of_views[prefix])):
            changed = {n: f.default for n, f in of_views[prefix].items() if f.default != views[f"view.{n}"].default}
            words = ", ".join(f"{n} {_code(v)}" for n, v in changed.items())
            alike = "as in Views" + (f", but {words}" if changed else "")
            rows.append(f"| `{prefix}.*` | | {_resumed(field)} | The distribution of a view, {alike}. |")
    return "\n".join(rows)


def _resumed(field: Field) -> str:
    return ", ".join(word for word, holds in (("free", field.resume == "free"), ("own", field.own)) if holds)


def _departures(defaults: Mapping[str, Any]) -> str:
    if not defaults:
        return ""
    return " Other defaults: " + ", ".join(f"`{name}` {_code(value)}" for name, value in defaults.items()) + "."


def _code(value: Any) -> str:
    return f"`{shown(value)}`"


def _listed(names: Iterable[str]) -> str:
    *first, last = [f"`{name}`" for name in names]
    return f"{', '.join(first)} and {last}" if first else last


if __name__ == "__main__":
    sys.stdout.buffer.write(page().encode())
