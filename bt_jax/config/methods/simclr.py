"""The fields of SimCLR; the defaults are its paper's for ImageNet (Chen et al. 2020)."""

from bt_jax.config.field import Field, Group, MethodFields
from bt_jax.config.groups.views import view_fields
from bt_jax.config.rules import above_zero, anything, positive_integers

# Strength 1; no solarising (paper, appendix A; data_util.py).
_VIEW = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "blur": 0.5}

METHOD = MethodFields(
    Group(
        "simclr",
        "SimCLR, which finds an image's other view among all views in the batch",
        {
            "temperature": Field(
                0.1,
                above_zero,
                "T: divides the cosines before the softmax; 0.1 for ImageNet, 0.5 for CIFAR-10 in its paper",
            ),
            "negatives": Field(
                True, anything, "Ablation: whether other images are in the loss; without them it collapses"
            ),
            "projector": Field(
                (2048, 128),
                positive_integers,
                "Widths of the projector's layers, with batch norm after each; the last is the embedding's",
            ),
            **view_fields("view", **_VIEW),
        },
    ),
    optimizer="lars",
    defaults={
        "batch_size": 4096,
        "optimizer.learning_rate_weights": 0.3,
        "optimizer.learning_rate_biases": 0.3,
        "optimizer.rate_in_momentum": True,
        "optimizer.end_factor": 0.0,
    },
)
