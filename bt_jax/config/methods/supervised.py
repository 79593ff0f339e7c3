"""The fields of supervised training: a classifier on the encoder, trained with labels."""

from bt_jax.config.field import Field, Group, MethodFields
from bt_jax.config.groups.views import CROP_AND_FLIP, view_fields
from bt_jax.config.rules import below_one

# Evaluations that train with labels have this group too.
SUPERVISED = Group(
    "supervised",
    "training with labels: one view of an image, and the cross-entropy of a linear classifier",
    {
        "label_smoothing": Field(0.0, below_one, "Fraction of the target that is spread evenly over all classes"),
        **view_fields("view", **CROP_AND_FLIP),
    },
)

METHOD = MethodFields(SUPERVISED, optimizer="sgd", defaults={"batch_size": 256, "epochs": 90})
