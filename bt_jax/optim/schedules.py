"""Learning-rate schedules: functions of the step, counted from 0."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

SCALINGS = ("linear", "sqrt")


def scaled_rate(base_rate: float, batch_size: int, scaling: str = "linear") -> float:
    """The learning rate for a batch, from that for a batch of 256: × N/256 with "linear", × √(N/256) with "sqrt".

    Source: Goyal et al. 2017, arXiv 1706.02677; Chen et al. 2020, arXiv 2002.05709, appendix B.1, for "sqrt".

    Raises:
      ValueError: another scaling.
    """
    if scaling not in SCALINGS:
        raise ValueError(f"scaling is {scaling!r}, but must be 'linear' or 'sqrt'.")
    return base_rate * batch_size / 256 if scaling == "linear" else base_rate * math.sqrt(batch_size / 256)


# The best learning rate of weights for a batch size, in units for a batch of 256. 64 is the authors' guess "from the table".
PAPER_RATES = {64: 1.0, 128: 0.7, 256: 0.4, 512: 0.3, 1024: 0.25, 2048: 0.2, 4096: 0.2}
PAPER_BIASES = 196  # divided by D, the rate of biases as a fraction of that: 0.024 with the paper's 8192 columns


def paper_rates(batch_size: int, width: int) -> dict[str, float]:
    """The learning rates of "weights" and "biases" that suit Barlow Twins with LARS, for `warmup_cosine`.

    Between the sizes of the table, rates are interpolated linearly in log rate over log batch size; below 64 and above 4096
    they stay at the ends of the table. Biases get 196/D of the rate of weights.

    They are for trust coefficient 0.001 without clipping, and were found with D = 8192; the authors say of 196/D that it is
    "by no means optimal".

    Args:
      batch_size: images per step over all devices.
      width: D, of the embeddings.

    Source: facebookresearch/barlowtwins, issue 7, the authors' table for 300 epochs, behind the paper's Figure 2, and issue 9
    for 196/D. The program then had one rate and `--scale-loss`, 0.024 with 8192 columns, a factor of the loss. For biases and
    batch norms, which are neither adapted nor decayed, that is a factor of the rate. For weights it is not quite nothing: LARS
    adds the decay after it, so that there the decay is 1/0.024 ≈ 42 times as large relative to the gradient as with separate
    rates. The authors found that separate rates do "not yield the same accuracy in practice" (issue 23).
    """
    sizes, rates = np.log(list(PAPER_RATES)), np.log(list(PAPER_RATES.values()))
    weights = round(float(np.exp(np.interp(math.log(batch_size), sizes, rates))), 6)
    return {"weights": weights, "biases": round(PAPER_BIASES / width * weights, 8)}


def warmup_cosine(
    base_rate: float,
    *,
    batch_size: int,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: int = 10,
    start_factor: float = 0.0,
    end_factor: float = 1e-3,
    scaling: str = "linear",
) -> optax.Schedule:
    """The official schedule: linear to the peak during the warm-up, from 0 by default, then half a cosine down.

        peak = base_rate · batch_size / 256                           or base_rate · √(batch_size / 256), see scaled_rate
        rate(k) = peak · (start_factor + (1 - start_factor) · k / warm-up steps)       during the warm-up
        rate(k) = peak · (q + end_factor · (1 - q)),  q = (1 + cos(π s)) / 2

    where s goes from 0 after the warm-up to 1 at the end of the last epoch. After that the rate stays at its final value,
    peak · end_factor.

    q is computed as sin²(π/2 · (1 - s)) from the number of remaining steps, which is exact. In float32, 1 + cos(π s) would
    lose the last thousand steps to cancellation.

    Args:
      base_rate: the peak rate for a batch of 256.
      batch_size: images per step over all devices.
      steps_per_epoch, epochs, warmup_epochs: lengths; with 0 warm-up epochs the rate starts at the peak.
      start_factor, end_factor: the rate at the first step of the warm-up and the final rate, as fractions of the peak.
      scaling: "linear" or "sqrt".

    Returns:
      A function of the step (Python, numpy or traced integer, from 0) that returns a () array: float32, or float64 with
      `jax_enable_x64`.

    Raises:
      ValueError: epochs not more than warmup_epochs, steps_per_epoch below 1, or another scaling.

    Source: official main.py, adjust_learning_rate. (SwAV's, with a start factor of 1/16, is that of numpy.linspace, which
    reaches the peak a step earlier.)
    """
    if epochs <= warmup_epochs:
        raise ValueError(f"epochs is {epochs}, but must be more than the warmup_epochs, {warmup_epochs}.")
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch is {steps_per_epoch}, but must be at least 1.")
    peak = scaled_rate(base_rate, batch_size, scaling)
    warmup = warmup_epochs * steps_per_epoch
    decay = epochs * steps_per_epoch - warmup

    def rate(step: ArrayLike) -> jax.Array:
        step, dtype = jnp.asarray(step, jnp.int32), jnp.result_type(float)
        remaining = jnp.clip(warmup + decay - step, 0, decay).astype(dtype)
        q = jnp.square(jnp.sin(np.pi / 2 / decay * remaining))
        rising = peak * start_factor + peak * (1 - start_factor) / max(warmup, 1) * step.astype(dtype)
        return jnp.where(step < warmup, rising, peak * (end_factor + (1 - end_factor) * q))

    return rate


def by_epoch(
    peak: float,
    *,
    steps_per_epoch: int,
    epochs: int,
    schedule: str,
    decay_epochs: Sequence[float],
    decay_factor: float,
    end_factor: float = 0.0,
) -> optax.Schedule:
    """A learning rate that is constant within each epoch.

        cosine: peak · (q + end_factor · (1 - q)),  q = (1 + cos(π epoch / epochs)) / 2
        steps:  peak · decay_factor ^ (number of decay_epochs that have passed when the epoch begins)

    Args:
      peak: the rate in the first epoch.
      schedule: "cosine" or "steps".
      decay_epochs: for "steps", in increasing order; fractions of an epoch take effect from the next epoch.

    Returns:
      A function of the step (Python, numpy or traced integer, from 0) that returns a () float32 array.

    Raises:
      ValueError: another schedule, or steps_per_epoch below 1.

    Source: official evaluate.py (CosineAnnealingLR, stepped once an epoch).
    """
    if schedule not in ("cosine", "steps"):
        raise ValueError(f"schedule is {schedule!r}, but must be 'cosine' or 'steps'.")
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch is {steps_per_epoch}, but must be at least 1.")

    def factor(epoch: int) -> float:
        if schedule == "cosine":
            q = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
            return q + end_factor * (1 - q)
        return decay_factor ** sum(epoch >= passed for passed in decay_epochs)

    # A table, so that an epoch's rate is the same number everywhere.
    rates = np.array([peak * factor(epoch) for epoch in range(epochs)], np.float32)

    def rate(step: ArrayLike) -> jax.Array:
        epoch = jnp.clip(jnp.asarray(step, jnp.int32) // steps_per_epoch, 0, epochs - 1)
        return jnp.asarray(rates)[epoch]

    return rate
