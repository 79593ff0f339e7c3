"""Makes a finished run again, to see whether it gives the same bits.

OUT/again.json          what came of it, a record for each time
OUT/running/again/      the run until then; an interrupted one goes on
"""

import random
from typing import Any

from bt_jax.errors import UserError

from .claim import Cell, cells, load, names
from .grid import Grid, Runner, cores


def again(grid: Grid, name: str = "", *, jobs: int = 0, command=None) -> dict[str, Any]:
    """Makes a finished run again in another folder, and compares its accuracy and its weights with what it found.

    Args:
      name: of the run; the one that was interrupted if none is given, or else any.
      jobs: a run has its share of the cores, and on another number of them it may be rounded differently. 0: so many that it has as
        many cores as when it was first made, or one if that is not known.
      command: see `Runner`.

    Returns:
      The record that is added to again.json; see `Grid.add_made_again`.

    Raises:
      UserError: there is no such finished run; the run fails.
      Preempted: it was asked to stop; the same command goes on.
    """
    finished = {found.name: found for found in _pretrainings(grid) if grid.result(found) is not None}
    if not finished:
        raise UserError(f"--out={grid.out} holds no finished run")
    if name and name not in finished:
        raise UserError(f"--out={grid.out} has no finished run {name}; its runs are the files in {grid.out / 'cells'}")
    other = Grid(grid.out / "running" / "again", grid.scale, grid.data_dir)
    with other.held(other_code=True):
        begun = [path.name for path in (other.out / "running").iterdir() if path.name in finished]
        cell = finished[name or next(iter(begun), "") or random.choice(sorted(finished))]
        Runner(other, jobs=jobs or _jobs(grid, cell), command=command).run([cell])
        second = other.result(cell)
        assert second is not None
        record = grid.add_made_again(cell, second)
        (other.out / "cells" / f"{cell.name}.json").unlink()
    return record


def _jobs(grid: Grid, cell: Cell) -> int:
    had, there = (grid.result(cell) or {}).get("cores"), cores()
    return max(1, len(there) // had) if had and there else 1


def _pretrainings(grid: Grid) -> list[Cell]:
    """Of all claims. Evaluations are left out: their encoders are not kept."""
    every = cells(grid.scale, [load(name, grid.scale) for name in names()])
    return [cell for cell in every if not cell.measure]
