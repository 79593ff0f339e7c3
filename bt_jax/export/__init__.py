"""Exchange of weights: exports, conversion to and from PyTorch, and loading encoders for use."""

from bt_jax.export.encoder import Encoder, load_encoder
from bt_jax.export.torch_weights import (
    classifier_from_torch,
    classifier_to_torch,
    from_torch,
    projector_from_torch,
    projector_to_torch,
    to_torch,
)

__all__ = [
    "Encoder",
    "classifier_from_torch",
    "classifier_to_torch",
    "from_torch",
    "load_encoder",
    "projector_from_torch",
    "projector_to_torch",
    "to_torch",
]
