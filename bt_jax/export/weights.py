"""An encoder's weights with everything needed to use them, from any source."""

import dataclasses
import functools
import hashlib
import operator
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bt_jax.models import ResNet, make_encoder
from bt_jax.models.encoders import takes_any_size
from bt_jax.models.inputs import IMAGENET_MEAN, IMAGENET_STD, Inputs
from bt_jax.models.vit import VITS
from bt_jax.pixels import Pixels

Tree = dict[str, Any]

LARGEST_PATCH = 1024  # pixels; of a ViT in a file, like the next
MOST_PATCHES = 256  # along an image's side


@dataclasses.dataclass(frozen=True)
class EncoderWeights:
    """The variables of an encoder, and possibly of its heads.

    Attributes:
      arch: as for `make_encoder`.
      variables: {"params": …, "batch_stats": …} of float32 arrays.
      source: where they come from, in words.
      width, small_images, stem_stride, stem_padding, patch_size, dtype: as for `make_encoder`; `dtype` by name.
      input_size: side in pixels of the images that it was trained on.
      mean, std: of each channel, with which those images were normalised, on a scale of 0 to 1.
      channels, range: of those images, as in `Pixels`.
      step: the number of updates in its training; None if unknown.
      heads: the variables of each head by its name, such as "projector" or "classifier".
      config_hash: of the run's config (`config.fingerprint`); None without a run.
      method: by which it was pre-trained, as in that run's config; None if unknown.
    """

    arch: str
    variables: Tree
    source: str
    width: int = 64
    small_images: bool = False
    stem_stride: int = 1
    stem_padding: int = 1
    patch_size: int = 16
    dtype: str = "float32"
    input_size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3
    range: tuple[float, ...] = ()
    step: int | None = None
    heads: Mapping[str, Tree] = dataclasses.field(default_factory=dict)
    config_hash: str | None = None
    method: str | None = None

    @property
    def projector_variables(self) -> Tree | None:
        """The variables of the projector, a `Projector`; None if there is none."""
        return self.heads.get("projector")

    @property
    def classifier_variables(self) -> Tree | None:
        """The variables of the classifier, a `LinearClassifier`; None if there is none."""
        return self.heads.get("classifier")

    def module(self) -> nn.Module:
        """The network that the variables belong to.

        Raises:
          UserError: `arch` is an import path that cannot be imported.
        """
        return make_encoder(
            self.arch,
            small_images=self.small_images,
            dtype=jnp.dtype(self.dtype),
            width=self.width,
            stem_stride=self.stem_stride,
            stem_padding=self.stem_padding,
            patch_size=self.patch_size,
        )

    @property
    def pixels(self) -> Pixels:
        """Of its images."""
        return Pixels(self.channels, self.range)

    def inputs(self) -> Inputs:
        """The size, pixels and normalisation of its images."""
        return Inputs(self.input_size, self.mean, self.std, jnp.dtype(self.dtype), self.pixels)

    def shapes(self) -> Tree:
        """The shapes and dtypes of the encoder's variables."""
        module = self.module()
        return encoder_shapes(module, 32 if takes_any_size(module) else self.input_size, self.channels)

    def without(self, heads: Iterable[str]) -> "EncoderWeights":
        """A copy without these heads."""
        dropped = set(heads)
        return dataclasses.replace(self, heads={name: v for name, v in self.heads.items() if name not in dropped})


def check_description(weights: EncoderWeights) -> None:
    """Checks what a file says of an encoder, before anything is made from it.

    Raises:
      ValueError: no encoder has such a number, or it has the wrong type; in words for a sentence.
    """
    for name, most in {"width": 2**16, "stem_stride": 16, "stem_padding": 16, "patch_size": LARGEST_PATCH, "input_size": 2**16,
                       "channels": 2**10}.items():  # fmt: skip
        value = getattr(weights, name)
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"its field {name} is {_shown(value)}, but must be an integer from 1 to {most}")
    size, patch = weights.input_size, weights.patch_size
    if weights.arch in VITS and (size % patch or size > MOST_PATCHES * patch):
        raise ValueError(f"its field input_size is {size}, but must be 1 to {MOST_PATCHES} times patch_size, {patch}")
    if type(weights.small_images) is not bool:
        raise ValueError(f"its field small_images is {_shown(weights.small_images)}, but must be true or false")
    if weights.step is not None and (type(weights.step) is not int or weights.step < 0):
        raise ValueError(f"its field step is {_shown(weights.step)}, but must be an integer of at least 0, or null")
    most = sys.float_info.max  # JSON's integers have no limit
    for name, low in {"mean": -most, "std": 1 / most}.items():
        value = getattr(weights, name)
        if len(value) != weights.channels or not all(type(x) in (int, float) and low <= x <= most for x in value):
            what = "positive numbers" if name == "std" else "numbers"
            how_many = "three" if weights.channels == 3 else weights.channels
            raise ValueError(f"its field {name} is {_shown(list(value))}, but must be {how_many} {what}")
    ends = weights.range
    sound = all(type(x) in (int, float) and -most <= x <= most for x in ends)
    if not (sound and len(ends) in (0, 2, 2 * weights.channels) and all(map(operator.lt, ends[::2], ends[1::2]))):
        raise ValueError(f"its field range is {_shown(list(ends))}, but must be empty, or low and high ends")
    if weights.dtype not in ("float32", "bfloat16", "float16", "float64"):
        raise ValueError(f"its field dtype is {_shown(weights.dtype)}, but must be a float type such as float32")


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}…"


def encoder_shapes(module: nn.Module, size: int = 32, channels: int = 3) -> Tree:
    """The shapes and dtypes of a module's variables, as `jax.ShapeDtypeStruct`s, without computing them.

    Args:
      size: side of an image in pixels; a ResNet's variables do not depend on it, a ViT's do.
      channels: of an image.
    """
    if isinstance(module, ResNet):  # hashable, which a user's module need not be
        shapes = _resnet_shapes(module, channels)  # pyrefly: ignore[bad-argument-type]  (Flax adds the hash)
        return jax.tree.map(lambda leaf: leaf, shapes)  # a copy, which the caller may change
    return _shapes(module, size, channels)


@functools.lru_cache(maxsize=16)
def _resnet_shapes(module: ResNet, channels: int) -> Tree:
    """Known after the first call: to trace a ResNet takes a good part of the time of reading its weights."""
    return _shapes(module, 32, channels)


def _shapes(module: nn.Module, size: int, channels: int) -> Tree:
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, size, size, channels)), train=False))


def sha256_of(variables: Tree) -> str:
    """The sha256 of all variables, in the order of their paths; the same weights always have the same."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} ".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
