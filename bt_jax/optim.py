"""LARS and the learning-rate schedule of the official program."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def lars(
    learning_rate_weights: optax.ScalarOrSchedule,
    learning_rate_biases: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 1e-6,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
) -> optax.GradientTransformation:
    """LARS as the official program has it (official main.py, class LARS; You et al. 2017, arXiv 1708.03888).

    For each parameter p with gradient g, in this order:

        g <- g + weight_decay · p                                  weights only
        g <- g · trust_coefficient · ‖p‖ / ‖g‖, or g where a norm is 0    weights only
        m <- momentum · m + g
        p <- p - learning_rate · m

    Weights are the parameters with two axes or more; the rest, biases and batch-norm scales, are neither decayed nor
    adapted and have a rate of their own. `optax.lars` multiplies by the rate before the momentum, which differs whenever
    the rate changes.

    Args:
      learning_rate_weights, learning_rate_biases: floats, or schedules of the number of updates made.
    """
    return optax.chain(
        optax.masked(optax.add_decayed_weights(weight_decay), _weights),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient), _weights),
        optax.trace(momentum),
        optax.masked(optax.scale_by_learning_rate(learning_rate_weights), _weights),
        optax.masked(optax.scale_by_learning_rate(learning_rate_biases), _biases),
    )


def _weights(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _biases(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim <= 1, params)


def warmup_cosine(
    base_rate: float,
    *,
    batch_size: int,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: int = 10,
    end_factor: float = 1e-3,
) -> optax.Schedule:
    """The official schedule (official main.py, adjust_learning_rate): linear from 0, then cosine to a thousandth.

    The peak is base_rate · batch_size / 256, reached after `warmup_epochs`; from there, with q falling from 1 to 0 as
    half a cosine, peak · (q + end_factor · (1 - q)). Past the last step it stays where it ended.

    Returns:
      A function of the number of updates made: an integer, from which it makes a float, or a traced one.

    Raises:
      ValueError: the warm-up leaves no epoch for the cosine, or a count is not positive.
    """
    if not (batch_size > 0 and steps_per_epoch > 0 and 0 <= warmup_epochs < epochs):
        raise ValueError(
            f"batch_size is {batch_size}, steps_per_epoch {steps_per_epoch}, epochs {epochs} and warmup_epochs "
            f"{warmup_epochs}; the first two must be positive, and epochs more than warmup_epochs."
        )
    peak = base_rate * batch_size / 256
    warmup, total = warmup_epochs * steps_per_epoch, epochs * steps_per_epoch

    def schedule(step):
        xp = math if isinstance(step, int) else jnp
        # q = (1 + cos(π s)) / 2 = sin²(π (1 - s) / 2): the same, but exact to the last bits where q is small.
        remaining = max(total - step, 0) if xp is math else jnp.maximum(total - step, 0)
        q = xp.sin(math.pi / 2 * (remaining / (total - warmup))) ** 2
        cosine = peak * (q + end_factor * (1 - q))
        if xp is math:
            return peak * step / warmup if step < warmup else cosine
        return jnp.where(step < warmup, peak * (step / max(warmup, 1)), cosine)

    return schedule


def make_schedules(
    config: ConfigDict, *, batch_size: int, steps_per_epoch: int, epochs: int
) -> tuple[optax.Schedule, optax.Schedule]:
    """The schedules of the weights and of the biases, as `config.optimizer` has them."""

    def schedule(base_rate):
        return warmup_cosine(
            base_rate,
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            epochs=epochs,
            warmup_epochs=config.warmup_epochs,
            end_factor=config.end_factor,
        )

    return schedule(config.learning_rate_weights), schedule(config.learning_rate_biases)


def make_optimizer(config: ConfigDict, schedules: tuple[optax.Schedule, optax.Schedule]) -> optax.GradientTransformation:
    """LARS as `config.optimizer` has it, after the gradients were divided by `gradient_divisor`.

    The official program sums C over its W GPUs with a plain all-reduce and then lets DistributedDataParallel average the
    gradients, so that it updates with the true gradient divided by W. LARS undoes a factor for the weights, all but the
    weight decay; biases and batch-norm scales feel it in full. Our gradient is the true one, so that a run which is to
    match theirs divides by their W (16 for the published weights).
    """
    chain = lars(
        *schedules,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        trust_coefficient=config.trust_coefficient,
    )
    return chain if config.gradient_divisor == 1 else optax.chain(optax.scale(1 / config.gradient_divisor), chain)
