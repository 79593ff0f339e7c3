"""SimCLR (Chen et al. 2020, arXiv 2002.05709; google-research/simclr) as a method."""

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
from bt_jax.losses.nt_xent import nt_xent, nt_xent_floor, unrelated_nt_xent
from bt_jax.methods.base import Batch, Method, PyTree
from bt_jax.methods.networks import PairNetwork, collapse_in_words, statistics_of
from bt_jax.models import MLPHead
from bt_jax.models.inputs import Inputs

_NETWORKS = ("encoder", "projector")


@dataclasses.dataclass(frozen=True)
class SimCLR(Method):
    """The method `simclr`: `params` and `batch_stats` have "encoder" and "projector"; no `method_state`.

    Both views have the same distribution, and share batch statistics: they go through the network as one batch of 2N
    (model.py, concatenated before the encoder). The projector has batch norm after every layer, the last without a shift,
    no biases, and kernels from normal(0, 0.01) (model_util.py, projection_head).

    Attributes:
      view: the distribution of both views.
      temperature: T of the loss.
    """

    encoder: nn.Module
    projector: MLPHead
    inputs: Inputs
    view: ViewSpec
    temperature: float = 0.1
    mesh: Mesh | None = None

    name: ClassVar[str] = "simclr"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "spread")
    short_names: ClassVar[Mapping[str, str]] = {"accuracy": "acc"}
    alignment: ClassVar[tuple[str, int, int]] = ("pair", 0, 1)
    advice: ClassVar[str] = "Lower optimizer.learning_rate_weights, or lengthen optimizer.warmup_epochs."

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
                kernel_init=nn.initializers.normal(0.01),
                dtype=inputs.dtype,
            ),
            inputs=inputs,
            temperature=settings.temperature,
            view=ViewSpec(**settings.view),
            mesh=mesh,
        )

    @property
    def view_groups(self) -> tuple[ViewGroup, ...]:
        return (ViewGroup("pair", (self.view, self.view), self.inputs.image_size),)

    @property
    def network(self) -> PairNetwork:
        return PairNetwork(self.encoder, self.projector, joint=True)

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
            loss, parts = nt_xent(z[:, 0], z[:, 1], temperature=self.temperature, mesh=self.mesh)
        new_state = {"batch_stats": statistics_of(new, _NETWORKS)}
        return loss, (new_state, method_state, {"loss": loss, **parts})

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def collapse(self, metrics: Mapping[str, float]) -> str:
        return collapse_in_words(
            metrics["spread"], "lower the learning rate, raise simclr.temperature, or make the views less alike."
        )

    def loss_flops(self, batch_size: int) -> float:
        """2N × 2N × D products: one forward, and two backward, where the similarities are computed again."""
        devices = 1 if self.mesh is None else self.mesh.size
        return 3 * 2 * (2 * batch_size) ** 2 * self.projector.sizes[-1] / devices

    def describe(self, batch_size: int) -> dict[str, str]:
        start, floor = unrelated_nt_xent(batch_size), nt_xent_floor(batch_size, self.temperature)
        return {
            "projector": "-".join(map(str, self.projector.sizes)),
            "loss": f"about {start:.2f} for unrelated views, ln(2N-1), and for a collapsed network; never below {floor:.3g}, "
            f"at temperature {self.temperature:g}",
        }
