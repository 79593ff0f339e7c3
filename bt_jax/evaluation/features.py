"""Features of a labelled data set from a frozen encoder, with every image once, on any number of devices."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bt_jax.errors import UserError
from bt_jax.models.inputs import Inputs
from bt_jax.runtime import mesh as mesh_lib

EvalBatch = dict[str, np.ndarray]  # {"image": (n, S, S, C) uint8 or uint16, "label": (n,) int32, "mask": (n,) bool}


def frozen(encoder: nn.Module) -> Callable[[Any, jax.Array], jax.Array]:
    """The encoder in evaluation mode: with running statistics, so that an image's features depend on no other image."""

    def apply(variables: Any, images: jax.Array) -> Any:
        return encoder.apply(variables, images, train=False)

    return apply


def raw_pixels(_: Any, images: jax.Array) -> jax.Array:
    """The pixels as features: a baseline for encoders."""
    return images.reshape(images.shape[0], -1)


class NotFiniteFeatures(UserError):
    """Some features are not finite.

    Attributes:
      place: position of the first such image in the set, from 0.
      image: (H, W, C) uint8 or uint16; None if another process holds it.
    """

    def __init__(self, place: int, image: np.ndarray | None):
        super().__init__(
            f"the features of image {place} are not finite; the encoder's weights or its input must be wrong."
        )
        self.place, self.image = place, image


def first_bad_layer(module: nn.Module, variables: Any, images: jax.Array) -> str:
    """The first layer, in order of computation, whose result is not finite, such as layer1_0/conv2.

    Args:
      images: normalised, (N, H, W, C).
    """
    names = []

    @jax.jit
    def looks(variables, images):
        sound = []

        def look(call, args, kwargs, context):
            result = call(*args, **kwargs)
            if context.method_name == "__call__":
                names.append("/".join(context.module.path) or "the final pooling")
                sound.append(jnp.isfinite(result).all())
            return result

        with nn.intercept_methods(look):
            module.apply(variables, images, train=False)
        return jnp.stack(sound)

    bad = np.flatnonzero(~np.asarray(looks(variables, images)))
    return names[bad[0]] if len(bad) else "none when that image is computed alone"


class FeatureExtractor:
    """Runs a function of images over batches on the mesh."""

    def __init__(self, apply: Callable[[Any, jax.Array], jax.Array], mesh: Mesh, inputs: Inputs):
        """Args:
        apply: (variables, normalised images (N, H, W, C)) -> features (N, F); see `frozen`.
        """

        def encode(variables, batch):
            return apply(variables, inputs.normalize(batch["image"])).astype(jnp.float32), batch["label"], batch["mask"]

        self._mesh = mesh
        # Replicated results: every process gets all features, in the order of the set.
        self._encode: Callable = jax.jit(encode, out_shardings=mesh_lib.everywhere(mesh))

    def __call__(self, variables: Any, batches: Iterable[EvalBatch], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Features and labels of all images whose mask is set.

        Args:
          variables: of the encoder, as in `TrainState.encoder_variables`.
          batches: this process's rows of each batch of `batch_size`.

        Returns:
          features (n, F) float32 and labels (n,) int32, on the host.

        Raises:
          NotFiniteFeatures: an image has features that are not finite.
        """
        parts = list(self.parts(variables, batches, batch_size))
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def parts(
        self, variables: Any, batches: Iterable[EvalBatch], batch_size: int, *, first: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The same batch by batch, with the images' positions in the set; arguments and errors as above.

        Args:
          first: the number of batches before these.

        Yields:
          features (n, F) float32, labels (n,) int32 and positions (n,) int64, from 0.
        """
        for number, local in enumerate(batches, first):
            batch = mesh_lib.put_batch(self._mesh, batch_size, local)
            f, label, mask = jax.device_get(self._encode(variables, batch))
            bad = np.flatnonzero(mask & ~np.isfinite(f).all(axis=1))
            if len(bad):
                mine = np.flatnonzero(mesh_lib.process_rows(self._mesh, batch_size) == bad[0])
                image = local["image"][mine[0]] if len(mine) else None
                raise NotFiniteFeatures(number * batch_size + int(bad[0]), image)
            yield f[mask], label[mask], number * batch_size + np.flatnonzero(mask)
