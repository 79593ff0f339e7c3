"""The words of a pre-training run: what it says of itself at its start and at its end."""

from typing import TYPE_CHECKING, Any

import jax

from bt_jax.engine.state import TrainState, count_parameters
from bt_jax.reporting.progress import duration
from bt_jax.version import __version__

if TYPE_CHECKING:
    from bt_jax.tasks.pretrain import Pretraining


def summary(run: "Pretraining", state: TrainState, start_step: int, notices: list[str]) -> str:
    """What a run is, at its start: every number that a reader of its log may ask for."""
    config, optimizer = run.config, run.config.optimizer
    devices = run.mesh.devices.flat
    count, width = run.mesh.size, run.method.encoder.num_features
    factor = config.batch_size / 256
    total = count_parameters(state.params)
    encoder = count_parameters(state.params["encoder"])
    lines = {
        "bt_jax": f"{__version__}, JAX {jax.__version__}: {config.task} with {config.method}, seed {config.seed}",
        "devices": f"{count} × {devices[0].device_kind}, {config.batch_size // count} images each; "
        f"{jax.process_count()} process{'es' if jax.process_count() > 1 else ''}"
        + (f"; each of the projector's layers on {split}" if (split := config.mesh.model) > 1 else ""),
        "data": f"{run.source.name}: {len(run.source)} images, {run.source.num_classes} classes; "
        f"two views of {config.data.image_size}×{config.data.image_size}" + (f"\n{run.feed.words}" if run.feed else ""),
        "encoder": f"{config.model.arch}, {width} features, {encoder / 1e6:.2f} M parameters of {total / 1e6:.2f} M; "
        f"computes in {config.dtype}",
        **run.method.describe(config.batch_size),
        "batch": f"{config.batch_size}; {run.steps_per_epoch} steps an epoch, {config.epochs} epochs, "
        f"{run.total_steps} steps",
        "rates": f"weights {optimizer.learning_rate_weights * factor:g} = {optimizer.learning_rate_weights:g} × "
        f"{config.batch_size}/256, biases {optimizer.learning_rate_biases * factor:g} = "
        f"{optimizer.learning_rate_biases:g} × {config.batch_size}/256,\n"
        f"gradients divided by {optimizer.gradient_divisor:g}; warm-up {optimizer.warmup_epochs} epochs, then cosine",
        "workdir": str(run.workdir),
    }
    text = [f"{title:<9} " + value.replace("\n", "\n" + " " * 10) for title, value in lines.items()]
    text += [f"note      {notice}" for notice in [*run.source.notices, *notices]]
    if start_step == run.total_steps:
        text.append(f"complete  this run has made all its {start_step} steps; choose another --workdir for a new one")
    elif start_step:
        text.append(f"resuming  at step {start_step} of {run.total_steps}")
    return "\n".join(text)


def farewell(run: "Pretraining", result: dict[str, Any]) -> str:
    """What came of a run, and what to do with it.

    Args:
      result: as pretrain.json has it.
    """
    lines = [f"\ndone in {duration(result['seconds_of_last_start'])}"]
    if "knn_accuracy_after" in result:
        before, after = result["knn_accuracy_before"], result["knn_accuracy_after"]
        raw = result.get("knn_accuracy_raw_pixels")
        pixels = "" if raw is None else f", {raw:.1%} on raw pixels"
        lines.append(f"kNN accuracy   {after:.1%} with the trained encoder, {before:.1%} untrained{pixels}")
    if "linear_top1" in result:
        lines.append(f"linear         {result['linear_top1']:.1%}, a linear classifier on the frozen features")
    if "labels_a_class" in result:
        tuned, scratch = result["finetune_top1"], result["from_scratch_top1"]
        lines.append(
            f"few labels     {tuned:.1%} fine-tuned on {result['labels_a_class']} labels a class, {scratch:.1%} from scratch "
            f"on the same: {100 * (tuned - scratch):+.1f} points"
        )
    lines += [
        f"checkpoint     {run.checkpoints.folder / str(run.total_steps)}",
        f"metrics        {run.workdir / 'metrics.jsonl'}, {run.workdir / 'pretrain.json'}",
        f"to look        tensorboard --logdir {run.workdir}   (pip install tensorboard)",
        f"to use         python -c \"import bt_jax; print(bt_jax.load_encoder('{run.workdir}'))\"",
    ]
    return "\n".join(lines)
