"""SimCLR (Chen et al. 2020, arXiv 2002.05709; google-research/simclr) as a method."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.views.spec import ViewSpec
from bt_jax.facts import Facts
from bt_jax.losses.nt_xent import nt_xent, nt_xent_floor, unrelated_nt_xent, without_negatives
from bt_jax.methods.base import LossLevels
from bt_jax.methods.networks import SPREAD_WORDS, PairMethod, collapse_in_words
from bt_jax.models import MLPHead
from bt_jax.models.inputs import Inputs

_KERNEL_INIT = nn.initializers.normal(0.01)  # one for all, so that equal methods are equal


@dataclasses.dataclass(frozen=True)
class SimCLR(PairMethod):
    """The method `simclr`: `params` and `batch_stats` have "encoder" and "projector"; no `method_state`.

    Both views have the same distribution, and share batch statistics: they go through the network as one batch of 2N
    (model.py, concatenated before the encoder). The projector has batch norm after every layer, the last without a shift,
    no biases, and kernels from normal(0, 0.01) (model_util.py, projection_head).

    Attributes:
      view: the distribution of both views.
      temperature: T of the loss.
      negatives: whether other images are in the loss.
    """

    temperature: float = 0.1
    negatives: bool = True
    mesh: Mesh | None = None

    name: ClassVar[str] = "simclr"
    title: ClassVar[str] = "SimCLR"
    joint: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "spread")
    short_names: ClassVar[Mapping[str, str]] = {"accuracy": "acc"}
    metric_words: ClassVar[Mapping[str, str]] = {
        "accuracy": "Share of the views whose nearest other view in the batch is of the same image.",
        "spread": SPREAD_WORDS,
    }

    @classmethod
    def build(
        cls, settings: ConfigDict, *, encoder: nn.Module, inputs: Inputs, facts: Facts, mesh: Mesh | None
    ) -> "SimCLR":
        del facts
        return cls(
            encoder=encoder,
            projector=MLPHead(
                tuple(settings.projector),
                bias=False,
                norm_output=True,
                kernel_init=_KERNEL_INIT,
                dtype=inputs.dtype,
            ),
            inputs=inputs,
            temperature=settings.temperature,
            negatives=settings.negatives,
            view=ViewSpec(**settings.view),
            mesh=mesh,
        )

    def pair_loss(self, z_a: jax.Array, z_b: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss, parts = nt_xent(z_a, z_b, temperature=self.temperature, mesh=self.mesh)
        return (loss if self.negatives else without_negatives(z_a, z_b, temperature=self.temperature)), parts

    def collapse(self, metrics: Mapping[str, float]) -> str:
        return collapse_in_words(
            metrics["spread"], "lower the learning rate, raise simclr.temperature, or make the views less alike."
        )

    def loss_levels(self, batch_size: int) -> LossLevels:
        if not self.negatives:
            return LossLevels(0.0, -1 / self.temperature)
        return LossLevels(unrelated_nt_xent(batch_size), nt_xent_floor(batch_size, self.temperature))

    def loss_flops(self, batch_size: int) -> float:
        """2N × 2N × D products: one forward, and two backward, where the similarities are computed again."""
        devices = 1 if self.mesh is None else self.mesh.size
        return 3 * 2 * (2 * batch_size) ** 2 * self.projector.sizes[-1] / devices

    def describe(self, batch_size: int) -> dict[str, str]:
        sizes = "-".join(map(str, self.projector.sizes))
        if not self.negatives:
            lowest = f"{-1 / self.temperature:.3g}"
            return {
                "projector": sizes,
                "ablation": "no negatives",
                "loss": f"about 0 for unrelated views; never below {lowest}, which a collapsed network has too",
            }
        levels = self.loss_levels(batch_size)
        return {
            "projector": sizes,
            "loss": f"about {levels.start:.2f} for unrelated views, ln(2N-1), and for a collapsed network; never below {levels.floor:.3g}, "
            f"at temperature {self.temperature:g}",
        }
