"""The command line: the flag for a config file, and changes to its fields."""

import pathlib
import re
import sys
import traceback

from absl import flags
from ml_collections import ConfigDict

from bt_jax.config.checks import check_overrides, unknown_fields
from bt_jax.config.schema import based_on, complete, declared, default
from bt_jax.config.tasks import TASKS
from bt_jax.errors import UserError, first_line


class ConfigFileParser(flags.ArgumentParser):
    """Wraps ml_collections' parser and prepares a file's config for the changes (`--config.a.b=value`) that follow.

    A config that names a method gets that method's fields. A config made for another task than `--config.task` is replaced
    by a config of that task for the same data and encoder.
    """

    def __init__(self, reader: flags.ArgumentParser):
        """Args:
        reader: the parser that `DEFINE_config_file` gave its flag.
        """
        self._reader = reader

    def flag_type(self) -> str:
        return self._reader.flag_type()

    def parse(self, path: str) -> ConfigDict:
        """The config, locked. Changes are read from `sys.argv`, as in ml_collections.

        Raises:
          UserError: the file does not exist, cannot be read or is no config, or the command line changes something that is not a field.
        """
        sys.modules.pop(
            "config_config", None
        )  # what ml_collections loads a file as: an earlier one's get_config would stay
        try:
            config = self._reader.parse(path)
        except Exception as error:  # what is in a config file may raise anything
            why = error.__context__ or error if isinstance(error, (TypeError, ValueError)) else error
            if isinstance(why, UserError):
                raise why from None
            if words := _wrong_in(path, why):
                raise UserError(words) from error
            raise
        if not isinstance(config, ConfigDict):
            exists = pathlib.Path(path.partition(":")[0]).exists()
            raise UserError(f"config file {path} {'cannot be read' if exists else 'does not exist'}.")
        task = next((arg.partition("=")[2] for arg in reversed(sys.argv) if _names(arg) == "config.task"), config.task)
        if task in TASKS and not _same_fields(task, config.task):
            config = based_on(config, task).lock()
        complete(config)
        check_overrides(sys.argv, config)
        return config


def sentence(error: Exception) -> str:
    """The message of an error on the command line.

    For an error that was raised in a config file, it is the last line of the traceback that absl makes of it.
    """
    if isinstance(error, flags.UnrecognizedFlagError):
        fields = {field: None for task in TASKS for field in declared(task)}
        if found := [field for field in fields if error.flagname in (field, field.rpartition(".")[2])]:
            name = error.flagname if error.flagname in found else found[0]
            return f"there is no option --{error.flagname}; fields of the config are changed by --config.{name}=VALUE."
    if isinstance(error, flags.IllegalFlagValueError) and (words := _wrong_value(str(error))):
        return words
    text = str(error.__context__ if isinstance(error.__context__, UserError) else error)
    return text.strip().splitlines()[-1].removeprefix("bt_jax.errors.UserError: ") if "Traceback" in text else text


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
    for task in TASKS:
        if (field := declared(task).get(name)) and type(field.default) in _KINDS:
            return f"the config is wrong: {name} is {value!r}, but must be {_KINDS[type(field.default)]}."
    return ""


def _wrong_in(path: str, error: BaseException) -> str:
    """What is wrong with a config file that raised an error, with the line; "" if it is not its fault."""
    file, _, argument = path.partition(":")
    is_config = "a config is a Python file with a function get_config, such as configs/quickstart.py"
    if isinstance(error, SyntaxError) and error.filename and _same_file(error.filename, file):
        return f"{file}, line {error.lineno}: {error.msg}; {is_config}."
    if isinstance(error, AttributeError) and error.name == "get_config":
        return f"{file} has no function get_config; {is_config}."
    if isinstance(error, (UnicodeDecodeError, SyntaxError)) or "null bytes" in str(error):
        return f"config file {file} is no text in Python ({first_line(error)}); {is_config}."
    if isinstance(error, TypeError) and argument and "positional argument" in str(error):
        return f"get_config in {file} takes nothing after a colon, but the command gives it {argument!r}."
    if isinstance(error, AttributeError) and (words := _field_that_is_not(path, error)):
        return words
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _same_file(frame.filename, file):
            return f"{file}, line {frame.lineno}: {type(error).__name__}: {first_line(error)}."
    return ""


def _same_file(one: str, other: str) -> bool:
    return pathlib.Path(one).resolve() == pathlib.Path(other).resolve()


def _field_that_is_not(path: str, error: AttributeError) -> str:
    """What a config file spoke of that is no field, where that is why it failed; "" else."""
    file = pathlib.Path(path.partition(":")[0]).resolve()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if pathlib.Path(frame.filename).resolve() == file:
            names = [name.removesuffix(".update") for name in re.findall(r"\bconfig\.([\w.]*\w)", frame.line or "")]
            wrong = unknown_fields(names, default())
            return f"{path}, line {frame.lineno}: {'; '.join(wrong)}." if wrong else ""
    return ""


def _names(argument: str) -> str:
    return argument.lstrip("-").partition("=")[0] if argument.startswith("-") else ""


def _same_fields(task: str, other: str) -> bool:
    return task == other or (other in TASKS and TASKS[task].groups == TASKS[other].groups)
