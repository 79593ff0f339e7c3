"""timm's names <-> Linen variables of a ViT; `bt_jax.export.torch_names` has the layouts.

Files do not say how many heads the attention has: they are taken as timm has them for the width, 64 channels each. (MoCo v3's
`vit_small` has twelve heads of 32, and is another network, although its tensors have the same shapes.)
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bt_jax.errors import UserError
from bt_jax.export.torch_names import flat, from_names, to_names
from bt_jax.export.weights import LARGEST_PATCH, MOST_PATCHES, Tree, encoder_shapes
from bt_jax.models.vit import VITS, make_vit


def from_timm(state_dict: Mapping[str, Any], arch: str) -> dict[str, Tree]:
    """A ViT's variables from timm's tensors.

    Args:
      state_dict: torch tensors or numpy arrays, by the names of timm's vit_small_patch16_224 and its like, without the
        classifier's `head.*`. The patch, the channels and the number of tokens are read from `patch_embed.proj.weight` and `pos_embed`.
      arch: one of `bt_jax.models.vit.VITS`.

    Returns:
      {"params": …} of float32 numpy arrays.

    Raises:
      UserError: unknown or missing names, or wrong shapes; the first eight are listed.
    """
    patch, size, channels = _patch_size_and_channels(state_dict, f"these are not the weights of a {arch}:")
    shapes = flat(encoder_shapes(make_vit(arch, patch_size=patch), size, channels))
    return from_names(state_dict, shapes, _timm_name, f"a {arch}")


def to_timm(variables: Mapping[str, Tree], arch: str) -> dict[str, np.ndarray]:
    """The inverse of `from_timm`: numpy arrays by timm's names, to load with `strict=True` into a model with num_classes=0.

    Raises:
      UserError: the variables belong to another architecture.
    """
    params = variables["params"]
    if not {"patch_embed", "pos_embed"} <= params.keys():
        raise UserError(f"these are not the variables of a {arch}: params/patch_embed or params/pos_embed is missing.")
    (patch, _, channels, _), tokens = params["patch_embed"]["proj"]["kernel"].shape, params["pos_embed"].shape[1] - 1
    shapes = flat(encoder_shapes(make_vit(arch, patch_size=patch), math.isqrt(tokens) * patch, channels))
    return to_names(variables, shapes, _timm_name, f"a {arch}")


def vit_in(state_dict: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The fields arch, patch_size, input_size and channels of `EncoderWeights`, by a ViT's tensors.

    Raises:
      UserError: they are those of no ViT in `VITS`.
    """
    patch, size, channels = _patch_size_and_channels(state_dict, f"{source} holds a ViT, but")
    width = np.shape(state_dict["patch_embed.proj.weight"])[0]
    depth = len({name.split(".")[1] for name in state_dict if name.startswith("blocks.")})
    for arch, (known_width, known_depth, _) in VITS.items():
        if (width, depth) == (known_width, known_depth):
            return {"arch": arch, "patch_size": patch, "input_size": size, "channels": channels}
    known = ", ".join(f"{arch} ({depth} of width {width})" for arch, (width, depth, _) in VITS.items())
    raise UserError(f"{source} holds a ViT of {depth} blocks of width {width}; known architectures: {known}.")


def _patch_size_and_channels(state_dict: Mapping[str, Any], begin: str) -> tuple[int, int, int]:
    """Sides of a patch and of an image in pixels, and an image's channels; the error starts with `begin`."""
    patches, places = (np.shape(state_dict.get(name, ())) for name in ("patch_embed.proj.weight", "pos_embed"))
    if len(patches) != 4 or patches[2] != patches[3] or not 0 < patches[2] <= LARGEST_PATCH:
        raise UserError(f"{begin} patch_embed.proj.weight is {patches}, not (width, 3, patch, patch).")
    side = math.isqrt(max(places[1] - 1, 0)) if len(places) == 3 else 0
    if not 0 < side <= MOST_PATCHES or side**2 + 1 != places[1]:
        raise UserError(
            f"{begin} pos_embed is {places}, not (1, 1 + n², width): a class token and the patches of a square."
        )
    return patches[2], side * patches[2], patches[1]


def _timm_name(part: tuple[str, ...]) -> str:
    """('blocks_0', 'attn', 'qkv') -> blocks.0.attn.qkv"""
    return ".".join(part).replace("blocks_", "blocks.")
