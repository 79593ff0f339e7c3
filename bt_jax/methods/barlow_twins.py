"""Barlow Twins (Zbontar et al. 2021, section 2; official main.py, class BarlowTwins) as a method."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from bt_jax.data.views.spec import VIEW_A, VIEW_B, ViewGroup, ViewSpec
from bt_jax.facts import Facts
from bt_jax.losses.barlow_twins import barlow_twins_loss, choose_form, expected_loss_at_start, loss_floor
from bt_jax.methods.base import Batch, Method, PyTree, model_state_of
from bt_jax.models import Projector
from bt_jax.models.heads import projector_partition
from bt_jax.models.inputs import Inputs
from bt_jax.runtime import mesh as mesh_lib


class TwinNetwork(nn.Module):
    """Normalised views (N, V, H, W, 3) -> embeddings (N, V, D).

    On a mesh with an axis "model" the encoder's rows are split over all devices. The features, which are small, are gathered
    along "model" before the projector, whose layers are split along it. The embeddings stay split as the last layer leaves
    them: along "model" too if the projector has an odd number of layers.
    """

    encoder: nn.Module
    projector: nn.Module
    mesh: Mesh | None = None

    def __call__(self, views: jax.Array, *, train: bool) -> jax.Array:
        features = self.encoder(views, train=train)
        if self.mesh is not None and mesh_lib.MODEL_AXIS in self.mesh.axis_names:
            features = jax.lax.with_sharding_constraint(features, mesh_lib.over_data(self.mesh))
        return self.projector(features, train=train)


@dataclasses.dataclass(frozen=True)
class BarlowTwins(Method):
    """The method `barlow_twins`: `params` and `batch_stats` have "encoder" and "projector"; no `method_state`."""

    encoder: nn.Module
    projector: Projector
    inputs: Inputs
    lambd: float = 0.0051
    form: str = "auto"
    views: tuple[ViewSpec, ViewSpec] = (VIEW_A, VIEW_B)
    mesh: Mesh | None = None

    name: ClassVar[str] = "barlow_twins"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "on_diagonal", "off_diagonal")
    short_names: ClassVar[Mapping[str, str]] = {"on_diagonal": "on", "off_diagonal": "off"}
    alignment: ClassVar[tuple[str, int, int]] = ("pair", 0, 1)
    advice: ClassVar[str] = "Lower optimizer.learning_rate_weights, or lengthen optimizer.warmup_epochs."

    @classmethod
    def build(
        cls, settings: ConfigDict, *, encoder: nn.Module, inputs: Inputs, facts: Facts, mesh: Mesh | None
    ) -> "BarlowTwins":
        del facts
        return cls(
            encoder=encoder,
            projector=Projector(tuple(settings.projector), dtype=inputs.dtype),
            inputs=inputs,
            lambd=settings.lambd,
            form=settings.form,
            views=(ViewSpec(**settings.view_a), ViewSpec(**settings.view_b)),
            mesh=mesh,
        )

    @property
    def view_groups(self) -> tuple[ViewGroup, ...]:
        return (ViewGroup("pair", self.views, self.inputs.image_size),)

    @property
    def network(self) -> TwinNetwork:
        return TwinNetwork(self.encoder, self.projector, self.mesh)

    def init(self, rng: jax.Array, batch_spec: Batch) -> tuple[PyTree, PyTree, PyTree]:
        views = jnp.zeros((2, *batch_spec["views"]["pair"].shape[1:]), self.inputs.dtype)
        variables = self.network.init(rng, views, train=False)
        return variables["params"], model_state_of(variables), {}

    def loss(
        self, params: PyTree, model_state: PyTree, method_state: PyTree, batch: Batch, step: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, PyTree, dict[str, jax.Array]]]:
        del step, rng  # the views are already made, and nothing else is random
        views = self.inputs.normalize(batch["views"]["pair"])
        z, new = self.network.apply({"params": params, **model_state}, views, train=True, mutable=["batch_stats"])
        with jax.named_scope("loss"):
            loss, parts = barlow_twins_loss(z[:, 0], z[:, 1], lambd=self.lambd, form=self.form, mesh=self.mesh)
        return loss, (model_state_of(new), method_state, {"loss": loss, **parts})

    def partition(self, path: Sequence[str]) -> PartitionSpec:
        split = self.mesh is not None and mesh_lib.MODEL_AXIS in self.mesh.axis_names
        return projector_partition(path) if split else PartitionSpec()

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def loss_flops(self, batch_size: int) -> float:
        """As in the cost model of `barlow_twins_loss`."""
        n, d = batch_size, self.projector.sizes[-1]
        devices, data = (1, 1) if self.mesh is None else (self.mesh.size, self.mesh.shape[mesh_lib.DATA_AXIS])
        form = choose_form(n, d, data) if self.form == "auto" else self.form
        return 8 * n * n * d / devices if form == "gram" else 6 * n * d * d / data

    def describe(self, batch_size: int) -> dict[str, str]:
        width = self.projector.sizes[-1]
        start = expected_loss_at_start(batch_size, width, self.lambd)
        floor = loss_floor(batch_size, width, self.lambd)
        return {
            "projector": "-".join(map(str, self.projector.sizes)),
            "loss": f"about {start:.1f} for unrelated views, D(1+1/N)+λD(D-1)/N; never below {floor:.3g}, as rank(C) ≤ N-1",
        }
