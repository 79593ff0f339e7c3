"""The command line: a config file by its flag, and changes of single fields of it."""

import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from bt_jax.config.checks import check_overrides
from bt_jax.config.schema import based_on, complete
from bt_jax.config.tasks import TASKS
from bt_jax.errors import UserError


class ConfigFileParser(flags.ArgumentParser):
    """Around ml_collections' own: makes what a file gives ready for the changes (`--config.a.b=value`) to come.

    A file that names its method gets the fields of that; a file made for another task than `--config.task` gives way to a
    config of that task on the same data and encoder.
    """

    def __init__(self, reader: flags.ArgumentParser):
        """Args:
        reader: the parser that `DEFINE_config_file` gave its flag.
        """
        self._reader = reader

    def flag_type(self) -> str:
        return self._reader.flag_type()

    def parse(self, path: str) -> ConfigDict:
        """The config, locked. Changes are looked for in `sys.argv`, as ml_collections does.

        Raises:
          UserError: there is no such file; the command line changes what is no field of it.
        """
        config = self._reader.parse(path)
        if not isinstance(config, ConfigDict):
            there = pathlib.Path(path.partition(":")[0]).exists()
            raise UserError(f"{path} {'is not a config file that can be read' if there else 'is not there'}.")
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
