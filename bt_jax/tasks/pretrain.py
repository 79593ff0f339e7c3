"""The pre-training run: everything that happens between steps.

The order of a start, and of a restart:

1. processes and mesh; data, method and optimiser as the config says; nothing has been written yet;
2. the workdir is held against other runs, its config compared, what killed runs left half written removed;
3. the state: the newest checkpoint that can be read and is what was saved; else the weights that `init_from` names in a
   fresh state; else a fresh state;
4. what the checkpoint tells besides: that the data is still what it was, the seconds so far, the metrics, of which those
   beyond its step are dropped;
5. a look by the monitor that was due at this step and had not been taken; then steps.

Batches and random numbers follow from (seed, step), so that nothing else has to be restored for the very same bits.
"""

import contextlib
import datetime
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from bt_jax import config as config_lib
from bt_jax.data.feed import DeviceFeed
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.make import make_source
from bt_jax.data.views.spec import batch_spec
from bt_jax.engine.checkpoint import Checkpoints, storage_failure
from bt_jax.engine.dispatch import make_program
from bt_jax.engine.state import TrainState, abstract_state, init_state
from bt_jax.engine.step import jit_step, make_train_step
from bt_jax.errors import Preempted, UserError
from bt_jax.evaluation.monitor import KnnMonitor
from bt_jax.export.init_from import start_from
from bt_jax.facts import Facts
from bt_jax.methods import check_source, make_method
from bt_jax.optim.recipe import make_optimizer, make_schedules
from bt_jax.reporting.profile import Profiler, flops_of
from bt_jax.reporting.progress import Reporter
from bt_jax.reporting.summary import farewell, summary
from bt_jax.runtime import mesh as mesh_lib
from bt_jax.runtime import processes
from bt_jax.runtime.preemption import Preemption
from bt_jax.runtime.workdir import Holder, claim_workdir, held
from bt_jax.tasks.judge_at_end import judge_at_end
from bt_jax.version import __version__


