"""The fields of Barlow Twins; the defaults are the paper's (Zbontar et al. 2021), and λ that of the official main.py.

The paper's section 2.2 has λ = 5e-3.
"""

from bt_jax.config.field import Field, Group, MethodFields, contradiction
from bt_jax.config.groups.views import view_fields
from bt_jax.config.rules import above_zero, anything, at_least, one_of, positive_integers_or_none


def _widths(sizes):
    return "-".join(map(str, sizes))


@contradiction("mesh.model", "barlow_twins.projector", "barlow_twins.predictor")
def _layers_split_evenly(split, projector, predictor):
    for name, sizes in (("projector", projector), ("predictor", predictor)):
        if any(size % split for size in sizes):
            return f"mesh.model is {split}, but must divide each of barlow_twins.{name}, {_widths(sizes)}"
    if split > 1 and not (*projector, *predictor):
        return f"mesh.model is {split}, but barlow_twins.projector is empty, so that there are no layers to split"
    return None


@contradiction("barlow_twins.projector", "barlow_twins.projector_batch_norm")
def _norms_are_between_layers(projector, batch_norm):
    if not batch_norm and len(projector) < 2:
        return (
            f"barlow_twins.projector_batch_norm is False, but a projector of {len(projector)} layer{'s' * (not projector)} "
            "has no batch norm anyway"
        )
    return None


@contradiction("barlow_twins.symmetrized", "barlow_twins.predictor", "barlow_twins.stop_gradient")
def _roles_differ(symmetrized, predictor, stop_gradient):
    if symmetrized and not predictor:
        why = "halves the gradient and changes nothing else" if stop_gradient else "changes nothing"
        return f"barlow_twins.symmetrized is True, which {why} without barlow_twins.predictor"
    return None


@contradiction("barlow_twins.terms", "barlow_twins.lambd", "barlow_twins.off_diagonals", "barlow_twins.mixed")
def _terms_have_a_weight(terms, lambd, off_diagonals, mixed):
    if terms == "redundancy" and not lambd:
        return "barlow_twins.lambd is 0, so that the loss is 0 when barlow_twins.terms is 'redundancy'"
    if terms == "invariance" and off_diagonals != "cross":
        return f"barlow_twins.off_diagonals is {off_diagonals!r}, but they are not in the loss when barlow_twins.terms is 'invariance'"
    if mixed and not lambd:
        return f"barlow_twins.mixed is {mixed:g}, but its weight is that times barlow_twins.lambd, which is 0"
    return None


@contradiction("barlow_twins.loss", "barlow_twins.form", "barlow_twins.temperature")
def _cross_entropy(loss, form, temperature):
    if loss == "cross_entropy" and form == "gram":
        return (
            "barlow_twins.form is 'gram', but must be 'auto' or 'correlation' when barlow_twins.loss is 'cross_entropy'"
        )
    if loss != "cross_entropy" and temperature != _TEMPERATURE:
        return (
            f"barlow_twins.temperature is {temperature:g}, but is only used when barlow_twins.loss is 'cross_entropy'"
        )
    return None


_TEMPERATURE = 0.1
# Fields of the whole loss, with which the regulariser goes.
_WHOLE = {
    "terms": "both",
    "normalization": "batch",
    "loss": "squared",
    "off_diagonals": "cross",
    "stop_gradient": False,
    "predictor": (),
}


@contradiction("barlow_twins.mixed", *(f"barlow_twins.{name}" for name in _WHOLE))
def _mixed_goes_with_the_whole_loss(mixed, *found):
    for (name, usual), value in zip(_WHOLE.items(), found, strict=True):
        if mixed and (tuple(value) if name == "predictor" else value) != usual:
            return f"barlow_twins.mixed is {mixed:g}, which goes with the whole loss only, but barlow_twins.{name} is {value!r}"
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
                positive_integers_or_none,
                "Widths of the projector's layers; the last is the embedding's; empty for none, so that the embedding is the "
                "encoder's features",
            ),
            "projector_batch_norm": Field(
                True, anything, "Whether the projector's layers but the last have a batch norm"
            ),
            "mixed": Field(
                0.0,
                at_least(0, float),
                "Weight, times λ, of the regulariser of Mixed Barlow Twins against overfitting of small sets; 4 in its "
                "CIFAR-10 recipe; 0 for none. It costs half a forward and backward pass more",
            ),
            "terms": Field(
                "both",
                one_of(("both", "invariance", "redundancy")),
                "Ablation: only the on-diagonal term of the loss (invariance) or only the off-diagonal one (redundancy)",
            ),
            "normalization": Field(
                "batch",
                one_of(("batch", "features", "none")),
                "Ablation: embeddings are normalised over the batch, then also along features to length 1 (features), or "
                "only centred (none)",
            ),
            "loss": Field(
                "squared",
                one_of(("squared", "cross_entropy")),
                "Ablation: a cross-entropy with temperature in place of the squares",
            ),
            "temperature": Field(_TEMPERATURE, above_zero, "Temperature of that cross-entropy"),
            "off_diagonals": Field(
                "cross",
                one_of(("cross", "auto")),
                "Ablation: off-diagonal terms of the cross-correlation of both views, or of each view's auto-correlation (auto)",
            ),
            "stop_gradient": Field(False, anything, "Ablation: no gradient through the embeddings of view b"),
            "predictor": Field(
                (),
                positive_integers_or_none,
                "Ablation: widths of the hidden layers of a predictor on the embeddings of view a, (8192,) in the paper; its output "
                "is as wide as the embedding; empty for none",
            ),
            "symmetrized": Field(
                False,
                anything,
                "With a predictor, whether the loss is the mean over both assignments of the roles of a and b to the views",
            ),
            "joint_statistics": Field(
                False,
                anything,
                "Ablation: whether both views share batch statistics, as in SimCLR; in the official code each view has its own",
            ),
            **view_fields("view_a"),
            **view_fields("view_b", blur=0.1, solarize=0.2),
        },
        (
            _layers_split_evenly,
            _norms_are_between_layers,
            _roles_differ,
            _terms_have_a_weight,
            _cross_entropy,
            _mixed_goes_with_the_whole_loss,
        ),
    ),
    optimizer="lars",
)
