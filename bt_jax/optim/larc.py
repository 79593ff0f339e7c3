"""SGD under LARC: layer-wise rates for all parameters, biases and norms too, as SwAV is trained."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

_EPS = 1e-8  # in the ratio's denominator


def larc(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 1e-6,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
) -> optax.GradientTransformation:
    """SGD with momentum whose gradients LARC has scaled, without clipping.

    For a parameter w with gradient g at step k:

        u = (g + weight_decay · w) · trust_coefficient · ‖w‖ / (‖g‖ + weight_decay · ‖w‖ + 1e-8)       (g if ‖w‖ or ‖g‖ is 0)
        m = momentum · m + u
        w = w - learning_rate(k) · m

    `lars` differs: it leaves out parameters with at most one axis, and divides by ‖g + weight_decay · w‖. A parameter whose
    gradient has always been zero stays where it is, and has no momentum.

    Returns:
      A transformation whose `update` needs the parameters; its state has one array of each parameter's shape.

    Source: NVIDIA/apex, apex/parallel/LARC.py, with clip=False; facebookresearch/swav, main_swav.py.
    """

    def adapted(gradient: jax.Array, w: jax.Array) -> jax.Array:
        of_w, of_g = jnp.linalg.norm(w), jnp.linalg.norm(gradient)
        ratio = trust_coefficient * of_w / (of_g + weight_decay * of_w + _EPS)
        return jnp.where((of_w > 0) & (of_g > 0), (gradient + weight_decay * w) * ratio, gradient)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(adapted, updates, params), state

    def init(params: Any) -> optax.OptState:
        del params
        return optax.EmptyState()

    return optax.chain(
        optax.GradientTransformation(init, update),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(learning_rate),
    )
