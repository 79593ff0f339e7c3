"""A short evaluation at the end of a run, on its own data.

It measures the linear accuracy with the cached probe, and compares fine-tuning on a few labels with training from scratch on
the same labels, with the same learning rates and epochs. It calls the functions of the tasks, in folders within the run's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import config as config_lib
from bt_jax.engine.session import Session
from bt_jax.errors import UserError
from bt_jax.runtime import processes
from bt_jax.runtime.workdir import check_config
from bt_jax.tasks.finetune import evaluate_finetune
from bt_jax.tasks.linear import evaluate_linear


def judge_at_end(
    config: ConfigDict,
    session: Session,
    mesh: Mesh,
    *,
    labels: np.ndarray | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Evaluates the newest checkpoint of the run in `session.workdir`.

    What cannot be evaluated (for example with only one class, or a test split without labels) is reported and left out.

    Args:
      config: the run's.
      labels: of its training images, (n,) integers, if they are known.
      say: called with lines for the user.

    Returns:
      {"linear_top1", "finetune_top1", "from_scratch_top1", "labels_a_class"}, without what was left out; {} on processes
      other than the first.
    """
    workdir = session.workdir
    wanted, most = config.judge.labels_a_class, config.judge.batch_size
    counts = np.unique(labels, return_counts=True)[1] if labels is not None and len(labels) else np.array([wanted])
    per_class = int(min(wanted, counts.min()))
    most = most if labels is None else min(most, per_class * len(counts))
    batch = max(1, most // mesh.size) * mesh.size

    def top1(what, task, name, **fields):
        derived = _derived(config, workdir, task, batch)
        if task == "finetune":
            derived.finetune.update(per_class=per_class, **fields)
        if session.is_first:
            _remove_other_judgement(derived, workdir / name)
        processes.agree("judgements", {what: "to begin"})  # none reads what is being removed
        found, problem = {}, ""
        try:
            evaluate = evaluate_linear if task == "linear" else evaluate_finetune
            found = evaluate(derived, workdir / name, mesh, within=session, say=_silent)
        except UserError as error:
            problem = str(error)
        try:  # all continue, or none
            processes.agree("judgements", {what: problem}, seconds=60 if problem else 600)
        except UserError as error:
            # The others may wait for this one in the middle of it: only its end, with what is wrong, frees them.
            raise UserError(problem) if problem else error from None
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


def _derived(config: ConfigDict, workdir: epath.Path, task: str, batch: int) -> ConfigDict:
    """The config of an evaluation with the settings of `config.judge`."""
    judge, derived = config.judge, config_lib.based_on(config, task)
    derived.init_from = str(workdir)
    derived.batch_size, derived.epochs = batch, judge.epochs
    derived.supervised.view.update(judge.view)
    derived.features.batch_size = config.monitor.batch_size
    derived.sgd.update(
        learning_rate_head=judge.learning_rate,
        learning_rate_encoder=judge.learning_rate,
        weight_decay=0.0,
        evaluate_every_epochs=judge.epochs,
    )
    if task == "linear":
        derived.linear.cached = True
    else:
        derived.finetune.learning_rate_from_scratch = judge.learning_rate
    derived.checkpoint.every_epochs = judge.epochs
    derived.log.update(tensorboard=False, wandb=False, mlflow=False)
    return derived


def _remove_other_judgement(derived: ConfigDict, folder: epath.Path) -> None:
    """Removes a judgement with other fields of `judge` or on other devices: those of this start could not resume it.

    It is made anew from the run. An evaluation that a user has put there is not removed.
    """
    try:
        check_config(derived, folder)
    except UserError:
        if _is_judgement(folder):
            # The config is removed last, so that the next start removes what is left if this one is stopped.
            for path in [path for path in folder.iterdir() if path.name != "config.json"]:
                path.rmtree() if path.is_dir() else path.unlink()
            folder.rmtree()


def _is_judgement(folder: epath.Path) -> bool:
    """Whether the config in the folder has what only `_derived` gives it."""
    try:
        there = config_lib.flatten(config_lib.from_json((folder / "config.json").read_text()))
    except (OSError, ValueError):
        return False
    saved, looked, epochs = (there.get(n) for n in ("checkpoint.every_epochs", "sgd.evaluate_every_epochs", "epochs"))
    return saved == looked == epochs and not any(there.get(f"log.{n}") for n in ("tensorboard", "wandb", "mlflow"))


def _silent(_: str) -> None:
    """Drops a line; the run reports the result in its last lines."""
