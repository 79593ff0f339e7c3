"""What a run's encoder is worth, told when its training is done: a short form of the evaluations, on the run's own data.

The linear accuracy by the cached probe, and fine-tuning on ten labels a class beside a new encoder on the same labels, with
the same rates and epochs. All by the very functions of the tasks, in folders of their own within the run's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.errors import UserError
from bt_jax.runtime import processes
from bt_jax.tasks.finetune import evaluate_finetune
from bt_jax.tasks.linear import evaluate_linear

LABELS_A_CLASS = 10  # or as many as the smallest class has
EPOCHS = 20  # a short training: the longer it is, the more a new encoder makes up for what it lacks at the start
RATE = 0.5  # of all parts of both, for a batch of 256
BATCH = 32  # or what divides among the devices, and no more than there are labels


def judge_at_end(
    config: ConfigDict,
    workdir: epath.Path,
    mesh: Mesh,
    *,
    labels: np.ndarray | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Judges the newest checkpoint of the run in `workdir`.

    The run is done: what cannot be judged (a set of one class, a test split without labels) is told, and left out.

    Args:
      config: the run's.
      labels: of its training images, (n,) integers, where they are known.
      say: takes a line for the user.

    Returns:
      {"linear_top1", "finetune_top1", "from_scratch_top1", "labels_a_class"}, without those that were left out; {} on
      processes other than the first.
    """
    counts = (
        np.unique(labels, return_counts=True)[1] if labels is not None and len(labels) else np.array([LABELS_A_CLASS])
    )
    per_class = int(min(LABELS_A_CLASS, counts.min()))
    most = BATCH if labels is None else min(BATCH, per_class * len(counts))
    batch = max(1, most // mesh.size) * mesh.size

    def top1(what, task, name, **fields):
        derived = _derived(config, workdir, task, per_class, batch)
        derived.finetune.update(fields)
        found, problem = {}, ""
        try:
            evaluate = evaluate_linear if task == "linear" else evaluate_finetune
            found = evaluate(derived, workdir / name, mesh, say=_silent)
        except UserError as error:
            problem = str(error)
        processes.agree("judgements", {what: problem}, seconds=600)  # all go on, or none
        if problem:
            say(f"{what} is left out: {problem}")
            return None
        return {f"{name}_top1": found["mean"]["final.top1"]} if found else {}

    linear = top1("the linear accuracy", "linear", "linear")
    tuned = top1("fine-tuning on few labels", "finetune", "finetune")
    scratch = None
    if tuned is not None:
        scratch = top1("its baseline from scratch", "finetune", "from_scratch", from_scratch=True)
    return (linear or {}) | (tuned | scratch | {"labels_a_class": per_class} if tuned and scratch else {})


def _derived(config: ConfigDict, workdir: epath.Path, task: str, per_class: int, batch: int) -> ConfigDict:
    derived = config.copy_and_resolve_references()
    with derived.unlocked():
        derived.task, derived.init_from, derived.repeats = task, str(workdir), 1
        derived.linear.cached = True
        derived.batch_size = batch
        derived.epochs = EPOCHS
        derived.sgd.update(learning_rate_head=RATE, learning_rate_encoder=RATE, schedule="cosine", weight_decay=0.0)
        derived.sgd.evaluate_every_epochs = EPOCHS
        derived.finetune.update(
            chosen_by="seed", per_class=per_class, learning_rate_from_scratch=RATE, from_scratch=False
        )
        derived.checkpoint.every_epochs = EPOCHS
        derived.log.tensorboard = False
    return derived


def _silent(_: str) -> None:
    """The run tells of it in its own last lines."""
