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
from bt_jax.reporting.report import charts, figures
from bt_jax.reporting.report.picture_map import picture_map
from bt_jax.reporting.report.run import RunFiles
from bt_jax.reporting.report.stored import unpacked

_OLD = "this run has not kept what it takes: it is of an earlier version, or its monitor has not measured yet"


def page(run: RunFiles, *, levels: Mapping[str, Any], defaults: Mapping[str, Any], warnings: Sequence[Any]) -> str:
    """The HTML of a report, in one piece: no other file is needed to show it.

    Args:
      levels: "start", "floor" and "weights" of the loss, where they are known.
      defaults: of the config's fields, by full name; {} if they are not known.
      warnings: with `title`, `text` and `advice`.
    """
    return rendered(
        "page.html",
        title=f"{run.title[0].upper()}{run.title[1:]} on {run.facts.get('data') or _data(run)}",
        run=run,
        sentences=sentences(run, warnings),
        views=_views(run),
        loss=charts.loss(run, levels),
        rates=charts.rates(run),
        measures=charts.measures(run),
        embeddings=charts.embeddings(run),
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
    environment.filters["plain"] = _plain
    return environment


def _plain(text: Any) -> str:
    """As UTF-8 can have it: what is not of a file's name in another encoding is escaped."""
    return str(text).encode("utf-8", "backslashreplace").decode()


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
        how = f"was trained by {run.title} on {data}{images} for {epochs} epochs, {result.get('step', step)} steps of {run.config.get('batch_size', '?')} images{where}{seconds}"
    else:
        of = f" of {total}" if total else ""
        how = f"is trained by {run.title} on {data}{images}, and has come to step {step}{of}{where}; this report is of a run that is not finished"
    return [f"{arch}{size} {how}.", _result(run), _verdict(run, warnings)]


def _data(run: RunFiles) -> str:
    data = run.config.get("data", {})
    return data.get("name") or data.get("data_dir") or data.get("source") or "unknown data"


def _result(run: RunFiles) -> str:
    result = run.result
    epochs, knn = run.series("knn_accuracy")
    epochs_of_rank, rank = run.series("rankme")
    parts = []
    if len(knn):
        text = f"kNN accuracy on test images is {knn[-1]:.1%}"
        if len(knn) > 1 and epochs[0] == 0:
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
        was = f", and was {rank[0]:.1f} before training" if len(rank) > 1 and epochs_of_rank[0] == 0 else ""
        parts.append(
            f"Without labels no accuracy is measured; the features' effective rank (RankMe) is {rank[-1]:.1f}{was}"
        )
    if not parts:
        return "No measurement by the monitor is recorded, so there are only the loss and its rates (monitor.every_epochs sets how often it measures)."
    return "; ".join(parts) + "."


def _verdict(run: RunFiles, warnings: Sequence[Any]) -> str:
    _, loss = run.series("loss")
    if len(loss) > 1:
        fell = f"The loss went from {loss[0]:.4g} to {loss[-1]:.4g}"
    elif len(loss):
        fell = f"The only loss recorded is {loss[0]:.4g}"
    else:
        fell = "No loss is recorded" + ("" if run.result else " yet")
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
    counts, names = run.confusion["counts"], [_plain(name) for name in run.confusion["names"].tolist()]
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
    encoder, processes = facts.get("encoder", {}), facts.get("processes")
    lines = {
        "data": f"{facts.get('data')}: {facts.get('images')} images, {len(facts.get('classes') or []) or 'no'} classes; {facts.get('views')}",
        "encoder": f"{encoder.get('arch')}, {encoder.get('features')} features",
        **facts.get("lines", {}),
        "devices": f"{facts.get('devices')}, {processes} process{'' if processes == 1 else 'es'}",
        "batch": f"{facts.get('batch_size')} images, {facts.get('steps_per_epoch')} steps per epoch",
    }
    for start in charts.restarts(run):
        since = f", after its last line at {start['stopped']}" if start.get("stopped") else ""
        title, others = f"restart at step {start['step']}", lines.get(f"restart at step {start['step']}")
        lines[title] = f"{others}; {start.get('at')}{since}" if others else f"{start.get('at')}{since}"
    return lines
