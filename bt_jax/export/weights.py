"""An encoder's weights with all that must be known to use them, wherever they come from."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax.models import ResNet, make_encoder
from bt_jax.models.inputs import IMAGENET_MEAN, IMAGENET_STD

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EncoderWeights:
    """Variables of an encoder, and perhaps of what stood on it.

    Attributes:
      arch: resnet18, resnet34, resnet50 or resnet101.
      variables: {"params": …, "batch_stats": …} of float32 arrays.
      source: where they come from, in words.
      width, small_images, stem_stride, dtype: as for `make_encoder`; `dtype` by its name.
      input_size: side in pixels of the images that it was trained on.
      mean, std: of the three channels, by which they were normalised, on a scale of 0 to 1.
      step: the updates that the weights have seen; None where the source does not tell.
      projector_variables, classifier_variables: as `Projector` and `LinearClassifier` take them; None where there are none.
      config_hash: of the run's config (`config.fingerprint`); None where there is no run.
    """

    arch: str
    variables: Tree
    source: str
    width: int = 64
    small_images: bool = False
    stem_stride: int = 1
    dtype: str = "float32"
    input_size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    step: int | None = None
    projector_variables: Tree | None = None
    classifier_variables: Tree | None = None
    config_hash: str | None = None

    def module(self) -> ResNet:
        """The network that the variables belong to."""
        return make_encoder(
            self.arch,
            small_images=self.small_images,
            dtype=jnp.dtype(self.dtype),
            width=self.width,
            stem_stride=self.stem_stride,
        )

    def without(self, *, projector: bool, classifier: bool) -> "EncoderWeights":
        """The same, without what is named."""
        dropped = {"projector_variables": None} if projector else {}
        dropped |= {"classifier_variables": None} if classifier else {}
        return dataclasses.replace(self, **dropped)


def encoder_shapes(module: Any) -> Tree:
    """The shapes and dtypes of a module's variables, `jax.ShapeDtypeStruct` each, without computing any."""
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))


def sha256_of(variables: Tree) -> str:
    """Of all variables, in the order of their paths: the same weights have it wherever they are read from."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} ".encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()
