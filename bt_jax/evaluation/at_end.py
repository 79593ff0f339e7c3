"""What a run's encoder is worth, told when its training is done: a short form of the evaluations, on the run's own data.

The linear accuracy by the cached probe, and fine-tuning on ten labels a class beside a new encoder on the same labels, with
the same rates and epochs. All by the very functions of the tasks, in folders of their own within the run's.
"""

from typing import Any

from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.evaluation.finetune import evaluate_finetune
from bt_jax.evaluation.linear_probe import evaluate_linear

LABELS_A_CLASS = 10
EPOCHS = 20  # a short training: the longer it is, the more a new encoder makes up for what it lacks at the start
RATE = 0.5  # of all parts of both, for a batch of 256
BATCH = 32  # or what divides among the devices


def judge_at_end(config: ConfigDict, workdir: epath.Path, mesh: Mesh) -> dict[str, Any]:
    """Judges the newest checkpoint of the run in `workdir`.

    Args:
      config: the run's.

    Returns:
      {"linear_top1", "finetune_top1", "from_scratch_top1", "labels_a_class"}; {} on processes other than the first.
    """
    linear = evaluate_linear(_derived(config, workdir, mesh, "linear"), workdir / "linear", mesh, say=_silent)
    tuned = evaluate_finetune(_derived(config, workdir, mesh, "finetune"), workdir / "finetune", mesh, say=_silent)
    scratch = _derived(config, workdir, mesh, "finetune")
    scratch.finetune.from_scratch = True
    baseline = evaluate_finetune(scratch, workdir / "from_scratch", mesh, say=_silent)
    if not linear:
        return {}
    return {
        "linear_top1": linear["mean"]["final.top1"],
        "finetune_top1": tuned["mean"]["final.top1"],
        "from_scratch_top1": baseline["mean"]["final.top1"],
        "labels_a_class": LABELS_A_CLASS,
    }


def _derived(config: ConfigDict, workdir: epath.Path, mesh: Mesh, task: str) -> ConfigDict:
    derived = config.copy_and_resolve_references()
    with derived.unlocked():
        derived.task, derived.init_from, derived.repeats = task, str(workdir), 1
        derived.linear.cached = True
        derived.batch_size = -(-BATCH // mesh.size) * mesh.size
        derived.epochs = EPOCHS
        derived.sgd.update(learning_rate_head=RATE, learning_rate_encoder=RATE, schedule="cosine", weight_decay=0.0)
        derived.sgd.evaluate_every_epochs = EPOCHS
        derived.finetune.update(
            chosen_by="seed", per_class=LABELS_A_CLASS, learning_rate_from_scratch=RATE, from_scratch=False
        )
        derived.checkpoint.every_epochs = EPOCHS
        derived.log.tensorboard = False
    return derived


def _silent(_: str) -> None:
    """The run tells of it in its own last lines."""
