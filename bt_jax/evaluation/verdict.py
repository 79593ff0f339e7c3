"""What is wrong with a run, in words, and what to do about it: from its metrics alone."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from bt_jax.evaluation.health import rank_in_words
from bt_jax.evaluation.overfitting import AVERAGED, overfitting

Record = Mapping[str, Any]

COLLAPSED = 0.05  # a spread of embeddings below this, as in bt_jax.methods.networks
DEAD = 0.01  # a fraction of the features
AT_THE_FLOOR = 0.02  # of the way from the expected loss at the start to the floor
WAITING = 0.25  # a share of the time


class Warned(NamedTuple):
    """A warning.

    Attributes:
      title: a few words.
      text: what was found, a sentence or two.
      advice: what to do.
    """

    title: str
    text: str
    advice: str


def warnings_of(
    records: Sequence[Record],
    *,
    width: int | None = None,
    start: float | None = None,
    floor: float | None = None,
    images: int | None = None,
) -> list[Warned]:
    """The warnings about a run, the worst first.

    Args:
      records: of metrics.jsonl, in order.
      width: of the features; None if it is not known, and then ranks and dead features are not judged.
      start, floor: the loss that is expected at the start, and its lower bound, where they are known.
      images: that the monitor classifies, for what counts as a fall of the accuracy; None if that is not known.
    """
    found = [
        _not_finite(records),
        _collapse(records, width),
        _embeddings(records),
        _dead(records, width),
        _loss(records, start, floor),
        _worse(records),
        _overfits(records, images),
        _input(records),
    ]
    return [warned for warned in found if warned is not None]


def _not_finite(records: Sequence[Record]) -> Warned | None:
    bad = [r["step"] for r in records if "loss" in r and r["loss"] is None]
    if not bad:
        return None
    return Warned(
        "The loss was not finite",
        f"From step {bad[0]} on, the loss is not a number.",
        "Lower the learning rates, or lengthen optimizer.warmup_epochs; the last good checkpoint is kept.",
    )


def _collapse(records: Sequence[Record], width: int | None) -> Warned | None:
    ranks = _values(records, "rankme", after=0)
    if not ranks or width is None or not rank_in_words(ranks[-1], width):
        return None
    return Warned(
        "The features have collapsed",
        f"Their effective rank (RankMe) is {ranks[-1]:.1f} of {width}: nearly all images look the same to the encoder.",
        "Lower the learning rate, and see whether the views and the loss's terms are what they should be.",
    )


def _embeddings(records: Sequence[Record]) -> Warned | None:
    spreads = _values(records, "spread")
    if not spreads or statistics.mean(spreads[-AVERAGED:]) >= COLLAPSED:
        return None
    return Warned(
        "The embeddings have collapsed",
        f"Their spread is {statistics.mean(spreads[-AVERAGED:]):.3f} of 1: they are nearly the same for all images.",
        "Lower the learning rate; see the method's fields for what keeps embeddings apart.",
    )


def _dead(records: Sequence[Record], width: int | None) -> Warned | None:
    dead = _values(records, "dead_features", after=0)
    if not dead or width is None or dead[-1] <= DEAD * width:
        return None
    return Warned(
        "Some features are dead",
        f"{dead[-1]:g} of {width} features are the same for all images.",
        "They often come from a learning rate that was too high for a while: lower it, or lengthen optimizer.warmup_epochs. "
        "A narrower encoder (model.width) may do as well.",
    )


def _loss(records: Sequence[Record], start: float | None, floor: float | None) -> Warned | None:
    losses = _values(records, "loss")
    if len(losses) < 2 * AVERAGED or start is None:
        return None
    last = statistics.mean(losses[-AVERAGED:])
    if floor is not None and start > floor and last - floor < AT_THE_FLOOR * (start - floor):
        return Warned(
            "The loss is at its floor",
            f"It is {last:.4g}, and no network brings it below {floor:.4g}: there is little left to learn from it.",
            "See whether the embeddings have collapsed; if not, stop earlier, make the views less alike, or use a larger batch.",
        )
    if last > 0.97 * start and last > 0.97 * losses[0]:
        return Warned(
            "The loss has hardly fallen",
            f"It is {last:.4g}; {start:.4g} is expected of embeddings that have learnt nothing.",
            "See whether the images are what they should be, and try higher and lower learning rates.",
        )
    return None


def _worse(records: Sequence[Record]) -> Warned | None:
    before = _values([r for r in records if r["step"] == 0], "knn_accuracy")
    accuracy = _values(records, "knn_accuracy", after=0)
    if not before or not accuracy or accuracy[-1] >= before[0]:
        return None
    return Warned(
        "Training has made the features worse",
        f"kNN accuracy is {accuracy[-1]:.1%}, and was {before[0]:.1%} before training.",
        "Look at the views below: do they leave what tells your classes apart? Then lower the learning rate.",
    )


def _overfits(records: Sequence[Record], images: int | None) -> Warned | None:
    if images is None:
        return None
    for number, record in enumerate(records):
        accuracy = record.get("knn_accuracy")
        words = overfitting(records[:number], record["step"], accuracy, images) if _number(accuracy) else ""
        if words:
            return Warned(
                "The network overfits",
                " ".join(words.split()) + ".",
                "Train for fewer epochs, or use the checkpoint of the step with the highest knn_accuracy in metrics.jsonl: "
                "load_encoder('RUN/checkpoints/STEP'), or --config.init_from=RUN/checkpoints/STEP.",
            )
    return None


def _input(records: Sequence[Record]) -> Warned | None:
    waits = _values(records, "input_wait")
    if not waits or statistics.median(waits) < WAITING:
        return None
    return Warned(
        "The run is input-bound",
        f"{statistics.median(waits):.0%} of the time the devices wait for the next batch.",
        "Make the views on the device (data.views=device), give the host more threads or cores (data.threads), or store smaller "
        "images on a faster disk.",
    )


def _values(records: Sequence[Record], name: str, *, after: int = -1) -> list[float]:
    return [r[name] for r in records if _number(r.get(name)) and r["step"] > after]


def _number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value)