def pretrain(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Pre-trains an encoder as `config` says, or goes on with the run that `workdir` holds.

    Returns:
      What is also written to WORKDIR/pretrain.json: the last metrics, kNN accuracy before and after, steps, seconds.

    Raises:
      UserError: bad input; the loss is not finite (the last good checkpoint is kept); another run is in the workdir; it
        cannot be written any more.
      Preempted: the process was told to leave; the step is saved.
    """
    config_lib.check(config)
    with processes.joined(config, workdir):
        mesh = mesh_lib.make_mesh(config.mesh)
        mesh_lib.check_batch_size(mesh, config.batch_size)
        if jax.process_count() > 1:
            print(mesh_lib.share(mesh, config.batch_size), flush=True)
        return Pretraining(config, epath.Path(workdir).expanduser(), mesh).run()


class Pretraining:
    """One run: what `pretrain` sets up, and the loop."""

    def __init__(self, config: ConfigDict, workdir: epath.Path, mesh: jax.sharding.Mesh):
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.is_first = jax.process_index() == 0
        self.source: Source = make_source(config.data, "train")
        self.facts = Facts.of(self.source, batch_size=config.batch_size, epochs=config.epochs)
        self.steps_per_epoch, self.total_steps = self.facts.steps_per_epoch, self.facts.total_steps
        self.method = make_method(config, self.facts, mesh)
        check_source(self.method, self.source)
        lengths = {"batch_size": config.batch_size, "steps_per_epoch": self.steps_per_epoch, "epochs": config.epochs}
        self.schedules = make_schedules(config.optimizer, **lengths)
        self.optimizer = make_optimizer(config.optimizer, **lengths)
        self.batch_spec = batch_spec(self.method.view_groups, config.batch_size)
        self.monitor = None
        if config.monitor.every_epochs:
            self.monitor = KnnMonitor(config, self.method.encoder, self.source, mesh)
        self.sources = [self.source] if self.monitor is None else [self.source, self.monitor.test]
        self.told: dict[str, int] = {}  # how many of a source's bad images have been named
        counts = {f"split {i}": f"{len(s)} images, {s.num_classes} classes" for i, s in enumerate(self.sources)}
        processes.agree("data", counts)
        self.feed = DeviceFeed(config, self.source, mesh) if config.data.views == "device" else None
        self.preemption = Preemption()
        self.holder: Holder | None = None  # of process 0
        self.accuracies: dict[int, float] = {}  # what the monitor saw, by step; the same on all processes
        self.notes: dict[str, Any] = {}  # what the checkpoint told besides the state
        self.begin = time.monotonic()

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        settings = self.config.checkpoint
        kept = settings.keep_every_epochs * self.steps_per_epoch
        return Checkpoints(self.workdir, settings.keep, keep_every_steps=kept, keep_best=settings.keep_best)

    def run(self) -> dict[str, Any]:
        try:
            with contextlib.ExitStack() as stack:
                # Now, when all about the config has proved right: a mistaken start leaves no workdir behind.
                if self.is_first:
                    self.holder = stack.enter_context(held(self.workdir))
                    claim_workdir(self.config, self.workdir, write=True)
                stack.enter_context(self.preemption)
                return self._run()
        except OSError as error:
            if sentence := storage_failure(self.workdir, error):
                raise UserError(sentence) from error
            raise
        except Preempted:
            self.preemption.requeue()  # the last act: Slurm ends the job at once
            raise

    def _run(self) -> dict[str, Any]:
        state, start_step, notices = self._state()
        reporter = Reporter(
            self.workdir,
            start_step=start_step,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=self.config.batch_size,
            every_steps=self.config.log.every_steps,
            tensorboard=self.config.log.tensorboard,
            active=self.is_first,
            history=self.notes.get("history", ()),
            # What is about to be looked at again is about to be recorded again.
            history_is_all=start_step == 0 or not self.notes.get("watched", True),
        )
        try:
            reporter.say(summary(self, state, start_step, notices))
            state = self._train(state, start_step, reporter)
            self.checkpoints.wait()
            result = self._result(reporter.history(), reporter.say)
            reporter.say(farewell(self, result))
        finally:
            reporter.close()
            self.checkpoints.close()
        if self.is_first:
            (self.workdir / "pretrain.json").write_text(json.dumps(result, indent=2) + "\n")
        return result

    def _state(self) -> tuple[TrainState, int, list[str]]:
        like = abstract_state(self.method, self.optimizer, self.batch_spec, self.mesh)
        state, step, notices = self.checkpoints.restore_newest(like)
        if state is None:
            state = init_state(self.method, self.optimizer, self.config.seed, self.batch_spec, self.mesh)
            state, told = start_from(self.config, state)
            return state, 0, notices + told
        self.notes = self.checkpoints.run_of(step)
        data, now = self.notes.get("data", {}), self._data_position(step)
        differ = [f"{n} was {data[n]} and is now {now[n]}" for n in now if data.get(n, now[n]) != now[n]]
        if differ:
            raise UserError(
                f"the data is not what it was when checkpoint {step} was saved ({'; '.join(differ)}), so the run cannot go on "
                "as it began; bring back the data, or choose another --workdir."
            )
        return state, step, notices

    def _data_position(self, step: int) -> dict[str, int]:
        """Where a run of `step` updates stands in its data."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return {"images": len(self.source), "steps_per_epoch": self.steps_per_epoch, "epoch": epoch, "batch": batch}

    def _save(self, state: TrainState, step: int, reporter: Reporter, *, watched: bool) -> None:
        """Starts to save the state and what else belongs to the run."""
        if self.holder is not None:
            self.holder.check()
        notes = {
            "config": self.config.to_dict(),
            "data": self._data_position(step),
            "watched": watched,  # whether the monitor's look at this step was taken, or is still to be
            "history": reporter.history(),
            "seconds": round(self._seconds(), 3),
            "saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {"bt_jax": __version__, "jax": jax.__version__},
        }
        self.checkpoints.save(step, state, run=notes, score=self.accuracies.get(step))

    def _seconds(self) -> float:
        """Of all starts of this run, those before the checkpoint that this one went on from included."""
        return self.notes.get("seconds", 0.0) + time.monotonic() - self.begin

    def _leave(self, step: int) -> None:
        """Ends a run that was told to leave, once the step is on disk."""
        self.checkpoints.wait()
        self.preemption.leave(f"step {step} of {self.total_steps} is saved in {self.checkpoints.folder}")

    def _train(self, state: TrainState, start_step: int, reporter: Reporter) -> TrainState:
        single_step = _grouped(make_train_step(self.method, self.optimizer, self.config.seed))
        train_step = jit_step(make_program(single_step, self.feed and self.feed.prepare), state, self.mesh)
        profiler = Profiler(self.config.profile, self.workdir, self.config.dtype, reporter.say)
        train_step = profiler.wrap(train_step, lambda: flops_of(single_step, *self._shapes()))
        if start_step == 0 or not self.notes.get("watched", True):
            self.preemption.finished(lambda: self._watch(state, start_step, reporter))
        if start_step == self.total_steps:
            return state
        if self.preemption.signal and jax.process_count() == 1:  # several agree at a step
            self.preemption.leave("nothing new was to be saved")
        batches = self._batches(start_step)
        waiting, before = None, start_step  # (step, metrics) that the devices are still computing
        try:
            for step, batch in batches:
                with jax.transfer_guard("disallow"):
                    state, metrics = train_step(state, batch)
                if waiting is not None:
                    self._report(*waiting, reporter)
                waiting = (step, metrics)
                epoch_ends = step % self.steps_per_epoch == 0
                epoch, last = step // self.steps_per_epoch, step == self.total_steps
                leave = not last and self.preemption.reached(step)
                saving = self.config.checkpoint
                save = last or leave or (epoch_ends and epoch % saving.every_epochs == 0)
                # A dispatch of several steps may pass over a multiple.
                save = save or (saving.every_steps > 0 and step // saving.every_steps > before // saving.every_steps)
                before = step
                if save:
                    self._report(*waiting, reporter)  # first: what is not finite must not be saved
                    waiting = None
                watched = self.config.monitor.every_epochs
                look = watched > 0 and (last or (epoch_ends and epoch % watched == 0))
                seen = not look or (
                    not leave and self.preemption.finished(lambda: self._watch(state, step, reporter))  # noqa: B023
                )
                leave = leave or not seen
                if save or leave:
                    if waiting is not None:
                        self._report(*waiting, reporter)
                        waiting = None
                    with reporter.pause():
                        self._save(state, step, reporter, watched=seen)
                if leave:
                    self._leave(step)
                self._tell_of_bad_images(reporter, epoch_ends=epoch_ends)
        finally:
            batches.close()
            profiler.close()
        return state

    def _shapes(self):
        """The state's and a batch's, as one step takes them."""
        return abstract_state(self.method, self.optimizer, self.batch_spec, self.mesh), self.batch_spec

    def _tell_of_bad_images(self, reporter: Reporter, *, epoch_ends: bool) -> None:
        """Names once each image that turned out not to decode, and counts them at the end of an epoch.

        Each process knows of those that it met itself.
        """
        say = reporter.say if self.is_first else print
        for source in self.sources:
            for example, why in list(source.bad.items())[self.told.get(source.name, 0) :]:
                say(f"{source.place(example)} cannot be read as an image ({why}); it is left out")
            self.told[source.name] = len(source.bad)
            if source.bad and epoch_ends:
                say(f"{len(source.bad)} of {len(source)} images in {source.name} left out")

    def _batches(self, start_step: int) -> Iterator[tuple[int, Any]]:
        """(steps done after it, what the program takes) of each dispatch."""
        if self.feed is not None:
            yield from self.feed.batches(start_step, self.total_steps)
            return
        from bt_jax.data.pipeline import train_batches  # the first import of TensorFlow

        host = train_batches(
            self.source,
            self.config.data,
            specs=self.method.view_groups[0].draws,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            rows=mesh_lib.process_rows(self.mesh, self.config.batch_size),
            start_step=start_step,
            num_steps=self.total_steps - start_step,
        )
        batches = mesh_lib.prefetch_to_mesh(host, self.mesh, self.config.batch_size)
        yield from zip(range(start_step + 1, self.total_steps + 1), batches, strict=True)

    def _report(self, last: int, metrics: dict[str, jax.Array], reporter: Reporter) -> None:
        """Of a dispatch, whose metrics are scalars or have an axis of steps, the last of which is `last`."""
        metrics = {name: np.ravel(values) for name, values in jax.device_get(metrics).items()}
        count = len(metrics[self.method.metrics[0]])
        for i in range(count):
            of_step = {name: values[i] for name, values in metrics.items()}
            self._report_step(last - count + 1 + i, of_step, reporter, timed=i == count - 1)

    def _report_step(self, step: int, metrics: dict[str, np.ndarray], reporter: Reporter, *, timed: bool) -> None:
        values = {name: float(metrics[name]) for name in self.method.metrics}
        weights, biases = (float(schedule(step - 1)) for schedule in self.schedules)
        rates = {"learning_rate_weights": weights, "learning_rate_biases": biases}
        reporter.step(step, values, rates, timed=timed)
        if not all(map(math.isfinite, values.values())):
            self.checkpoints.wait()
            good = self.checkpoints.steps()
            kept = f"the last good checkpoint is step {good[-1]} in {self.checkpoints.folder}" if good else (
                "no checkpoint had been saved yet"
            )  # fmt: skip
            raise UserError(
                f"the loss is not finite at step {step} ({', '.join(f'{k} {v:g}' for k, v in values.items())}); {kept}. "
                f"{self.method.advice}"
            )

    def _watch(self, state: TrainState, step: int, reporter: Reporter) -> None:
        if self.monitor is None:
            return
        with reporter.pause():
            found = self.monitor.report(state.encoder_variables())
            self.accuracies[step] = found["knn_accuracy"]
            reporter.record(step, found)
            start = "untrained" if not self.config.init_from else "before training"
            when = start if step == 0 else f"after epoch {step // self.steps_per_epoch}"
            rank = f"RankMe {found['rankme']:.1f} of {self.method.encoder.num_features}"
            dead = f", {found['dead_features']} dead" if found["dead_features"] else ""
            reporter.say(f"kNN accuracy {found['knn_accuracy']:.1%} {when}; {rank}{dead}")

    def _result(self, history: list[dict], say: Callable[[str], None]) -> dict[str, Any]:
        last = {}
        for record in history:
            last |= record
        knn = [record["knn_accuracy"] for record in history if "knn_accuracy" in record]
        result = {
            "task": "pretrain",
            "step": self.total_steps,
            "metrics": last,
        }
        if knn:  # in the records, and so on process 0 alone
            result |= {"knn_accuracy_before": knn[0], "knn_accuracy_after": knn[-1]}
        if self.monitor is not None and self.config.data.image_size <= 64:  # a work of all processes
            result["knn_accuracy_raw_pixels"] = self.monitor.raw_pixels()
        if self.config.monitor.judge_at_end:
            found = {}
            labels = getattr(self.source, "labels", None)
            if not self.preemption.finished(
                lambda: found.update(judge_at_end(self.config, self.workdir, self.mesh, labels=labels, say=say))
            ):
                self.preemption.leave("the run is done but for the judgement of its encoder")
            result |= found
        result |= {
            "seconds": round(self._seconds(), 1),
            "seconds_of_last_start": round(time.monotonic() - self.begin, 1),
        }
        return result


def _grouped(step):
    """The step, for batches whose two views are not in a group yet."""

    def grouped(state, batch):
        views = batch["views"]
        return step(state, batch if isinstance(views, dict) else {**batch, "views": {"pair": views}})

    return grouped
