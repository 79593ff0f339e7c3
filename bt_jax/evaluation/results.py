"""Results of evaluations: WORKDIR/<task>.json, with everything needed to know what was measured."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from bt_jax.errors import UserError
from bt_jax.runtime.files import read_object, write_whole
from bt_jax.runtime.paths import as_path
from bt_jax.version import __version__

Result = dict[str, Any]


def summary_of_runs(runs: list[Result]) -> dict[str, Any]:
    """{"mean": …, "spread": …} of the runs' numbers by dotted name; the spread is the sample standard deviation.

    A single run has no spread: it is null.
    """
    numbers = [_numbers(run) for run in runs]
    names = [name for name in numbers[0] if all(name in n for n in numbers)]
    columns = {name: np.array([n[name] for n in numbers], np.float64) for name in names}
    return {
        "mean": {name: float(column.mean()) for name, column in columns.items()},
        "spread": {name: float(column.std(ddof=1)) if len(runs) > 1 else None for name, column in columns.items()},
    }


def _numbers(run: Result, prefix: str = "") -> dict[str, float]:
    found = {}
    for name, value in run.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and name != "seed":
            found[f"{prefix}{name}"] = value
    return found


def check_fractions(result: Result) -> None:
    """Raises ValueError for an accuracy or a precision in a result that is not between 0 and 1."""
    for run in result["runs"]:
        for name, value in _numbers(run).items():
            is_fraction = {"top1", "top5"} & set(name.split(".")) or name.startswith("map_")
            if is_fraction and not 0 <= value <= 1:
                raise ValueError(f"{name} is {str(value)[:20]}, which is not between 0 and 1")


def make_result(
    config: ConfigDict, *, protocol: str, data: Result, checkpoint: Result | None, runs: list[Result]
) -> Result:
    """The content of <task>.json.

    Args:
      protocol: what was done, in words.
      data: the data sets and the number of images used.
      checkpoint: the encoder's source, step and hash; None for training from scratch.
      runs: one per seed, {"seed": …, numbers by name}.
    """
    return {
        "task": config.task,
        "protocol": protocol,
        "bt_jax": __version__,
        "data": data,
        "checkpoint": checkpoint,
        "seeds": [run["seed"] for run in runs],
        "runs": runs,
        **summary_of_runs(runs),
        "config": config.to_dict(),
    }


def write_result(workdir: epath.Path, result: Result) -> None:
    """Writes WORKDIR/<task>.json atomically, with null for NaN, which JSON does not have.

    Call it after printing the numbers, so that they are not lost with the file.

    Raises:
      UserError: it cannot be written.
    """
    path = workdir / f"{result['task']}.json"
    try:
        write_whole(path, json.dumps(_clean(result), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}), so the numbers are only in the output above; free some "
            "space, and run the same command again."
        ) from error


def read_results(workdir: str) -> list[Result]:
    """All results of evaluations in a folder.

    Raises:
      UserError: there are none, or one cannot be read.
    """
    folder = as_path(workdir, "the folder")
    results = []
    for task in ("linear", "finetune", "knn", "transfer"):
        path = folder / f"{task}.json"
        try:
            if path.exists():
                results.append(read_object(path))
                if results[-1].get("task") != task:
                    raise ValueError(f"its task is {str(results[-1].get('task'))[:40]!r}")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not the result of an evaluation ({error}); rerun the evaluation.") from None
    if not results:
        raise UserError(
            f"{folder} has no result of an evaluation (linear.json, finetune.json, knn.json or transfer.json); name the "
            "--workdir of one that is complete."
        )
    return results


def same_encoder(workdir: epath.Path, checkpoint: Result | None, *, write: bool) -> None:
    """Checks that a resumed evaluation has the same weights; the first start records them in WORKDIR/judged.json.

    Raises:
      UserError: `init_from` names other weights than at the start of this evaluation.
    """
    path = workdir / "judged.json"
    if path.exists():
        try:
            before = {} if path.read_bytes().strip() == b"null" else read_object(path)  # null: trained from scratch
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); remove it or choose another --workdir.") from None
        if before.get("sha256") != (checkpoint or {}).get("sha256"):
            raise UserError(
                f"the evaluation in {workdir} started with other weights ({before.get('source')}) than init_from names now "
                f"({(checkpoint or {}).get('source')}); choose another --workdir."
            )
    elif write:
        write_whole(path, json.dumps(checkpoint) + "\n")


def mean_and_spread(result: Result, name: str, show: Callable[[float], str] = "{:.1%}".format) -> str:
    """`87.5%`, or `87.5% ± 0.3% (3 seeds)`."""
    mean, spread = result["mean"].get(name), result["spread"].get(name)
    if mean is None:  # not finite in one of the runs
        return "—"
    return show(mean) if spread is None else f"{show(mean)} ± {show(spread)} ({len(result['runs'])} seeds)"


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
