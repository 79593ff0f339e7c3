"""The training loop: everything that happens between steps, for pre-training, fine-tuning and probes alike.

Batches and random numbers follow from (seed, step), so that a checkpoint's state is enough to resume bit-identically. Metrics
are fetched one step late, so that no device waits for the host.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from bt_jax import console
from bt_jax.data.views.spec import batch_spec
from bt_jax.engine.dispatch import Program, make_program
from bt_jax.engine.due import due
from bt_jax.engine.fingerprints import not_finite
from bt_jax.engine.run import Run
from bt_jax.engine.setup import Setup
from bt_jax.engine.state import TrainState, abstract_state
from bt_jax.engine.step import jit_step, make_train_step
from bt_jax.errors import NotFinite, UserError, some
from bt_jax.reporting.bad_images import BadImages
from bt_jax.reporting.profile import Profiler, flops_of


@dataclasses.dataclass(frozen=True)
class Look:
    """The result of a look at the state, an evaluation during training.

    Attributes:
      record: numbers by name, for the files.
      sentence: for the user.
      score: how good the state is, higher is better; it decides which checkpoints are the best.
    """

    record: Mapping[str, float]
    sentence: str
    score: float | None = None


def run_steps(run: Run, look: Callable[[TrainState, int], Look] | None = None) -> TrainState:
    """Runs the remaining steps.

    Args:
      look: evaluates the state after a step, when `setup.cadence` says so. If a signal interrupts it, it is repeated first
        when the run resumes.

    Returns:
      The state after the last step.

    Raises:
      UserError: the loss or the weights are not finite (the last good checkpoint is kept), or the workdir can no longer be
        written.
      Preempted: the process was asked to stop, and the step is saved.
    """
    setup, preemption, reporter = run.setup, run.session.preemption, run.reporter
    facts, cadence = setup.facts, setup.cadence
    state, before = run.start.state, run.start.step
    looks, bad_images = (
        _Looks(run, look),
        BadImages(setup.sources, reporter.say if run.session.is_first else console.say),
    )
    profiler = Profiler(setup.profile, setup.workdir, setup.dtype, reporter.say)
    program = profiler.wrap(_program(setup), lambda: _flops_of_a_step(setup))
    look_is_due = (cadence.look_first and before == 0) or not run.start.notes.looked
    if look_is_due and not preemption.finished(lambda: looks.take(state, before)):
        # Even after the last step: without this look the result would be that of the one before.
        preemption.leave("nothing new was to be saved")
    if before and (score := looks.score_at(before)) is not None:
        run.checkpoints.add_score(before, score)
    if before == facts.total_steps:
        return state
    if preemption.signal and jax.process_count() == 1:  # several agree at a step
        preemption.leave("nothing new was to be saved")
    batches = setup.feed.batches(before, facts.total_steps)
    timed = _timed(batches, reporter.waited)
    waiting = None  # (step, metrics) that are still being computed
    watch = _CollapseWatch(run)
    try:
        for step, batch in timed:
            run.checkpoints.check()
            with jax.transfer_guard("disallow"):
                state, metrics = program(state, batch)
            if waiting is not None:
                _report(run, watch, *waiting)
            waiting = (step, metrics)
            now = due(before, step, facts, cadence)
            before = step
            leaving = not now.last and preemption.reached()
            if now.save or now.look or leaving:
                # First, because a state that is not finite must not be saved.
                _report(run, watch, *waiting, at_once=True)
                waiting = None
                _check_finite(run, state, step)
            looked = not now.look or (not leaving and preemption.finished(functools.partial(looks.take, state, step)))
            leaving = leaving or not looked
            if now.save or leaving:
                with reporter.pause():
                    run.save(state, step, looked=looked, score=looks.score_at(step))
            if leaving:
                run.leave(step)
            bad_images.tell(epoch_ends=now.epoch_ends)
    finally:
        batches.close()
        profiler.close()
    return state


def _timed(batches: Iterator[Any], tell: Callable[[float], None]) -> Iterator[Any]:
    """The same batches; `tell` gets the seconds that each has taken to come."""
    begin = time.monotonic()
    for batch in batches:
        tell(time.monotonic() - begin)
        yield batch
        begin = time.monotonic()


class _Looks:
    """Takes looks, and keeps the last score."""

    def __init__(self, run: Run, look: Callable[[TrainState, int], Look] | None):
        self._run, self._look = run, look
        self._scored: tuple[int, float | None] = (-1, None)

    def take(self, state: TrainState, step: int) -> None:
        if self._look is None:
            return
        reporter = self._run.reporter
        with reporter.pause():
            found = self._look(state, step)
            self._scored = (step, found.score)
            reporter.record(step, dict(found.record))
            if found.sentence:
                reporter.say(found.sentence)

    def score_at(self, step: int) -> float | None:
        return self._scored[1] if self._scored[0] == step else None


class _CollapseWatch:
    """Says once, in the method's words, that the network has collapsed."""

    STEPS = 20  # in succession that must show it, as embeddings move far in the first steps

    def __init__(self, run: Run):
        self._run, self._count = run, 0

    def see(self, step: int, values: Mapping[str, float]) -> None:
        if self._count == self.STEPS:
            return
        sentence = self._run.setup.method.collapse(values)
        self._count = self._count + 1 if sentence else 0
        if self._count == self.STEPS:
            self._run.reporter.say(f"since step {step - self.STEPS + 1} {sentence}")


