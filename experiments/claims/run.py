"""Tries a claim of the paper, or several, at a size that one can afford.

    python experiments/claims/run.py loss_parts --scale=cpu --jobs=2 --out=DIR --data-dir=CIFAR10      makes its runs
    python experiments/claims/run.py all --scale=gpu --out=DIR --data-dir=CIFAR10 --minutes=9          all claims, for nine minutes
    python experiments/claims/run.py batch_size --judged --out=DIR --data-dir=CIFAR10    only the runs that its verdict needs
    python experiments/claims/run.py batch_size --judged --seeds=5 --out=DIR --data-dir=CIFAR10      more seeds than its three
    python experiments/claims/run.py plan loss_parts --scale=paper            prints the runs' commands, and makes none
    python experiments/claims/run.py report --out=DIR --page=PAGE.md          judges what DIR holds: tables, plots, verdicts
    python experiments/claims/run.py again [RUN] --out=DIR --data-dir=CIFAR10    makes a finished run again, and compares bits

The same command goes on after an interruption. CIFAR10 is the folder of TFDS, or an .npz file.
"""

import argparse
import pathlib
import shlex
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import recipe  # noqa: E402
from harness import claim as claims  # noqa: E402
from harness.again import again  # noqa: E402
from harness.grid import Grid, Runner, check_data, scale_of  # noqa: E402

from bt_jax import console  # noqa: E402
from bt_jax.errors import UserError  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="\n".join(__doc__.splitlines()[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "words", nargs="+", metavar="[plan] CLAIM… | report | again [RUN]", help=", ".join(claims.names())
    )
    parser.add_argument("--scale", default="cpu", help=", ".join(claims.SCALES))
    parser.add_argument("--out", type=pathlib.Path, help="folder of the results; default: runs/claims/SCALE")
    parser.add_argument("--data-dir", default="", help="where CIFAR-10 is")
    parser.add_argument(
        "--jobs", type=int, default=0, help="runs at a time; 0: one, or with again as when the run was made"
    )
    parser.add_argument("--minutes", type=float, default=0, help="stop after this time; 0: when all is done")
    parser.add_argument(
        "--seeds", type=int, default=0, help="how many seeds, fewer or more; 0: those that a claim declares"
    )
    parser.add_argument("--judged", action="store_true", help="only the settings that the verdict is about")
    parser.add_argument("--keep", action="store_true", help="keep the workdirs of finished runs")
    parser.add_argument(
        "--other-code", action="store_true", help="go on in a folder whose runs were made with other code"
    )
    parser.add_argument("--page", type=pathlib.Path, help="with report: the page to write; its pictures go beside it")
    arguments = parser.parse_args()
    for name in ("jobs", "minutes", "seeds"):
        if getattr(arguments, name) < 0:
            raise UserError(f"--{name}={getattr(arguments, name):g} is below 0")
    out = arguments.out or pathlib.Path("runs/claims") / arguments.scale
    command, *names = arguments.words
    if command == "report":
        from harness.report import report

        print(report(Grid(out, scale_of(out)), arguments.page))
    elif command == "again":
        if len(names) > 1:
            raise UserError(f"again takes one run, not {len(names)}")
        check_data(arguments.data_dir)
        found = again(Grid(out, scale_of(out), arguments.data_dir), *names, jobs=arguments.jobs)
        before, after = found["accuracy"]
        print(f"{found['run']}: {'the same bits' if found['same'] else 'OTHER bits'}; {before} % and {after} %")
        sys.exit(not found["same"])
    elif command == "plan":
        plan(_chosen(names, arguments.scale), arguments)
    else:
        chosen = _chosen(arguments.words, arguments.scale)
        if arguments.scale == "paper":
            raise UserError(
                "runs at the scale paper need a pod; `run.py plan CLAIM --scale=paper` prints their commands"
            )
        check_data(arguments.data_dir)
        grid = Grid(out, arguments.scale, arguments.data_dir)
        with grid.held(arguments.other_code):
            cells = _cells(chosen, arguments)
            if untuned := recipe.untuned(grid.scale, {cell.method for cell in cells if not cell.held_out}):
                print(
                    f"note: learning rates of {', '.join(untuned)} are not chosen yet at {grid.scale}; `run.py tuning "
                    f"--scale={grid.scale}` tries them, and its best factors go into TUNED of recipe.py"
                )
            runner = Runner(grid, jobs=max(1, arguments.jobs), minutes=arguments.minutes, keep=arguments.keep)
            runner.run(cells)


def _chosen(names: list[str], scale: str) -> list[claims.Claim]:
    if not names:
        raise UserError(f"no claim is named; there are {', '.join(claims.names())}, or all")
    every = [name for name in claims.names() if name != "tuning"]
    chosen = [one for name in names for one in (every if name == "all" else [name])]
    return [claims.load(name, scale) for name in dict.fromkeys(chosen)]


def _cells(chosen: list[claims.Claim], arguments) -> list[claims.Cell]:
    return claims.cells(arguments.scale, chosen, judged=arguments.judged, seeds=arguments.seeds)


def plan(chosen: list[claims.Claim], arguments) -> None:
    """Prints the runs, and how long they would take if that is known."""
    cells = _cells(chosen, arguments)
    cells = list(dict.fromkeys(run for cell in cells for run in (cell.base, cell) if run))
    for cell in cells:
        cell.config()
        encoder = [f"--config.init_from=DIR/{cell.base.name}"] if cell.base else []
        print("python main.py", shlex.join([*cell.arguments(), *encoder]), f"--workdir=DIR/{cell.name}")
    minutes = claims.SCALES[arguments.scale].minutes
    print(f"# {len(cells)} runs" + (f", about {len(cells) * minutes / 60:.1f} hours of one core" if minutes else ""))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(console.printable(f"error: {error}."))
