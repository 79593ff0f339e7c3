"""Several runs on one page: what they are, how their configs differ, and their curves over each other."""

from collections.abc import Sequence
from typing import Any

from bt_jax.errors import UserError
from bt_jax.reporting.report import figures
from bt_jax.reporting.report.figures import PALETTE, Line
from bt_jax.reporting.report.page import flat, rendered, sentences
from bt_jax.reporting.report.run import RunFiles

_FIGURES = (("loss", "Loss"), ("knn_accuracy", "kNN accuracy"), ("rankme", "RankMe"), ("dead_features", "Dead features"),
            ("alignment", "Alignment"), ("uniformity", "Uniformity"), ("images_per_second", "Images per second"))  # fmt: skip
_RESULTS = (("kNN", "knn_accuracy_after"), ("kNN before training", "knn_accuracy_before"), ("linear", "linear_top1"))
_LOSSES = "Of several methods, whose losses have no common scale: only the course of each says something."


def comparison(runs: Sequence[RunFiles]) -> str:
    """The HTML of the page, in one piece.

    Raises:
      UserError: more runs than there are colours.
    """
    if len(runs) > len(PALETTE):
        raise UserError(f"{len(runs)} runs are too many for one page; name at most {len(PALETTE)}.")
    names, colours = _names(runs), PALETTE[: len(runs)]
    drawn = []
    for name, title in _FIGURES:
        curves = [
            Line(*run.series(name), "", colour, marker=name not in ("loss", "images_per_second"))
            for run, colour in zip(runs, colours, strict=True)
        ]
        if any(len(line.y) for line in curves):
            log = name == "loss" and all((line.y > 0).all() for line in curves)
            text = _LOSSES if name == "loss" and len({run.method for run in runs}) > 1 else ""
            svg = figures.lines(curves, percent=name == "knn_accuracy", log=log)
            drawn.append({"title": title, "svg": svg, "text": text})
    configs = [flat(run.config) for run in runs]
    fields = sorted(set().union(*configs), key=lambda field: (field != "method", field))
    values = {field: [c.get(field, "—") for c in configs] for field in fields}
    differ = [(field, found) for field, found in values.items() if any(value != found[0] for value in found)]
    rows = [
        {
            "name": name,
            "colour": colour,
            "sentences": sentences(run)[:2],
            "results": [_percent(run.result.get(key)) for _, key in _RESULTS],
        }
        for run, name, colour in zip(runs, names, colours, strict=True)
    ]
    return rendered(
        "comparison.html",
        title=f"{len(runs)} runs",
        rows=rows,
        columns=[name for name, _ in _RESULTS],
        figures_drawn=drawn,
        differ=[(field, found) for field, found in differ if "—" not in found],
        of_some=[(field, found) for field, found in differ if "—" in found],
        names=names,
    )


def _names(runs: Sequence[RunFiles]) -> list[str]:
    """The last parts of the workdirs' paths, or all of the path where these are the same."""
    names = [run.name for run in runs]
    return [str(run.workdir) if names.count(run.name) > 1 else run.name for run in runs]


def _percent(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, float) else "—"
