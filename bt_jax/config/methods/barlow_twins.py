"""The fields of Barlow Twins; the defaults are the paper's (Zbontar et al. 2021)."""

from bt_jax.config.field import Field, Group, MethodFields, contradiction
from bt_jax.config.groups.views import view_fields
from bt_jax.config.rules import at_least, one_of, positive_integers


@contradiction("mesh.model", "barlow_twins.projector")
def _layers_split_evenly(split, sizes):
    if any(size % split for size in sizes):
        return f"mesh.model is {split}, but must divide each of barlow_twins.projector, {'-'.join(map(str, sizes))}"
    return None


METHOD = MethodFields(
    Group(
        "barlow_twins",
        "Barlow Twins, which drives the cross-correlation of two views' embeddings to the identity",
        {
            "lambd": Field(0.0051, at_least(0, float), "λ: weight of the off-diagonal terms of the loss"),
            "form": Field(
                "auto",
                one_of(("auto", "correlation", "gram")),
                "How the loss is computed, always to the same value: with the D × D correlation, with N × N Gram matrices "
                "(gram), or the cheaper way (auto)",
            ),
            "projector": Field(
                (8192, 8192, 8192),
                positive_integers,
                "Widths of the projector's layers; the last is the embedding's",
            ),
            **view_fields("view_a"),
            **view_fields("view_b", blur=0.1, solarize=0.2),
        },
        (_layers_split_evenly,),
    ),
    optimizer="lars",
)
