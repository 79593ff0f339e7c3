"""Networks: encoders, projectors and the linear classifier, with batch norm over the global batch."""

from bt_jax.models.encoders import check_encoder, make_encoder
from bt_jax.models.heads import LinearClassifier, MLPHead, Projector, Prototypes
from bt_jax.models.norm import ViewBatchNorm
from bt_jax.models.resnet import ResNet
from bt_jax.models.vit import ViT

__all__ = [
    "LinearClassifier",
    "MLPHead",
    "Projector",
    "Prototypes",
    "ResNet",
    "ViT",
    "ViewBatchNorm",
    "check_encoder",
    "make_encoder",
]
