"""Finds the moment when a network overfits: the accuracy of the monitor falls while the loss still falls.

Barlow Twins does so on small sets in long runs (Bandara et al. 2023, arXiv 2312.02151, section 1). Everything follows from the
records of metrics.jsonl, which a checkpoint has too, so that a resumed run says the same.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
AVERAGED = 5  # records of the loss, which is that of a single batch


def overfitting(history: Sequence[Record], step: int, accuracy: float, images: int) -> str:
    """What has happened, in words, if the look after `step` is the first that shows it; else "".

    It is shown if this look and the one before are worse than the best trained one by more than two standard errors of a
    difference of two accuracies, √(2p(1-p)/n) each, and the loss is lower than it was then. (The images are the same in all
    looks, so the errors are smaller than that.)

    Args:
      history: the records before this look, in order: with "step" and "epoch", some with "loss", some with "knn_accuracy".
      accuracy: of this look, 0 to 1.
      images: n, that were classified.
    """
    looks = [
        (r["step"], r.get("epoch", r["step"]), r["knn_accuracy"])
        for r in history
        if r["step"] < step and _number(r.get("knn_accuracy"))
    ]
    if not looks or _fall(history, looks, images) is not None:
        return ""
    found = _fall(history, [*looks, (step, None, accuracy)], images)
    if found is None:
        return ""
    epoch, points, before, after = found
    return (
        f"kNN accuracy has fallen by {100 * points:.1f} points since epoch {epoch:g}, while the loss fell from {before:.4g} to {after:.4g},\n"
        "          as when a network overfits a small set"
    )


def _fall(history: Sequence[Record], looks: list[tuple], images: int) -> tuple[float, float, float, float] | None:
    """(epoch of the best look, fall of the accuracy since then, the loss then and at the last look), or None."""
    trained = [look for look in looks if look[0] > 0]
    if len(trained) < 3:
        return None
    best, epoch, highest = max(trained[:-2], key=lambda look: look[2])
    lower = max(look[2] for look in trained[-2:])
    margin = 2 * math.sqrt(2 * highest * (1 - highest) / images)
    before, after = _loss(history, best), _loss(history, trained[-1][0])
    if highest - lower <= margin or before is None or after is None or after >= before:
        return None
    return epoch, highest - trained[-1][2], before, after


def _loss(history: Sequence[Record], step: int) -> float | None:
    """The mean of the last losses up to a step; None if there are none."""
    losses = [r["loss"] for r in history if r["step"] <= step and _number(r.get("loss"))][-AVERAGED:]
    return sum(losses) / len(losses) if losses else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
