"""SwAV (Caron et al. 2020, arXiv 2006.09882; facebookresearch/swav) as a method."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.views.spec import ViewGroup, ViewSpec
from bt_jax.facts import Facts
from bt_jax.losses.pairs import spread_of_unit, unit
from bt_jax.losses.swav import sinkhorn, swav_floor, swav_loss
from bt_jax.methods.base import Batch, LossLevels, Method, PyTree
from bt_jax.methods.networks import NETWORKS, SPREAD_WORDS, collapse_in_words, statistics_of
from bt_jax.models import MLPHead, Prototypes
from bt_jax.models.inputs import Inputs

LARGE = 2  # crops, all of which are assigned to prototypes


class MultiCropNetwork(nn.Module):
    """Normalised crops, (N, V, S, S, C) for each size -> embeddings (N, V of all sizes, D).

    Crops of one size go through the encoder as one batch, so that they share batch statistics; running statistics are updated
    once for each size. All crops go through the projector together (resnet50.py, forward).
    """

    encoder: nn.Module
    projector: nn.Module

    def __call__(self, groups: Sequence[jax.Array], *, train: bool) -> jax.Array:
        n, features = groups[0].shape[0], []
        for crops in groups:
            # The crops of an image side by side, so that no row changes its device.
            found: Any = self.encoder(crops.reshape(-1, *crops.shape[2:]), train=train)
            features.append(found.reshape(n, crops.shape[1], -1))
        together = jnp.concatenate(features, axis=1)
        z = self.projector(together.reshape(-1, together.shape[-1]), train=train)
        return z.reshape(*together.shape[:2], -1)


@dataclasses.dataclass(frozen=True)
class SwAV(Method):
    """The method `swav`: from each crop of an image, predicts the prototypes that the image's two large crops are assigned to.

    - `params`: "encoder", "projector" and "prototypes", whose columns have length 1 before every step: they are scaled so after
      an update, outside of the gradient. In the first `freeze_steps` they do not move, and have no gradient and so, with LARC,
      neither decay nor momentum (main_swav.py).
    - `method_state`: {"queue": (2, L, D) float32}, the newest L unit embeddings of each large crop, newest first; {} without a
      queue. It fills from step `queue_start` on, and is used from `queue_start` + L/N on, when all of it is full. Its scores are
      those with the current prototypes, and a batch enters after it was assigned.

    Batch statistics: see `MultiCropNetwork`. Sinkhorn's assignment is over the global batch and the queue.

    Attributes:
      view, small_view: the distributions of the two large crops, and of `small_crops` small ones of `small_size` pixels.
      temperature, epsilon, iterations: of `bt_jax.losses.swav_loss` and `bt_jax.losses.sinkhorn`.
      freeze_steps: steps in which the prototypes do not move.
      queue: L, a multiple of the batch; 0 for none.
      queue_start: the step whose batch is the first in the queue.
    """

    encoder: nn.Module
    projector: MLPHead
    prototypes: Prototypes
    inputs: Inputs
    view: ViewSpec
    small_view: ViewSpec
    small_crops: int = 6
    small_size: int = 96
    temperature: float = 0.1
    epsilon: float = 0.05
    iterations: int = 3
    freeze_steps: int = 0
    queue: int = 0
    queue_start: int = 0
    mesh: Mesh | None = None

    name: ClassVar[str] = "swav"
    title: ClassVar[str] = "SwAV"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "prototypes", "spread")
    short_names: ClassVar[Mapping[str, str]] = {"prototypes": "used"}
    metric_words: ClassVar[Mapping[str, str]] = {
        "prototypes": "How many are in use in a batch: the exponential of the entropy of their shares of the images.",
        "spread": SPREAD_WORDS,
    }
    alignment: ClassVar[tuple[str, int, int]] = ("large", 0, 1)
    advice: ClassVar[str] = (
        "Lower optimizer.learning_rate, lengthen optimizer.warmup_epochs or swav.freeze_epochs, or shorten swav.queue."
    )

    @classmethod
    def build(
        cls, settings: ConfigDict, *, encoder: nn.Module, inputs: Inputs, facts: Facts, mesh: Mesh | None
    ) -> "SwAV":
        return cls(
            encoder=encoder,
            projector=MLPHead(tuple(settings.projector), output_bias=True, dtype=inputs.dtype),
            prototypes=Prototypes(settings.prototypes),
            inputs=inputs,
            view=ViewSpec(**settings.view),
            small_view=ViewSpec(**settings.small_view),
            small_crops=settings.small_crops,
            small_size=settings.small_size,
            temperature=settings.temperature,
            epsilon=settings.epsilon,
            iterations=settings.iterations,
            freeze_steps=settings.freeze_epochs * facts.steps_per_epoch,
            queue=settings.queue,
            queue_start=settings.queue_from_epoch * facts.steps_per_epoch,
            mesh=mesh,
        )

    @property
    def view_groups(self) -> tuple[ViewGroup, ...]:
        large = ViewGroup("large", (self.view,) * LARGE, self.inputs.image_size, self.inputs.pixels)
        if not self.small_crops:
            return (large,)
        return large, ViewGroup("small", (self.small_view,) * self.small_crops, self.small_size, self.inputs.pixels)

    @property
    def network(self) -> MultiCropNetwork:
        return MultiCropNetwork(self.encoder, self.projector)

    def init(self, rng: jax.Array, batch_spec: Batch) -> tuple[PyTree, PyTree, PyTree]:
        network_rng, prototypes_rng = jax.random.split(rng)
        crops = [jnp.zeros((2, *batch_spec["views"][g.name].shape[1:]), self.inputs.dtype) for g in self.view_groups]
        variables = self.network.init(network_rng, crops, train=False)
        width = self.projector.sizes[-1]
        full = jnp.promote_types(self.inputs.dtype, jnp.float32)
        prototypes = self.prototypes.init(prototypes_rng, jnp.zeros((1, width), full))["params"]
        state = {"queue": jnp.zeros((LARGE, self.queue, width), full)} if self.queue else {}
        statistics = {"batch_stats": statistics_of(variables, NETWORKS)}
        return {**variables["params"], "prototypes": prototypes}, statistics, state

    def loss(
        self, params: PyTree, model_state: PyTree, method_state: PyTree, batch: Batch, step: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, PyTree, dict[str, jax.Array]]]:
        del rng  # the crops are already made, and nothing else is random
        crops = [self.inputs.normalize(batch["views"][group.name]) for group in self.view_groups]
        networks = {"params": {name: params[name] for name in NETWORKS}, **model_state}
        z, new = self.network.apply(networks, crops, train=True, mutable=["batch_stats"])
        with jax.named_scope("loss"):
            u = unit(z.reshape(-1, z.shape[-1])).reshape(z.shape)
            prototypes = _held(params["prototypes"], step < self.freeze_steps)
            scores = self._scores(prototypes, u)
            state, codes = self._assigned(method_state, jax.lax.stop_gradient((prototypes, u, scores)), step)
            loss, parts = swav_loss(scores, codes, temperature=self.temperature)
        metrics = {"loss": loss, **parts, "spread": spread_of_unit(u[:, 0])}
        return loss, ({"batch_stats": statistics_of(new, NETWORKS)}, state, metrics)

    def _scores(self, prototypes: PyTree, u: jax.Array) -> jax.Array:
        """(…, D) -> (…, K)."""
        scores: Any = self.prototypes.apply({"params": prototypes}, u.reshape(-1, u.shape[-1]))
        return scores.reshape(*u.shape[:-1], -1)

    def _assigned(self, method_state: PyTree, constants: PyTree, step: jax.Array) -> tuple[PyTree, jax.Array]:
        """(the state after this batch, codes of the large crops (N, A, K))."""
        prototypes, u, scores = constants
        of_crops = [scores[:, i] for i in range(LARGE)]
        if not self.queue:
            return method_state, self._codes(of_crops)
        queue, n = method_state["queue"], u.shape[0]

        def with_queue():
            earlier = self._scores(prototypes, queue)
            return self._codes([jnp.concatenate(both) for both in zip(earlier, of_crops, strict=True)])[-n:]

        full = step >= self.queue_start + self.queue // n
        codes = jax.lax.cond(full, with_queue, lambda: self._codes(of_crops))
        newest = jnp.swapaxes(u[:, :LARGE], 0, 1).astype(queue.dtype)
        moved = jnp.concatenate([newest, queue[:, :-n]], axis=1)
        return {"queue": jnp.where(step >= self.queue_start, moved, queue)}, codes

    def _codes(self, of_crops: Sequence[jax.Array]) -> jax.Array:
        """The codes of each large crop's scores (rows, K), side by side (rows, A, K)."""
        return jnp.stack([sinkhorn(s, epsilon=self.epsilon, iterations=self.iterations) for s in of_crops], axis=1)

    def after_update(
        self, old_params: PyTree, params: PyTree, method_state: PyTree, step: jax.Array
    ) -> tuple[PyTree, PyTree]:
        old, new = old_params["prototypes"]["kernel"], params["prototypes"]["kernel"]
        moved = new / jnp.linalg.norm(new, axis=0, keepdims=True)
        kernel = jnp.where(step <= self.freeze_steps, old, moved)
        return {**params, "prototypes": {"kernel": kernel}}, method_state

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector, "prototypes": self.prototypes}

    def collapse(self, metrics: Mapping[str, float]) -> str:
        cure = "raise the batch or swav.queue, lower swav.epsilon, or lengthen swav.freeze_epochs."
        if sentence := collapse_in_words(metrics["spread"], cure):
            return sentence
        if metrics["prototypes"] >= FEW_PROTOTYPES:
            return ""
        return (
            f"nearly all images are nearest to the same prototype ({metrics['prototypes']:.1f} of "
            f"{self.prototypes.num_prototypes} in use), a collapse; {cure}"
        )

    def loss_levels(self, batch_size: int) -> LossLevels:
        del batch_size
        k = self.prototypes.num_prototypes
        return LossLevels(math.log(k), swav_floor(k, self.temperature))

    def loss_flops(self, batch_size: int) -> float:
        """Scores of all crops, once forward and twice backward; those of the queue once, on every device."""
        devices = 1 if self.mesh is None else self.mesh.size
        per_row = 2 * self.projector.sizes[-1] * self.prototypes.num_prototypes
        return per_row * (3 * batch_size * (LARGE + self.small_crops) / devices + LARGE * self.queue)

    def describe(self, batch_size: int) -> dict[str, str]:
        k, levels = self.prototypes.num_prototypes, self.loss_levels(batch_size)
        queue = "none"
        if self.queue:
            queue = (
                f"{self.queue} embeddings of each large crop, filled from step {self.queue_start} and used from step "
                f"{self.queue_start + self.queue // batch_size}"
            )
        small = f", {self.small_crops} of {self.small_size}" if self.small_crops else ""
        return {
            "crops": f"{LARGE} of {self.inputs.image_size} pixels{small}",
            "projector": "-".join(map(str, self.projector.sizes))
            + f", then {k} prototypes, held for {self.freeze_steps} steps",
            "queue": queue,
            "loss": f"about {levels.start:.2f} for unrelated crops, ln K, and for a collapsed network; never below "
            f"{levels.floor:.2g}, at temperature {self.temperature:g}",
        }


FEW_PROTOTYPES = 1.5  # in use; 1 if all images are nearest to the same


def _held(prototypes: PyTree, held: jax.Array) -> PyTree:
    """The prototypes, without a gradient where `held`."""
    return jax.tree.map(lambda leaf: jnp.where(held, jax.lax.stop_gradient(leaf), leaf), prototypes)
