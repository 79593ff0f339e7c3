"""Training a classifier with labels: on a frozen encoder (linear probes) or together with it (fine-tuning).

The same loop for both, sharded and resumable like pre-training: a batch follows from (seed, step), a checkpoint holds all
that a step changes, and a killed run goes on to the same bits. The optimiser is PyTorch's SGD, in its order: decay, then
momentum, then the rate (official evaluate.py).
"""

import functools
import hashlib
import math
import time
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.feed import eval_batches, train_batches
from bt_jax.data.sources.base import Source
from bt_jax.data.subsets import check_labels
from bt_jax.data.views.spec import ViewSpec
from bt_jax.engine.checkpoint import Checkpoints
from bt_jax.errors import UserError
from bt_jax.evaluation.judged import Judged
from bt_jax.evaluation.metrics import Counts, count_hits
from bt_jax.models import LinearClassifier
from bt_jax.models.inputs import normalize
from bt_jax.reporting.progress import Reporter
from bt_jax.runtime import mesh as mesh_lib

Rates = dict[str, float]  # "head", and "encoder" where it learns too
_HELD_BYTES = 2**28  # test views up to so many bytes are made once


@flax.struct.dataclass
class ClassifierState:
    """What a checkpoint holds."""

    step: jax.Array  # () int32
    params: Any  # {"head": …} or {"encoder": …, "head": …}, float32
    batch_stats: Any  # the encoder's running statistics where it learns, else {}
    momentum: Any  # like params


def rate_factor(config: ConfigDict, epoch: int, epochs: int) -> float:
    """The rate of an epoch, from 0, over the first one's.

    cosine: (1 + cos(π epoch / epochs)) / 2, the same within an epoch as in the official evaluate.py. steps: decay_factor
    to the power of how many of decay_epochs have passed when the epoch begins.
    """
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    return config.decay_factor ** sum(epoch >= passed for passed in config.decay_epochs)


