"""VICReg (Bardes et al. 2022, arXiv 2105.04906; facebookresearch/vicreg) as a method."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.views.spec import ViewGroup, ViewSpec
from bt_jax.facts import Facts
from bt_jax.losses.vicreg import vicreg_loss
from bt_jax.methods.base import Batch, Method, PyTree
from bt_jax.methods.networks import PairNetwork, collapse_in_words, statistics_of
from bt_jax.models import MLPHead
from bt_jax.models.inputs import Inputs

_NETWORKS = ("encoder", "projector")


@dataclasses.dataclass(frozen=True)
class VICReg(Method):
    """The method `vicreg`: `params` and `batch_stats` have "encoder" and "projector"; no `method_state`.

    Both views have the same distribution, and each has its own batch statistics (main_vicreg.py, two forward passes). The
    projector, the paper's expander, has biases in all layers but the last.

    Attributes:
      view: the distribution of both views.
      weights: λ, μ and ν, of the terms invariance, variance and covariance.
    """

    encoder: nn.Module
    projector: MLPHead
    inputs: Inputs
    view: ViewSpec
    weights: tuple[float, float, float] = (25.0, 25.0, 1.0)

    name: ClassVar[str] = "vicreg"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "invariance", "variance", "covariance", "spread")
    short_names: ClassVar[Mapping[str, str]] = {"invariance": "inv", "variance": "var", "covariance": "cov"}
    alignment: ClassVar[tuple[str, int, int]] = ("pair", 0, 1)
    advice: ClassVar[str] = "Lower optimizer.learning_rate_weights, or lengthen optimizer.warmup_epochs."

    @classmethod
    def build(
        cls, settings: ConfigDict, *, encoder: nn.Module, inputs: Inputs, facts: Facts, mesh: Mesh | None
    ) -> "VICReg":
        del facts, mesh
        return cls(
            encoder=encoder,
            projector=MLPHead(tuple(settings.projector), dtype=inputs.dtype),
            inputs=inputs,
            weights=(settings.invariance, settings.variance, settings.covariance),
            view=ViewSpec(**settings.view),
        )

    @property
    def view_groups(self) -> tuple[ViewGroup, ...]:
        return (ViewGroup("pair", (self.view, self.view), self.inputs.image_size),)

    @property
    def network(self) -> PairNetwork:
        return PairNetwork(self.encoder, self.projector)

    def init(self, rng: jax.Array, batch_spec: Batch) -> tuple[PyTree, PyTree, PyTree]:
        views = jnp.zeros((2, *batch_spec["views"]["pair"].shape[1:]), self.inputs.dtype)
        variables = self.network.init(rng, views, train=False)
        return variables["params"], {"batch_stats": statistics_of(variables, _NETWORKS)}, {}

    def loss(
        self, params: PyTree, model_state: PyTree, method_state: PyTree, batch: Batch, step: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, PyTree, dict[str, jax.Array]]]:
        del step, rng  # the views are already made, and nothing else is random
        views = self.inputs.normalize(batch["views"]["pair"])
        z, new = self.network.apply({"params": params, **model_state}, views, train=True, mutable=["batch_stats"])
        with jax.named_scope("loss"):
            names = ("invariance", "variance", "covariance")
            loss, parts = vicreg_loss(z[:, 0], z[:, 1], **dict(zip(names, self.weights, strict=True)))
        new_state = {"batch_stats": statistics_of(new, _NETWORKS)}
        return loss, (new_state, method_state, {"loss": loss, **parts})

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def collapse(self, metrics: Mapping[str, float]) -> str:
        return collapse_in_words(metrics["spread"], "lower the learning rate, or raise vicreg.variance.")

    def loss_flops(self, batch_size: int) -> float:
        """One product for each view forward, and one backward."""
        d = self.projector.sizes[-1]
        return 2 * 2 * 2 * batch_size * d * min(batch_size, d)

    def describe(self, batch_size: int) -> dict[str, str]:
        invariance, variance, covariance = self.weights
        d = self.projector.sizes[-1]
        unrelated = 2 * invariance + 2 * covariance * (d - 1) / (batch_size - 1)
        return {
            "projector": "-".join(map(str, self.projector.sizes)),
            "loss": f"{variance * 0.99:.4g} for a collapsed network, 0.99 μ; about {unrelated:.1f} for unrelated views of "
            "unit variance, 2λ+2ν(D-1)/(N-1); never below 0",
        }
