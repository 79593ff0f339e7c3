"""BYOL's loss: the squared distance between the prediction of one view and the target of the other.

With q̄ and t̄ the rows of predictions and targets, scaled to unit length:

    loss = mean_n (‖q̄_a,n - t̄_b,n‖² + ‖q̄_b,n - t̄_a,n‖²) = 4 - 2 mean_n (cos(q_a, t_b) + cos(q_b, t_a))

Source: Grill et al. 2020, arXiv 2006.07733, equation 2; google-deepmind/deepmind-research, byol/byol_experiment.py and
byol/utils/helpers.py (regression_loss). lightly's and solo-learn's are half of this or differ by a constant.
"""

import jax
import jax.numpy as jnp

from bt_jax.losses.pairs import checked_pair, unit


def byol_loss(p_a: jax.Array, p_b: jax.Array, t_a: jax.Array, t_b: jax.Array) -> jax.Array:
    """The mean over N of both squared distances, p_a to t_b and p_b to t_a (module docstring): 0 to 8, 4 for orthogonal ones.

    Computed in float32, or in float64 if all arrays are. No gradient goes to the targets. Inside `jax.jit` the mean is over the
    global batch, however N is sharded; nothing else joins the images.

    Args:
      p_a, p_b: predictions from the two views (N, D), any floating dtype, not normalised.
      t_a, t_b: the target network's embeddings of the same views, (N, D).

    Returns:
      The loss, ().

    Raises:
      ValueError: arrays of the wrong rank, of unequal shapes, not floating-point, or with fewer than two rows.
    """
    p_a, t_b = checked_pair(p_a, t_b, ("p_a", "t_b"))
    p_b, t_a = checked_pair(p_b, t_a, ("p_b", "t_a"))
    if p_a.shape != p_b.shape:
        raise ValueError(f"p_a has shape {p_a.shape} and p_b {p_b.shape}, but the two views must have the same.")
    return _distance(p_a, t_b) + _distance(p_b, t_a)


def _distance(prediction: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sum(jnp.square(unit(prediction) - unit(jax.lax.stop_gradient(target))), axis=1))


def moving_average_rate(start: float, step: jax.Array | int, total_steps: int, end: float = 1.0) -> jax.Array:
    """1 - τ at a step: (1 - end) + (end - start) · (1 + cos(π step / total_steps)) / 2, so that τ rises from `start` to `end`.

    The difference is returned because τ itself is too near 1 for float32 at the end of a long run; the half cosine is
    computed as a squared cosine for the same reason.

    Args:
      start, end: τ at step 0 and after the last step, 0 to 1; in the paper 1 at the end.
      step: the number of updates before this one, as in the official code.

    Returns:
      () float32, or float64 with `jax_enable_x64`.

    Source: paper, section 3.3; byol/utils/schedules.py, target_ema.
    """
    fraction = jnp.asarray(step).astype(jnp.result_type(float)) / max(total_steps, 1)
    return (1 - end) + (end - start) * jnp.square(jnp.cos(jnp.pi / 2 * jnp.clip(fraction, 0, 1)))


def moved_towards(target, online, rate: jax.Array):
    """target + rate · (online - target), array by array; in the target's dtype, which must be float32 or float64.

    In bfloat16 a rate of 0.004 is below the spacing of numbers near the target, which would never move.
    """
    return jax.tree.map(lambda t, o: t + rate.astype(t.dtype) * (o.astype(t.dtype) - t), target, online)
