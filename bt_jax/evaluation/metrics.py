"""Metrics as sums: every image counts once, however images are divided into batches, devices and processes.

Averaging averages would give an incomplete last batch the weight of a whole one. Here batches add to counts, and the
division comes at the end.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

Sums = dict[str, jax.Array]  # of one batch: (), int32 except "nll"


def count_hits(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Sums:
    """A batch's contribution to `Counts`; can be traced.

    The rank of an image's label is the number of classes before it: those with a higher logit, and among equal ones those
    with a lower number, as in argmax. A NaN ranks before all numbers, so that it never makes a hit.

    Args:
      logits: (n, C) floats; labels: (n,) integers from 0 to C - 1; mask: (n,) bool, false for padding.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    classes = jnp.arange(logits.shape[1], dtype=jnp.int32)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)  # (n, 1)
    equal_before = (logits == own) & (classes[None, :] < labels[:, None])
    rank = jnp.sum(~(logits <= own) | equal_before, axis=1)  # ~(≤) instead of >, so that NaN ranks first
    nll = jax.nn.logsumexp(logits, axis=1) - own[:, 0]
    return {
        "images": jnp.sum(mask, dtype=jnp.int32),
        "top1": jnp.sum(mask & (rank < 1), dtype=jnp.int32),
        "top5": jnp.sum(mask & (rank < 5), dtype=jnp.int32),
        "nll": jnp.sum(jnp.where(mask, nll, 0.0)),
    }


@dataclasses.dataclass(frozen=True)
class Counts:
    """The number of images, and of those whose label ranked first or among the first five."""

    images: int = 0
    top1: int = 0
    top5: int = 0
    nll: float = 0.0  # sum of -log p(label)

    @classmethod
    def of(cls, sums: Sums) -> "Counts":
        """From the result of `count_hits`, on the host."""
        return cls(int(sums["images"]), int(sums["top1"]), int(sums["top5"]), float(sums["nll"]))

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def result(self) -> dict[str, float | int]:
        """{"top1", "top5": 0 to 1, "loss": mean of -log p(label), "images"}.

        Raises:
          ValueError: no image was counted.
        """
        if not self.images:
            raise ValueError("no image was counted, so there is no mean.")
        n = self.images
        return {"top1": self.top1 / n, "top5": self.top5 / n, "loss": self.nll / n, "images": n}


def average_precision(scores: np.ndarray, is_positive: np.ndarray) -> dict[str, float]:
    """Average precision of one class, by the two rules in use.

    Images with equal scores are treated as one group, so that their order does not matter.

    Args:
      scores: (n,) floats; is_positive: (n,) bool, at least one of them true.

    Returns:
      "voc07": the mean, over recalls 0, 0.1, …, 1, of the highest precision at that recall or beyond (Everingham et al.
      2010, section 4.2; the VOC07 development kit). "all_points": the sum over all points of precision times the rise of
      recall, without interpolation, as in `sklearn.metrics.average_precision_score`. "interpolated": the same sum of the highest
      precision at that recall or beyond, the area under the interpolated curve, as in VISSL (svm_utils/evaluate.py,
      `calculate_ap`) and VOC from 2010 on; at least as much as all points.

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
        raise ValueError("no image is positive, so precision is undefined.")
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(is_positive[order])[last_of_ties]
    precision = hits / (np.flatnonzero(last_of_ties) + 1)
    best_beyond = np.maximum.accumulate(precision[::-1])[::-1]
    # In integers, because hits/total ≥ i/10 would depend on rounding.
    eleven = [best_beyond[10 * hits >= i * total].max() for i in range(11)]
    rises = np.diff(hits, prepend=0) / total
    return {
        "voc07": float(np.mean(eleven)),
        "all_points": float(np.sum(rises * precision)),
        "interpolated": float(np.sum(rises * best_beyond)),
    }
