"""Barlow Twins for JAX: one command, whose config says what to do.

    python main.py                                                    the quickstart: minutes on a CPU, nothing to download
    python main.py --config=configs/resnet50_imagenet.py --config.data.data_dir=DIR --workdir=gs://bucket/run
    python main.py --config=configs/quickstart.py:supervised          another method
    python main.py --config.epochs=40 --config.optimizer.weight_decay=1e-4      changes single fields
    python main.py --fields                                           prints all fields of that run and exits

The same command resumes an interrupted run.
"""

import pathlib
import pkgutil
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from bt_jax import config as config_lib
from bt_jax import console
from bt_jax.config import fields_page
from bt_jax.config.command_line import ConfigFileParser, sentence
from bt_jax.errors import UserError

QUICKSTART = pathlib.Path(__file__).parent / "configs" / "quickstart.py"

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config file of the run.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run, local or gs://; default: runs/<name of the config>.")
_FIELDS = flags.DEFINE_bool("fields", False, "Whether to print all fields of the run, and to do nothing else.")
flags.FLAGS["config"].parser = ConfigFileParser(flags.FLAGS["config"].parser)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"there is no argument {argv[1]!r}; options look like --config=FILE or --config.field=value.")
    config = _CONFIG.value
    if _FIELDS.value:
        fields_page.show(config)
        return
    config_lib.check(config)
    name = pathlib.Path(flags.FLAGS["config"].config_filename).name.replace(".py", "").replace(":", "-")
    # After the checks: Flax and Orbax take seconds to import.
    task = pkgutil.resolve_name(f"bt_jax.tasks.{config.task}:{config.task}")
    task(config, _WORKDIR.value or f"runs/{name}")


def parse(argv: list[str]) -> list[str]:
    """Reads the flags; without --config the quickstart is the config."""
    if not any(arg.startswith(("--config=", "-config=")) or arg in ("--config", "-config") for arg in argv):
        argv = [argv[0], f"--config={QUICKSTART}", *argv[1:]]
    argv = ["--help" if arg == "-h" else arg for arg in argv]
    logging.set_verbosity(logging.WARNING)  # libraries log every file they open; --verbosity=0 shows that
    return flags.FLAGS(argv)


def run() -> None:
    try:
        with console.of_a_command():
            app.run(main, flags_parser=parse)
    except (UserError, flags.Error) as error:
        sys.exit(console.printable(f"error: {sentence(error)}"))  # which Python prints, with status 1


if __name__ == "__main__":
    run()
