"""The pre-training run: everything that happens between steps.

The order of a start, and of a restart: processes and mesh; the config against the workdir's; data; method and optimiser;
the newest readable checkpoint, or a fresh state; what earlier reports lie beyond it is dropped; then steps. Batches and
random numbers follow from (seed, step), so that nothing but the state has to be restored.
"""

import json
import math
import time
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

import bt_jax
from bt_jax import config as config_lib
from bt_jax import mesh as mesh_lib
from bt_jax import processes
from bt_jax.checkpoint import Checkpoints
from bt_jax.data.sources import Source, make_source
from bt_jax.errors import UserError
from bt_jax.evaluation.at_end import judge_at_end
from bt_jax.methods import make_method
from bt_jax.optim import make_optimizer, make_schedules
from bt_jax.reporting.progress import Reporter, duration
from bt_jax.training.monitor import KnnMonitor
from bt_jax.training.state import TrainState, abstract_state, count_parameters, init_state, shardings_of
from bt_jax.training.step import make_train_step
from bt_jax.workdir import claim_workdir


def pretrain(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Pre-trains an encoder as `config` says, or goes on with the run that `workdir` holds.

    Returns:
      What is also written to WORKDIR/pretrain.json: the last metrics, kNN accuracy before and after, steps, seconds.

    Raises:
      UserError: bad input; the loss is not finite (the last good checkpoint is kept).
    """
    config_lib.check(config)
    with processes.joined(config, workdir):
        mesh = mesh_lib.make_mesh(config.mesh)
        mesh_lib.check_batch_size(mesh, config.batch_size)
        if jax.process_count() > 1:
            print(mesh_lib.share(mesh, config.batch_size), flush=True)
        return Pretraining(config, epath.Path(workdir), mesh).run()


class Pretraining:
    """One run: what `pretrain` sets up, and the loop."""

    def __init__(self, config: ConfigDict, workdir: epath.Path, mesh: jax.sharding.Mesh):
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.is_first = jax.process_index() == 0
        self.source: Source = make_source(config.data, "train")
        self.steps_per_epoch = len(self.source) // config.batch_size
        if self.steps_per_epoch == 0:
            raise UserError(
                f"{self.source.name} has {len(self.source)} images, fewer than a batch of {config.batch_size}; "
                f"set batch_size to at most {len(self.source)}."
            )
        self.total_steps = self.steps_per_epoch * config.epochs
        self.method = make_method(config, mesh)
        lengths = {"batch_size": config.batch_size, "steps_per_epoch": self.steps_per_epoch, "epochs": config.epochs}
        self.schedules = make_schedules(config.optimizer, **lengths)
        self.optimizer = make_optimizer(config.optimizer, **lengths)
        self.view_shape = (config.data.image_size, config.data.image_size, 3)
        self.monitor = None
        if config.monitor.every_epochs:
            self.monitor = KnnMonitor(config, self.method.encoder, self.source, mesh)
        self.sources = [self.source] if self.monitor is None else [self.source, self.monitor.test]
        self.told: dict[str, int] = {}  # how many of a source's bad images have been named
        counts = {f"split {i}": f"{len(s)} images, {s.num_classes} classes" for i, s in enumerate(self.sources)}
        processes.agree("data", counts)
        # Last, when all else about the config has proved right: a mistaken start leaves no workdir behind.
        if self.is_first:
            claim_workdir(config, workdir, write=True)
        self.checkpoints = Checkpoints(workdir, config.checkpoint.keep)

    def run(self) -> dict[str, Any]:
        begin = time.monotonic()
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
        )
        try:
            reporter.say(self._summary(state, start_step, notices))
            state = self._train(state, start_step, reporter)
            self.checkpoints.wait()
            result = self._result(reporter.history(), time.monotonic() - begin)
            reporter.say(self._farewell(result))
        finally:
            reporter.close()
            self.checkpoints.close()
        if self.is_first:
            (self.workdir / "pretrain.json").write_text(json.dumps(result, indent=2) + "\n")
        return result

    def _state(self) -> tuple[TrainState, int, list[str]]:
        like = abstract_state(self.method, self.optimizer, self.view_shape, self.mesh)
        state, step, notices = self.checkpoints.restore_newest(like)
        if state is None:
            state, step = init_state(self.method, self.optimizer, self.config.seed, self.view_shape, self.mesh), 0
        return state, step, notices

    def _train(self, state: TrainState, start_step: int, reporter: Reporter) -> TrainState:
        train_step = jax.jit(
            make_train_step(self.method, self.optimizer, self.config.seed),
            donate_argnums=0,
            out_shardings=(shardings_of(state), mesh_lib.everywhere(self.mesh)),
        )
        if start_step == 0:
            self._watch(state, 0, reporter)
        elif start_step == self.total_steps:
            return state
        batches = self._batches(start_step)
        waiting = None  # (step, metrics) that the devices are still computing
        try:
            for step, batch in zip(range(start_step + 1, self.total_steps + 1), batches, strict=True):
                with jax.transfer_guard("disallow"):
                    state, metrics = train_step(state, batch)
                if waiting is not None:
                    self._report(*waiting, reporter)
                waiting = (step, metrics)
                epoch_ends = step % self.steps_per_epoch == 0
                epoch, last = step // self.steps_per_epoch, step == self.total_steps
                save = last or (epoch_ends and epoch % self.config.checkpoint.every_epochs == 0)
                if save or last:
                    self._report(*waiting, reporter)  # first: what is not finite must not be saved
                    waiting = None
                watched = self.config.monitor.every_epochs
                if watched and (last or (epoch_ends and epoch % watched == 0)):
                    self._watch(state, step, reporter)
                if save:
                    with reporter.pause():
                        self.checkpoints.save(step, state)
                self._tell_of_bad_images(reporter, epoch_ends=epoch_ends)
        finally:
            batches.close()
        return state

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

    def _batches(self, start_step: int):
        from bt_jax.data.pipeline import train_batches  # the first import of TensorFlow

        host = train_batches(
            self.source,
            self.config.data,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            rows=mesh_lib.process_rows(self.mesh, self.config.batch_size),
            start_step=start_step,
            num_steps=self.total_steps - start_step,
        )
        return mesh_lib.prefetch_to_mesh(host, self.mesh, self.config.batch_size)

    def _report(self, step: int, metrics: dict[str, jax.Array], reporter: Reporter) -> None:
        metrics = jax.device_get(metrics)
        values = {name: float(metrics[name]) for name in self.method.metrics}
        weights, biases = (float(schedule(step - 1)) for schedule in self.schedules)
        rates = {"learning_rate_weights": weights, "learning_rate_biases": biases}
        reporter.step(step, values, rates)
        if not all(map(math.isfinite, values.values())):
            self.checkpoints.wait()
            good = self.checkpoints.steps()
            kept = f"the last good checkpoint is step {good[-1]} in {self.checkpoints.folder}" if good else (
                "no checkpoint had been saved yet"
            )  # fmt: skip
            raise UserError(
                f"the loss is not finite at step {step} ({', '.join(f'{k} {v:g}' for k, v in values.items())}); {kept}. "
                "Lower optimizer.learning_rate_weights, or lengthen optimizer.warmup_epochs."
            )

    def _watch(self, state: TrainState, step: int, reporter: Reporter) -> None:
        if self.monitor is None:
            return
        with reporter.pause():
            found = self.monitor.report(state.encoder_variables())
            reporter.record(step, found)
            when = "untrained" if step == 0 else f"after epoch {step // self.steps_per_epoch}"
            rank = f"RankMe {found['rankme']:.1f} of {self.method.encoder.num_features}"
            dead = f", {found['dead_features']} dead" if found["dead_features"] else ""
            reporter.say(f"kNN accuracy {found['knn_accuracy']:.1%} {when}; {rank}{dead}")

    def _summary(self, state: TrainState, start_step: int, notices: list[str]) -> str:
        config, optimizer = self.config, self.config.optimizer
        devices = self.mesh.devices.flat
        count, width = self.mesh.size, self.method.encoder.num_features
        factor = config.batch_size / 256
        total = count_parameters(state.params)
        encoder = count_parameters(state.params["encoder"])
        lines = {
            "bt_jax": f"{bt_jax.__version__}, JAX {jax.__version__}: {config.task} with {config.method}, seed {config.seed}",
            "devices": f"{count} × {devices[0].device_kind}, {config.batch_size // count} images each; "
            f"{jax.process_count()} process{'es' if jax.process_count() > 1 else ''}"
            + (f"; each of the projector's layers on {split}" if (split := config.mesh.model) > 1 else ""),
            "data": f"{self.source.name}: {len(self.source)} images, {self.source.num_classes} classes; "
            f"two views of {config.data.image_size}×{config.data.image_size}",
            "encoder": f"{config.model.arch}, {width} features, {encoder / 1e6:.2f} M parameters of {total / 1e6:.2f} M; "
            f"computes in {config.dtype}",
            **self.method.describe(config.batch_size),
            "batch": f"{config.batch_size}; {self.steps_per_epoch} steps an epoch, {config.epochs} epochs, "
            f"{self.total_steps} steps",
            "rates": f"weights {optimizer.learning_rate_weights * factor:g} = {optimizer.learning_rate_weights:g} × "
            f"{config.batch_size}/256, biases {optimizer.learning_rate_biases * factor:g} = "
            f"{optimizer.learning_rate_biases:g} × {config.batch_size}/256,\n"
            f"gradients divided by {optimizer.gradient_divisor:g}; warm-up {optimizer.warmup_epochs} epochs, then cosine",
            "workdir": str(self.workdir),
        }
        text = [f"{title:<9} " + value.replace("\n", "\n" + " " * 10) for title, value in lines.items()]
        text += [f"note      {notice}" for notice in [*self.source.notices, *notices]]
        if start_step == self.total_steps:
            text.append(
                f"complete  this run has made all its {start_step} steps; choose another --workdir for a new one"
            )
        elif start_step:
            text.append(f"resuming  at step {start_step} of {self.total_steps}")
        return "\n".join(text)

    def _result(self, history: list[dict], seconds: float) -> dict[str, Any]:
        last = {}
        for record in history:
            last |= record
        knn = [record["knn_accuracy"] for record in history if "knn_accuracy" in record]
        result = {
            "task": "pretrain",
            "step": self.total_steps,
            "seconds_of_last_start": round(seconds, 1),
            "metrics": last,
        }
        if knn:  # in the records, and so on process 0 alone
            result |= {"knn_accuracy_before": knn[0], "knn_accuracy_after": knn[-1]}
        if self.monitor is not None and self.config.data.image_size <= 64:  # a work of all processes
            result["knn_accuracy_raw_pixels"] = self.monitor.raw_pixels()
        if self.config.monitor.judge_at_end:
            result |= judge_at_end(self.config, self.workdir, self.mesh)
        return result

    def _farewell(self, result: dict[str, Any]) -> str:
        lines = [f"\ndone in {duration(result['seconds_of_last_start'])}"]
        if "knn_accuracy_after" in result:
            before, after = result["knn_accuracy_before"], result["knn_accuracy_after"]
            raw = result.get("knn_accuracy_raw_pixels")
            pixels = "" if raw is None else f", {raw:.1%} on raw pixels"
            lines.append(f"kNN accuracy   {after:.1%} with the trained encoder, {before:.1%} untrained{pixels}")
        if "linear_top1" in result:
            tuned, scratch = result["finetune_top1"], result["from_scratch_top1"]
            lines.append(f"linear         {result['linear_top1']:.1%}, a linear classifier on the frozen features")
            lines.append(
                f"few labels     {tuned:.1%} fine-tuned on {result['labels_a_class']} labels a class, {scratch:.1%} from scratch "
                f"on the same: {100 * (tuned - scratch):+.1f} points"
            )
        lines += [
            f"checkpoint     {self.checkpoints.folder / str(self.total_steps)}",
            f"metrics        {self.workdir / 'metrics.jsonl'}, {self.workdir / 'pretrain.json'}",
            f"to look        tensorboard --logdir {self.workdir}   (pip install tensorboard)",
            f"to use         python -c \"import bt_jax; print(bt_jax.load_encoder('{self.workdir}'))\"",
        ]
        return "\n".join(lines)
