"""Encoders by name or by import path, and the checks of a user's own."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bt_jax.errors import UserError, first_line
from bt_jax.import_path import import_object, is_import_path
from bt_jax.models.resnet import BLOCKS, ResNet, make_resnet
from bt_jax.models.vit import VITS, ViT, make_vit


def make_encoder(
    arch: str,
    *,
    small_images: bool = False,
    dtype: Any = jnp.float32,
    width: int = 64,
    stem_stride: int = 1,
    stem_padding: int = 1,
    patch_size: int = 16,
    zero_init_residual: bool = True,
    remat: bool = False,
) -> nn.Module:
    """An encoder by its name.

    Args:
      arch: resnet18, 34, 50, 101, 152 or 200; vit_tiny, vit_small or vit_base; or the import path of a Linen module,
        "package.module:Name", which gets the other arguments for which it has fields, except `patch_size`.
      small_images: a 3×3 stem without max-pool, for images of about 32 pixels (as SimCLR on CIFAR-10).
      dtype: of the computation; parameters and statistics are float32, or float64 if this is.
      width: channels of a ResNet's first stage; 64 is the standard network, and 128 the papers' "2×".
      stem_stride: of the 3×3 stem; 2 for images of about 64 pixels, or to save time. The 7×7 stem always has stride 2.
      stem_padding: of the 3×3 stem, on each side; 2 in solo-learn's networks for CIFAR, whose maps are so two pixels larger.
      patch_size: side of a ViT's patches in pixels; its other sizes are those of its name.
      zero_init_residual: whether the last batch-norm scale of each of a ResNet's blocks starts at 0 (Goyal et al. 2017), or at 1.
      remat: keep only the outputs of a ResNet's convolutions for the backward pass, and compute norms, ReLUs, sums and the
        max-pool again; of a ViT, only the inputs of its blocks. Less memory and more traffic or work; value and gradients are
        the same up to rounding.

    Returns:
      A Linen module: normalised images (N, H, W, C) -> features (N, F), or (N, V, H, W, C) -> (N, V, F) with a ResNet's
      batch statistics for each view; called with `train: bool`. F is `module.num_features`. A ViT takes images of one size.

    Raises:
      ValueError: an unknown name.
      UserError: an import path that cannot be imported or is not an encoder's.
    """
    settings = {
        "small_images": small_images,
        "dtype": dtype,
        "width": width,
        "stem_stride": stem_stride,
        "stem_padding": stem_padding,
        "zero_init_residual": zero_init_residual,
        "remat": remat,
    }
    if arch in VITS:
        return make_vit(arch, patch_size=patch_size, dtype=dtype, remat=remat)
    if not is_import_path(arch):
        if arch not in BLOCKS:
            near = difflib.get_close_matches(arch, [*BLOCKS, *VITS], n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"there is no encoder {arch!r}{hint}; known encoders: {', '.join([*BLOCKS, *VITS])}.")
        return make_resnet(arch, **settings)
    cls = import_object(arch, "model.arch")
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise UserError(f"model.arch is {arch!r}, but must be a class derived from flax.linen.Module.")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.name not in ("parent", "name")}
    nothing = dataclasses.MISSING
    unset = [
        name for name, field in fields.items()
        if name not in settings and field.default is nothing and field.default_factory is nothing
    ]  # fmt: skip
    if unset:
        raise UserError(f"model.arch is {arch!r}, whose field {unset[0]!r} has no default; give it one.")
    if remat and "remat" not in fields:
        raise UserError(f"model.remat is true, but {arch!r} has no field 'remat'; set model.remat to false.")
    encoder = cls(**{name: value for name, value in settings.items() if name in fields})
    if not isinstance(getattr(encoder, "num_features", None), int):
        raise UserError(
            f"model.arch is {arch!r}, which lacks num_features, the length of a feature vector as an integer."
        )
    return encoder


def check_encoder(
    encoder: nn.Module, arch: str, image_size: int, views: Iterable[tuple[int, int]] = (), *, channels: int = 3
) -> None:
    """Checks, without computing, that an encoder accepts the images of a run and returns features.

    It is for a user's encoder, and for one that does not take images of any size.

    Args:
      arch: its name or import path, for the error.
      image_size: side in pixels of the images that it will be evaluated on.
      views: (V, side in pixels) of each group of views that it will be trained on.
      channels: of the images.

    Raises:
      UserError: it cannot take such images, returns a shape other than (N, F) or (N, V, F), or has variables other than
        "params" and "batch_stats".
    """
    single = (2, image_size, image_size, channels)
    cases = [(single, False), (single, True), *(((2, count, side, side, channels), True) for count, side in views)]
    variables: Any = None
    for shape, train in cases:
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        try:
            if variables is None:
                variables = jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x, train=False), images)
            features, _ = jax.eval_shape(
                lambda v, x, t=train: encoder.apply(v, x, train=t, mutable=["batch_stats"]), variables, images
            )
        except UserError as error:
            raise UserError(f"model.arch is {arch!r}, which cannot take the run's images: {error}") from error
        except Exception as error:  # a user's module may raise anything
            why = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(
                f"model.arch is {arch!r}, which cannot take images of shape {_words(shape)} with train={train} ({why})."
            ) from error
        found, expected = getattr(features, "shape", None), (*shape[:-3], encoder.num_features)
        if found != expected:
            what = type(features).__name__ if found is None else _words(found)
            raise UserError(
                f"model.arch is {arch!r}, which returns {what} for images of shape {_words(shape)}, but must return "
                f"{_words(expected)}: (N, F), or (N, V, F) for V views, where F is num_features."
            )
    if other := sorted(variables.keys() - {"params", "batch_stats"}):
        raise UserError(
            f"model.arch is {arch!r}, which has variables {other[0]!r}; only 'params' and 'batch_stats' are trained and saved."
        )


def takes_any_size(encoder: nn.Module) -> bool:
    """Whether its variables do not depend on the size of the images, as a ResNet's do not."""
    return isinstance(encoder, ResNet)


def in_dtype(encoder: nn.Module, dtype: Any) -> nn.Module:
    """The encoder computing in `dtype`; as it is if it has no such field."""
    return encoder.clone(dtype=dtype) if hasattr(encoder, "dtype") else encoder


def described(encoder: nn.Module, arch: str) -> str:
    """An encoder in words, by what its variables depend on."""
    if isinstance(encoder, ResNet):
        stem = f"3×3 stem of stride {encoder.stem_stride}" if encoder.small_images else "7×7 stem"
        stem += f", padded by {encoder.stem_padding}" if encoder.small_images and encoder.stem_padding != 1 else ""
        return f"{arch} of width {encoder.width} with a {stem}"
    if isinstance(encoder, ViT):
        return f"{arch} with patches of {encoder.patch_size}×{encoder.patch_size} pixels"
    names = [f.name for f in dataclasses.fields(encoder) if f.name not in ("parent", "name", "dtype", "remat")]
    return " ".join([arch, *(f"{name}={getattr(encoder, name)!r}" for name in names)])


def _words(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
