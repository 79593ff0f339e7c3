"""AdamW as an optax chain, with the usual exceptions from weight decay."""

from collections.abc import Mapping
from typing import Any

import optax

_UNDECAYED = ("cls_token", "pos_embed")  # which have more than one axis, but are biases


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay.

    For a parameter w with gradient g at step k, counted from 1:

        m = beta1 · m + (1 - beta1) · g
        v = beta2 · v + (1 - beta2) · g²
        u = (m / (1 - beta1^k)) / (√(v / (1 - beta2^k)) + eps)
        w = w - learning_rate(k - 1) · (u + weight_decay · w)

    Parameters with at most one axis (biases, the scales and shifts of norms), class tokens and position embeddings are not
    decayed.

    Returns:
      A transformation whose `update` needs the parameters; its state has two arrays of each parameter's shape.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101; torch.optim.AdamW; the exceptions are those of timm
    (MoCo v3, which decays all parameters, has none).
    """
    return optax.adamw(learning_rate, b1=beta1, b2=beta2, eps=eps, weight_decay=weight_decay, mask=_decayed)


def _decayed(params: Any) -> Any:
    """Whether each parameter is decayed."""
    if not isinstance(params, Mapping):
        return params.ndim > 1
    return {name: False if name in _UNDECAYED else _decayed(part) for name, part in params.items()}
