"""LARS as an optax chain, the optimizer of the official program."""

import jax
import optax


def lars(
    learning_rate_weights: optax.ScalarOrSchedule,
    learning_rate_biases: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 1e-6,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
) -> optax.GradientTransformation:
    """Layer-wise adaptive learning rates with momentum, in the official program's order.

    For a parameter w with gradient g at step k:

        u = g + weight_decay · w                                 (decay)
        u = u · trust_coefficient · ‖w‖ / ‖u‖                    (trust ratio; 1 where either norm is 0)
        m = momentum · m + u                                     (momentum)
        w = w - rate(k) · m                                      (learning rate)

    Parameters with at most one axis (biases, batch-norm scales and shifts) are neither decayed nor adapted, and use
    `learning_rate_biases`; all others use `learning_rate_weights`. `optax.lars` applies the learning rate before the
    momentum, which is a different optimizer when the rate changes. Norms are those of the whole parameter, however it is
    sharded.

    Args:
      learning_rate_weights, learning_rate_biases: numbers, or schedules of the step, counted from 0.
      weight_decay, momentum, trust_coefficient: as above.

    Returns:
      A transformation whose `update` needs the parameters; its state has one array of each parameter's shape.

    Source: You et al. 2017, arXiv 1708.03888; official main.py, class LARS, with the filters that it passes.
    """
    return optax.chain(
        optax.masked(optax.add_decayed_weights(weight_decay), _weights),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient), _weights),
        optax.trace(decay=momentum),
        optax.masked(optax.scale_by_learning_rate(learning_rate_weights), _weights),
        optax.masked(optax.scale_by_learning_rate(learning_rate_biases), _biases),
    )


def _weights(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _biases(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda p: p.ndim <= 1, params)
