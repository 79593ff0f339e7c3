"""Training a classifier with labels: on a frozen encoder (linear probes) or together with it (fine-tuning).

This is supervised training (bt_jax/methods/supervised.py) in the same loop as pre-training, with the same sharding and
bit-identical resuming. The optimizer is PyTorch's SGD with a learning rate for each part (official evaluate.py).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.eval_batches import eval_batches
from bt_jax.data.feed import make_feed
from bt_jax.data.sources.base import Source
from bt_jax.data.subsets import with_checked_labels
from bt_jax.engine.checkpoint import fingerprints
from bt_jax.engine.due import Cadence
from bt_jax.engine.loop import Look, run_steps
from bt_jax.engine.run import Run, started
from bt_jax.engine.session import Session
from bt_jax.engine.setup import Setup
from bt_jax.engine.state import TrainState
from bt_jax.evaluation.judged import Judged
from bt_jax.evaluation.metrics import Counts, count_hits
from bt_jax.export.init_from import with_weights
from bt_jax.facts import Facts
from bt_jax.methods.supervised import Supervised
from bt_jax.models.inputs import Inputs
from bt_jax.optim import make_optimizer
from bt_jax.runtime import mesh as mesh_lib

Rates = Mapping[str, float]
_RESIDENT_BYTES = 2**28  # test images up to this size are prepared only once


class ClassifierTraining:
    """One training of a classifier on the labels of `train`, evaluated on `test`."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: epath.Path,
        mesh: Mesh,
        judged: Judged,
        train: Source,
        test: Source,
        *,
        seed: int,
        rates: Rates,
        batch_norm: bool = False,
        quiet: bool = False,
    ):
        """Args:
        config: of a task that trains a classifier.
        workdir: of this training, which may be a folder in an evaluation's workdir.
        rates: initial learning rates for a batch of 256, of "classifier" and "encoder"; without one the encoder is frozen.
        batch_norm: whether the classifier normalises the features first.
        quiet: whether to leave out progress lines.

        Raises:
          UserError: the batch does not divide among the devices, or has more images than the set.
        """
        mesh_lib.check_batch_size(mesh, config.batch_size)
        self._judged, self._test, self._quiet = judged, test, quiet
        self._frozen = "encoder" not in rates
        facts = Facts.of(train, batch_size=config.batch_size, epochs=config.epochs)
        method = Supervised.build(
            config.supervised, encoder=judged.module, inputs=judged.inputs, facts=facts, mesh=mesh
        )
        head = dataclasses.replace(method.classifier, batch_norm=batch_norm)
        method = dataclasses.replace(method, freeze_encoder=self._frozen, classifier=head)
        self.setup = Setup(
            workdir=workdir,
            seed=seed,
            facts=facts,
            method=method,
            optimizer=make_optimizer({**config.sgd, "name": "sgd", "learning_rates": dict(rates)}, facts),
            feed=make_feed(train, config.data, method.view_groups, mesh=mesh, seed=seed, facts=facts, labelled=True),
            mesh=mesh,
            sources=(train, test),
            test=test,
            cadence=Cadence(save_epochs=config.checkpoint.every_epochs, look_epochs=config.sgd.evaluate_every_epochs),
            checkpoint=config.checkpoint,
            log=config.log,
            profile=NO_PROFILE,
            dtype=config.dtype,
            config=_as_trained(config, judged.inputs),
            advice=f"Lower {'finetune.learning_rate_from_scratch' if judged.facts is None else 'the rates in sgd'}.",
        )
        self.setup.check_parts()
        self._count = _count_program(judged.module, method.heads()["classifier"], judged.inputs, mesh)
        self._eval = {"batch_size": config.features.batch_size, "data": config.data}
        self._test_batches: list[dict[str, np.ndarray]] | None = None

    @property
    def seed(self) -> int:
        return self.setup.seed

    def run(self, session: Session) -> dict[str, Any]:
        """Trains, resuming from the workdir if possible.

        Returns:
          {"seed", "final": {"top1", "top5", "loss", "images"}, "best": {"epoch", "top1", "top5"}, "epochs", "steps",
          "train_images", "seconds_of_last_start"} on the first process. "best" is the evaluated epoch with the highest
          top-1, the first one on a tie. Both are on the *test* images, so the best is biased: it was chosen on them. Quote
          the final one.

        Raises:
          UserError: the loss is not finite.
          Preempted: the process was asked to stop, and the step is saved.
        """
        with started(self.setup, session, fresh=self._with_the_judged_weights, quiet=self._quiet) as run:
            self._say_start(run)
            state = run_steps(run, self._look)
            run.checkpoints.wait()
            if self._frozen:
                self._check_frozen(state)
            counted = [record for record in run.reporter.history() if "top1" in record]
            return self._result(counted, run) if session.is_first else {}

    def _with_the_judged_weights(self, state: TrainState) -> tuple[TrainState, list[str]]:
        """The new state with the evaluated encoder, if there is one: a copy, because steps donate their state."""
        if self._judged.variables is None:
            return state, []
        return with_weights(state, jax.tree.map(np.asarray, self._judged.variables))[0], []

    def _say_start(self, run: Run) -> None:
        for notice in run.start.notices:
            run.reporter.say(f"note      {notice}")
        if run.start.step and not self._quiet:
            run.reporter.say(f"resuming  at step {run.start.step} of {self.setup.facts.total_steps}")

    def _check_frozen(self, state: TrainState) -> None:
        if fingerprints(state.encoder_variables()) != fingerprints(self._judged.variables):
            raise RuntimeError("the frozen encoder has changed while a classifier was trained on it.")

    def _look(self, state: TrainState, step: int) -> Look:
        counts = Counts()
        head = {"params": state.params["classifier"]}
        if "classifier" in state.model_state["batch_stats"]:
            head["batch_stats"] = state.model_state["batch_stats"]["classifier"]
        for local in self._tests():
            batch = mesh_lib.put_batch(self.setup.mesh, self._eval["batch_size"], local)
            counts += Counts.of(jax.device_get(self._count(state.encoder_variables(), head, batch)))
        found = counts.result()
        top5 = f", top-5 {found['top5']:.1%}" if self.setup.facts.num_classes > 5 else ""
        epoch = step // self.setup.facts.steps_per_epoch
        sentence = f"top-1 {found['top1']:.2%}{top5} of {found['images']} test images after epoch {epoch}"
        record = {f"test_{name}" if name == "loss" else name: value for name, value in found.items()}
        return Look(record, "" if self._quiet else sentence)

    def _tests(self):
        """Batches of test images, which are cached if they are few."""
        if self._test_batches is not None:
            return self._test_batches
        size, data = self._eval["batch_size"], self._eval["data"]
        rows = mesh_lib.process_rows(self.setup.mesh, size)
        batches = with_checked_labels(eval_batches(self._test, data, batch_size=size, rows=rows), self._test)
        pixels = self._test.pixels
        if len(self._test) * data.image_size**2 * pixels.channels * pixels.dtype.itemsize > _RESIDENT_BYTES:
            return batches
        self._test_batches = list(batches)
        return self._test_batches

    def _result(self, counted: Sequence[Mapping[str, Any]], run: Run) -> dict[str, Any]:
        best, final, facts = max(counted, key=lambda record: record["top1"]), counted[-1], self.setup.facts
        return {
            "seed": self.seed,
            "final": {
                "top1": final["top1"],
                "top5": final["top5"],
                "loss": final["test_loss"],
                "images": final["images"],
            },
            "best": {"epoch": round(best["epoch"]), "top1": best["top1"], "top5": best["top5"]},
            "epochs": facts.epochs,
            "steps": facts.total_steps,
            "train_images": facts.num_examples,
            "seconds_of_last_start": round(run.seconds_of_this_start(), 1),
        }


def _as_trained(config: ConfigDict, inputs: Inputs) -> dict[str, Any]:
    """The config for the notes beside a checkpoint, with the normalisation of the encoder's own training."""
    fields = config.to_dict()
    return {**fields, "data": {**fields["data"], "mean": inputs.mean, "std": inputs.std}}


NO_PROFILE = ConfigDict({"steps": 0, "after": 1})  # evaluations are not profiled


# Cached, so that trainings with other seeds or labels do not compile again.
@functools.lru_cache(maxsize=4)
def _count_program(encoder: nn.Module, classifier: nn.Module, inputs: Inputs, mesh: Mesh) -> Callable[..., Any]:
    def count(encoder_variables, head, batch):
        features = encoder.apply(encoder_variables, inputs.normalize(batch["image"]), train=False)
        logits: Any = classifier.apply(head, features)
        return count_hits(logits, batch["label"], batch["mask"])

    return jax.jit(count, out_shardings=mesh_lib.everywhere(mesh))
