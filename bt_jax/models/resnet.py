"""ResNets of 18 to 200 layers (He et al. 2016), laid out as in torchvision, so that weights convert both ways.

Details that ports often get wrong: explicit padding (3 in the stem, 1 in 3×3 convolutions and the max-pool; Flax's SAME
pads unevenly if the size is even), the stride on the 3×3 convolution of a bottleneck, and the last batch norm of each block
starting at zero (Goyal et al. 2017; the official code's `zero_init_residual=True`).

The wide networks of SimCLR's and BYOL's papers ("ResNet-50 (2×)", "ResNet-200 (2×)") have all channels multiplied: width 128.
torchvision has no ResNet-200, and its wide_resnet50_2 is another network: only its 3×3 convolutions are wider (Zagoruyko and
Komodakis 2016).
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from bt_jax.models.conv import convolution
from bt_jax.models.norm import ViewBatchNorm
from bt_jax.models.pool import max_pool

BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnet200": (3, 24, 36, 3),
}
BOTTLENECK = frozenset({"resnet50", "resnet101", "resnet152", "resnet200"})

# What `remat` keeps for the backward pass; norms, ReLUs, sums and the max-pool are then computed again from it.
_KEPT = "convolution"
_keep_convolutions = jax.checkpoint_policies.save_only_these_names(_KEPT)

# As in torchvision: normal with variance 2 / fan_out.
_conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def make_resnet(
    arch: str,
    *,
    small_images: bool = False,
    dtype: Any = jnp.float32,
    width: int = 64,
    stem_stride: int = 1,
    stem_padding: int = 1,
    zero_init_residual: bool = True,
    remat: bool = False,
) -> "ResNet":
    """A ResNet by its name, one of `BLOCKS`; arguments as for `bt_jax.models.make_encoder`."""
    return ResNet(
        blocks=BLOCKS[arch],
        bottleneck=arch in BOTTLENECK,
        small_images=small_images,
        width=width,
        stem_stride=stem_stride,
        stem_padding=stem_padding,
        dtype=dtype,
        zero_init_residual=zero_init_residual,
        remat=remat,
    )


class ResNet(nn.Module):
    """See `bt_jax.models.make_encoder`. Submodules are named as in torchvision: conv1, bn1, layer1_0, …, layer4_2."""

    blocks: tuple[int, ...]
    bottleneck: bool
    small_images: bool = False
    width: int = 64
    stem_stride: int = 1
    stem_padding: int = 1
    dtype: Any = jnp.float32
    # Neither is a part of what the network computes.
    zero_init_residual: bool = dataclasses.field(default=True, compare=False)
    remat: bool = dataclasses.field(default=False, compare=False)

    @property
    def num_features(self) -> int:
        """F, the length of a feature vector."""
        return self.width * 2 ** (len(self.blocks) - 1) * (4 if self.bottleneck else 1)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        if images.ndim not in (4, 5):
            raise ValueError(f"images is {images.shape}; it must be (N, H, W, C), or (N, V, H, W, C) for V views.")
        lead = images.shape[:-3]
        views = lead[1] if len(lead) == 2 else 1
        x = images.reshape(-1, *images.shape[-3:]).astype(self.dtype)
        layers = partial(type(self)._layers, views=views, train=train)
        if self.remat and train:
            layers = nn.remat(layers, policy=_keep_convolutions)
        return layers(self, x).reshape(*lead, -1)

    def _layers(self, x: jax.Array, *, views: int, train: bool) -> jax.Array:
        """Images (N·V, H, W, C) of `dtype` -> features (N·V, F)."""
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(ViewBatchNorm, dtype=self.dtype)
        last_norm = partial(norm, zero_init=self.zero_init_residual)
        if self.small_images:
            x = conv(self.width, 3, stride=self.stem_stride, padding=self.stem_padding, name="conv1")(x)
        else:
            x = conv(self.width, 7, stride=2, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x, views=views, train=train))
        if not self.small_images:
            x = max_pool(x)
        block = Bottleneck if self.bottleneck else BasicBlock
        for stage, count in enumerate(self.blocks):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"layer{stage + 1}_{i}"
                x = block(self.width * 2**stage, stride, conv, norm, last_norm, name=name)(x, views=views, train=train)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(self.dtype, jnp.float32)).astype(self.dtype)


class Conv(nn.Module):
    """A square convolution without bias, padded by (size - 1) / 2 on each side, or by `padding`."""

    features: int
    size: int
    stride: int = 1
    padding: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        full = jnp.promote_types(self.dtype, jnp.float32)
        kernel = self.param("kernel", _conv_init, (self.size, self.size, x.shape[-1], self.features), full)
        pad = (self.size - 1) // 2 if self.padding is None else self.padding
        y = convolution(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=(self.stride, self.stride),
            padding=((pad, pad), (pad, pad)),
        )
        return checkpoint_name(y, _KEPT)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; the stride is on the first."""

    channels: int
    stride: int
    conv: Any
    norm: Any
    last_norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, views: int, train: bool) -> jax.Array:
        y = self.conv(self.channels, 3, stride=self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, views=views, train=train))
        y = self.conv(self.channels, 3, name="conv2")(y)
        y = self.last_norm(name="bn2")(y, views=views, train=train)
        return nn.relu(y + _shortcut(self, x, self.channels, views, train))


class Bottleneck(nn.Module):
    """1×1 down, 3×3, 1×1 up by four, and a shortcut; the stride is on the 3×3 ("ResNet 1.5")."""

    channels: int
    stride: int
    conv: Any
    norm: Any
    last_norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, views: int, train: bool) -> jax.Array:
        y = self.conv(self.channels, 1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, views=views, train=train))
        y = self.conv(self.channels, 3, stride=self.stride, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, views=views, train=train))
        y = self.conv(4 * self.channels, 1, name="conv3")(y)
        y = self.last_norm(name="bn3")(y, views=views, train=train)
        return nn.relu(y + _shortcut(self, x, 4 * self.channels, views, train))


def _shortcut(block: BasicBlock | Bottleneck, x: jax.Array, channels: int, views: int, train: bool) -> jax.Array:
    """x itself, or a strided 1×1 convolution of it if the block changes its shape."""
    if block.stride == 1 and x.shape[-1] == channels:
        return x
    x = block.conv(channels, 1, stride=block.stride, name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(x, views=views, train=train)
