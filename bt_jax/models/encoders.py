"""Encoders by name or by import path, and the checks of a user's own."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bt_jax.errors import UserError, first_line
from bt_jax.import_path import import_object, is_import_path
from bt_jax.models.resnet import ResNet, make_resnet


def make_encoder(
    arch: str,
    *,
    small_images: bool = False,
    dtype: Any = jnp.float32,
    width: int = 64,
    stem_stride: int = 1,
    remat: bool = False,
) -> nn.Module:
    """An encoder by its name.

    Args:
      arch: resnet18, resnet34, resnet50 or resnet101; or the import path of a Linen module, "package.module:Name", which
        gets the other arguments for which it has fields.
      small_images: a 3×3 stem without max-pool, for images of about 32 pixels (as SimCLR on CIFAR-10).
      dtype: of the computation; parameters and statistics are float32, or float64 if this is.
      width: channels of the first stage; 64 is the standard network.
      stem_stride: of the 3×3 stem; 2 for images of about 64 pixels, or to save time. The 7×7 stem always has stride 2.
      remat: keep only the outputs of convolutions for the backward pass, and compute norms, ReLUs, sums and the max-pool
        again: less memory and more traffic. Value and gradients are the same up to rounding.

    Returns:
      A Linen module: normalised images (N, H, W, 3) -> features (N, F), or (N, V, H, W, 3) -> (N, V, F) with batch
      statistics for each view; called with `train: bool`. F is `module.num_features`.

    Raises:
      ValueError: an unknown name.
      UserError: an import path that cannot be imported or is not an encoder's.
    """
    settings = {
        "small_images": small_images,
        "dtype": dtype,
        "width": width,
        "stem_stride": stem_stride,
        "remat": remat,
    }
    if not is_import_path(arch):
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


def check_encoder(encoder: nn.Module, arch: str, image_size: int, views: Iterable[tuple[int, int]] = ()) -> None:
    """Checks, without computing, that a user's encoder accepts the images of a run and returns features.

    Args:
      arch: its import path, for the error.
      image_size: side in pixels of the images that it will be evaluated on.
      views: (V, side in pixels) of each group of views that it will be trained on.

    Raises:
      UserError: it cannot take such images, returns a shape other than (N, F) or (N, V, F), or has variables other than
        "params" and "batch_stats".
    """
    single = (2, image_size, image_size, 3)
    cases = [(single, False), (single, True), *(((2, count, side, side, 3), True) for count, side in views)]
    variables: Any = None
    for shape, train in cases:
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        try:
            if variables is None:
                variables = jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x, train=False), images)
            features, _ = jax.eval_shape(
                lambda v, x, t=train: encoder.apply(v, x, train=t, mutable=["batch_stats"]), variables, images
            )
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


def in_dtype(encoder: nn.Module, dtype: Any) -> nn.Module:
    """The encoder computing in `dtype`; as it is if it has no such field."""
    return encoder.clone(dtype=dtype) if hasattr(encoder, "dtype") else encoder


def described(encoder: nn.Module, arch: str) -> str:
    """An encoder in words, by what its variables depend on."""
    if isinstance(encoder, ResNet):
        stem = f"3×3 stem of stride {encoder.stem_stride}" if encoder.small_images else "7×7 stem"
        return f"{arch} of width {encoder.width} with a {stem}"
    names = [f.name for f in dataclasses.fields(encoder) if f.name not in ("parent", "name", "dtype", "remat")]
    return " ".join([arch, *(f"{name}={getattr(encoder, name)!r}" for name in names)])


def _words(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
