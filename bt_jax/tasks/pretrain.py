"""The task `pretrain`: trains an encoder with a method, monitors it, and evaluates it at the end.

A start, or a restart, goes through these stages:

1. processes and mesh; data, method and optimizer from the config; nothing is written yet;
2. the workdir: it is locked against other runs, its config is compared, and incomplete files of killed runs are removed;
3. the state: the newest readable checkpoint; or else a new state, with the weights that `init_from` names if it is set;
4. the checkpoint's notes: the data must be unchanged, seconds continue, and metrics beyond its step are dropped;
5. a look by the monitor, if it was due at this step and not taken; then the steps (bt_jax/engine/loop.py).
"""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import config as config_lib
from bt_jax import console
from bt_jax.data.feed import make_feed
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.make import make_source, test_source
from bt_jax.engine.due import Cadence
from bt_jax.engine.loop import Look, run_steps
from bt_jax.engine.run import Run, started
from bt_jax.engine.session import session
from bt_jax.engine.setup import Setup
from bt_jax.engine.state import check_split
from bt_jax.evaluation.health import rank_in_words
from bt_jax.evaluation.monitor import FeatureMonitor, KnnMonitor
from bt_jax.evaluation.overfitting import overfitting
from bt_jax.evaluation.pairs import Pairs
from bt_jax.export.init_from import start_from
from bt_jax.facts import Facts
from bt_jax.methods import Method, check_source, make_method
from bt_jax.models.inputs import Inputs
from bt_jax.optim import make_optimizer
from bt_jax.runtime import mesh as mesh_lib
from bt_jax.runtime import processes
from bt_jax.runtime.files import write_whole
from bt_jax.runtime.paths import as_folder
from bt_jax.tasks.judge_at_end import judge_at_end
from bt_jax.tasks.summary import at_the_start, farewell, summary
from bt_jax.tasks.watch import Watch


