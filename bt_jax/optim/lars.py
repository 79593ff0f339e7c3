"""LARS as an optax chain, the optimizer of the official program."""

import jax
import jax.numpy as jnp
import optax


def lars(
    learning_rate_weights: optax.ScalarOrSchedule,
    learning_rate_biases: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 1e-6,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
    rate_in_momentum: bool = False,
    clip: bool = False,
) -> optax.GradientTransformation:
    """Layer-wise adaptive learning rates with momentum, by default in the order of the official Barlow Twins program.

    For a parameter w with gradient g at step k:

        u = g + weight_decay · w                                 (decay)
        u = u · trust_coefficient · ‖w‖ / ‖u‖                    (trust ratio; 1 where either norm is 0)
        m = momentum · m + u                                     (momentum)
        w = w - rate(k) · m                                      (learning rate)

    Parameters with at most one axis (biases, batch-norm scales and shifts) are neither decayed nor adapted, and use
    `learning_rate_biases`; all others use `learning_rate_weights`. Norms are those of the whole parameter, however it is
    sharded.

    With `rate_in_momentum` the last two lines are m = momentum · m + rate(k) · u and w = w - m, as in You et al., in
    `optax.lars` and in SimCLR's official code: another optimizer as long as the rate changes.

    With `clip` the ratio r = trust_coefficient · ‖w‖ / ‖u‖ is replaced by min(r / rate(k), 1), as in solo-learn, so that without momentum
    a weight's step is min(r, rate(k)) · u: no longer than that of SGD, and as long as r allows however low the rate is.

    Args:
      learning_rate_weights, learning_rate_biases: numbers, or schedules of the step, counted from 0.
      weight_decay, momentum, trust_coefficient, rate_in_momentum, clip: as above.

    Returns:
      A transformation whose `update` needs the parameters; its state has one array of each parameter's shape.

    Source: You et al. 2017, arXiv 1708.03888; official main.py of Barlow Twins, class LARS, with the filters that it passes;
    google-research/simclr, lars_optimizer.py; solo-learn, solo/utils/lars.py, which has ‖g‖ + weight_decay · ‖w‖ for ‖u‖.
    """
    rates = (
        optax.masked(optax.scale_by_learning_rate(learning_rate_weights), _weights),
        optax.masked(optax.scale_by_learning_rate(learning_rate_biases), _biases),
    )
    trace = optax.trace(decay=momentum)
    return optax.chain(
        optax.masked(optax.add_decayed_weights(weight_decay), _weights),
        optax.masked(_scale_by_trust_ratio(trust_coefficient, learning_rate_weights if clip else None), _weights),
        *((*rates, trace) if rate_in_momentum else (trace, *rates)),
    )


def _scale_by_trust_ratio(
    coefficient: float, clip_by: optax.ScalarOrSchedule | None = None
) -> optax.GradientTransformation:
    """u · coefficient · ‖w‖ / ‖u‖, or u where either norm is 0; with a rate to clip by, u · min(that factor / rate, 1).

    Without one the same numbers and state as `optax.scale_by_trust_ratio`, which computes each norm twice, so that it can be
    differentiated at 0. Nobody differentiates this one, and it reads each weight and gradient once less.
    """

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("LARS needs the parameters.")
        rate = clip_by(state.count) if callable(clip_by) else clip_by

        def scaled(u, w):
            w_norm, u_norm = jnp.linalg.norm(w), jnp.linalg.norm(u)
            ratio = coefficient * w_norm / u_norm
            if rate is not None:
                ratio = jnp.minimum(ratio / rate, 1.0).astype(w.dtype)  # at a rate of 0 it is 1
            return u * jnp.where((w_norm == 0) | (u_norm == 0), jnp.ones((), w.dtype), ratio)

        if callable(clip_by):
            state = optax.ScaleByScheduleState(optax.safe_increment(state.count))
        return jax.tree.map(scaled, updates, params), state

    def init(params):
        if callable(clip_by):
            return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
        return optax.scale_by_trust_ratio().init(params)

    return optax.GradientTransformation(init, update)


def _weights(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _biases(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda p: p.ndim <= 1, params)
