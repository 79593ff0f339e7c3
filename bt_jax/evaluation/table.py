"""The paper's tables for one's own results, next to the paper's numbers.

    python -m bt_jax.evaluation.table WORKDIR…

Each WORKDIR holds an evaluation; results that differ only in their seeds share a row. Numbers marked "paper" are copied from
Zbontar et al. 2021 (arXiv 2103.03230): ResNet-50, 1000 epochs on ImageNet. They were not measured with bt_jax.
"""

import json
import sys
from collections.abc import Callable, Sequence

from bt_jax import console
from bt_jax.errors import UserError, first_line
from bt_jax.evaluation.few_labels_table import few_labels_table
from bt_jax.evaluation.results import Result, check_fractions, mean_and_spread, read_results, summary_of_runs

PAPER = "paper (ImageNet, ResNet-50)"
PAPER_TRANSFER = {
    "Places-205, top-1": ("53.2%", "54.1%"),  # supervised, Barlow Twins
    "VOC07, mAP": ("87.5%", "86.2%"),
    "iNat18, top-1": ("46.7%", "46.5%"),
}


def tables(results: Sequence[tuple[str, Result]]) -> str:
    """Markdown tables for all tasks that have results.

    Args:
      results: (folder, content of its <task>.json).
    """
    parts = []
    for task, make in (("linear", _linear), ("finetune", few_labels_table), ("transfer", _transfer), ("knn", _knn)):
        mine = [(folder, result) for folder, result in results if result["task"] == task]
        if mine:
            parts.append(make(mine))
    return "\n\n".join(parts)


def merged(results: Sequence[tuple[str, Result]]) -> list[tuple[str, Result]]:
    """Merges results of the same evaluation with different seeds, which may come from separate jobs.

    Raises:
      UserError: two of them have the same seed.
    """
    groups: dict[str, list[tuple[str, Result]]] = {}
    for folder, result in results:
        config = {name: value for name, value in result["config"].items() if name not in ("seed", "repeats")}
        same = {"task": result["task"], "checkpoint": result["checkpoint"], "data": result["data"], "config": config}
        groups.setdefault(json.dumps(same, sort_keys=True), []).append((folder, result))
    together = []
    for group in groups.values():
        runs = [run for _, result in group for run in result["runs"]]
        seeds = [run["seed"] for run in runs]
        if len(set(seeds)) < len(seeds):
            folders = ", ".join(folder for folder, _ in group)
            raise UserError(f"{folders} hold results of the same seed ({sorted(seeds)}); name each result once.")
        first = group[0][1] | {"seeds": seeds, "runs": runs, **summary_of_runs(runs)}
        together.append((", ".join(folder for folder, _ in group), first))
    return together


def _linear(results: list[tuple[str, Result]]) -> str:
    rows = []
    for folder, result in results:
        has_best = "best.top1" in result["mean"]
        best = f"{mean_and_spread(result, 'best.top1')}, {mean_and_spread(result, 'best.top5')}" if has_best else "—"
        cells = [mean_and_spread(result, f"final.{name}") for name in ("top1", "top5")]
        rows.append([_encoder(result), result["data"]["test"], _how(result), *cells, best, folder])
    paper = [PAPER, "ImageNet, validation", "SGD, 100 epochs", "73.2%", "91.0%", "—", "Table 1"]
    header = [
        "encoder",
        "test images",
        "classifier",
        "top-1, final",
        "top-5, final",
        "best epoch's: top-1, top-5",
        "from",
    ]
    return _table("Table 1: linear classification on frozen features", header, [*rows, paper])


def _how(result: Result) -> str:
    return (
        "L-BFGS, cached features"
        if result["config"]["linear"]["cached"]
        else f"SGD, {result['config']['epochs']} epochs"
    )


def _transfer(results: list[tuple[str, Result]]) -> str:
    rows = []
    for folder, result in results:
        if "map_voc07" in result["mean"]:
            what = "mAP, 11 points (all points)"
            cell = f"{mean_and_spread(result, 'map_voc07')} ({mean_and_spread(result, 'map_all_points')})"
            if "map_interpolated" in result["mean"]:  # not in results of earlier versions
                what = f"mAP, interpolated; {what.removeprefix('mAP, ')}"
                cell = f"{mean_and_spread(result, 'map_interpolated')}; {cell}"
        else:
            what, cell = "top-1, final", mean_and_spread(result, "final.top1")
        rows.append([_encoder(result), result["data"]["test"], what, cell, folder])
    for what, numbers in PAPER_TRANSFER.items():
        for kind, number in zip(("supervised", "Barlow Twins"), numbers, strict=True):
            name, _, measure = what.partition(", ")
            rows.append([f"{PAPER}, {kind}", name, measure, number, "Table 3"])
    return _table("Table 3: transfer of frozen features", ["encoder", "test images", "measure", "result", "from"], rows)


def _knn(results: list[tuple[str, Result]]) -> str:
    ks = sorted({int(k) for _, result in results for k in result["runs"][0]["top1"]})
    rows = []
    for folder, result in results:
        run = result["runs"][0]
        cells = [f"{run['top1'][str(k)]:.1%}" if str(k) in run["top1"] else "—" for k in ks]
        health = run["health"]
        state = [f"{health['rankme']:.1f}", f"{health['mean_correlation']:.3f}", str(health["dead_features"])]
        rows.append([_encoder(result), result["data"]["test"], *cells, *state, folder])
    header = ["encoder", "test images", *(f"top-1, k={k}" for k in ks), "RankMe", "correlation", "dead", "from"]
    return _table("Weighted kNN, and the health of the features (not in the paper)", header, rows)


def _encoder(result: Result) -> str:
    checkpoint = result["checkpoint"]
    width = "" if checkpoint["width"] == 64 else f" of width {checkpoint['width']}"
    step = "" if checkpoint["step"] is None else f", step {checkpoint['step']}"
    return f"{checkpoint['arch']}{width}{step}, {checkpoint['sha256'][:8]}"


def _table(title: str, header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return f"{title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(folders: Sequence[str], say: Callable[[str], None] = console.say) -> None:
    """Prints the tables for the results in these folders.

    Raises:
      UserError: no folder is named, one holds no result, or two hold results of the same seed.
    """
    if not folders or any(folder.startswith("-") for folder in folders):
        raise UserError("name the workdirs of evaluations: python -m bt_jax.evaluation.table WORKDIR…")
    results = [(folder, result) for folder in folders for result in read_results(folder)]
    for folder, result in results:
        try:
            check_fractions(result)
            tables(merged([(folder, result)]))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(
                f"{folder}/{result['task']}.json cannot be used for a table ({why}); rerun the evaluation."
            ) from None
    say(tables(merged(results)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(console.printable(f"error: {error}"))  # which Python prints, with status 1