class ClassifierTraining:
    """One training of a classifier on the labels of `train`, counted on `test`."""

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
        quiet: bool = False,
    ):
        """Args:
        workdir: of this one training, which may be part of an evaluation's.
        rates: at the start, for a batch of 256; the encoder is frozen if it has none.
        quiet: whether the progress lines are left out.

        Raises:
          UserError: the batch does not divide among the devices, or is more than all images.
        """
        mesh_lib.check_batch_size(mesh, config.batch_size)
        if len(train) < config.batch_size:
            raise UserError(
                f"{train.name} has {len(train)} images, fewer than a batch of {config.batch_size}; "
                f"set batch_size to at most {len(train)}."
            )
        self.config, self.workdir, self.mesh, self.judged = config, workdir, mesh, judged
        self.train, self.test, self.seed, self.quiet = train, test, seed, quiet
        self.rates = {name: rate * config.batch_size / 256 for name, rate in rates.items()}
        self.frozen = "encoder" not in rates
        self.steps_per_epoch = len(train) // config.batch_size
        self.total_steps = self.steps_per_epoch * config.epochs
        self.is_first = jax.process_index() == 0
        settings = (judged.module, train.num_classes, judged.mean, judged.std, self.frozen, mesh)
        self._init = _compiled_init(*settings, config.data.image_size)
        self._step = _compiled_step(*settings, config.sgd.weight_decay, config.sgd.momentum)
        self._count = _compiled_count(*settings)
        # What the encoder is if it does not learn; steps read it and never give it away.
        self._variables = judged.variables if self.frozen else {}
        self._test_batches: list[dict[str, np.ndarray]] | None = None

    def run(self) -> dict[str, Any]:
        """Trains, or goes on with what the workdir holds.

        Returns:
          {"seed", "final": {"top1", "top5", "loss", "images"}, "best": {"epoch", "top1", "top5"}, "epochs", "steps",
          "seconds"}; the best is by top-1, the first of equals, of the epochs that were counted. Both are of the *test*
          images, and so the best is an optimist's number: the final one is what to quote. Known to the first process.

        Raises:
          UserError: the loss is not finite.
        """
        begin, frozen_as = time.monotonic(), _digest(self._variables)
        self.workdir.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(self.workdir, self.config.checkpoint.keep)
        state, start_step, notices = self._restored(checkpoints)
        reporter = Reporter(
            self.workdir,
            start_step=start_step,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=self.config.batch_size,
            every_steps=self.config.log.every_steps,
            tensorboard=self.config.log.tensorboard,
            active=self.is_first,
            lines=not self.quiet,
        )
        try:
            for notice in notices:
                reporter.say(f"note      {notice}")
            if start_step and not self.quiet:
                reporter.say(f"resuming  at step {start_step} of {self.total_steps}")
            self._train(state, start_step, reporter, checkpoints)
            checkpoints.wait()
            counted = [record for record in reporter.history() if "top1" in record]
        finally:
            reporter.close()
            checkpoints.close()
        if self.frozen and _digest(self._variables) != frozen_as:
            raise RuntimeError("the encoder that was to be frozen has changed while a classifier was trained on it.")
        return self._result(counted, time.monotonic() - begin) if self.is_first else {}

    def _restored(self, checkpoints: Checkpoints) -> tuple[ClassifierState, int, list[str]]:
        make = functools.partial(self._init, jax.random.key(self.seed), self.judged.variables)
        shapes = jax.eval_shape(make)
        everywhere = mesh_lib.everywhere(self.mesh)
        like = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere), shapes)
        state, step, notices = checkpoints.restore_newest(like)
        return (make(), 0, notices) if state is None else (state, step, notices)

    def _train(self, state: ClassifierState, start_step: int, reporter: Reporter, checkpoints: Checkpoints) -> None:
        config = self.config
        if start_step == self.total_steps:
            return
        batches = self._batches(start_step)
        waiting = None  # (step, loss) that the devices are still computing
        rates = self._placed_rates(start_step // self.steps_per_epoch)
        try:
            for step, batch in zip(range(start_step + 1, self.total_steps + 1), batches, strict=True):
                with jax.transfer_guard("disallow"):
                    state, loss = self._step(state, self._variables, rates, batch)
                if waiting is not None:
                    self._report(*waiting, reporter, checkpoints)
                waiting = (step, loss)
                epoch_ends, last = step % self.steps_per_epoch == 0, step == self.total_steps
                if not epoch_ends:
                    continue
                epoch = step // self.steps_per_epoch
                counts = last or epoch % config.sgd.evaluate_every_epochs == 0
                saves = last or epoch % config.checkpoint.every_epochs == 0
                if counts or saves:
                    self._report(*waiting, reporter, checkpoints)  # first: what is not finite must not be saved
                    waiting = None
                with reporter.pause():
                    if counts:
                        self._evaluate(state, step, reporter)
                    if saves:  # after what was counted is written, so that nothing is missing when it goes on from here
                        checkpoints.save(step, state)
                rates = self._placed_rates(epoch)
        finally:
            batches.close()

    def _batches(self, start_step: int):
        size = self.config.batch_size
        host = train_batches(
            self.train,
            self.config.data,
            seed=self.seed,
            batch_size=size,
            rows=mesh_lib.process_rows(self.mesh, size),
            start_step=start_step,
            num_steps=self.total_steps - start_step,
            specs=(ViewSpec(**self.config.supervised.view),),
        )
        return mesh_lib.prefetch_to_mesh(_checked(host, self.train), self.mesh, size)

    def _rates_of(self, epoch: int) -> Rates:
        factor = rate_factor(self.config.sgd, epoch, self.config.epochs)
        return {name: rate * factor for name, rate in self.rates.items()}

    def _placed_rates(self, epoch: int) -> dict[str, jax.Array]:
        rates = {name: np.float32(rate) for name, rate in self._rates_of(epoch).items()}
        return jax.device_put(rates, mesh_lib.everywhere(self.mesh))

    def _report(self, step: int, loss: jax.Array, reporter: Reporter, checkpoints: Checkpoints) -> None:
        loss = float(jax.device_get(loss))
        rates = self._rates_of((step - 1) // self.steps_per_epoch)
        reporter.step(step, {"loss": loss}, {f"learning_rate_{name}": rate for name, rate in rates.items()})
        if not math.isfinite(loss):
            checkpoints.wait()
            good = checkpoints.steps()
            kept = f"the last good checkpoint is step {good[-1]}" if good else "no checkpoint had been saved yet"
            fields = "finetune.learning_rate_from_scratch" if self.judged.facts is None else "the rates in sgd"
            raise UserError(f"the loss is not finite at step {step} ({loss:g}); {kept}. Lower {fields}.")

    def _evaluate(self, state: ClassifierState, step: int, reporter: Reporter) -> None:
        counts = Counts()
        for local in self._tests():
            batch = mesh_lib.put_batch(self.mesh, self.config.features.batch_size, local)
            counts += Counts.of(jax.device_get(self._count(state, self._variables, batch)))
        found = counts.result()
        reporter.record(step, {f"test_{k}" if k == "loss" else k: v for k, v in found.items()})
        if not self.quiet:
            top5 = f", top-5 {found['top5']:.1%}" if self.train.num_classes > 5 else ""
            epoch = step // self.steps_per_epoch
            reporter.say(f"top-1 {found['top1']:.2%}{top5} of {found['images']} test images after epoch {epoch}")

    def _tests(self):
        """The test images by the batch; kept if they are few, as they are the same each time."""
        if self._test_batches is not None:
            return self._test_batches
        size, side = self.config.features.batch_size, self.config.data.image_size
        rows = mesh_lib.process_rows(self.mesh, size)
        batches = _checked(eval_batches(self.test, self.config.data, batch_size=size, rows=rows), self.test)
        if len(self.test) * side * side * 3 > _HELD_BYTES:
            return batches
        self._test_batches = list(batches)
        return self._test_batches

    def _result(self, counted: list[dict], seconds: float) -> dict[str, Any]:
        best = max(counted, key=lambda record: record["top1"])
        final = counted[-1]
        return {
            "seed": self.seed,
            "final": {
                "top1": final["top1"],
                "top5": final["top5"],
                "loss": final["test_loss"],
                "images": final["images"],
            },
            "best": {"epoch": round(best["epoch"]), "top1": best["top1"], "top5": best["top5"]},
            "epochs": self.config.epochs,
            "steps": self.total_steps,
            "train_images": len(self.train),
            "seconds_of_last_start": round(seconds, 1),
        }


def sgd_update(
    params: Any, held: Any, gradient: Any, rates: dict[str, Any], *, weight_decay: float, momentum: float
) -> tuple[Any, Any]:
    """PyTorch's SGD, with a rate for each part; all parameters are decayed, as they are there.

        m = momentum · m + g + weight_decay · w,   w = w - rate · m

    Args:
      params, held, gradient: {part: a pytree}; `held` is m, zero at the start.
      rates: a number for each part.

    Returns:
      The new params and m.
    """
    held = jax.tree.map(lambda m, g, p: momentum * m + g + weight_decay * p, held, gradient, params)
    return {
        part: jax.tree.map(lambda p, m, rate=rates[part]: p - rate * m, params[part], held[part]) for part in params
    }, held


def _checked(batches: Iterator[dict], source: Source) -> Iterator[dict]:
    """Sees that labels are classes: those of records are not known before they come."""
    for batch in batches:
        check_labels(batch["label"][batch["mask"]] if "mask" in batch else batch["label"], source, all_classes=False)
        yield batch


def _digest(variables: Any) -> str:
    """The same for bit-equal variables."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.ascontiguousarray(leaf.addressable_data(0)))
    return digest.hexdigest()


def _forward(module: nn.Module, frozen: bool, params: Any, stats: Any, variables: Any, images: jax.Array, train: bool):
    """Features and the new running statistics."""
    if frozen:
        return module.apply(variables, images, train=False), stats
    learnt = {"params": params["encoder"], "batch_stats": stats}
    if not train:
        return module.apply(learnt, images, train=False), stats
    features, new = module.apply(learnt, images, train=True, mutable=["batch_stats"])
    return features, new["batch_stats"]


# The three programs are kept by what they are made of: trainings of other seeds, or on other labels, compile nothing anew.
@functools.lru_cache(maxsize=4)
def _compiled_init(module, num_classes, mean, std, frozen, mesh, image_size):
    del mean, std

    def init(rng, variables):
        head_rng, encoder_rng = jax.random.split(rng)
        head = LinearClassifier(num_classes).init(head_rng, jnp.zeros((1, module.num_features)))["params"]
        params, stats = {"head": head}, {}
        if not frozen:
            if variables is None:
                images = jnp.zeros((2, image_size, image_size, 3), module.dtype)
                variables = module.init(encoder_rng, images, train=False)
            copied = jax.tree.map(jnp.copy, variables)  # a step gives its state away, and the original is to stay
            params, stats = {"encoder": copied["params"], "head": head}, copied["batch_stats"]
        return ClassifierState(jnp.int32(0), params, stats, jax.tree.map(jnp.zeros_like, params))

    return jax.jit(init, out_shardings=mesh_lib.everywhere(mesh))


@functools.lru_cache(maxsize=4)
def _compiled_step(module, num_classes, mean, std, frozen, mesh, weight_decay, momentum):
    head = LinearClassifier(num_classes)

    def train_step(state, variables, rates, batch):
        images = normalize(batch["views"][:, 0], mean=mean, std=std, dtype=module.dtype)

        def loss(params):
            features, stats = _forward(module, frozen, params, state.batch_stats, variables, images, True)
            logits = head.apply({"params": params["head"]}, features)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), stats

        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        params, held = sgd_update(
            state.params, state.momentum, gradient, rates, weight_decay=weight_decay, momentum=momentum
        )
        return ClassifierState(state.step + 1, params, stats, held), value

    return jax.jit(train_step, donate_argnums=0, out_shardings=mesh_lib.everywhere(mesh))


@functools.lru_cache(maxsize=4)
def _compiled_count(module, num_classes, mean, std, frozen, mesh):
    head = LinearClassifier(num_classes)

    def count(state, variables, batch):
        images = normalize(batch["image"], mean=mean, std=std, dtype=module.dtype)
        features, _ = _forward(module, frozen, state.params, state.batch_stats, variables, images, False)
        logits = head.apply({"params": state.params["head"]}, features)
        return count_hits(logits, batch["label"], batch["mask"])

    return jax.jit(count, out_shardings=mesh_lib.everywhere(mesh))
