"""The task `linear`: a linear classifier on the frozen encoder (paper, section 3.1).

Trained by SGD on augmented images as in the official evaluate.py, or, with `linear.cached`, by L-BFGS on features that are
computed once.
"""

import shlex
import time
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.views.spec import ViewSpec
from bt_jax.engine.session import Session
from bt_jax.evaluation.cached_probe import CachedProbe, Classifier
from bt_jax.evaluation.classifier import ClassifierTraining
from bt_jax.evaluation.judged import Evaluation, run_task
from bt_jax.evaluation.results import Result, make_result, mean_and_spread, write_result
from bt_jax.optim.make import described_schedule
from bt_jax.reporting.report.stored import write_arrays


def linear(config: ConfigDict, workdir: str) -> Result:
    """Trains and evaluates a linear classifier on the encoder that `config.init_from` names.

    Returns:
      The content of WORKDIR/linear.json (see bt_jax/evaluation/results.py) on the first process.

    Raises:
      UserError: bad input.
    """
    return run_task(config, workdir, evaluate_linear)


def evaluate_linear(
    config: ConfigDict,
    workdir: epath.Path,
    mesh: Mesh,
    *,
    within: Session | None = None,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Like `linear`, in joined processes, on a mesh; `within` and `say` as for `Evaluation`.

    The task `transfer` calls it too.
    """
    evaluation = Evaluation(config, workdir, mesh, within=within, say=say)
    config = evaluation.config
    quiet = say is not None
    runs = cached_runs(evaluation) if config.linear.cached else sgd_runs(evaluation, quiet=quiet)
    protocol = describe_cached(config) if config.linear.cached else describe_sgd(config)
    confused = runs[0].pop("confusion", None) if runs else None
    result = make_result(
        config, protocol=protocol, data=evaluation.data_facts(), checkpoint=evaluation.judged.facts, runs=runs
    ) if evaluation.is_first else {}  # fmt: skip
    if evaluation.is_first:
        evaluation.say("\n" + farewell(result, workdir))
        write_result(workdir, result)
        if confused is not None:
            write_arrays(
                workdir / "confusion.npz", {"counts": confused, "names": np.array(evaluation.train.class_names)}
            )
    return result


def describe_sgd(config: ConfigDict) -> str:
    norm = "batch norm on the features; " * config.linear.batch_norm
    return (
        f"frozen encoder; {norm}SGD, {config.epochs} epochs in batches of {config.batch_size}, learning rate "
        f"{config.sgd.learning_rate_head:g} × {config.batch_size}/256, {described_training(config)}"
    )


def described_training(config: ConfigDict) -> str:
    """The end of a protocol that trains: the schedule, the momentum, what is drawn of an image, and the dtype."""
    sgd = config.sgd
    nesterov = " of Nesterov" if sgd.nesterov else ""
    return (
        f"{described_schedule(sgd)}, momentum{nesterov} {sgd.momentum:g}, weight decay {sgd.weight_decay:g}; "
        f"{ViewSpec(**config.supervised.view).described()}; in {config.dtype}"
    )


def describe_cached(config: ConfigDict) -> str:
    return (
        "frozen encoder; features once, without augmentation; L-BFGS, l2 of "
        f"{', '.join(f'{l2:g}' for l2 in config.linear.l2)} chosen on {config.linear.held_out:.0%} of the train images; features in "
        f"{config.dtype}"
    )


def sgd_runs(evaluation: Evaluation, *, quiet: bool = False) -> list[Result]:
    """One run per seed, in separate folders if there are several."""
    config = evaluation.config
    seeds = range(config.seed, config.seed + config.repeats)
    trainings = [
        ClassifierTraining(
            config,
            evaluation.workdir if config.repeats == 1 else evaluation.workdir / f"seed_{seed}",
            evaluation.mesh,
            evaluation.judged,
            evaluation.train,
            evaluation.test,
            seed=seed,
            rates={"classifier": config.sgd.learning_rate_head},
            batch_norm=config.linear.batch_norm,
            quiet=quiet,
        )
        for seed in seeds
    ]  # all are checked before the first starts
    runs = []
    with evaluation.begun(describe_sgd(config), seeds=described_seeds(config)) as session:
        for seed, training in zip(seeds, trainings, strict=True):
            if config.repeats > 1:
                evaluation.say(f"\nseed {seed}")
            runs.append(training.run(session))
    return runs


def described_seeds(config: ConfigDict) -> str:
    return (
        f"seed {config.seed}" if config.repeats == 1 else f"seeds {config.seed} to {config.seed + config.repeats - 1}"
    )


def cached_runs(evaluation: Evaluation) -> list[Result]:
    """Computes features once, then fits once per seed, which selects the train images held out to choose l2."""
    runs: list[Result] = []
    with evaluation.begun(describe_cached(evaluation.config), seeds=described_seeds(evaluation.config)) as session:
        session.do(lambda: runs.extend(_fits(evaluation)), "the linear probe")
    return runs


def _fits(evaluation: Evaluation) -> Iterator[Result]:
    config = evaluation.config
    begin = time.monotonic()
    train, labels = evaluation.features(evaluation.train)
    test, test_labels = evaluation.features(evaluation.test)
    evaluation.say(f"features of {len(labels)} and {len(test_labels)} images in {time.monotonic() - begin:.0f} s")
    probe = CachedProbe(
        train,
        labels,
        num_classes=evaluation.train.num_classes,
        mesh=evaluation.mesh,
        max_iterations=config.linear.max_iterations,
    )
    for seed in range(config.seed, config.seed + config.repeats):
        begin = time.monotonic()
        classifier, l2, held = probe.fit_best(tuple(config.linear.l2), held_out=config.linear.held_out, seed=seed)
        found = probe.count(classifier, test, test_labels).result()
        stopped = probe.iterations == config.linear.max_iterations
        if stopped:
            evaluation.say(
                f"note      L-BFGS stopped at linear.max_iterations, {probe.iterations}, before it had converged"
            )
        edge = " (at the edge of linear.l2; extend it)" if l2 in (min(held), max(held)) and len(held) > 1 else ""
        evaluation.say(
            f"seed {seed}: l2 {l2:g}{edge}, {held[l2]:.2%} of the held-out images, {time.monotonic() - begin:.0f} s"
        )
        yield {
            "seed": seed,
            "final": found,
            "l2": l2,
            "held_out_top1": {f"{value:g}": accuracy for value, accuracy in held.items()},
            "iterations": probe.iterations,
            "train_images": len(labels),
            "seconds_of_fit": round(time.monotonic() - begin, 1),
        } | ({"confusion": _confusion(probe, classifier, test, test_labels)} if seed == config.seed else {})


def _confusion(probe: CachedProbe, classifier: Classifier, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(K, K) int64: images of each class, by row, and what they are taken for, by column."""
    predicted = np.argmax(probe.standardized(features) @ classifier["kernel"] + classifier["bias"], axis=1)
    k = len(classifier["bias"])
    known = labels >= 0
    return np.bincount(labels[known].astype(np.int64) * k + predicted[known], minlength=k * k).reshape(k, k)


def farewell(result: Result, workdir: epath.Path) -> str:
    """The last lines of an evaluation that measures top-1."""
    many = result["data"]["classes"] > 5
    images = result["runs"][0]["final"].get("images", result["data"]["test_images"])  # without those that do not decode
    lines = [f"top-1, final  {mean_and_spread(result, 'final.top1')} of {images} test images"]
    if many:
        lines.append(f"top-5, final  {mean_and_spread(result, 'final.top5')}")
    if "best.top1" in result["mean"]:
        epochs = ", ".join(str(run["best"]["epoch"]) for run in result["runs"])
        lines.append(
            f"top-1, best   {mean_and_spread(result, 'best.top1')}, epoch {epochs}; biased, as it is chosen on test images"
        )
    lines.append(f"result        {workdir / (result['task'] + '.json')}")
    lines.append(f"as a table    python -m bt_jax.evaluation.table {shlex.quote(str(workdir))}")
    return "\n".join(lines)
