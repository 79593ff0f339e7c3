"""The input of a network: uint8 images, normalised on the device."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
    """(images / 255 - mean) / std, channel by channel.

    Args:
      images: (..., 3) uint8.

    Returns:
      (..., 3) of `dtype`, computed in float32 (in float64 if `dtype` is).

    Raises:
      ValueError: another dtype or last axis.
    """
    if images.dtype != jnp.uint8 or images.ndim < 1 or images.shape[-1] != 3:
        raise ValueError(f"images is {images.dtype} {images.shape}; it must be uint8 with a last axis of 3 channels.")
    full = jnp.promote_types(dtype, jnp.float32)
    shape = (1,) * (images.ndim - 1) + (3,)
    centre, scale = np.asarray(mean, full).reshape(shape), np.asarray(std, full).reshape(shape)
    return ((images.astype(full) / 255 - centre) / scale).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Size and normalisation of a network's input.

    Attributes:
      image_size: side of an image, in pixels.
      mean, std: of the three channels, on a scale of 0 to 1.
      dtype: of the computation.
    """

    image_size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    dtype: Any = jnp.float32

    @classmethod
    def of(cls, data: Any, dtype: Any) -> "Inputs":
        """From a run's `config.data`, for computations in `dtype`."""
        return cls(data.image_size, tuple(data.mean), tuple(data.std), jnp.dtype(dtype))

    def normalize(self, images: jax.Array) -> jax.Array:
        """(..., 3) uint8 -> the same shape in `dtype`: see `normalize`."""
        return normalize(images, mean=self.mean, std=self.std, dtype=self.dtype)
