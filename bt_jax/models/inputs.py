"""The input of a network: levels of images, normalised on the device."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax.pixels import PHOTOGRAPHS, Pixels

# From the official transform's Normalize, on a scale of 0 to 1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(
    images: jax.Array,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """(images / 255 - mean) / std, channel by channel; 65535 in place of 255 for levels of 16 bits.

    Args:
      images: levels (..., C), uint8 or uint16.
      mean, std: C numbers each.

    Returns:
      (..., C) of `dtype`, computed in float32 (in float64 if `dtype` is).

    Raises:
      ValueError: another dtype or last axis.
    """
    if images.dtype not in (jnp.uint8, jnp.uint16) or images.ndim < 1 or images.shape[-1] != len(mean):
        raise ValueError(
            f"images is {images.dtype} {images.shape}; it must be uint8 or uint16 with a last axis of {len(mean)} channels."
        )
    full = jnp.promote_types(dtype, jnp.float32)
    shape = (1,) * (images.ndim - 1) + (len(mean),)
    centre, scale = np.asarray(mean, full).reshape(shape), np.asarray(std, full).reshape(shape)
    return ((images.astype(full) / jnp.iinfo(images.dtype).max - centre) / scale).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Size, pixels and normalisation of a network's input.

    Attributes:
      image_size: side of an image, in pixels.
      mean, std: of each channel, on a scale of 0 to 1.
      dtype: of the computation.
      pixels: of the images.
    """

    image_size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    dtype: Any = jnp.float32
    pixels: Pixels = PHOTOGRAPHS

    @classmethod
    def of(cls, data: Any, dtype: Any) -> "Inputs":
        """From a run's `config.data`, for computations in `dtype`."""
        return cls(data.image_size, tuple(data.mean), tuple(data.std), jnp.dtype(dtype), Pixels.of(data))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image, (S, S, C)."""
        return self.image_size, self.image_size, self.pixels.channels

    def normalize(self, images: jax.Array) -> jax.Array:
        """Levels (..., C) -> the same shape in `dtype`: see `normalize`."""
        return normalize(images, mean=self.mean, std=self.std, dtype=self.dtype)