def pretrain(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Pre-trains an encoder according to `config`, or resumes the run in `workdir`.

    Returns:
      The content of WORKDIR/pretrain.json: the last metrics, kNN accuracy before (if it was measured) and after, steps, seconds.

    Raises:
      UserError: bad input; the loss is not finite (the last good checkpoint is kept); another run holds the workdir, or it
        can no longer be written.
      Preempted: the process was asked to stop, and the step is saved.
    """
    config_lib.check(config)
    folder = as_folder(workdir, "--workdir")
    with processes.joined(config, workdir):
        mesh = mesh_lib.make_mesh(config.mesh)
        mesh_lib.check_batch_size(mesh, config.batch_size)
        if jax.process_count() > 1:
            console.say(mesh_lib.share(mesh, config.batch_size))
        setup, monitor = prepare(config, folder, mesh)
        setup.check_parts()
        with session(config, setup.workdir) as held:
            watch = Watch(config, setup, monitor)
            with (
                started(setup, held, fresh=functools.partial(start_from, config)) as run,
                contextlib.closing(watch),
            ):
                run.reporter.say(summary(config, setup, run.start))
                if monitor is not None and monitor.words:
                    run.reporter.say(f"note      {monitor.words}")
                watch.begin(run)
                run_steps(run, None if monitor is None else _looker(config, run, monitor, watch))
                run.finish()
                result = _result(config, run, monitor)
                if held.is_first:  # the report reads it
                    write_whole(setup.workdir / "pretrain.json", json.dumps(result, indent=2) + "\n")
                run.reporter.say(farewell(setup, result, watch.finish(run)))
        return result


def prepare(config: ConfigDict, workdir: epath.Path, mesh: Mesh) -> tuple[Setup, FeatureMonitor | None]:
    """The setup and the monitor of a config, on a mesh; nothing is written.

    Raises:
      UserError: the data, the method or the encoder does not match the config, or they do not fit together.
    """
    source = make_source(config.data, "train")
    facts = Facts.of(source, batch_size=config.batch_size, epochs=config.epochs)
    method = make_method(config, facts, mesh)
    check_source(method, source)
    monitor, sources = None, [source]
    if config.monitor.every_epochs:
        monitor = _monitor(config, method, source, mesh)
        sources += [monitor.source] if monitor.source is not source else []
    counts = {f"split {i}": [f"{len(s)} images, {s.num_classes} classes", s.fingerprint] for i, s in enumerate(sources)}
    processes.agree("data", counts)
    feed = make_feed(
        source,
        config.data,
        method.view_groups,
        mesh=mesh,
        seed=config.seed,
        facts=facts,
        steps_per_dispatch=config.steps_per_dispatch,
        labelled=method.needs_labels,
    )
    setup = Setup(
        workdir=workdir,
        seed=config.seed,
        facts=facts,
        method=method,
        optimizer=make_optimizer(config.optimizer, facts, width=getattr(method, "width", None)),
        feed=feed,
        mesh=mesh,
        sources=tuple(sources),
        cadence=Cadence(
            save_epochs=config.checkpoint.every_epochs,
            save_steps=config.checkpoint.every_steps,
            look_epochs=config.monitor.every_epochs,
            look_first=config.monitor.every_epochs > 0,
        ),
        checkpoint=config.checkpoint,
        log=config.log,
        profile=config.profile,
        dtype=config.dtype,
        config=config.to_dict(),
        advice=method.advice,
    )
    if mesh_lib.MODEL_AXIS in mesh.axis_names:
        check_split(method, setup.abstract_state(), mesh)
    return setup, monitor


def _monitor(config: ConfigDict, method: Method, source: Source, mesh: Mesh) -> FeatureMonitor:
    """With labels and test images that of kNN; else what can be seen without them."""
    test = test_source(config.data, source)
    common: dict[str, Any] = {
        "encoder": method.encoder,
        "inputs": Inputs.of(config.data, config.dtype),
        "pairs": _pairs(config, method, source, mesh),
        "mesh": mesh,
    }
    if test is not None and source.num_classes:
        return KnnMonitor(config.monitor, config.data, train=source, test=test, **common)
    lacks = "no test images (data.test_fraction would set some aside)" if source.num_classes else "no labels"
    words = (
        f"{source.name} has {lacks}: RankMe, alignment, uniformity and dead features are measured, and no kNN accuracy"
    )
    return FeatureMonitor(config.monitor, config.data, source=test or source, words=words, **common)


def _pairs(config: ConfigDict, method: Method, source: Source, mesh: Mesh) -> Pairs | None:
    """Two views of each image from the method's distributions, for alignment and uniformity."""
    if method.alignment is None or not config.monitor.pairs:
        return None
    name, first, second = method.alignment
    group = next(group for group in method.view_groups if group.name == name)
    # A set that is smaller than a batch has no pairs, so the batch is as large as such a set allows.
    small = len(source) // mesh.size * mesh.size
    size = min(config.monitor.batch_size, small) if small else config.monitor.batch_size
    return Pairs(
        source,
        config.data,
        group,
        (first, second),
        seed=config.seed,
        count=config.monitor.pairs,
        batch_size=size,
        mesh=mesh,
    )


# `load_encoder` and `init_from` take the newest step of a run, so the best one has to be named.
_BEST = (
    "          the best of RUN/checkpoints is the step with the highest knn_accuracy in RUN/metrics.jsonl, to be named as\n"
    "          load_encoder('RUN/checkpoints/STEP') or --config.init_from=RUN/checkpoints/STEP"
)


def _looker(config: ConfigDict, run: Run, monitor: FeatureMonitor, watch: Watch) -> Callable[..., Look]:
    setup = run.setup

    def look(state, step) -> Look:
        found = monitor.report(state.encoder_variables())
        when = at_the_start(config.init_from) if step == 0 else f"after epoch {step // setup.facts.steps_per_epoch}"
        dead = f", {found['dead_features']} dead" if found["dead_features"] else ""
        rank = f"RankMe {found['rankme']:.1f} of {setup.method.encoder.num_features}"
        if "knn_accuracy" in found:
            sentence, score = f"kNN accuracy {found['knn_accuracy']:.1%} {when}; {rank}{dead}", found["knn_accuracy"]
            classified = min(len(monitor.source), config.monitor.test_examples)
            if words := overfitting(run.reporter.history(), step, score, classified):
                sentence += f"\nnote      {words};\n          to cure that, {setup.method.overfitting_advice};\n{_BEST}"
        else:
            geometry = [f"{name} {found[name]:.3f}" for name in ("alignment", "uniformity") if name in found]
            sentence, score = f"{rank}{dead} {when}{geometry and '; '}{', '.join(geometry)}", found["rankme"]
        if step and (warning := rank_in_words(found["rankme"], setup.method.encoder.num_features)):
            sentence += f"\n{warning}"
        watch.look(run, state, step)
        return Look(record=found, sentence=sentence, score=score)

    return look


def _result(config: ConfigDict, run: Run, monitor: FeatureMonitor | None) -> dict[str, Any]:
    history, last = run.reporter.history(), {}
    for record in history:
        last |= record
    result = {"task": "pretrain", "method": config.method, "step": run.setup.facts.total_steps, "metrics": last}
    # The records are on process 0 only.
    result |= _before_and_after(history, "knn_accuracy") or _before_and_after(history, "rankme")
    if isinstance(monitor, KnnMonitor) and config.data.image_size <= 64:  # all processes take part
        result["knn_accuracy_raw_pixels"] = monitor.raw_pixels()
    if config.monitor.judge_at_end:
        result |= _judgement(config, run)
    return result | {
        "seconds": round(run.seconds(), 1),
        "seconds_of_last_start": round(run.seconds_of_this_start(), 1),
    }


def _before_and_after(history: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    """The first and the last number of a name; the first only of a look before the first step, which a run may not have taken."""
    found = [(record["step"], record[name]) for record in history if name in record]
    before = {f"{name}_before": value for step, value in found[:1] if step == 0}
    return before | {f"{name}_after": value for _, value in found[-1:]}


def _judgement(config: ConfigDict, run: Run) -> dict[str, Any]:
    session, source = run.session, run.setup.sources[0]
    found: dict[str, Any] = {}
    if not source.num_classes:
        run.reporter.say(f"the evaluation at the end is left out: it needs labels, and {source.name} has none")
        return found
    labels = getattr(source, "labels", None)

    def judge():
        found.update(judge_at_end(config, session, run.setup.mesh, labels=labels, say=run.reporter.say))

    if not session.preemption.finished(judge):
        session.preemption.leave(
            "training is complete, its final evaluation is not", then="the same command runs the evaluation again"
        )
    return found
