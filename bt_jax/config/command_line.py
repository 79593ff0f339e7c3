"""The command line: the flag for a config file, and changes to its fields."""

import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from bt_jax.config.checks import check_overrides
from bt_jax.config.schema import based_on, complete
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
        config = self._reader.parse(path)
        if not isinstance(config, ConfigDict):
            exists = pathlib.Path(path.partition(":")[0]).exists()
            raise UserError(f"config file {path} {'cannot be read' if exists else 'does not exist'}.")
        task = next((arg.partition("=")[2] for arg in reversed(sys.argv) if _names(arg) == "config.task"), config.task)
        if task in TASKS and not _same_fields(task, config.task):
            config = based_on(config, task).lock()
        complete(config)
        check_overrides(sys.argv, config)
        return config


def _names(argument: str) -> str:
    return argument.lstrip("-").partition("=")[0] if argument.startswith("-") else ""


def _same_fields(task: str, other: str) -> bool:
    return task == other or (other in TASKS and TASKS[task].groups == TASKS[other].groups)
