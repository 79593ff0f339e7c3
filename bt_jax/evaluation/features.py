"""Features of a labelled set by a frozen encoder, every image counted once on any number of devices."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bt_jax import mesh as mesh_lib
from bt_jax.models.inputs import normalize

EvalBatch = dict[str, np.ndarray]  # {"image": (n, H, W, 3) uint8, "label": (n,) int32, "mask": (n,) bool}


def frozen(encoder: nn.Module) -> Callable[[Any, jax.Array], jax.Array]:
    """The encoder in evaluation mode: with running statistics, so that an image's features are its own."""
    return lambda variables, images: encoder.apply(variables, images, train=False)


def raw_pixels(_: Any, images: jax.Array) -> jax.Array:
    """The pixels themselves as features: what an encoder has to beat."""
    return images.reshape(images.shape[0], -1)


class FeatureExtractor:
    """Runs a function of images over batches on the mesh."""

    def __init__(
        self, apply: Callable[[Any, jax.Array], jax.Array], mesh: Mesh, *, mean: tuple, std: tuple, dtype: Any
    ):
        """Args:
        apply: (variables, normalised images (N, H, W, 3) of `dtype`) -> features (N, F); see `frozen`.
        """

        def encode(variables, batch):
            images = normalize(batch["image"], mean=mean, std=std, dtype=dtype)
            return apply(variables, images).astype(jnp.float32), batch["label"], batch["mask"]

        self._mesh = mesh
        # Replicated results: each process ends with all features, in the order of the set.
        self._encode: Callable = jax.jit(encode, out_shardings=mesh_lib.everywhere(mesh))

    def __call__(self, variables: Any, batches: Iterable[EvalBatch], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Features and labels of all images whose mask is set.

        Args:
          variables: the encoder's, as `TrainState.encoder_variables` gives them.
          batches: each with this process's rows of a batch of `batch_size`.

        Returns:
          features (n, F) float32 and labels (n,) int32, on the host.
        """
        features, labels = [], []
        for local in batches:
            batch = mesh_lib.put_batch(self._mesh, batch_size, local)
            f, label, mask = jax.device_get(self._encode(variables, batch))
            features.append(f[mask])
            labels.append(label[mask])
        return np.concatenate(features), np.concatenate(labels)
