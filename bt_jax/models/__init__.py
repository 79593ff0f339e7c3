"""Networks: encoders, the projector and the linear classifier, with batch norm over the global batch."""

from bt_jax.models.heads import LinearClassifier, Projector
from bt_jax.models.norm import ViewBatchNorm
from bt_jax.models.resnet import ResNet, make_encoder

__all__ = ["LinearClassifier", "Projector", "ResNet", "ViewBatchNorm", "make_encoder"]
