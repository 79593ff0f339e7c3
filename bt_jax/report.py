"""Reports of runs from their workdirs.

python -m bt_jax.report RUN [--out=PAGE.html]                 RUN/report.html, or another file
python -m bt_jax.report RUN RUN … [--out=compare.html]        several runs on one page
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from bt_jax import console
from bt_jax.errors import UserError
from bt_jax.runtime.paths import as_path
from bt_jax.tasks.report import write_comparison, write_report


def main(arguments: Sequence[str], say: Callable[[str], None] = console.say) -> None:
    """The command; see above.

    Raises:
      UserError: bad arguments, a folder that is no run's, a package that is missing, or a page that cannot be written.
    """
    parser = _Parser(prog="python -m bt_jax.report", add_help=False)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", default="")
    wanted = parser.parse_args(arguments)
    runs = [as_path(run, "RUN") for run in wanted.runs]
    if len(runs) == 1:
        path = write_report(runs[0], as_path(wanted.out, "--out") if wanted.out else None)
    else:
        path = write_comparison(runs, as_path(wanted.out or "compare.html", "--out"))
    say(f"report    {path}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; python -m bt_jax.report RUN [RUN …] [--out=PAGE.html]")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(console.printable(f"error: {error}"))  # which Python prints, with status 1
