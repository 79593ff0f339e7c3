"""Barlow Twins for JAX: self-supervised pre-training, from a laptop to a TPU pod."""

from typing import TYPE_CHECKING, Any

from bt_jax.errors import UserError
from bt_jax.losses.barlow_twins import barlow_twins_loss
from bt_jax.version import __version__

if TYPE_CHECKING:
    from bt_jax.evaluation.neighbours import neighbours
    from bt_jax.export.encoder import load_encoder

__all__ = ["UserError", "__version__", "barlow_twins_loss", "load_encoder", "neighbours"]


def __getattr__(name: str) -> Any:
    if name == "load_encoder":  # on demand: it imports Flax and Orbax, which take seconds
        from bt_jax.export.encoder import load_encoder

        return load_encoder
    if name == "neighbours":
        from bt_jax.evaluation.neighbours import neighbours

        return neighbours
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
