"""Vision Transformers (Dosovitskiy et al. 2021, arXiv 2010.11929), laid out as in timm, so that weights convert both ways.

Geometry and arithmetic are those of timm's vit_small_patch16_224: a patch embedding, a class token, a learned position
embedding, blocks with the norm first, exact GELU, LayerNorm with eps 1e-6, a final norm, and the class token as the feature. New
weights are drawn as there: kernels and the position embedding normal(0, 0.02), the class token normal(0, 1e-6), biases zero, and
the patch embedding as PyTorch's convolutions. There is no dropout and no batch norm.

Source: huggingface/pytorch-image-models, timm/models/vision_transformer.py, 0.9.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bt_jax.errors import UserError

# Width, blocks and heads; the MLP of a block is four times as wide.
VITS = {"vit_tiny": (192, 12, 3), "vit_small": (384, 12, 6), "vit_base": (768, 12, 12)}

_EPS = 1e-6
_normal = nn.initializers.normal(0.02)
# torch.nn.Conv2d's: uniform in ± 1/√fan_in, where fan_in counts what a patch has.
_patch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def make_vit(arch: str, *, patch_size: int = 16, dtype: Any = jnp.float32, remat: bool = False) -> "ViT":
    """A Vision Transformer by its name, one of `VITS`; arguments as for `bt_jax.models.make_encoder`."""
    width, depth, heads = VITS[arch]
    return ViT(width=width, depth=depth, heads=heads, patch_size=patch_size, dtype=dtype, remat=remat)


class ViT(nn.Module):
    """See `bt_jax.models.make_encoder`. Submodules are named as in timm: patch_embed, blocks_0, …, norm.

    The position embedding is for the images that `init` gets; they must be square, and a multiple of `patch_size` wide. Other
    sizes raise UserError: the embedding is not interpolated.

    Attributes:
      width: of a token, which is the length of a feature vector.
      depth, heads: number of blocks, and of attention heads in each.
      patch_size: side of a patch in pixels.
      remat: keep only the blocks' inputs for the backward pass, and compute the blocks again.
    """

    width: int
    depth: int
    heads: int
    patch_size: int = 16
    dtype: Any = jnp.float32
    remat: bool = dataclasses.field(default=False, compare=False)  # not a part of what the network computes

    @property
    def num_features(self) -> int:
        """F, the length of a feature vector."""
        return self.width

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        if images.ndim not in (4, 5):
            raise ValueError(f"images is {images.shape}; it must be (N, H, W, C), or (N, V, H, W, C) for V views.")
        lead, (height, side, channels), patch = images.shape[:-3], images.shape[-3:], self.patch_size
        if height != side or side % patch or not side:
            raise UserError(
                f"images is {images.shape}, but a ViT with patches of {patch}×{patch} pixels takes square images whose side is "
                f"a multiple of {patch}."
            )
        self._check_side(side)
        full = jnp.promote_types(self.dtype, jnp.float32)
        x = images.reshape(-1, side, side, channels).astype(self.dtype)
        x = Patches(self.width, patch, self.dtype, name="patch_embed")(x)
        token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, self.width), full)
        places = self.param("pos_embed", _normal, (1, x.shape[1] + 1, self.width), full)
        token = jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, self.width))
        x = jnp.concatenate([token, x], axis=1) + places.astype(self.dtype)
        block = nn.remat(Block) if self.remat and train else Block
        for i in range(self.depth):
            x = block(self.width, self.heads, self.dtype, name=f"blocks_{i}")(x)
        return _norm(self.dtype, "norm")(x[:, 0]).reshape(*lead, self.width)

    def _check_side(self, side: int) -> None:
        """Raises UserError for images of another size than that of the position embedding."""
        if not self.has_variable("params", "pos_embed"):
            return
        tokens = self.get_variable("params", "pos_embed").shape[1] - 1
        if tokens != (side // self.patch_size) ** 2:
            known = round(tokens**0.5) * self.patch_size
            raise UserError(
                f"images are {side}×{side}, but this ViT's position embedding is for {known}×{known}, and is not interpolated; "
                f"resize them to {known}×{known}."
            )


class Patches(nn.Module):
    """Images (N, S, S, C) -> tokens (N, (S / patch)², width), row by row: a convolution whose stride is its size."""

    width: int
    patch: int
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        count, patch, channels = images.shape[1] // self.patch, self.patch, images.shape[-1]
        x = images.reshape(-1, count, patch, count, patch, channels).transpose(0, 1, 3, 2, 4, 5)
        return Projection(self.width, self.dtype, name="proj")(x.reshape(-1, count**2, patch, patch, channels))


class Projection(nn.Module):
    """Patches (N, T, patch, patch, C) -> (N, T, width), by a kernel with a convolution's shape."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        full, shape = jnp.promote_types(self.dtype, jnp.float32), (*x.shape[2:], self.width)
        kernel = self.param("kernel", _patch_init, shape, full)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), full)
        flat = x.reshape(*x.shape[:2], -1)
        return flat @ kernel.reshape(-1, self.width).astype(self.dtype) + bias.astype(self.dtype).reshape(1, 1, -1)


class Block(nn.Module):
    """Self-attention and an MLP on tokens (N, T, width), each after a norm and added to its input."""

    width: int
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + Attention(self.width, self.heads, self.dtype, name="attn")(_norm(self.dtype, "norm1")(x))
        return x + MLP(self.width, self.dtype, name="mlp")(_norm(self.dtype, "norm2")(x))


class Attention(nn.Module):
    """Self-attention of all tokens (N, T, width); the softmax is computed in float32 at least."""

    width: int
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        qkv = _dense(3 * self.width, self.dtype, "qkv")(x)
        split = qkv.reshape(*x.shape[:2], 3, self.heads, self.width // self.heads)
        mixed = jax.nn.dot_product_attention(split[:, :, 0], split[:, :, 1], split[:, :, 2])
        return _dense(self.width, self.dtype, "proj")(mixed.reshape(x.shape))


class MLP(nn.Module):
    """Two layers on each token, the first four times as wide, with exact GELU between them."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.gelu(_dense(4 * self.width, self.dtype, "fc1")(x), approximate=False)
        return _dense(self.width, self.dtype, "fc2")(x)


def _dense(features: int, dtype: Any, name: str) -> nn.Dense:
    full = jnp.promote_types(dtype, jnp.float32)
    return nn.Dense(features, kernel_init=_normal, dtype=dtype, param_dtype=full, name=name)


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
    full = jnp.promote_types(dtype, jnp.float32)
    return nn.LayerNorm(epsilon=_EPS, dtype=dtype, param_dtype=full, use_fast_variance=False, name=name)
