"""PIRL's losses: embeddings against a memory bank that has a row for every image of the set.

With s_n the cosine of embedding n with its own row, s_nj those with the K rows that are its negatives, and T the temperature:

    cross-entropy   l_n = -log( exp(s_n/T) / (exp(s_n/T) + Σ_j exp(s_nj/T)) )
    NCE             l_n = -log( p_n / (p_n + κ) ) - Σ_j log( κ / (p_nj + κ) ),   p = exp(s/T) / Z,   κ = K / n

where n is the number of images and Z a constant, n times the mean of exp(s/T) over a run's first batch (`partition_constant`). Both
are means over the batch. NCE is the paper's; the cross-entropy is that of its later variant with an MLP head.

Source: Misra and van der Maaten 2020, arXiv 1912.01991, section 2.2; facebookresearch/vissl, vissl/losses/nce_loss.py.
"""

import math

import jax
import jax.numpy as jnp

from bt_jax.losses.pairs import full_precision


def memory_cross_entropy(
    positive: jax.Array, negative: jax.Array, counted: jax.Array, *, temperature: float = 0.1
) -> jax.Array:
    """The mean over N of the cross-entropy (module docstring), (): ln(K + 1) if all cosines are equal.

    Computed in float32, or in float64 if the cosines are. Inside `jax.jit` the mean is over the global batch, however it is
    sharded.

    Args:
      positive: (N,) cosines with the own rows, any floating dtype.
      negative: (N, M) cosines with the other rows.
      counted: (N, M) bool: which of them are an embedding's negatives. The own row must not be.
      temperature: T, above 0.

    Raises:
      ValueError: shapes that do not fit, no floating dtype, or a temperature that is not above 0.
    """
    positive, negative = _logits(positive, negative, counted, temperature)
    # Not joined into one array: if the rows are split over devices, so is this axis.
    others = jax.nn.logsumexp(jnp.where(counted, negative, -jnp.inf), axis=1)
    return jnp.mean(jnp.logaddexp(positive, others) - positive)


def memory_nce(
    positive: jax.Array,
    negative: jax.Array,
    counted: jax.Array,
    *,
    num_images: int,
    num_negatives: int,
    normalizer: jax.Array | float,
    temperature: float = 0.07,
) -> jax.Array:
    """The mean over N of NCE (module docstring), (): ln(1 + K) + K ln(1 + 1/K) if all cosines are equal and Z fits them.

    Computed from logarithms, so that no temperature overflows. Arguments and errors as for `memory_cross_entropy`, and:

    Args:
      num_images: n, the rows of the bank.
      num_negatives: K, how many were drawn for each embedding.
      normalizer: Z, () or a number, above 0; no gradient goes to it.
    """
    positive, negative = _logits(positive, negative, counted, temperature)
    # log p - log κ
    shift = jax.lax.stop_gradient(jnp.log(normalizer)) + math.log(num_negatives / num_images)
    of_own = jax.nn.softplus(shift - positive)
    of_others = jnp.sum(jnp.where(counted, jax.nn.softplus(negative - shift), 0.0), axis=1)
    return jnp.mean(of_own + of_others)


def partition_constant(
    positive: jax.Array, negative: jax.Array, counted: jax.Array, *, num_images: int, temperature: float
) -> jax.Array:
    """Z, (): `num_images` times the mean of exp(s/T) over all cosines of a batch, the own rows' too, without a gradient."""
    positive, negative = _logits(*jax.lax.stop_gradient((positive, negative)), counted, temperature)
    total = jnp.sum(jnp.exp(positive)) + jnp.sum(jnp.where(counted, jnp.exp(negative), 0.0))
    return num_images * total / (positive.shape[0] + jnp.sum(counted))


def moved_rows(rows: jax.Array, u: jax.Array, keep: float = 0.5) -> jax.Array:
    """The rows of a bank after a step: keep · row + (1 - keep) · u, scaled to length 1; (N, D) all, u of length 1."""
    moved = keep * rows + (1 - keep) * u.astype(rows.dtype)
    return moved * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(moved), axis=1, keepdims=True), 1e-12))


def _logits(positive, negative, counted, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Both over the temperature, in full precision."""
    positive, negative = jnp.asarray(positive), jnp.asarray(negative)
    if positive.ndim != 1 or negative.ndim != 2 or len(negative) != len(positive) or negative.shape != counted.shape:
        raise ValueError(
            f"positive has shape {positive.shape}, negative {negative.shape} and counted {counted.shape}, but they must be (N,), "
            "(N, M) and (N, M)."
        )
    if not (jnp.issubdtype(positive.dtype, jnp.floating) and jnp.issubdtype(negative.dtype, jnp.floating)):
        raise ValueError(f"cosines are {positive.dtype} and {negative.dtype}, but must be floating-point numbers.")
    if not temperature > 0 or not math.isfinite(temperature):
        raise ValueError(f"temperature is {temperature}, but must be a positive number.")
    return full_precision(positive) / temperature, full_precision(negative) / temperature
