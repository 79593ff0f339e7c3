"""Weights that travel: to and from PyTorch's names and layouts, and encoders loaded for use."""

from bt_jax.export.encoder import Encoder, load_encoder
from bt_jax.export.torch_weights import from_torch, projector_from_torch, projector_to_torch, to_torch

__all__ = ["Encoder", "load_encoder", "from_torch", "projector_from_torch", "projector_to_torch", "to_torch"]
