"""The fields of BYOL; the defaults are its paper's for 1000 epochs of ImageNet (Grill et al. 2020)."""

from bt_jax.config.field import Field, Group, MethodFields
from bt_jax.config.groups.views import view_fields
from bt_jax.config.rules import between, positive_integers, positive_integers_or_none

METHOD = MethodFields(
    Group(
        "byol",
        "BYOL, which predicts a slowly moving target network's embedding of the other view",
        {
            "target_momentum": Field(
                0.996,
                between(0, 1),
                "τ at the first step: the fraction of the target network that an update keeps; it rises as half a cosine",
            ),
            "target_momentum_at_end": Field(
                1.0,
                between(0, 1),
                "τ at the last step; ablation: with target_momentum=0, 0 for a target that is the online network",
            ),
            "projector": Field(
                (4096, 256), positive_integers, "Widths of the projector's layers; the last is the embedding's"
            ),
            "predictor": Field(
                (4096,),
                positive_integers_or_none,
                "Widths of the predictor's hidden layers; its output is as wide as the embedding. () for no predictor, which "
                "collapses",
            ),
            **view_fields("view_a"),
            **view_fields("view_b", blur=0.1, solarize=0.2),
        },
    ),
    optimizer="lars",
    defaults={
        "batch_size": 4096,
        "optimizer.learning_rate_weights": 0.2,
        "optimizer.learning_rate_biases": 0.2,
        "optimizer.weight_decay": 1.5e-6,
        "optimizer.end_factor": 0.0,
    },
)
