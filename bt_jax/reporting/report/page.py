"""The report of one run as a page: its figures, pictures and sentences, put into the template page.html."""

import base64
import functools
import io
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from bt_jax.reporting.progress import duration
from bt_jax.reporting.report import figures
from bt_jax.reporting.report.figures import Line
from bt_jax.reporting.report.picture_map import picture_map
from bt_jax.reporting.report.run import RunFiles
from bt_jax.reporting.report.stored import unpacked

_OLD = "this run has not kept what it takes: it is of an earlier version, or has not come to its first look"
_RATE = "learning_rate_"
_OWN_FIGURES = ("loss", "images_per_second", "input_wait", "knn_accuracy", "rankme", "mean_correlation", "dead_features",
                "alignment", "uniformity")  # fmt: skip


def page(run: RunFiles, *, levels: Mapping[str, Any], defaults: Mapping[str, Any], warnings: Sequence[Any]) -> str:
    """The HTML of a report, in one piece: no other file is needed to show it.

    Args:
      levels: "start", "floor" and "weights" of the loss, where they are known.
      defaults: of the config's fields, by full name; {} if they are not known.
      warnings: with `title`, `text` and `advice`.
    """
    return rendered(
        "page.html",
        title=f"{run.method} on {run.facts.get('data') or _data(run)}",
        run=run,
        sentences=sentences(run, warnings),
        views=_views(run),
        loss=_loss(run, levels),
        rates=_rates(run),
        measures=_measures(run),
        embeddings=_embeddings(run),
        neighbours=_neighbours(run),
        map=_map(run),
        confusion=_confusion(run),
        warnings=warnings,
        changed=_changed(run, defaults),
        fields=flat(run.config),
        described=_described(run),
        versions=run.facts.get("versions", {}),
        missing=_OLD,
    )


def rendered(template: str, **content: Any) -> str:
    """A template of this folder with its content, in which text is escaped."""
    return _environment().get_template(template).render(**content)


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["jpeg"] = _jpeg
    environment.filters["breakable"] = _breakable
    environment.filters["plain"] = lambda text: str(text).encode("utf-8", "backslashreplace").decode()
    return environment


def _breakable(name: str) -> Markup:
    """A field's name, which may be broken after a dot or an underscore."""
    return Markup("<wbr>").join(re.split(r"(?<=[._])", name))


def _jpeg(data: bytes) -> str:
    """A JPEG file as a URL that has it inside."""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def sentences(run: RunFiles, warnings: Sequence[Any] = ()) -> list[str]:
    """What was run and what came out, in three sentences."""
    facts, result = run.facts, run.result
    encoder = facts.get("encoder", {})
    size = f" ({encoder['parameters'] / 1e6:.2f} M parameters)" if encoder.get("parameters") else ""
    arch = encoder.get("arch") or run.config.get("model", {}).get("arch") or "an encoder"
    images = f" ({facts['images']} images)" if facts.get("images") else ""
    where = f" on {facts['devices']}" if facts.get("devices") else ""
    seconds = f" in {duration(result['seconds'])}" if result.get("seconds") else ""
    total, step = facts.get("total_steps"), run.step
    epochs = run.config.get("epochs", "an unknown number of")
    data = facts.get("data") or _data(run)
    if result:
        how = f"was trained by {run.method} on {data}{images} for {epochs} epochs, {result.get('step', step)} steps of {run.config.get('batch_size', '?')} images{where}{seconds}"
    else:
        of = f" of {total}" if total else ""
        how = f"is trained by {run.method} on {data}{images}, and has come to step {step}{of}{where}; this report is of a run that is not finished"
    return [f"{arch}{size} {how}.", _result(run), _verdict(run, warnings)]


def _data(run: RunFiles) -> str:
    data = run.config.get("data", {})
    return data.get("name") or data.get("data_dir") or data.get("source") or "unknown data"


def _result(run: RunFiles) -> str:
    result = run.result
    _, knn = run.series("knn_accuracy")
    _, rank = run.series("rankme")
    parts = []
    if len(knn):
        text = f"kNN accuracy on test images is {knn[-1]:.1%}"
        if len(knn) > 1:
            text += f", and was {knn[0]:.1%} before training"
        raw = result.get("knn_accuracy_raw_pixels")
        parts.append(text + (f" ({raw:.1%} on raw pixels)" if raw is not None else ""))
    if result.get("linear_top1") is not None:
        parts.append(f"a linear classifier on the frozen features reaches {result['linear_top1']:.1%}")
    if result.get("finetune_top1") is not None:
        parts.append(
            f"fine-tuning on {result.get('labels_a_class', '?')} labels per class {result['finetune_top1']:.1%}, against "
            f"{result.get('from_scratch_top1', float('nan')):.1%} from scratch"
        )
    if not parts and len(rank):
        parts.append(
            f"Without labels no accuracy is measured; the features' effective rank (RankMe) is {rank[-1]:.1f}, and was {rank[0]:.1f} before training"
        )
    if not parts:
        return "No look of the monitor is recorded, so there are only the loss and its rates (monitor.every_epochs sets how often it looks)."
    return "; ".join(parts) + "."


def _verdict(run: RunFiles, warnings: Sequence[Any]) -> str:
    _, loss = run.series("loss")
    fell = f"The loss went from {loss[0]:.4g} to {loss[-1]:.4g}" if len(loss) > 1 else "No loss is recorded yet"
    if not warnings:
        return f"{fell}, and nothing in the metrics calls for a warning."
    names = "; ".join(w.title[0].lower() + w.title[1:] for w in warnings)
    return f"{fell}. Warnings, explained below: {names}."


