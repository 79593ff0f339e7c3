"""The encoder."""

from bt_jax.config.field import Field, Group, contradiction
from bt_jax.config.rules import anything, at_least, between, one_of_or_import_path

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200")
VITS = ("vit_tiny", "vit_small", "vit_base")


@contradiction(
    "model.arch",
    "model.width",
    "model.small_images",
    "model.stem_stride",
    "model.stem_padding",
    "model.zero_init_residual",
    "model.patch_size",
)
def _each_kind_has_its_own(arch, width, small_images, stem_stride, stem_padding, zero_init_residual, patch_size):
    if arch not in VITS and patch_size != 16:
        return f"model.patch_size is {patch_size}, but is of ViTs only, and model.arch is {arch!r}; leave it at 16"
    of_resnets = {
        "width": (width, 64),
        "small_images": (small_images, False),
        "stem_stride": (stem_stride, 1),
        "stem_padding": (stem_padding, 1),
        "zero_init_residual": (zero_init_residual, True),
    }
    for name, (value, default) in of_resnets.items():
        if arch in VITS and value != default:
            return f"model.{name} is {value}, but is of ResNets only, and model.arch is {arch!r}; leave it at {default}"
    for name, value in (("stem_stride", stem_stride), ("stem_padding", stem_padding)):
        if arch in RESNETS and value != 1 and not small_images:
            return f"model.{name} is {value}, but is of the 3×3 stem only; set model.small_images=True too, or leave it at 1"
    return None


@contradiction("model.arch", "model.patch_size", "data.image_size")
def _whole_patches(arch, patch_size, image_size):
    if arch in VITS and image_size % patch_size:
        return (
            f"data.image_size is {image_size}, but must be a multiple of model.patch_size, which is {patch_size}, for "
            f"model.arch={arch!r}"
        )
    return None


MODEL = Group(
    "model",
    "the encoder",
    {
        "arch": Field(
            "resnet50",
            one_of_or_import_path((*RESNETS, *VITS), "my_package.nets:MyEncoder"),
            "Network: resnet18, 34, 50, 101, 152 or 200, vit_tiny, vit_small or vit_base, or the import path of a Linen module, "
            "package.module:Class",
        ),
        "width": Field(
            64,
            at_least(1),
            "Channels of a ResNet's first stage; 64 for the standard network, 128 for the papers' ResNet-50 (2×)",
        ),
        "small_images": Field(
            False, anything, "Whether the stem is a 3×3 convolution without max-pool, for images of about 32 pixels"
        ),
        "stem_stride": Field(
            1, between(1, 2), "Stride of that 3×3 convolution; 2 for images of about 64 pixels, or to save time"
        ),
        "stem_padding": Field(
            1, between(1, 2), "Padding of that 3×3 convolution on each side; solo-learn's networks for CIFAR have 2"
        ),
        "zero_init_residual": Field(
            True,
            anything,
            "Whether the last batch-norm scale of each of a ResNet's blocks starts at 0, so that the block begins as the identity",
        ),
        "patch_size": Field(
            16,
            at_least(1),
            "Side of a ViT's patches in pixels, which divides data.image_size; 8 for images of about 48 pixels",
        ),
        "remat": Field(
            False,
            anything,
            "Whether only the convolutions' outputs (of a ViT, the blocks' inputs) are kept for the backward pass, and the rest "
            "is computed again: for batches that do not fit; takes more memory traffic, and for a ViT a third more work",
            resume="free",
        ),
    },
    (_each_kind_has_its_own, _whole_patches),
)
