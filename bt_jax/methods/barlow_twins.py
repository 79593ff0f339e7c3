"""Barlow Twins (Zbontar et al. 2021, section 2; official main.py, class BarlowTwins) as a method."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.losses.barlow_twins import barlow_twins_loss, expected_loss_at_start, loss_floor
from bt_jax.methods.base import Batch, PyTree
from bt_jax.models import Projector, make_encoder
from bt_jax.models.inputs import normalize
from bt_jax.runtime import mesh as mesh_lib


class TwinNetwork(nn.Module):
    """Views (N, V, H, W, 3), normalised -> embeddings (N, V, D).

    On a mesh with an axis "model" the encoder's rows are over all devices, and the features (small beside everything
    else) are collected along "model" before they meet the projector's layers, which are split along it. The embeddings
    come out split as the last layer leaves them: along "model" too where the projector has an odd number of layers.
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
class BarlowTwins:
    """The method `barlow_twins`; see `bt_jax.methods.base.Method` for what each call gives."""

    encoder: nn.Module
    projector: Projector
    lambd: float
    form: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dtype: Any
    mesh: Mesh | None = None
    metrics: ClassVar[tuple[str, ...]] = ("loss", "on_diagonal", "off_diagonal")

    @classmethod
    def from_config(cls, config: ConfigDict, mesh: Mesh | None) -> "BarlowTwins":
        dtype = jnp.dtype(config.dtype)
        model = config.model
        encoder = make_encoder(
            model.arch,
            small_images=model.small_images,
            dtype=dtype,
            width=model.width,
            stem_stride=model.stem_stride,
        )
        return cls(
            encoder=encoder,
            projector=Projector(tuple(model.projector), dtype=dtype),
            lambd=config.loss.lambd,
            form=config.loss.form,
            mean=tuple(config.data.mean),
            std=tuple(config.data.std),
            dtype=dtype,
            mesh=mesh,
        )

    @property
    def network(self) -> TwinNetwork:
        return TwinNetwork(self.encoder, self.projector, self.mesh)

    def init(self, rng: jax.Array, view_shape: tuple[int, ...]) -> tuple[PyTree, PyTree, PyTree]:
        views = jnp.zeros((2, 2, *view_shape), self.dtype)
        variables = self.network.init(rng, views, train=False)
        return variables["params"], {"batch_stats": variables["batch_stats"]}, {}

    def loss(
        self, params: PyTree, model_state: PyTree, method_state: PyTree, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, PyTree, dict[str, jax.Array]]]:
        del rng  # the views were drawn on the host, and nothing else is random
        views = normalize(batch["views"], mean=self.mean, std=self.std, dtype=self.dtype)
        z, model_state = self.network.apply(
            {"params": params, **model_state}, views, train=True, mutable=["batch_stats"]
        )
        with jax.named_scope("loss"):
            loss, parts = barlow_twins_loss(z[:, 0], z[:, 1], lambd=self.lambd, form=self.form, mesh=self.mesh)
        return loss, (model_state, method_state, {"loss": loss, **parts})

    def after_update(self, params: PyTree, method_state: PyTree, step: jax.Array) -> PyTree:
        del params, step
        return method_state

    def describe(self, batch_size: int) -> dict[str, str]:
        width = self.projector.sizes[-1]
        start = expected_loss_at_start(batch_size, width, self.lambd)
        floor = loss_floor(batch_size, width, self.lambd)
        return {
            "projector": "-".join(map(str, self.projector.sizes)),
            "loss": f"about {start:.1f} for unrelated views, D(1+1/N)+λD(D-1)/N; never below {floor:.3g}, as rank(C) ≤ N-1",
        }
