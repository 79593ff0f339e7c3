"""SwAV's loss: each view of an image is to predict the prototypes that the image's large crops are assigned to.

With s_v (N, K) the scores of view v, which are cosines between unit embeddings and K unit prototypes, and q_i the codes of large
crop i, Sinkhorn's assignment of the batch to the prototypes (`sinkhorn`), without a gradient:

    loss = mean_i mean_{v ≠ i} mean_n -Σ_k q_i[n, k] · log softmax(s_v[n] / T)[k]

over the A large crops i and all V - 1 other views v.

Source: Caron et al. 2020, arXiv 2006.09882, sections 3.1 and 3.2; facebookresearch/swav, main_swav.py.
"""

import math

import jax
import jax.numpy as jnp

from bt_jax.losses.pairs import full_precision


def sinkhorn(scores: jax.Array, *, epsilon: float = 0.05, iterations: int = 3) -> jax.Array:
    """Codes: the batch assigned to the prototypes, with prototypes used about equally.

    Q = exp(scores / ε) is scaled in turns, `iterations` times, so that each prototype has the sum N/K and then each image the
    sum 1. After so few turns the prototypes' sums are only near N/K; the rows' are 1, as they come last.

    Computed in the log domain, in float32 or, if the scores are, float64: no ε overflows, where exp(1/0.05) is already above
    float16's largest number. Inside `jax.jit` the sums over images are over the global batch, however N is sharded. The codes
    are meant as constants; callers stop the gradient.

    Args:
      scores: (N, K), any floating dtype: the cosines of N images, of a queue too, with K prototypes.
      epsilon: ε, above 0; larger is more even.
      iterations: turns; with 0 nothing is balanced, and Q is the softmax of scores / ε, image by image.

    Returns:
      (N, K) float32 or float64, rows sum to 1.

    Raises:
      ValueError: scores of the wrong rank, empty or not floating-point; an epsilon or a number of iterations out of range.

    Source: main_swav.py, distributed_sinkhorn.
    """
    scores = _checked(scores, "scores", ("N", "K"))
    _check_positive("epsilon", epsilon)
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}, but must be at least 0.")
    n, k = scores.shape
    logs = full_precision(scores) / epsilon
    if not iterations:
        return jax.nn.softmax(logs, axis=1)
    for _ in range(iterations):
        logs = logs - jax.nn.logsumexp(logs, axis=0, keepdims=True) + math.log(n / k)
        logs = logs - jax.nn.logsumexp(logs, axis=1, keepdims=True)
    return jnp.exp(logs)


def swav_loss(
    scores: jax.Array, codes: jax.Array, *, temperature: float = 0.1
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The swapped prediction over all pairs of a large crop and another view (module docstring).

    Computed in float32, or in float64 if the scores are. No gradient goes to the codes. Inside `jax.jit` means are over the
    global batch, however N is sharded.

    Args:
      scores: (N, V, K), any floating dtype: of all V views of N images, the large crops first.
      codes: (N, A, K): of the first A views, 1 ≤ A ≤ V, and V at least 2.
      temperature: T, above 0.

    Returns:
      The loss, (), and {"prototypes": ()}: how many prototypes are in use, exp of the entropy of the shares of images whose first
      view is nearest to each, from 1 to min(N, K).

    Raises:
      ValueError: arrays of the wrong rank, of shapes that do not fit, or not floating-point; a temperature that is not above 0.
    """
    scores, codes = _checked(scores, "scores", ("N", "V", "K")), _checked(codes, "codes", ("N", "A", "K"))
    _check_positive("temperature", temperature)
    (n, v, k), a = scores.shape, codes.shape[1]
    if codes.shape != (n, a, k) or not a <= v or v < 2:
        raise ValueError(
            f"scores have shape {scores.shape} and codes {codes.shape}, but they must be (N, V, K) and (N, A, K) with A ≤ V and "
            "V ≥ 2."
        )
    codes = jax.lax.stop_gradient(codes)
    logs = jax.nn.log_softmax(full_precision(scores) / temperature, axis=2)
    of_others = jnp.sum(logs, axis=1, keepdims=True) - logs[:, :a]
    loss = -jnp.sum(codes * of_others) / (n * a * (v - 1))
    return loss, {"prototypes": prototypes_in_use(scores[:, 0])}


def prototypes_in_use(scores: jax.Array) -> jax.Array:
    """exp of the entropy of the shares of rows (N, K) whose largest score is a prototype's, (), from 1 to min(N, K)."""
    nearest = jnp.argmax(jax.lax.stop_gradient(scores), axis=1)
    shares = jnp.mean(jax.nn.one_hot(nearest, scores.shape[1]), axis=0)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(shares, shares)))


def swav_floor(k: int, temperature: float) -> float:
    """A lower bound of the loss: log(1 + (K - 1) exp(-2/T)), as a score is at most 2 above another."""
    return math.log1p((k - 1) * math.exp(-2 / temperature))


def _checked(x: jax.Array, name: str, axes: tuple[str, ...]) -> jax.Array:
    x = jnp.asarray(x)
    if x.ndim != len(axes) or 0 in x.shape:
        raise ValueError(f"{name} have shape {x.shape}, but must be ({', '.join(axes)}), none of them 0.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} are {x.dtype}, but must be floating-point numbers.")
    return x


def _check_positive(name: str, value: float) -> None:
    if not value > 0 or not math.isfinite(value):
        raise ValueError(f"{name} is {value}, but must be a positive number.")
