"""The encoder."""

from bt_jax.config.field import Field, Group
from bt_jax.config.rules import anything, at_least, between, one_of_or_import_path

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101")

MODEL = Group(
    "model",
    "the encoder",
    {
        "arch": Field(
            "resnet50",
            one_of_or_import_path(ARCHITECTURES, "my_package.nets:MyEncoder"),
            "Network: resnet18, resnet34, resnet50, resnet101, or the import path of a Linen module, package.module:Class",
        ),
        "width": Field(64, at_least(1), "Channels of the first stage; 64 for the standard network"),
        "small_images": Field(
            False, anything, "Whether the stem is a 3×3 convolution without max-pool, for images of about 32 pixels"
        ),
        "stem_stride": Field(
            1, between(1, 2), "Stride of that 3×3 convolution; 2 for images of about 64 pixels, or to save time"
        ),
        "remat": Field(
            False,
            anything,
            "Whether only the convolutions' outputs are kept for the backward pass, and norms, ReLUs and sums are computed "
            "again: for batches that do not fit; takes more memory traffic",
            resume="free",
        ),
    },
)
