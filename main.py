"""Barlow Twins for JAX: one command; the config says what to do.

    python main.py                                                    the quickstart: minutes on a CPU, nothing to download
    python main.py --config=configs/resnet50_imagenet.py --config.data.data_dir=DIR --workdir=gs://bucket/run
    python main.py --config.epochs=40 --config.optimizer.weight_decay=1e-4      changes single fields

Every field is listed in bt_jax/config/schema.py. The same command goes on with a run that was interrupted.
"""

import pathlib
import pkgutil
import sys

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from bt_jax.config import schema as config_lib
from bt_jax.errors import UserError
from bt_jax.runtime import console

QUICKSTART = pathlib.Path(__file__).parent / "configs" / "quickstart.py"

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config file of the run.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run, local or gs://; default: runs/<name of the config>.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"there is no argument {argv[1]!r}; options look like --config=FILE or --config.field=value.")
    config = _CONFIG.value
    if not isinstance(config, ConfigDict):
        name = flags.FLAGS["config"].config_filename
        there = pathlib.Path(name.partition(":")[0]).exists()
        raise UserError(f"{name} {'is not a config file that can be read' if there else 'is not there'}.")
    config_lib.check(config)
    name = pathlib.Path(flags.FLAGS["config"].config_filename).name.replace(".py", "").replace(":", "-")
    task = pkgutil.resolve_name(
        config_lib.TASKS[config.task]
    )  # after the checks: Flax and Orbax take seconds to import
    task(config, _WORKDIR.value or f"runs/{name}")


def parse(argv: list[str]) -> list[str]:
    """Reads the flags; the quickstart is the config where none is named."""
    if not any(arg.startswith(("--config=", "-config=")) or arg in ("--config", "-config") for arg in argv):
        argv = [argv[0], f"--config={QUICKSTART}", *argv[1:]]
    logging.set_verbosity(logging.WARNING)  # libraries tell of every file they open; --verbosity=0 shows it
    config_lib.check_overrides(argv)
    return flags.FLAGS(argv)


def run() -> None:
    try:
        with console.of_a_command():
            app.run(main, flags_parser=parse)
    except (UserError, flags.Error) as error:
        sys.exit(console.printable(f"error: {_sentence(error)}"))  # which Python prints, with status 1


def _sentence(error: Exception) -> str:
    """What a config file raised reaches us as a flag's error that holds the whole traceback; its end says what is wrong."""
    text = str(error)
    if not isinstance(error, flags.Error) or "Traceback" not in text:
        return text
    return text.strip().splitlines()[-1].removeprefix("bt_jax.errors.UserError: ")


if __name__ == "__main__":
    run()