def _report(
    run: Run, watch: _CollapseWatch, last: int, metrics: Mapping[str, jax.Array], *, at_once: bool = False
) -> None:
    """Reports a dispatch, whose metrics are scalars or have an axis of steps that ends at `last`."""
    names, schedules = run.setup.method.metrics, run.setup.optimizer.schedules
    # Of the step itself: a schedule called here would put its operations behind the step that has just been dispatched.
    rate_names = [f"learning_rate_{name}" for name in schedules]
    columns = {name: np.ravel(values) for name, values in jax.device_get(dict(metrics)).items()}
    count = len(columns[names[0]])
    for i in range(count):
        step = last - count + 1 + i
        values = {name: float(columns[name][i]) for name in names}
        rates = {name: float(columns[name][i]) for name in rate_names}
        run.reporter.step(step, values, rates, timed=i == count - 1, at_once=at_once)
        if not all(map(math.isfinite, values.values())):
            found = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise _not_finite(run, f"the loss is not finite at step {step} ({found})")
        watch.see(step, values)


def _check_finite(run: Run, state: TrainState, step: int) -> None:
    """Raises NotFinite for a state that must not be saved.

    The loss of a step is that of the weights before its update, so it is finite where only the gradient is not.
    """
    if names := not_finite(dataclasses.replace(state, method_state=None)):  # a method may keep an infinity of its own
        raise _not_finite(run, f"the update is not finite at step {step} ({some(names)}), though its loss is")


def _not_finite(run: Run, sentence: str) -> UserError:
    run.checkpoints.wait()
    good = run.checkpoints.steps()
    kept = f"the last good checkpoint is step {good[-1]} in {run.checkpoints.folder}" if good else (
        "no checkpoint had been saved yet"
    )  # fmt: skip
    return NotFinite(f"{sentence}; {kept}. {run.setup.advice}")


def _program(setup: Setup) -> Program:
    """The jitted step, shared by trainings with equal parts."""
    parts = (setup.method, setup.optimizer, setup.seed, setup.facts.batch_size, setup.mesh, setup.feed.prepare)
    try:
        hash(parts)
    except TypeError:  # a user's method need not be hashable
        return _jitted.__wrapped__(*parts)
    return _jitted(*parts)


@functools.lru_cache(maxsize=4)
def _jitted(method, optimizer, seed, batch_size, mesh, prepare) -> Program:
    state = abstract_state(method, optimizer, batch_spec(method.view_groups, batch_size), mesh)
    return jit_step(make_program(make_train_step(method, optimizer, seed), prepare), state, mesh)


def _flops_of_a_step(setup: Setup) -> float:
    step: Any = make_train_step(setup.method, setup.optimizer, setup.seed)
    return flops_of(step, setup.abstract_state(), setup.batch_spec)
