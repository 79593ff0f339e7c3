"""Barlow Twins for JAX: self-supervised pre-training, from a laptop to a TPU pod."""

from bt_jax.errors import UserError
from bt_jax.losses.barlow_twins import barlow_twins_loss

__version__ = "0.1.0"
__all__ = ["UserError", "barlow_twins_loss"]
