"""VICReg (Bardes et al. 2022, arXiv 2105.04906; facebookresearch/vicreg) as a method."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.views.spec import ViewSpec
from bt_jax.facts import Facts
from bt_jax.losses.vicreg import vicreg_loss
from bt_jax.methods.base import LossLevels
from bt_jax.methods.networks import SPREAD_WORDS, PairMethod, collapse_in_words
from bt_jax.models import MLPHead
from bt_jax.models.inputs import Inputs


@dataclasses.dataclass(frozen=True)
class VICReg(PairMethod):
    """The method `vicreg`: `params` and `batch_stats` have "encoder" and "projector"; no `method_state`.

    Both views have the same distribution, and each has its own batch statistics (main_vicreg.py, two forward passes). The
    projector, the paper's expander, has biases in all layers but the last.

    Attributes:
      view: the distribution of both views.
      weights: λ, μ and ν, of the terms invariance, variance and covariance.
    """

    weights: tuple[float, float, float] = (25.0, 25.0, 1.0)
    mesh: Mesh | None = None

    name: ClassVar[str] = "vicreg"
    title: ClassVar[str] = "VICReg"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "invariance", "variance", "covariance", "spread")
    short_names: ClassVar[Mapping[str, str]] = {"invariance": "inv", "variance": "var", "covariance": "cov"}
    metric_words: ClassVar[Mapping[str, str]] = {"spread": SPREAD_WORDS}

    @classmethod
    def build(
        cls, settings: ConfigDict, *, encoder: nn.Module, inputs: Inputs, facts: Facts, mesh: Mesh | None
    ) -> "VICReg":
        del facts
        return cls(
            encoder=encoder,
            projector=MLPHead(tuple(settings.projector), dtype=inputs.dtype),
            inputs=inputs,
            weights=(settings.invariance, settings.variance, settings.covariance),
            view=ViewSpec(**settings.view),
            mesh=mesh,
        )

    def pair_loss(self, z_a: jax.Array, z_b: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        invariance, variance, covariance = self.weights
        return vicreg_loss(z_a, z_b, invariance=invariance, variance=variance, covariance=covariance, mesh=self.mesh)

    def collapse(self, metrics: Mapping[str, float]) -> str:
        return collapse_in_words(metrics["spread"], "lower the learning rate, or raise vicreg.variance.")

    def loss_levels(self, batch_size: int) -> LossLevels:
        invariance, variance, covariance = self.weights
        unrelated = 2 * invariance + 2 * covariance * (self.projector.sizes[-1] - 1) / (batch_size - 1)
        return LossLevels(unrelated, 0.0, {"invariance": invariance, "variance": variance, "covariance": covariance})

    def loss_flops(self, batch_size: int) -> float:
        """One product for each view forward, and one backward."""
        d, devices = self.projector.sizes[-1], 1 if self.mesh is None else self.mesh.size
        return 2 * 2 * 2 * batch_size * d * min(batch_size, d) / devices

    def describe(self, batch_size: int) -> dict[str, str]:
        variance, start = self.weights[1], self.loss_levels(batch_size).start
        return {
            "projector": "-".join(map(str, self.projector.sizes)),
            "loss": f"{variance * 0.99:.4g} for a collapsed network, 0.99 μ; about {start:.1f} for unrelated views of "
            "unit variance, 2λ+2ν(D-1)/(N-1); never below 0",
        }
