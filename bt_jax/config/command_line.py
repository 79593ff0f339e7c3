"""The command line: the flag for a config file, and changes to its fields."""

import re
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from bt_jax.config import files
from bt_jax.config.checks import check_overrides
from bt_jax.config.methods import METHODS
from bt_jax.config.optimizers import OPTIMIZERS
from bt_jax.config.schema import based_on, complete, declared
from bt_jax.config.tasks import TASKS
from bt_jax.errors import UserError


class ConfigFileParser(flags.ArgumentParser):
    """The flag for a config file: reads it, and prepares its config for the changes (`--config.a.b=value`) that follow.

    A config made for another task than `--config.task` is replaced by a config of that task for the same data and encoder.
    """

    def flag_type(self) -> str:
        return "config file"

    def parse(self, path: str) -> ConfigDict:
        """The config, locked. Changes are read from `sys.argv`, as in ml_collections.

        Raises:
          UserError: as `files.read`, or the command line changes something that is not a field.
        """
        config = files.read(path)
        task = _last("config.task", sys.argv) or config.task
        if task in TASKS and not _same_fields(task, config.task):
            config = based_on(config, task)
            complete(config)
        check_overrides(sys.argv, config)
        return config.lock()


def sentence(error: Exception) -> str:
    """The message of an error on the command line."""
    if isinstance(error, flags.UnrecognizedFlagError):
        fields = {field: None for task in TASKS for field in declared(task)}
        if found := [field for field in fields if error.flagname in (field, field.rpartition(".")[2])]:
            name = error.flagname if error.flagname in found else found[0]
            return f"there is no option --{error.flagname}; fields of the config are changed by --config.{name}=VALUE."
    if isinstance(error, flags.IllegalFlagValueError) and (words := _wrong_value(str(error))):
        return words
    # absl makes errors of its own of those that a parser raises.
    return str(error.__context__ if isinstance(error.__context__, UserError) else error)


_KINDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    tuple: "values in parentheses, such as '(1, 2)', with quotes for the shell",
}


def _wrong_value(text: str) -> str:
    """What is wrong with a field's value that its parser did not take, by absl's message; "" for other messages."""
    if not (found := re.match(r"flag --config\.([\w.]+)=(.*?): ", text, re.DOTALL)):
        return ""
    name, value = found.groups()
    groups = [*(method.group for method in METHODS.values()), *OPTIMIZERS.values()]
    for fields in (*map(declared, TASKS), *(group.named() for group in groups)):
        if (field := fields.get(name)) and type(field.default) in _KINDS:
            return f"the config is wrong: {name} is {value!r}, but must be {_KINDS[type(field.default)]}."
    return ""


def _last(name: str, arguments: Sequence[str]) -> str:
    """The last value that an option is given, after = or as the next argument; "" if none."""
    for place, argument in reversed([*enumerate(arguments)]):
        option, equals, value = argument.partition("=")
        if option in (f"--{name}", f"-{name}"):
            return value if equals else "".join(arguments[place + 1 : place + 2])
    return ""


def _same_fields(task: str, other: str) -> bool:
    return task == other or (other in TASKS and TASKS[task].groups == TASKS[other].groups)
