"""Heads on an encoder: the projector, whose output the loss uses, and the linear classifier, which evaluates features.

Biases start at zero, where torch.nn.Linear's are uniform in ± 1/√fan_in; LARC (SwAV) does not scale the step of one that is zero.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bt_jax.models.norm import ViewBatchNorm
from bt_jax.runtime.mesh import MODEL_AXIS

# As in torch.nn.Linear: kaiming_uniform with a = √5, which is uniform in ± 1/√fan_in.
_linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class MLPHead(nn.Module):
    """Linear layers, with batch norm and ReLU after all but the last: the projectors and predictors of all methods.

    Features (N, F) -> embeddings (N, D), or (N, V, F) -> (N, V, D) with batch statistics for each view; D is `sizes[-1]`.

    Attributes:
      sizes: widths of the layers; the last is the embedding's. Without any, embeddings are the features.
      bias: whether all layers but the last have a bias. (Before a batch norm a bias changes nothing, but BYOL, VICReg and SwAV
        have it.)
      output_bias: whether the last layer has one.
      batch_norm: whether there are batch norms.
      norm_output: whether the last layer too is followed by a batch norm, without shift, as in SimCLR.
      kernel_init: of the layers; by default PyTorch's.
    """

    sizes: tuple[int, ...]
    dtype: Any = jnp.float32
    batch_norm: bool = True
    bias: bool = True
    output_bias: bool = False
    norm_output: bool = False
    kernel_init: nn.initializers.Initializer = _linear_init

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        lead = features.shape[:-1]
        views = lead[1] if len(lead) == 2 else 1
        x = features.reshape(-1, features.shape[-1])
        full = jnp.promote_types(self.dtype, jnp.float32)
        dense = partial(nn.Dense, kernel_init=self.kernel_init, dtype=self.dtype, param_dtype=full)
        for i, size in enumerate(self.sizes):
            last = i + 1 == len(self.sizes)
            x = dense(size, use_bias=self.output_bias if last else self.bias, name=f"linear{i + 1}")(x)
            if self.batch_norm and (not last or self.norm_output):
                norm = ViewBatchNorm(dtype=self.dtype, shift=not last, name=f"bn{i + 1}")
                x = norm(x, views=views, train=train)
            if not last:
                x = nn.relu(x)
            self.sow("intermediates", f"layer{i + 1}", x.reshape(*lead, -1))  # kept only where that is mutable
        return x.reshape(*lead, -1)


class Projector(MLPHead):
    """The projector of Barlow Twins, without biases (official main.py, class BarlowTwins)."""

    sizes: tuple[int, ...] = (8192, 8192, 8192)
    bias: bool = False


def projector_partition(path: Sequence[str], head: str = "projector", layers_before: int = 0) -> PartitionSpec:
    """How a variable is split along a mesh's axis "model"; not at all if it does not belong to the head.

    Layers alternate. Odd ones are split by outputs: each device computes some of the features completely, including batch
    norm and ReLU, and sends nothing. Even ones are split by inputs, which are already on the right devices, and their
    outputs are summed along "model". Two layers therefore cost one all-reduce of N × D activations, and no device ever holds
    a whole kernel (Shoeybi et al. 2019, arXiv 1909.08053, section 3).

    Args:
      path: the names on the path to the variable, such as (…, "projector", "linear1", "kernel"): of a parameter, a running
        statistic, or an optimizer's state for either.
      head: the name of a `Projector`, which may be another one on top of the projector.
      layers_before: the number of layers below it that are split, with which its own alternate.
    """
    if head not in path:
        return PartitionSpec()
    layer = path[path.index(head) + 1]
    by_outputs = (int(layer.lstrip("abcdefghijklmnopqrstuvwxyz")) + layers_before) % 2 == 1
    if layer.startswith("linear"):
        return PartitionSpec(None, MODEL_AXIS) if by_outputs else PartitionSpec(MODEL_AXIS, None)
    return PartitionSpec(MODEL_AXIS) if by_outputs else PartitionSpec()


def _unit_columns(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    kernel = _linear_init(key, shape, dtype)
    return kernel / jnp.linalg.norm(kernel, axis=0, keepdims=True)


class Prototypes(nn.Module):
    """Unit embeddings (N, D) -> scores (N, K), their cosines with K prototypes, in float32 or float64 at precision "highest".

    The prototypes are the columns of "kernel" (D, K). They start with length 1; who trains them keeps it.
    """

    num_prototypes: int

    @nn.compact
    def __call__(self, embeddings: jax.Array) -> jax.Array:
        embeddings = embeddings.astype(jnp.promote_types(embeddings.dtype, jnp.float32))
        shape = (embeddings.shape[-1], self.num_prototypes)
        kernel = self.param("kernel", _unit_columns, shape, embeddings.dtype)
        return jnp.matmul(embeddings, kernel, precision="highest")


class LinearClassifier(nn.Module):
    """Features (N, F) -> logits (N, classes), float32 (official evaluate.py: weights normal(0, 0.01), biases zero).

    Attributes:
      batch_norm: whether the features are normalised before: in training with the batch's statistics, in evaluation with the
        running ones (vissl's head "eval_mlp").
    """

    num_classes: int
    batch_norm: bool = False

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        init = nn.initializers.normal(0.01)
        x = features.astype(jnp.float32)
        if self.batch_norm:
            x = ViewBatchNorm(name="bn")(x, views=1, train=train)
        return nn.Dense(self.num_classes, kernel_init=init, name="linear")(x)
