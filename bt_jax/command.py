"""Barlow Twins for JAX: one command, whose config says what to do.

    bt_jax                                            the quickstart: minutes on a CPU, nothing to download
    bt_jax --list                                     names all configs
    bt_jax --config=resnet50_imagenet --config.data.data_dir=DIR --workdir=gs://bucket/run
    bt_jax --config=quickstart:supervised             another method
    bt_jax --config=my_own.py                         a config of your own
    bt_jax --config.epochs=40 --config.optimizer.weight_decay=1e-4      changes single fields
    bt_jax --fields                                   prints all fields of that run and exits

The same command resumes an interrupted run. `python -m bt_jax` is the same, and so is `python main.py` in a clone.
"""

import os
import pkgutil
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from bt_jax import config as config_lib
from bt_jax import console
from bt_jax.config import fields_page, files
from bt_jax.config.command_line import ConfigFileParser, sentence
from bt_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The config of the run: a file, or the name of one of those that --list names.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run, local or gs://; default: runs/<name of the config>.")
_FIELDS = flags.DEFINE_bool("fields", False, "Whether to print all fields of the run, and to do nothing else.")
_LIST = flags.DEFINE_bool("list", False, "Whether to print the names of all configs, and to do nothing else.")
flags.FLAGS["config"].parser = ConfigFileParser()


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"there is no argument {argv[1]!r}; options look like --config=FILE or --config.field=value.")
    if _LIST.value:
        found = files.listed()
        console.say("\n".join(f"{name:<{max(map(len, found))}}  {words}" for name, words in found.items()))
        return
    config = _CONFIG.value
    if _FIELDS.value:
        fields_page.show(config)
        return
    config_lib.check(config)
    # After the checks: Flax and Orbax take seconds to import.
    task = pkgutil.resolve_name(f"bt_jax.tasks.{config.task}:{config.task}")
    task(config, _WORKDIR.value or f"runs/{files.name_of(flags.FLAGS['config'].config_filename)}")


def parse(argv: list[str]) -> list[str]:
    """Reads the flags; without --config the quickstart is the config."""
    if not any(arg.startswith(("--config=", "-config=")) or arg in ("--config", "-config", "--list") for arg in argv):
        argv = [argv[0], "--config=quickstart", *argv[1:]]
    argv = ["--help" if arg == "-h" else arg for arg in argv]
    logging.set_verbosity(logging.WARNING)  # libraries log every file they open; --verbosity=0 shows that
    return flags.FLAGS(argv)


def run(usage: str = __doc__) -> None:
    """Runs the command that `sys.argv` holds.

    Args:
      usage: what --help prints before the options.

    Raises:
      SystemExit: with status 1 and one sentence for a mistake of the user.
    """
    # Where absl's --help looks for the text, and for the options that it shows.
    sys.modules["__main__"].__doc__ = usage
    for holder in (_CONFIG, _WORKDIR, _FIELDS, _LIST):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[holder.name])
    if not sys.flags.safe_path:
        # A user's own methods and encoders are found in the current folder by `bt_jax` too, as by `python -m bt_jax`.
        sys.path.append(os.path.abspath("."))
    try:
        with console.of_a_command():
            app.run(main, flags_parser=parse)
    except (UserError, flags.Error) as error:
        sys.exit(console.printable(f"error: {sentence(error)}"))  # which Python prints, with status 1
