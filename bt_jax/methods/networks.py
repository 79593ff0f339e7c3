"""What methods of two views share: the network, the statistics in its state, and the words for a collapse."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax

from bt_jax.methods.base import PyTree

COLLAPSED = 0.05  # a spread of embeddings below this; trained networks have 0.5 and more, untrained ones 0.1 and more


class PairNetwork(nn.Module):
    """Normalised views (N, V, H, W, 3) -> embeddings (N, V, D).

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


def statistics_of(variables: Mapping[str, PyTree], names: Iterable[str]) -> dict[str, PyTree]:
    """The batch statistics of these networks; empty for those without batch norm."""
    found: Mapping[str, Any] = variables.get("batch_stats", {})
    return {name: found.get(name, {}) for name in names}


def collapse_in_words(spread: float, cure: str) -> str:
    """A sentence if the spread of a batch's embeddings shows a collapse, else ""."""
    if spread >= COLLAPSED:
        return ""
    return f"the embeddings are nearly the same for all images (spread {spread:.3f} of 1), a collapse; {cure}"
