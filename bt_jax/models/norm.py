"""Batch normalisation over the global batch, with separate statistics for each view.

The official code passes view A through the network and then view B, so that each is normalised with its own statistics and
the running statistics are updated twice a step. Here all views go through together, (N·V, …) with the views of an image side
by side, and statistics are computed over (N, …) for each view: the same arithmetic in one pass.

Under `jit` with the batch sharded over its first axis, a mean over N is the mean over all devices: the compiler adds the
all-reduce, and this code does not depend on a mesh. (PyTorch needs SyncBatchNorm for this.)
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class ViewBatchNorm(nn.Module):
    """Batch norm of (N·V, …, C) in which row n·V + v is view v of image n.

    Normalises with the biased variance and eps under the root; the running variance uses the unbiased one, n/(n-1), as in
    torch.nn.BatchNorm2d. Parameters and statistics are float32, or float64 if `dtype` is; the result has `dtype`.

    The variance is computed from d = x - running mean as E[d²] - E[d]²: one pass over the activations and one collective,
    where the usual two passes need two. The shift changes nothing in exact arithmetic, and in float32 it avoids the
    cancellation of the plain one-pass form when the mean is large compared to the deviation.

    Attributes:
      momentum: the fraction of the running statistics that is kept (0.9 is torch's 0.1).
      zero_init: whether the scale starts at zero, as in the last norm of a residual block.
      shift: whether there is a bias after the scale.
    """

    momentum: float = 0.9
    eps: float = 1e-5
    zero_init: bool = False
    dtype: Any = jnp.float32
    shift: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, views: int, train: bool) -> jax.Array:
        """x (N·V, …, C) -> the same shape; with `train`, batch_stats must be mutable.

        Raises:
          ValueError: training on fewer than two values per channel and view, which have no variance.
        """
        channels = x.shape[-1]
        full = jnp.promote_types(self.dtype, jnp.float32)
        init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        scale = self.param("scale", init, (channels,), full)
        zeros = nn.initializers.zeros
        bias = self.param("bias", zeros, (channels,), full) if self.shift else jnp.zeros((channels,), full)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), full)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), full)

        def per_channel(v):
            return v.reshape((1,) * (x.ndim - 1) + (channels,))

        if not train:
            factor = scale * jax.lax.rsqrt(running_var.value + self.eps)
            shift = bias - running_mean.value * factor
            return (x.astype(full) * per_channel(factor) + per_channel(shift)).astype(self.dtype)

        by_view = x.reshape(x.shape[0] // views, views, *x.shape[1:])  # N stays first, so that resharding moves nothing
        count = by_view.size // (views * channels)
        if count < 2:
            raise ValueError(f"batch norm got {x.shape} with {views} view(s): one value per channel has no variance.")
        axes = (0, *range(2, by_view.ndim - 1))
        around = running_mean.value
        centred = by_view.astype(full) - around.reshape((1,) * (by_view.ndim - 1) + (channels,))
        first, second = jnp.mean(centred, axes), jnp.mean(jnp.square(centred), axes)  # (V, C) both
        var = jnp.maximum(second - jnp.square(first), 0.0)
        mean = first + around[None, :]

        if not self.is_initializing():
            unbiased = var * (count / (count - 1))
            for v in range(views):  # one after the other, as in the official code
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean[v]
                running_var.value = keep * running_var.value + (1 - keep) * unbiased[v]

        factor = scale[None, :] * jax.lax.rsqrt(var + self.eps)
        shift = bias[None, :] - first * factor  # for the centred values
        ones = (1,) * (by_view.ndim - 3)
        factor, shift = (s.reshape(1, views, *ones, channels) for s in (factor, shift))
        return (centred * factor + shift).astype(self.dtype).reshape(x.shape)
