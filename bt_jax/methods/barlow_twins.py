"""Barlow Twins (Zbontar et al. 2021, section 2; official main.py, class BarlowTwins) as a method, with the paper's ablations."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from bt_jax.data.views.spec import VIEW_A, VIEW_B, ViewGroup, ViewSpec
from bt_jax.errors import UserError
from bt_jax.facts import Facts
from bt_jax.losses.barlow_twins import barlow_twins_loss
from bt_jax.losses.barlow_twins_ablations import (
    NO_ABLATION,
    Ablation,
    ablated_barlow_twins_loss,
    ablated_loss_floor,
    ablated_loss_flops,
    expected_ablated_loss_at_start,
    expected_mixed_at_start,
    mixed_regulariser,
)
from bt_jax.methods.base import Batch, LossLevels, Method, PyTree, model_state_of
from bt_jax.models import Projector
from bt_jax.models.heads import projector_partition
from bt_jax.models.inputs import Inputs
from bt_jax.runtime import mesh as mesh_lib


class TwinNetwork(nn.Module):
    """Normalised views (N, V, H, W, C) -> embeddings (N, V, D), and a predictor's output for the first views if there is one.

    On a mesh with an axis "model" the encoder's rows are split over all devices. The features, which are small, are gathered
    along "model" before the projector, whose layers are split along it. The embeddings stay split as the last layer leaves
    them: along "model" too if the projector has an odd number of layers.
    """

    encoder: nn.Module
    projector: nn.Module
    mesh: Mesh | None = None
    predictor: nn.Module | None = None
    predicted: int = 1
    joint: bool = False

    def __call__(self, views: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        n, v = views.shape[:2]
        if self.joint:  # the views of an image side by side, so that no row changes its device
            views = views.reshape(-1, *views.shape[2:])
        features = self.encoder(views, train=train)
        if self.mesh is not None and mesh_lib.MODEL_AXIS in self.mesh.axis_names:
            features = jax.lax.with_sharding_constraint(features, mesh_lib.over_data(self.mesh))
        z = self.projector(features, train=train)
        if self.joint:
            z = z.reshape(n, v, -1)
        return z, z if self.predictor is None else self.predictor(z[:, : self.predicted], train=train)


@dataclasses.dataclass(frozen=True)
class BarlowTwins(Method):
    """The method `barlow_twins`: `params` and `batch_stats` have "encoder", "projector" and "predictor"; no `method_state`.

    Attributes:
      lambd, form: of the loss.
      views: the distributions of the views a and b.
      ablation: of the loss.
      predictor: on the embeddings of view a (Table 6): "2 fully connected layers of size 8192 […] with batch normalization
        followed by a ReLU nonlinearity in the hidden layer". Our choices, which the paper leaves open: its layers have no
        bias, like the projector's, and its output is normalised like an embedding, as C needs that.
      stop_gradient: whether the embeddings of view b have no gradient (Table 6: "on the other network").
      symmetrized: whether the loss is the mean of that and of the one with a and b exchanged. The paper does not say; by
        default it is not. With a stop-gradient and no predictor, it would only halve the usual gradient, as the loss is
        symmetric in a and b, and Table 6 has another result for that.
      joint_statistics: whether the views share the batch statistics of encoder and projector.
      mixed: λ_reg of Mixed Barlow Twins (`mixed_regulariser`), whose mixed images are a third view with batch statistics of
        its own, as there. Their order and share follow from the step's key, over the global batch.
    """

    encoder: nn.Module
    projector: Projector
    inputs: Inputs
    lambd: float = 0.0051
    form: str = "auto"
    views: tuple[ViewSpec, ViewSpec] = (VIEW_A, VIEW_B)
    mesh: Mesh | None = None
    ablation: Ablation = NO_ABLATION
    predictor: Projector | None = None
    stop_gradient: bool = False
    symmetrized: bool = False
    mixed: float = 0.0
    joint_statistics: bool = False

    name: ClassVar[str] = "barlow_twins"
    title: ClassVar[str] = "Barlow Twins"
    short_names: ClassVar[Mapping[str, str]] = {"on_diagonal": "on", "off_diagonal": "off"}
    alignment: ClassVar[tuple[str, int, int]] = ("pair", 0, 1)
    advice: ClassVar[str] = "Lower optimizer.learning_rate_weights, or lengthen optimizer.warmup_epochs."
    overfitting_advice: ClassVar[str] = "train for fewer epochs, or try barlow_twins.mixed=4"

    @classmethod
    def build(
        cls, settings: ConfigDict, *, encoder: nn.Module, inputs: Inputs, facts: Facts, mesh: Mesh | None
    ) -> "BarlowTwins":
        del facts
        sizes, hidden = tuple(settings.projector), tuple(settings.predictor)
        width = sizes[-1] if sizes else encoder.num_features
        split = 1 if mesh is None else mesh.shape.get(mesh_lib.MODEL_AXIS, 1)
        if width % split:
            raise UserError(f"mesh.model is {split}, but must divide the width of the embeddings, {width}.")
        return cls(
            encoder=encoder,
            projector=Projector(sizes, dtype=inputs.dtype, batch_norm=settings.projector_batch_norm),
            inputs=inputs,
            lambd=settings.lambd,
            form=settings.form,
            views=(ViewSpec(**settings.view_a), ViewSpec(**settings.view_b)),
            mesh=mesh,
            ablation=Ablation(**{field.name: settings[field.name] for field in dataclasses.fields(Ablation)}),
            predictor=Projector((*hidden, width), dtype=inputs.dtype) if hidden else None,
            stop_gradient=settings.stop_gradient,
            symmetrized=settings.symmetrized,
            mixed=settings.mixed,
            joint_statistics=settings.joint_statistics,
        )

    @property
    def metrics(self) -> tuple[str, ...]:  # pyrefly: ignore[bad-override]  (a ClassVar there; here a setting adds one)
        return ("loss", "on_diagonal", "off_diagonal", *(("mixed",) if self.mixed else ()))

    @property
    def width(self) -> int:
        """D, of the embeddings."""
        return self.projector.sizes[-1] if self.projector.sizes else self.encoder.num_features

    @property
    def view_groups(self) -> tuple[ViewGroup, ...]:
        return (ViewGroup("pair", self.views, self.inputs.image_size, self.inputs.pixels),)

    @property
    def network(self) -> TwinNetwork:
        predicted = 2 if self.symmetrized else 1
        return TwinNetwork(self.encoder, self.projector, self.mesh, self.predictor, predicted, self.joint_statistics)

    def init(self, rng: jax.Array, batch_spec: Batch) -> tuple[PyTree, PyTree, PyTree]:
        views = jnp.zeros((2, *batch_spec["views"]["pair"].shape[1:]), self.inputs.dtype)
        variables = self.network.init(rng, views, train=False)
        return variables["params"], model_state_of(variables), {}

    def loss(
        self, params: PyTree, model_state: PyTree, method_state: PyTree, batch: Batch, step: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, PyTree, dict[str, jax.Array]]]:
        del step
        pair = batch["views"]["pair"]
        views = self.inputs.normalize(pair)
        mixing = _mixing(rng, len(pair)) if self.mixed else None
        if mixing is not None:
            order, share = mixing
            others = self.inputs.normalize(pair[order, 1])  # as bytes, a quarter of what a mesh would have to send
            views = jnp.concatenate([views, _mix(views[:, 0], others, share)[:, None]], axis=1)
        variables = {"params": params, **model_state}
        (z, predicted), new = self.network.apply(variables, views, train=True, mutable=["batch_stats"])
        with jax.named_scope("loss"):
            loss, parts = self._loss_of(z, predicted)
            if mixing is not None:
                order, share = mixing
                parts["mixed"] = mixed_regulariser(
                    z[:, 0], z[:, 1], z[:, 2], order=order, share=share, form=self.form, mesh=self.mesh
                )
                loss += self.mixed * self.lambd * parts["mixed"]
        return loss, (model_state_of(new), method_state, {"loss": loss, **parts})

    def _loss_of(self, z: jax.Array, predicted: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss and its parts, without the regulariser; z (N, V, D), predicted (N, V', D)."""

        def of_roles(a, b):
            view, target = predicted[:, a], z[:, b]
            if self.stop_gradient:
                target = jax.lax.stop_gradient(target)
            settings = {"lambd": self.lambd, "form": self.form, "mesh": self.mesh}
            if self.ablation == NO_ABLATION:
                return barlow_twins_loss(view, target, **settings)
            return ablated_barlow_twins_loss(view, target, self.ablation, **settings)

        if not self.symmetrized:
            return of_roles(0, 1)
        return jax.tree.map(lambda one, other: (one + other) / 2, of_roles(0, 1), of_roles(1, 0))

    def partition(self, path: Sequence[str]) -> PartitionSpec:
        if self.mesh is None or mesh_lib.MODEL_AXIS not in self.mesh.axis_names:
            return PartitionSpec()
        if "predictor" in path:
            return projector_partition(path, "predictor", layers_before=len(self.projector.sizes))
        return projector_partition(path)

    def heads(self) -> dict[str, nn.Module]:
        heads: dict[str, nn.Module] = {"projector": self.projector} if self.projector.sizes else {}
        return heads if self.predictor is None else {**heads, "predictor": self.predictor}

    def loss_flops(self, batch_size: int) -> float:
        """As in the cost model of `barlow_twins_loss`."""
        devices, data = (1, 1) if self.mesh is None else (self.mesh.size, self.mesh.shape[mesh_lib.DATA_AXIS])
        losses = (2 if self.symmetrized else 1) + (2 if self.mixed else 0)
        return losses * ablated_loss_flops(batch_size, self.width, self.form, self.ablation, data=data, devices=devices)

    def loss_levels(self, batch_size: int) -> LossLevels:
        start, floor = self._levels(batch_size)
        weights = {"on_diagonal": 1.0, "off_diagonal": self.lambd} | (
            {"mixed": self.mixed * self.lambd} if self.mixed else {}
        )
        # Other ablations combine their parts in other ways.
        return LossLevels(start, floor, weights if self.ablation == NO_ABLATION else {})

    def describe(self, batch_size: int) -> dict[str, str]:
        sizes, width = self.projector.sizes, self.width
        lines = {
            "projector": ("-".join(map(str, sizes)) or f"none; the embeddings are the {width} features")
            + ("" if self.projector.batch_norm else ", without batch norm")
        }
        if words := self._ablations():
            lines["ablation"] = "; ".join(words)
        if self.mixed:
            lines["mixed"] = f"images of both views, weight {self.mixed:g} λ"
        lines["loss"] = self._described_loss(batch_size)
        if batch_size < width / 64:
            suited = suited_width(batch_size)
            lines["note"] = (
                f"batch_size is {batch_size}, less than 1/64 of the embeddings' {width} columns, where the paper's accuracy falls\n"
                f"(by 2 points at 128 images and 8192 columns); use a larger batch, or a projector of {suited} columns\n"
                f"(--config.barlow_twins.projector='({suited},{suited},{suited})'), and, under LARS with trust_coefficient 0.001\n"
                "and without clip, --config.optimizer.rates=paper"
            )
        return lines

    def _levels(self, n: int) -> tuple[float | None, float | None]:
        """The loss expected at the start, and its floor, as far as they are known."""
        start = expected_ablated_loss_at_start(n, self.width, self.lambd, self.ablation)
        if start is not None and self.mixed:
            start += self.mixed * self.lambd * expected_mixed_at_start(n, self.width)
        return start, ablated_loss_floor(n, self.width, self.lambd, self.ablation)

    def _described_loss(self, n: int) -> str:
        start, floor = self._levels(n)
        if start is None:
            return "at the start it depends on the variances of the embeddings, so no value is expected"
        formula = ""
        if self.ablation == NO_ABLATION:
            formula = ", D(1+1/N)+λD(D-1)/N"
        if self.mixed:
            formula += "\n+λ_reg λ(10D²/3N+D/3)"
        text = f"about {start:.1f} for unrelated views{formula}"
        if floor is not None:
            why = ", as rank(C) ≤ N-1" if self.ablation == NO_ABLATION else ""
            text += f"; never below {floor:.3g}{why}"
        return text

    def _ablations(self) -> list[str]:
        """What differs from the paper's method, in words."""
        changed = self.ablation
        words = {
            f"only the {changed.terms} term": changed.terms != "both",
            "embeddings normalised along features": changed.normalization == "features",
            "embeddings only centred": changed.normalization == "none",
            f"cross-entropy with temperature {changed.temperature:g}": changed.loss == "cross_entropy",
            "off-diagonals of auto-correlations": changed.off_diagonals == "auto",
            "no gradient through view b": self.stop_gradient,
            "batch statistics of both views together": self.joint_statistics,
        }
        found = [text for text, holds in words.items() if holds]
        if self.predictor is not None:
            found.append(f"predictor {'-'.join(map(str, self.predictor.sizes))}" + ", symmetrised" * self.symmetrized)
        return found


def suited_width(batch_size: int) -> int:
    """The width of an embedding that suits a batch: the largest power of 2 of at most 16 N, and at most 8192.

    A hypothesis: what counts is D/N. The paper's accuracy at 8192 columns is 2.0, 1.0, 0.3 and 0 points below the best for
    batches of 128, 256, 512 and 1024 (facebookresearch/barlowtwins#7), that is for D/N = 64, 32, 16 and 8.
    """
    return min(8192, 1 << (16 * batch_size).bit_length() - 1)


def _mixing(rng: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """A permutation (n,) and a share () for `mixed_regulariser`."""
    for_order, for_share = jax.random.split(rng)
    return jax.random.permutation(for_order, n), jax.random.uniform(for_share)


def _mix(a: jax.Array, b: jax.Array, share: jax.Array) -> jax.Array:
    """s·a + (1-s)·b, computed in float32."""
    full = jnp.promote_types(a.dtype, jnp.float32)
    return (share * a.astype(full) + (1 - share) * b.astype(full)).astype(a.dtype)
