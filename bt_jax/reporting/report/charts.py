"""The figures of a run's report, each with its title and a line of text: `{"title", "svg", "text"}`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bt_jax.reporting.report import figures
from bt_jax.reporting.report.figures import Line
from bt_jax.reporting.report.run import RunFiles

_RATE = "learning_rate_"
_OWN_FIGURES = ("loss", "images_per_second", "input_wait", "knn_accuracy", "rankme", "mean_correlation", "dead_features",
                "alignment", "uniformity")  # fmt: skip


def restarts(run: RunFiles) -> list[dict[str, Any]]:
    """The starts after the first, each with its epoch."""
    per_epoch = run.facts.get("steps_per_epoch") or 1
    starts = [s for s in run.facts.get("starts", []) if isinstance(s.get("step"), int)]
    return [s | {"epoch": s["step"] / per_epoch} for s in starts[1:]]


def _figure(title: str, svg: str, text: str = "") -> dict[str, str]:
    return {"title": title, "svg": svg, "text": text}


def loss(run: RunFiles, levels: Mapping[str, Any]) -> list[dict[str, str]]:
    """The loss and its parts, and a method's other metrics."""
    epochs, loss = run.series("loss")
    if not len(loss):
        return []
    marks = [s["epoch"] for s in restarts(run)]
    weights = levels.get("weights") or {}
    known = [
        (levels[n], label)
        for n, label in (("start", "expected at the start"), ("floor", "floor"))
        if levels.get(n) is not None
    ]
    drawn = [Line(epochs, loss, "loss", "text")]
    for (name, weight), colour in zip(weights.items(), figures.PALETTE, strict=False):
        x, y = run.series(name)
        factor = "" if weight == 1 else f" × {weight:.3g}"
        drawn.append(Line(x, y * weight, name.replace("_", " ") + factor, colour))
    values = np.concatenate([line.y for line in drawn] + [[height for height, _ in known]])
    log = bool(values.min() > 0 and 10 < values.max() / values.min() < 1e4)  # a floor may be next to nothing
    text = "Dashed: what is expected of embeddings that have learnt nothing, and the lowest value there can be." if known else (
        "What loss to expect at the start is not known for this run."
    )  # fmt: skip
    found = [
        _figure(
            "Loss and its parts" if weights else "Loss", figures.lines(drawn, levels=known, marks=marks, log=log), text
        )
    ]
    others = [n for n in run.names if n not in weights and n not in _OWN_FIGURES and not n.startswith(_RATE)]
    words = run.facts.get("metric_words") or {}
    for name in others:
        x, y = run.series(name)
        if len(y):
            svg = figures.lines([Line(x, y)], marks=marks, percent=name == "accuracy")
            found.append(_figure(name.replace("_", " ").capitalize(), svg, words.get(name, "")))
    return found


def rates(run: RunFiles) -> list[dict[str, str]]:
    """Learning rates, images per second, and waiting."""
    marks, found = [s["epoch"] for s in restarts(run)], []
    rates = [n for n in run.names if n.startswith(_RATE)]
    drawn = [
        Line(*run.series(n), n.removeprefix(_RATE), colour, style)
        for n, colour, style in zip(rates, figures.PALETTE, ("-", "--", ":", "-") * 2, strict=False)
    ]
    if drawn:
        found.append(_figure("Learning rates", figures.lines(drawn, marks=marks)))
    x, y = run.series("images_per_second")
    if len(y):
        dotted = " Dotted: restarts." if marks else ""
        found.append(
            _figure(
                "Images per second",
                figures.lines([Line(x, y)], marks=marks, from_zero=True),
                f"Over all devices.{dotted}",
            )
        )
    x, y = run.series("input_wait")
    if len(y):
        found.append(
            _figure(
                "Waiting for input",
                figures.lines([Line(x, y)], marks=marks, percent=True, from_zero=True),
                "Share of the time that the loop waits for the next batch.",
            )
        )
    return found


_MEASURES = (
    ("knn_accuracy", "kNN accuracy", "Of test images, by the votes of the nearest train images."),
    ("rankme", "RankMe", "The effective rank of the features; higher is richer."),
    ("dead_features", "Dead features", "Features that are the same for all images."),
    ("alignment", "Alignment", "Mean squared distance between two views of an image; lower is closer."),
    ("uniformity", "Uniformity", "Lower is spread more evenly over the sphere."),
    (
        "mean_correlation",
        "Correlation of features",
        "Mean size of the correlation of two features; lower is less redundant.",
    ),
)


def measures(run: RunFiles) -> list[dict[str, str]]:
    """What the monitor measures, by epoch."""
    found, marks = [], [s["epoch"] for s in restarts(run)]
    for name, title, text in _MEASURES:
        x, y = run.series(name)
        if not len(y):
            continue
        raw = run.result.get("knn_accuracy_raw_pixels") if name == "knn_accuracy" else None
        levels = [] if raw is None else [(raw, "raw pixels")]
        svg = figures.lines(
            [Line(x, y, marker=True)],
            levels=levels,
            marks=marks,
            percent=name == "knn_accuracy",
            from_zero=name == "dead_features",
        )
        found.append(_figure(title, svg, text))
    return found


def embeddings(run: RunFiles) -> list[dict[str, str]]:
    """The cross-correlation, and spectra, before training and now."""
    looks = [
        (run.first, "before training", "muted"),
        (run.last, f"step {int(run.last['step'])}" if run.last else "", "blue"),
    ]
    if run.last is None or int(run.last["step"]) == 0:
        looks = looks[1:]
    with_c = [(a, label, colour) for a, label, colour in looks if a is not None and "correlation" in a]
    found = []
    for a, label, _ in with_c:
        d, width = len(a["correlation"]), len(a["diagonal"])
        part = f"{d} of the {width} columns, evenly spread" if d < width else f"all {width} columns"
        found.append(
            _figure(
                f"Cross-correlation, {label}",
                figures.correlations(a["correlation"]),
                f"Of the embeddings of two views of {int(a['pairs'])} images: {part}. Orange up to 1, blue down to -1.",
            )
        )
    if with_c:
        curves = [
            Line(np.linspace(0, 1, len(a["diagonal"])), np.sort(a["diagonal"].astype(float))[::-1], label, colour)
            for a, label, colour in with_c
        ]
        found.append(
            _figure(
                "Its diagonal, sorted",
                figures.lines(curves, x_label="share of the embedding's dimensions"),
                "1 where a dimension is the same in both views.",
            )
        )
        counts = [(a["off_diagonal_counts"], label, colour) for a, label, colour in with_c]
        found.append(
            _figure(
                "Its other entries",
                figures.histogram(counts, low=-1, high=1, x_label="correlation"),
                "The narrower about 0, the less redundant.",
            )
        )
    for name, title in (
        ("embedding_spectrum", "Spectrum of the embeddings"),
        ("feature_spectrum", "Spectrum of the features"),
    ):
        curves = []
        for a, label, colour in looks:
            if a is not None and name in a and a[name].size and a[name][0] > 0:
                value = a[name].astype(float)
                kept = value / value[0] > 1e-8
                curves.append(Line(np.arange(1, kept.sum() + 1), (value / value[0])[kept], label, colour))
        if curves:
            found.append(
                _figure(
                    title,
                    figures.lines(curves, x_label="number of the eigenvalue", log=True),
                    "Eigenvalues of the covariance, relative to the largest; a steep fall is a low rank.",
                )
            )
    return found
