"""Encoders ready for use: `load_encoder` and what it gives. Needs no TensorFlow and no training code."""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from bt_jax import checkpoint
from bt_jax import config as config_lib
from bt_jax import mesh as mesh_lib
from bt_jax.errors import UserError
from bt_jax.models import ResNet, make_encoder
from bt_jax.models.inputs import normalize


class Encoder:
    """A frozen encoder with its variables.

    Attributes:
      arch: its name, such as resnet50.
      width: F, the length of a feature vector.
      input_size: side in pixels of the images that it was trained on; it takes others too.
      mean, std: of the three channels, by which uint8 images are normalised, on a scale of 0 to 1.
      variables: the Linen variables of `module`, for those who want more than features.
      step: the updates that the weights have seen; None where the source does not tell.
      source: where they come from, in words.
    """

    def __init__(
        self,
        module: ResNet,
        variables: Any,
        *,
        arch: str,
        input_size: int,
        mean: tuple,
        std: tuple,
        source: str,
        step: int | None = None,
    ):
        self.module, self.variables = module, variables
        self.arch, self.width, self.input_size = arch, module.num_features, input_size
        self.mean, self.std = mean, std
        self.source, self.step = source, step
        self._mesh = jax.make_mesh((jax.local_device_count(),), (mesh_lib.DATA_AXIS,), (jax.sharding.AxisType.Auto,),
                                   devices=jax.local_devices())  # fmt: skip

        def encode(variables, images):
            if images.dtype == jnp.uint8:
                images = normalize(images, mean=mean, std=std, dtype=module.dtype)
            return module.apply(variables, images, train=False).astype(jnp.float32)

        self._encode = jax.jit(encode, out_shardings=mesh_lib.everywhere(self._mesh))
        self._placed = jax.device_put(variables, mesh_lib.everywhere(self._mesh))

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))
        return (
            f"<bt_jax encoder {self.arch}: {self.width} features of images of {self.input_size}×{self.input_size}, "
            f"{count / 1e6:.2f} M parameters, from {self.source}>"
        )

    @functools.cached_property
    def sha256(self) -> str:
        """Of all variables, in the order of their paths: the same weights have it wherever they are read from."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables):
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} ".encode())
            digest.update(np.ascontiguousarray(leaf))
        return digest.hexdigest()

    def features(self, images: np.ndarray | jax.Array, *, block: int = 256) -> np.ndarray:
        """The features of images, by running statistics: those of an image do not depend on the others.

        Args:
          images: (N, H, W, 3), N from 0 up: uint8, normalised here as in training, or floats that are already.
          block: how many go through the network at a time, over all local devices.

        Returns:
          (N, F) float32.

        Raises:
          UserError: another shape or dtype.
        """
        if getattr(images, "ndim", None) != 4 or images.shape[-1] != 3:
            raise UserError(f"images is {getattr(images, 'shape', type(images).__name__)}; it must be (N, H, W, 3).")
        if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f"images is {images.dtype}; it must be uint8 (0 to 255), or normalised floats.")
        block = -(-min(block, max(len(images), 1)) // self._mesh.size) * self._mesh.size
        return np.concatenate([np.zeros((0, self.width), np.float32), *self._blocks(np.asarray(images), block)])

    def _blocks(self, images: np.ndarray, block: int) -> Iterator[np.ndarray]:
        sharding = mesh_lib.over_batch(self._mesh)
        for start in range(0, len(images), block):
            part = images[start : start + block]
            padded = np.pad(part, ((0, block - len(part)), (0, 0), (0, 0), (0, 0)))  # one shape, one compilation
            yield np.asarray(self._encode(self._placed, jax.device_put(padded, sharding)))[: len(part)]


def load_encoder(path: str) -> Encoder:
    """The encoder of a run, from its newest checkpoint that can be read.

    Args:
      path: a run's workdir, local or gs://.

    Raises:
      UserError: there is no run, or no checkpoint of it that can be read.
    """
    workdir = epath.Path(path).expanduser()
    try:
        config = config_lib.from_json((workdir / "config.json").read_text())
        model, data = config.model, config.data
        module = make_encoder(
            model.arch,
            small_images=model.small_images,
            dtype=jnp.dtype(config.dtype),
            width=model.width,
            stem_stride=model.stem_stride,
        )
    except OSError:
        raise UserError(f"{workdir} is not the workdir of a run: there is no config.json in it.") from None
    except (ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{workdir / 'config.json'} is not the config of a run ({error}).") from None
    size = data.image_size
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False))
    variables, step = checkpoint.restore_encoder(workdir, shapes)
    return Encoder(
        module,
        variables,
        arch=model.arch,
        input_size=size,
        mean=tuple(data.mean),
        std=tuple(data.std),
        source=f"step {step} of {workdir}",
        step=step,
    )
