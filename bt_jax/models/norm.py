"""Batch normalisation over the global batch, with statistics for each view.

The official program passes view A through the network and then view B, so that each is normalised with its own
statistics and the running statistics move twice a step. Here both views travel together, (N·V, …) with the views of an
image side by side, and the statistics are taken over (N, …) for each view: the same arithmetic in one pass.

Under `jit` with the batch sharded over its first axis, a mean over N is the mean over all devices: the compiler adds the
all-reduce, and nothing here has to know of a mesh. (In PyTorch this takes SyncBatchNorm.)
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class ViewBatchNorm(nn.Module):
    """Batch norm of (N·V, …, C) in which row n·V + v is view v of image n.

    Normalises with the biased variance and eps inside the root; the running variance takes torch's unbiased one, n/(n-1)
    (torch.nn.BatchNorm2d). Parameters and statistics are float32, or float64 where `dtype` is; the
    result has `dtype`.

    The variance is that of x - running mean, E[d²] - E[d]²: one pass over the activations and one collective where two
    passes would take two. The shift changes nothing in exact arithmetic, and in float32 it takes away the cancellation
    that the plain one-pass form suffers when the mean is large beside the deviation.

    Attributes:
      momentum: of the running statistics, the part that stays (0.9 is torch's 0.1).
      zero_init: whether the scale starts at zero, as in the last norm of a residual block.
    """

    momentum: float = 0.9
    eps: float = 1e-5
    zero_init: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, views: int, train: bool) -> jax.Array:
        """x (N·V, …, C) -> the same shape; with `train`, batch_stats must be mutable.

        Raises:
          ValueError: training on fewer than two values a channel and view, where a variance means nothing.
        """
        channels = x.shape[-1]
        full = jnp.promote_types(self.dtype, jnp.float32)
        init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        scale = self.param("scale", init, (channels,), full)
        bias = self.param("bias", nn.initializers.zeros, (channels,), full)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), full)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), full)

        def per_channel(v):
            return v.reshape((1,) * (x.ndim - 1) + (channels,))

        if not train:
            factor = scale * jax.lax.rsqrt(running_var.value + self.eps)
            shift = bias - running_mean.value * factor
            return (x.astype(full) * per_channel(factor) + per_channel(shift)).astype(self.dtype)

        by_view = x.reshape(x.shape[0] // views, views, *x.shape[1:])  # N stays in front: its sharding moves nothing
        count = by_view.size // (views * channels)
        if count < 2:
            raise ValueError(f"batch norm got {x.shape} with {views} view(s): one value a channel has no variance.")
        axes = (0, *range(2, by_view.ndim - 1))
        around = running_mean.value
        centred = by_view.astype(full) - around.reshape((1,) * (by_view.ndim - 1) + (channels,))
        first, second = jnp.mean(centred, axes), jnp.mean(jnp.square(centred), axes)  # (V, C) both
        var = jnp.maximum(second - jnp.square(first), 0.0)
        mean = first + around[None, :]

        if not self.is_initializing():
            unbiased = var * (count / (count - 1))
            for v in range(views):  # one after the other, as the official program does
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean[v]
                running_var.value = keep * running_var.value + (1 - keep) * unbiased[v]

        factor = scale[None, :] * jax.lax.rsqrt(var + self.eps)
        shift = bias[None, :] - first * factor  # of the centred values
        ones = (1,) * (by_view.ndim - 3)
        factor, shift = (s.reshape(1, views, *ones, channels) for s in (factor, shift))
        return (centred * factor + shift).astype(self.dtype).reshape(x.shape)