def _views(run: RunFiles) -> list[dict[str, Any]]:
    """For each image: the image, its name, and its views by group."""
    if run.views is None:
        return []
    groups = {
        n.removeprefix("view_"): unpacked(n, run.views)
        for n in run.views
        if n.startswith("view_") and not n.endswith("_ends")
    }
    count = int(run.views["count"])
    images = unpacked("images", run.views) if "images" in run.views else [None] * count
    names = run.views["names"].tolist() if "names" in run.views else [""] * count
    return [
        {"image": images[i], "name": names[i],
         "groups": {n: v[i * len(v) // count : (i + 1) * len(v) // count] for n, v in groups.items()}}
        for i in range(count)
    ]  # fmt: skip


def restarts(run: RunFiles) -> list[dict[str, Any]]:
    """The starts after the first, each with its epoch."""
    per_epoch = run.facts.get("steps_per_epoch") or 1
    starts = [s for s in run.facts.get("starts", []) if isinstance(s.get("step"), int)]
    return [s | {"epoch": s["step"] / per_epoch} for s in starts[1:]]


def _figure(title: str, svg: str, text: str = "") -> dict[str, str]:
    return {"title": title, "svg": svg, "text": text}


def _loss(run: RunFiles, levels: Mapping[str, Any]) -> list[dict[str, str]]:
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
    for name in others:
        x, y = run.series(name)
        if len(y):
            found.append(_figure(name.replace("_", " ").capitalize(), figures.lines([Line(x, y)], marks=marks)))
    return found


def _rates(run: RunFiles) -> list[dict[str, str]]:
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


def _measures(run: RunFiles) -> list[dict[str, str]]:
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


def _embeddings(run: RunFiles) -> list[dict[str, str]]:
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


def _neighbours(run: RunFiles) -> dict[str, Any] | None:
    last = run.last
    if last is None or "nearest" not in last:
        return None
    tiles, names = unpacked("tiles", last), last["tile_names"].tolist()
    labels, classes = last["tile_labels"].tolist(), run.facts.get("classes") or []

    def tile(place, cosine):
        label = labels[place]
        known = classes[label] if 0 <= label < len(classes) else names[place].rpartition("/")[2]
        return {"image": tiles[place], "name": names[place], "cosine": cosine, "short": known, "label": label}

    rows = [
        [tile(p, c) for p, c in zip(ps, cs, strict=True)]
        for ps, cs in zip(last["nearest"].tolist(), last["cosines"].tolist(), strict=True)
    ]
    return {"rows": rows, "searched": int(last["searched"])}


def _map(run: RunFiles) -> dict[str, Any] | None:
    last = run.last
    if last is None or "features" not in last or len(last["features"]) < 3:
        return None
    labels = last["labels"].tolist()
    by_class = len(set(labels)) if max(labels) >= 0 else 0
    images = [np.asarray(Image.open(io.BytesIO(file))) for file in unpacked("thumbnails", last)]
    picture, how = picture_map(
        last["features"].astype(np.float32), images, labels if 1 < by_class <= 20 else None, slow=bool(run.result)
    )
    return {
        "src": f"data:image/webp;base64,{base64.b64encode(picture).decode()}",
        "how": how,
        "count": len(images),
        "framed": 1 < by_class <= 20,
    }


def _confusion(run: RunFiles) -> dict[str, Any] | None:
    """The confusion matrix, and the pairs of classes that are most often confused."""
    if run.confusion is None or "counts" not in run.confusion:
        return None
    counts, names = run.confusion["counts"], [str(name) for name in run.confusion["names"].tolist()]
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    totals = counts.sum(axis=1)
    pairs = [
        {"true": names[i], "said": names[j], "count": int(wrong[i, j]), "of": int(totals[i])}
        for i, j in zip(*np.unravel_index(order, counts.shape), strict=True)
        if wrong[i, j]
    ]
    accuracy = float(np.trace(counts) / max(1, counts.sum()))
    return {
        "svg": figures.confusion(counts, names),
        "pairs": pairs,
        "accuracy": accuracy,
        "images": int(counts.sum()),
        "classes": len(names),
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a nested config by full name."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _changed(run: RunFiles, defaults: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, value, default) of the fields that differ from their defaults."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    return [
        (n, v, plain[n])
        for n, v in flat(run.config).items()
        if n in plain and v != plain[n] and n not in ("task", "method")
    ]


def _described(run: RunFiles) -> dict[str, str]:
    facts = run.facts
    if not facts:
        return {}
    encoder = facts.get("encoder", {})
    lines = {
        "data": f"{facts.get('data')}: {facts.get('images')} images, {len(facts.get('classes') or []) or 'no'} classes; {facts.get('views')}",
        "encoder": f"{encoder.get('arch')}, {encoder.get('features')} features",
        **facts.get("lines", {}),
        "devices": f"{facts.get('devices')}, {facts.get('processes')} process(es)",
        "batch": f"{facts.get('batch_size')} images, {facts.get('steps_per_epoch')} steps per epoch",
    }
    for start in restarts(run):
        since = f", after its last line at {start['stopped']}" if start.get("stopped") else ""
        lines[f"restart at step {start['step']}"] = f"{start.get('at')}{since}"
    return lines
