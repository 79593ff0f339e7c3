"""What methods of two views share: the network, the statistics in its state, and the words for a collapse."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from bt_jax.data.views.spec import ViewGroup, ViewSpec
from bt_jax.methods.base import Batch, Method, PyTree
from bt_jax.models import MLPHead
from bt_jax.models.inputs import Inputs

NETWORKS = ("encoder", "projector")  # of a PairNetwork
COLLAPSED = (
    0.05  # a spread of embeddings below this; in the quickstart it is 0.78 to 0.99 before, in and after training
)


class PairNetwork(nn.Module):
    """Normalised views (N, V, H, W, C) -> embeddings (N, V, D).

    Attributes:
      joint: whether all views share batch statistics, as in SimCLR's official code, where they go through the network as one
        batch of N·V; otherwise each view has its own.
    """

    encoder: nn.Module
    projector: nn.Module
    joint: bool = False

    def __call__(self, views: jax.Array, *, train: bool) -> jax.Array:
        if not self.joint:
            return self.projector(self.encoder(views, train=train), train=train)
        together = views.reshape(
            -1, *views.shape[2:]
        )  # the views of an image side by side, so that no row changes its device
        z = self.projector(self.encoder(together, train=train), train=train)
        return z.reshape(*views.shape[:2], -1)


@dataclasses.dataclass(frozen=True)
class PairMethod(Method):
    """A method whose loss is a function of the embeddings of two views from one distribution.

    `params` and `batch_stats` have "encoder" and "projector"; there is no `method_state`. A subclass defines `pair_loss`.

    Attributes:
      view: the distribution of both views.
      joint: whether the views share batch statistics (`PairNetwork`).
    """

    encoder: nn.Module
    projector: MLPHead
    inputs: Inputs
    view: ViewSpec

    joint: ClassVar[bool] = False
    alignment: ClassVar[tuple[str, int, int]] = ("pair", 0, 1)
    advice: ClassVar[str] = "Lower optimizer.learning_rate_weights, or lengthen optimizer.warmup_epochs."

    def pair_loss(self, z_a: jax.Array, z_b: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(the loss, its parts by the names in `metrics`) of two views' embeddings (N, D)."""
        raise NotImplementedError

    @property
    def view_groups(self) -> tuple[ViewGroup, ...]:
        return (ViewGroup("pair", (self.view, self.view), self.inputs.image_size, self.inputs.pixels),)

    @property
    def network(self) -> PairNetwork:
        return PairNetwork(self.encoder, self.projector, self.joint)

    def init(self, rng: jax.Array, batch_spec: Batch) -> tuple[PyTree, PyTree, PyTree]:
        views = jnp.zeros((2, *batch_spec["views"]["pair"].shape[1:]), self.inputs.dtype)
        variables = self.network.init(rng, views, train=False)
        return variables["params"], {"batch_stats": statistics_of(variables, NETWORKS)}, {}

    def loss(
        self, params: PyTree, model_state: PyTree, method_state: PyTree, batch: Batch, step: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, PyTree, dict[str, jax.Array]]]:
        del step, rng  # the views are already made, and nothing else is random
        views = self.inputs.normalize(batch["views"]["pair"])
        z, new = self.network.apply({"params": params, **model_state}, views, train=True, mutable=["batch_stats"])
        with jax.named_scope("loss"):
            loss, parts = self.pair_loss(z[:, 0], z[:, 1])
        return loss, ({"batch_stats": statistics_of(new, NETWORKS)}, method_state, {"loss": loss, **parts})

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}


def statistics_of(variables: Mapping[str, PyTree], names: Iterable[str]) -> dict[str, PyTree]:
    """The batch statistics of these networks; empty for those without batch norm."""
    found: Mapping[str, Any] = variables.get("batch_stats", {})
    return {name: found.get(name, {}) for name in names}


SPREAD_WORDS = "Of the batch's embeddings: about 1 if they are even on the sphere, 0 if all are the same, a collapse."


def collapse_in_words(spread: float, cure: str) -> str:
    """A sentence if the spread of a batch's embeddings shows a collapse, else ""."""
    if spread >= COLLAPSED:
        return ""
    return f"the embeddings are nearly the same for all images (spread {spread:.3f} of 1), a collapse; {cure}"
