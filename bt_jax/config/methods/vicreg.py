"""The fields of VICReg; the defaults are its paper's for ImageNet (Bardes et al. 2022)."""

from bt_jax.config.field import Field, Group, MethodFields, contradiction
from bt_jax.config.groups.views import view_fields
from bt_jax.config.rules import at_least, positive_integers


@contradiction("vicreg.invariance", "vicreg.variance", "vicreg.covariance")
def _some_term(*weights):
    if not any(weights):
        return "vicreg.invariance, vicreg.variance and vicreg.covariance are all 0, but one must be positive"
    return None


METHOD = MethodFields(
    Group(
        "vicreg",
        "VICReg, which keeps views alike, each feature's variance up, and features uncorrelated",
        {
            "invariance": Field(
                25.0, at_least(0, float), "Weight of the mean squared difference between the two views"
            ),
            "variance": Field(
                25.0, at_least(0, float), "Weight of the hinge that keeps standard deviations at 1 or more"
            ),
            "covariance": Field(1.0, at_least(0, float), "Weight of the squared covariances between features"),
            "projector": Field(
                (8192, 8192, 8192),
                positive_integers,
                "Widths of the projector's layers (the paper's expander); the last is the embedding's",
            ),
            # Both views are alike, as in the paper's appendix C.1. The official augmentations.py has Barlow Twins' asymmetric
            # ones: blur 1.0 and 0.1, solarise 0 and 0.2.
            **view_fields("view", blur=0.5, solarize=0.1),
        },
        (_some_term,),
    ),
    optimizer="lars",
    defaults={"optimizer.learning_rate_weights": 0.2, "optimizer.learning_rate_biases": 0.2},
)
