"""BYOL (Grill et al. 2020, arXiv 2006.07733; google-deepmind/deepmind-research, byol/) as a method."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.views.spec import VIEW_A, VIEW_B, ViewGroup, ViewSpec
from bt_jax.facts import Facts
from bt_jax.losses.byol import byol_loss, moved_towards, moving_average_rate
from bt_jax.losses.pairs import spread
from bt_jax.methods.base import Batch, LossLevels, Method, PyTree
from bt_jax.methods.networks import NETWORKS, SPREAD_WORDS, PairNetwork, collapse_in_words, statistics_of
from bt_jax.models import MLPHead
from bt_jax.models.inputs import Inputs


@dataclasses.dataclass(frozen=True)
class BYOL(Method):
    """The method `byol`: an online network learns to predict what a slowly moving target network makes of the other view.

    - `params`: "encoder", "projector" and "predictor" of the online network.
    - `method_state["target"]`: the target's "encoder" and "projector", float32. It starts at random values of its own, and
      after each update moves towards the online network, which has been updated already: target + (1 - τ) · (online - target),
      all parameters alike, with τ from `target_momentum` to `target_momentum_at_end` by the number of updates (byol_experiment.py, _update_fn).
    - `batch_stats`: those of the online networks, and under "target" those of the target. The target also runs in training
      mode, with the statistics of its own forward pass; its running statistics are its own and are never averaged.

    Each view has its own batch statistics (byol_experiment.py, one forward pass a view). Hidden layers of the heads have
    biases. The encoder that is exported and evaluated is the online one.

    Attributes:
      predictor: None predicts the target by the embedding itself, which collapses: an ablation.
      target_momentum, target_momentum_at_end: τ at the first step, and after the last.
      total_steps: at which τ reaches 1.
    """

    encoder: nn.Module
    projector: MLPHead
    predictor: MLPHead | None
    inputs: Inputs
    total_steps: int
    target_momentum: float = 0.996
    target_momentum_at_end: float = 1.0
    views: tuple[ViewSpec, ViewSpec] = (VIEW_A, VIEW_B)

    name: ClassVar[str] = "byol"
    title: ClassVar[str] = "BYOL"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "spread")
    metric_words: ClassVar[Mapping[str, str]] = {"spread": SPREAD_WORDS}
    alignment: ClassVar[tuple[str, int, int]] = ("pair", 0, 1)
    advice: ClassVar[str] = "Lower optimizer.learning_rate_weights, or lengthen optimizer.warmup_epochs."

    @classmethod
    def build(
        cls, settings: ConfigDict, *, encoder: nn.Module, inputs: Inputs, facts: Facts, mesh: Mesh | None
    ) -> "BYOL":
        del mesh
        projector, hidden = tuple(settings.projector), tuple(settings.predictor)
        return cls(
            encoder=encoder,
            projector=MLPHead(projector, dtype=inputs.dtype),
            predictor=MLPHead((*hidden, projector[-1]), dtype=inputs.dtype) if hidden else None,
            inputs=inputs,
            total_steps=facts.total_steps,
            target_momentum=settings.target_momentum,
            target_momentum_at_end=settings.target_momentum_at_end,
            views=(ViewSpec(**settings.view_a), ViewSpec(**settings.view_b)),
        )

    @property
    def view_groups(self) -> tuple[ViewGroup, ...]:
        return (ViewGroup("pair", self.views, self.inputs.image_size, self.inputs.pixels),)

    @property
    def network(self) -> PairNetwork:
        return PairNetwork(self.encoder, self.projector)

    def init(self, rng: jax.Array, batch_spec: Batch) -> tuple[PyTree, PyTree, PyTree]:
        online_rng, predictor_rng, target_rng = jax.random.split(rng, 3)
        views = jnp.zeros((2, *batch_spec["views"]["pair"].shape[1:]), self.inputs.dtype)
        online, target = (self.network.init(key, views, train=False) for key in (online_rng, target_rng))
        params, statistics = dict(online["params"]), statistics_of(online, NETWORKS)
        if self.predictor is not None:
            embeddings = jnp.zeros((2, 2, self.projector.sizes[-1]), self.inputs.dtype)
            predictor = self.predictor.init(predictor_rng, embeddings, train=False)
            params["predictor"], statistics["predictor"] = predictor["params"], predictor.get("batch_stats", {})
        statistics["target"] = statistics_of(target, NETWORKS)
        return params, {"batch_stats": statistics}, {"target": dict(target["params"])}

    def loss(
        self, params: PyTree, model_state: PyTree, method_state: PyTree, batch: Batch, step: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, PyTree, dict[str, jax.Array]]]:
        del step, rng  # the views are already made, and nothing else is random
        views = self.inputs.normalize(batch["views"]["pair"])
        old = model_state["batch_stats"]
        z, statistics = self._embeddings(params, old, views)
        p: Any = z
        if self.predictor is not None:
            predictor = {"params": params["predictor"], "batch_stats": old["predictor"]}
            p, new = self.predictor.apply(predictor, z, train=True, mutable=["batch_stats"])
            statistics["predictor"] = new.get("batch_stats", {})
        with jax.named_scope("target"):
            target: PyTree = jax.lax.stop_gradient(method_state["target"])
            t, statistics["target"] = self._embeddings(target, old["target"], views)
        with jax.named_scope("loss"):
            loss = byol_loss(p[:, 0], p[:, 1], t[:, 0], t[:, 1])
            metrics = {"loss": loss, "spread": spread(z[:, 0])}
        return loss, ({"batch_stats": statistics}, method_state, metrics)

    def _embeddings(self, params: PyTree, statistics: PyTree, views: jax.Array) -> tuple[jax.Array, dict[str, PyTree]]:
        """(embeddings (N, V, D), new statistics) of the online or the target network."""
        variables = {
            part: {name: tree[name] for name in NETWORKS}
            for part, tree in (("params", params), ("batch_stats", statistics))
        }
        z, new = self.network.apply(variables, views, train=True, mutable=["batch_stats"])
        return z, statistics_of(new, NETWORKS)

    def after_update(
        self, old_params: PyTree, params: PyTree, method_state: PyTree, step: jax.Array
    ) -> tuple[PyTree, PyTree]:
        del old_params
        rate = moving_average_rate(self.target_momentum, step - 1, self.total_steps, self.target_momentum_at_end)
        online = {name: params[name] for name in NETWORKS}
        return params, {"target": moved_towards(method_state["target"], online, rate)}

    def heads(self) -> dict[str, nn.Module]:
        heads: dict[str, nn.Module] = {"projector": self.projector}
        return heads if self.predictor is None else heads | {"predictor": self.predictor}

    def collapse(self, metrics: Mapping[str, float]) -> str:
        return collapse_in_words(
            metrics["spread"],
            "lower the learning rate, raise the batch or byol.target_momentum, or keep the predictor.",
        )

    def loss_levels(self, batch_size: int) -> LossLevels:
        del batch_size
        return LossLevels(4.0, 0.0)

    def describe(self, batch_size: int) -> dict[str, str]:
        del batch_size
        hidden = "none" if self.predictor is None else "-".join(map(str, self.predictor.sizes))
        return {
            "projector": "-".join(map(str, self.projector.sizes)) + f", predictor {hidden}",
            "target": f"moves with τ from {self.target_momentum:g} to {self.target_momentum_at_end:g} in {self.total_steps} steps",
            "loss": "about 4 for unrelated views, 4 - 2 cos - 2 cos; never below 0, which a collapsed network has too",
        }
