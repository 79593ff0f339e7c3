"""The lines that a pre-training run prints at its start and at its end."""

import shlex
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from bt_jax.engine.run import Start
from bt_jax.engine.setup import Setup
from bt_jax.engine.state import count_parameters
from bt_jax.reporting.progress import duration
from bt_jax.runtime.machine import more_cores
from bt_jax.version import __version__


def summary(config: ConfigDict, setup: Setup, start: Start) -> str:
    """The lines at the start of a run: the numbers that readers of its log need."""
    facts, method, source = setup.facts, setup.method, setup.sources[0]
    devices, count = setup.mesh.devices.flat, setup.mesh.size
    total, encoder = count_parameters(start.state.params), count_parameters(start.state.params["encoder"])
    processes, split = jax.process_count(), config.mesh.model
    lines = {
        "bt_jax": f"{__version__}, JAX {jax.__version__}: {config.task} with {config.method}, seed {config.seed}",
        "devices": f"{count} × {devices[0].device_kind}, {facts.batch_size // count} images each; "
        f"{processes} process{'es' if processes > 1 else ''}{more_cores(setup.mesh)}"
        + (f"; each of the projector's layers on {split}" if split > 1 else ""),
        "data": f"{source.name}: {source.described()}; {described_views(method.view_groups)}"
        + (f"\n{setup.feed.words}" if setup.feed.words else ""),
        "encoder": f"{config.model.arch}, {method.encoder.num_features} features, {encoder / 1e6:.2f} M parameters of "
        f"{total / 1e6:.2f} M; computes in {config.dtype}",
        **method.describe(facts.batch_size),
        "batch": f"{facts.batch_size}; {facts.steps_per_epoch} steps per epoch, {facts.epochs} epochs, "
        f"{facts.total_steps} steps",
        "rates": setup.optimizer.description,
        "workdir": str(setup.workdir),
    }
    text = [f"{title:<9} " + value.replace("\n", "\n" + " " * 10) for title, value in lines.items()]
    text += [f"note      {notice}" for notice in [*source.notices, *start.notices]]
    if start.step == facts.total_steps:
        text.append(
            f"complete  this run has finished all its {start.step} steps; choose another --workdir for a new one"
        )
    elif start.step:
        text.append(f"resuming  at step {start.step} of {facts.total_steps}")
    return "\n".join(text)


def at_the_start(init_from: str) -> str:
    """How the encoder is before the first step, in words that follow a number."""
    return "before training" if init_from else "untrained"


def described_views(groups: Any) -> str:
    """`two views of 48×48`, or `two views of 224×224 and six of 96×96`."""
    parts: list[str] = []
    for group in groups:
        number = _NUMBERS.get(group.num_views, str(group.num_views))
        noun = "" if parts else " view" if group.num_views == 1 else " views"
        parts.append(f"{number}{noun} of {group.size}×{group.size}")
    return " and ".join(parts)


_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}


def farewell(setup: Setup, result: dict[str, Any], report: str = "") -> str:
    """The lines at the end of a run: its results, and how to use them.

    Args:
      result: the content of pretrain.json.
      report: the path of its report; "" if there is none.
    """
    lines, workdir = [f"\ndone in {duration(result['seconds_of_last_start'])}"], setup.workdir
    start = at_the_start(setup.config.get("init_from", ""))
    if "knn_accuracy_after" in result:
        after, before = result["knn_accuracy_after"], result.get("knn_accuracy_before")
        was = "" if before is None else f", {before:.1%} {start}"
        raw = result.get("knn_accuracy_raw_pixels")
        pixels = "" if raw is None else f", {raw:.1%} on raw pixels"
        lines.append(f"kNN accuracy   {after:.1%} with the trained encoder{was}{pixels}")
    if "rankme_after" in result:
        metrics, width = result["metrics"], setup.method.encoder.num_features
        was = f", {result['rankme_before']:.1f} {start}" if "rankme_before" in result else ""
        lines.append(f"RankMe         {result['rankme_after']:.1f} of {width}{was}")
        measures = [f"{name} {metrics[name]:.3f}" for name in ("alignment", "uniformity") if name in metrics]
        measures.append(f"{metrics['dead_features']} of {width} features dead")
        lines.append(f"geometry       {', '.join(measures)}")
    if "linear_top1" in result:
        lines.append(f"linear         {result['linear_top1']:.1%}, a linear classifier on the frozen features")
    if "labels_a_class" in result:
        tuned, scratch = result["finetune_top1"], result["from_scratch_top1"]
        lines.append(
            f"few labels     {tuned:.1%} fine-tuned on {result['labels_a_class']} labels per class, {scratch:.1%} from scratch "
            f"on the same labels: {100 * (tuned - scratch):+.1f} points"
        )
    if report:
        lines.append(f"report         {report}, to be opened in a browser")
    lines.append(f"checkpoint     {workdir / 'checkpoints' / str(setup.facts.total_steps)}")
    lines.append(f"metrics        {workdir / 'metrics.jsonl'}, {workdir / 'pretrain.json'}")
    if setup.log.tensorboard:
        lines.append(f"to view        tensorboard --logdir {shlex.quote(str(workdir))}   (pip install tensorboard)")
    lines.append(f"to use         {to_load(workdir)}")
    return "\n".join(lines)


def to_load(path: epath.Path) -> str:
    """A command for the shell that loads an encoder."""
    code = f"import bt_jax; print(bt_jax.load_encoder({str(path)!r}))"
    return f"python -c {shlex.quote(code)}" if set(code) & set('"$`\\!') else f'python -c "{code}"'
