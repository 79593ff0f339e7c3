"""Metrics as sums that merge: an image is counted once, whatever batches, devices and processes it came by.

Averages of averages would weigh an incomplete last batch like a whole one. Here a batch adds to counts, counts add up, and
only the end divides.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

Sums = dict[str, jax.Array]  # of one batch: (), int32 but for "nll"


def count_hits(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Sums:
    """What a batch adds to `Counts`; to be traced.

    The rank of an image's label is how many classes stand before it: those with a higher logit, and of equal ones the
    lower numbers, as argmax has it. A logit that is not a number stands before all others, so that it is never a hit.

    Args:
      logits: (n, C) floats; labels: (n,) integers from 0 to C - 1; mask: (n,) bool, false where a row is padding.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    classes = jnp.arange(logits.shape[1], dtype=jnp.int32)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)  # (n, 1)
    equal_before = (logits == own) & (classes[None, :] < labels[:, None])
    rank = jnp.sum(~(logits <= own) | equal_before, axis=1)  # ~(≤) and not >: NaN counts as before
    nll = jax.nn.logsumexp(logits, axis=1) - own[:, 0]
    return {
        "images": jnp.sum(mask, dtype=jnp.int32),
        "top1": jnp.sum(mask & (rank < 1), dtype=jnp.int32),
        "top5": jnp.sum(mask & (rank < 5), dtype=jnp.int32),
        "nll": jnp.sum(jnp.where(mask, nll, 0.0)),
    }


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many images were seen, and of how many the label was the first, or among the first five."""

    images: int = 0
    top1: int = 0
    top5: int = 0
    nll: float = 0.0  # sum of -log p(label)

    @classmethod
    def of(cls, sums: Sums) -> "Counts":
        """From what `count_hits` gave, on the host."""
        return cls(*(int(sums[name]) for name in ("images", "top1", "top5")), float(sums["nll"]))

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def result(self) -> dict[str, float | int]:
        """{"top1", "top5": 0 to 1, "loss": mean of -log p(label), "images"}.

        Raises:
          ValueError: no image was counted.
        """
        if not self.images:
            raise ValueError("no image was counted; there is nothing to divide by.")
        n = self.images
        return {"top1": self.top1 / n, "top5": self.top5 / n, "loss": self.nll / n, "images": n}


def average_precision(scores: np.ndarray, is_positive: np.ndarray) -> dict[str, float]:
    """Average precision of one class, by both rules in use.

    Images with equal scores come together: none of them is preferred.

    Args:
      scores: (n,) floats; is_positive: (n,) bool, at least one of them true.

    Returns:
      "voc07": the mean, over recalls 0, 0.1, …, 1, of the highest precision at that recall or beyond (Everingham et al.
      2010, section 4.2; the VOC07 development kit). "all_points": the sum over all points of precision times the rise of
      recall, as `sklearn.metrics.average_precision_score` has it, without interpolation.

    Raises:
      ValueError: no positive, scores that are not finite, or shapes that differ.
    """
    scores, is_positive = np.asarray(scores, np.float64), np.asarray(is_positive, bool)
    if scores.ndim != 1 or scores.shape != is_positive.shape:
        raise ValueError(f"scores is {scores.shape} and is_positive {is_positive.shape}; both must be (n,).")
    if not np.isfinite(scores).all():
        raise ValueError("some scores are not finite.")
    total = int(is_positive.sum())
    if not total:
        raise ValueError("no image is positive; there is no precision to speak of.")
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(is_positive[order])[last_of_ties]
    precision = hits / (np.flatnonzero(last_of_ties) + 1)
    best_beyond = np.maximum.accumulate(precision[::-1])[::-1]
    # In whole numbers: hits/total ≥ i/10 would fall to this side or that by a rounding.
    eleven = [best_beyond[10 * hits >= i * total].max() for i in range(11)]
    rises = np.diff(hits, prepend=0) / total
    return {"voc07": float(np.mean(eleven)), "all_points": float(np.sum(rises * precision))}
