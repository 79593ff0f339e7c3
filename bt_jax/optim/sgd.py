"""PyTorch's SGD as an optax chain, with a learning rate for each part of a network."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax


def sgd(
    learning_rates: Mapping[str, optax.ScalarOrSchedule],
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay_norms: bool = True,
    decay_biases: bool = True,
) -> optax.GradientTransformation:
    """Stochastic gradient descent in PyTorch's order.

    For a parameter w of a part with learning rate r, with gradient g at step k:

        u = g + weight_decay · w                    (decay)
        m = momentum · m + u                        (momentum)
        w = w - r(k) · m                            (learning rate; with nesterov m is replaced by u + momentum · m)

    Args:
      learning_rates: numbers or schedules of the step by part, which is the first key on the path to a parameter. Parts that
        are not named are frozen: their updates are zero, and they have no momentum.
      decay_norms: whether to decay the scales and shifts of batch norms too, as PyTorch does by default.
      decay_biases: whether to decay the biases of linear layers, as PyTorch does by default.

    Returns:
      A transformation whose `update` needs the parameters.

    Source: torch.optim.SGD; official evaluate.py, which uses separate rates for encoder and classifier.
    """
    chains = {
        part: optax.chain(
            optax.add_decayed_weights(
                weight_decay,
                mask=None if decay_norms and decay_biases else functools.partial(_decayed, decay_norms, decay_biases),
            ),
            optax.trace(decay=momentum, nesterov=nesterov),
            optax.scale_by_learning_rate(rate),
        )
        for part, rate in learning_rates.items()
    }

    def parts(params: Any) -> Any:
        return {
            name: jax.tree.map(lambda _, name=name: name if name in chains else _FROZEN, part)
            for name, part in params.items()
        }

    return optax.multi_transform({**chains, _FROZEN: optax.set_to_zero()}, parts)


_FROZEN = "frozen"


def _decayed(norms: bool, biases: bool, params: optax.Params) -> optax.Params:
    """Which parameters are decayed: False for the scale and bias of a norm, or for the bias of another layer."""

    def marked(module):
        if not isinstance(module, Mapping):
            return True
        undecayed = ("scale", "bias") * (not norms) if "scale" in module else ("bias",) * (not biases)
        return {name: False if name in undecayed else marked(part) for name, part in module.items()}

    return marked(params)
