"""Softmax cross-entropy with integer labels, for training with labels.

With logits z (N, K), labels y and p = softmax(z), an image's target q is 1 - ε + ε/K for its class and ε/K for each other
one (label smoothing; ε = 0 for none):

    loss = mean_n -Σ_k q_nk log p_nk = mean_n (logsumexp(z_n) - (1 - ε) z_n,y(n) - ε mean_k z_nk)
    ∂loss/∂z_nk = (p_nk - q_nk) / N

Source: Szegedy et al. 2016, arXiv 1512.00567, section 7; torch.nn.CrossEntropyLoss(label_smoothing=ε) is the same.
"""

import math

import jax
import jax.numpy as jnp


def softmax_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean cross-entropy of a batch (module docstring).

    It is computed in float32, or in float64 if the logits are. Inside `jax.jit` the mean is over the global batch, however N is
    sharded.

    Args:
      logits: (N, K), any floating dtype.
      labels: (N,) integers from 0 to K - 1.
      label_smoothing: ε, at least 0 and less than 1.

    Returns:
      The loss, (), and {"accuracy": ()}, the fraction of images whose class has the highest logit.

    Raises:
      ValueError: other shapes or dtypes, or an ε out of range.
    """
    if logits.ndim != 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits are {logits.dtype} {logits.shape}, but must be floating-point numbers (N, K).")
    if labels.shape != logits.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels are {labels.dtype} {labels.shape}, but must be integers {logits.shape[:1]}.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}, but must be at least 0 and less than 1.")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    wanted = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    if label_smoothing:
        wanted = (1 - label_smoothing) * wanted + label_smoothing * jnp.mean(logits, axis=1)
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - wanted)
    return loss, {"accuracy": jnp.mean(jnp.argmax(logits, axis=1) == labels, dtype=logits.dtype)}


def smoothed_entropy(num_classes: int, label_smoothing: float) -> float:
    """The entropy of a smoothed target, a lower bound of the loss: 0 for ε = 0."""
    other = label_smoothing / num_classes
    own = 1 - label_smoothing + other
    return -own * math.log(own) - (num_classes - 1) * (other * math.log(other) if other else 0.0)
