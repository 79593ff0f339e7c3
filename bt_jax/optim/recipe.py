"""The optimiser of the official program: LARS as an optax chain, and its learning-rate schedule."""

import jax
import jax.numpy as jnp
import numpy as np
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
    """Layer-wise adaptive rates with momentum, in the official program's order.

    For a parameter w with gradient g at step k:

        u = g + weight_decay · w                                 (decay)
        u = u · trust_coefficient · ‖w‖ / ‖u‖                    (trust ratio; 1 where either norm is 0)
        m = momentum · m + u                                     (momentum)
        w = w - rate(k) · m                                      (learning rate)

    Parameters of at most one axis (biases, batch-norm scales and shifts) are neither decayed nor adapted, and go by
    `learning_rate_biases`; all others by `learning_rate_weights`. `optax.lars` applies the rate before the momentum,
    which is another optimiser as soon as the rate changes. Norms are of the whole parameter, however it is sharded.

    Args:
      learning_rate_weights, learning_rate_biases: numbers, or schedules of the step, counted from 0.
      weight_decay, momentum, trust_coefficient: as above.

    Returns:
      A transformation whose `update` needs the parameters; its state holds one array of each parameter's shape.

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


def warmup_cosine(
    base_rate: float,
    *,
    batch_size: int,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: int = 10,
    end_factor: float = 1e-3,
) -> optax.Schedule:
    """The official schedule: linear from 0 to the peak over the warm-up, then a half cosine down.

        peak = base_rate · batch_size / 256
        rate(k) = peak · k / warm-up steps                            during the warm-up
        rate(k) = peak · (q + end_factor · (1 - q)),  q = (1 + cos(π s)) / 2

    where s goes from 0 after the warm-up to 1 at the end of the last epoch. From there on the rate stays at its end,
    peak · end_factor.

    q is computed as sin²(π/2 · (1 - s)) from the number of steps that remain, an exact integer. In float32 1 + cos(π s)
    would lose the last thousand steps to cancellation.

    Args:
      base_rate: the peak rate for a batch of 256.
      batch_size: images in a step over all devices.
      steps_per_epoch, epochs, warmup_epochs: lengths; 0 warm-up epochs start at the peak.
      end_factor: the last rate over the peak rate.

    Returns:
      A function of the step (Python, numpy or traced integer, from 0), giving a () array: float32, or float64 with
      `jax_enable_x64`.

    Raises:
      ValueError: epochs not above warmup_epochs, or steps_per_epoch below 1.

    Source: official main.py, adjust_learning_rate.
    """
    if epochs <= warmup_epochs:
        raise ValueError(f"epochs is {epochs}, but must be more than the warmup_epochs, {warmup_epochs}.")
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch is {steps_per_epoch}, but must be at least 1.")
    peak = base_rate * batch_size / 256
    warmup = warmup_epochs * steps_per_epoch
    decay = epochs * steps_per_epoch - warmup

    def rate(step: int | np.integer | jax.Array) -> jax.Array:
        step, dtype = jnp.asarray(step, jnp.int32), jnp.result_type(float)
        remaining = jnp.clip(warmup + decay - step, 0, decay).astype(dtype)
        q = jnp.square(jnp.sin(np.pi / 2 / decay * remaining))
        rising = peak / max(warmup, 1) * step.astype(dtype)
        return jnp.where(step < warmup, rising, peak * (end_factor + (1 - end_factor) * q))

    return rate


def make_schedules(
    config: ConfigDict, *, batch_size: int, steps_per_epoch: int, epochs: int
) -> tuple[optax.Schedule, optax.Schedule]:
    """`warmup_cosine` for the weights and for the biases; arguments and errors as for `make_optimizer`."""
    weights, biases = (
        warmup_cosine(
            base_rate,
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            epochs=epochs,
            warmup_epochs=config.warmup_epochs,
            end_factor=config.end_factor,
        )
        for base_rate in (config.learning_rate_weights, config.learning_rate_biases)
    )
    return weights, biases


def make_optimizer(
    config: ConfigDict, *, batch_size: int, steps_per_epoch: int, epochs: int
) -> optax.GradientTransformation:
    """`lars` with `warmup_cosine` for both rates, from `config.optimizer` of a run.

    `gradient_divisor` divides the gradient before all else. The official program adds up C over its W GPUs without
    telling autograd and lets DistributedDataParallel average, so that its gradient is that of the global batch divided
    by W, 16 in the run that gives 73.5 %; the one here is the gradient itself. The trust ratio hides a constant factor
    from the weights, but 1-D parameters see it in their step, and the weight decay in its share of u. So to repeat that
    run takes gradient_divisor = 16; elsewhere it is 1, and learning_rate_biases and weight_decay mean what they say.

    Args:
      config: learning_rate_weights, learning_rate_biases (for a batch of 256), weight_decay, momentum,
        trust_coefficient, gradient_divisor, warmup_epochs, end_factor.
      batch_size, steps_per_epoch, epochs: of the run, as `warmup_cosine` takes them.

    Raises:
      ValueError: as `warmup_cosine` does.
    """
    weights, biases = make_schedules(config, batch_size=batch_size, steps_per_epoch=steps_per_epoch, epochs=epochs)
    optimizer = lars(
        weights,
        biases,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        trust_coefficient=config.trust_coefficient,
    )
    if config.gradient_divisor == 1:
        return optimizer
    return optax.chain(optax.scale(1 / config.gradient_divisor), optimizer)
