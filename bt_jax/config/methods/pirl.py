"""The fields of PIRL; the defaults are its paper's for ImageNet (Misra and van der Maaten 2020)."""

from bt_jax.config.field import Field, Group, MethodFields, contradiction
from bt_jax.config.groups.views import view_fields
from bt_jax.config.rules import above_zero, at_least, below_one, between, one_of, positive_integers

COLOURS = {"jitter": 1.0, "saturation": 0.4, "hue": 0.2, "blur": 0.0, "interpolation": "bilinear"}


@contradiction("pirl.patch_size", "pirl.cell")
def _patches_fit_their_cells(patch_size, cell):
    if patch_size > cell:
        return f"pirl.patch_size is {patch_size}, but must be at most pirl.cell, which is {cell}"
    return None


METHOD = MethodFields(
    Group(
        "pirl",
        "PIRL, which tells an image and its shuffled patches from all other images by a memory bank",
        {
            "loss": Field(
                "nce",
                one_of(("nce", "cross_entropy")),
                "How the own row is told from the others: nce as in the paper, or cross_entropy as in its later variant",
            ),
            "temperature": Field(0.07, above_zero, "T, by which cosines are divided"),
            "negatives": Field(
                32000,
                at_least(0),
                "Rows of other images that a batch is compared with, drawn anew in each step; 0 for those of all other images",
            ),
            "patch_weight": Field(0.5, between(0, 1), "λ: the weight of the patches' loss; the image's has the rest"),
            "bank_momentum": Field(0.5, below_one, "The fraction of an image's row that a step keeps"),
            "projector": Field(
                (128,),
                positive_integers,
                "Widths of the layers of each head, without batch norm; the last is the bank's",
            ),
            "patch_size": Field(64, at_least(1), "Side of a patch in pixels"),
            "cell": Field(
                85,
                at_least(1),
                "Side in pixels of each of the 3 × 3 cells of a crop, in which a patch has a random place",
            ),
            **view_fields("view", **COLOURS),
            **view_fields("patch_view", crop_scale=(0.6, 1.0), **COLOURS),
        },
        (_patches_fit_their_cells,),
    ),
    optimizer="sgd",
    defaults={
        "batch_size": 1024,
        "optimizer.learning_rate": 0.03,
        "optimizer.decay_norms": False,
        "optimizer.decay_biases": False,
        "optimizer.end_factor": 0.001,
    },
)
