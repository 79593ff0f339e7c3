"""The command line: the flag for a config file, and changes to its fields."""

import pathlib
import re
import sys
import traceback

from absl import flags
from ml_collections import ConfigDict

from bt_jax.config.checks import check_overrides, unknown_fields
from bt_jax.config.schema import based_on, complete, default
from bt_jax.config.tasks import TASKS
from bt_jax.errors import UserError


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
          UserError: the file does not exist or cannot be read, or the command line changes something that is not a field.
        """
        try:
            config = self._reader.parse(path)
        except AttributeError as error:
            if sentence := _field_that_is_not(path, error):
                raise UserError(sentence) from error
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
