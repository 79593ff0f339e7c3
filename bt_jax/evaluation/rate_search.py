"""Learning rates for fine-tuning, chosen on labelled train images that are held out; the test images are not looked at."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.sources.base import Source
from bt_jax.data.subsets import labels_of, stratified, take
from bt_jax.engine.session import Session
from bt_jax.errors import NotFinite, UserError
from bt_jax.evaluation.classifier import ClassifierTraining
from bt_jax.evaluation.judged import Judged
from bt_jax.evaluation.results import Result

Rates = Mapping[str, float]
_NOT_FINITE = {"top1": 0.0, "loss": math.inf}
_NONE = -1  # no place in the grid, as an integer that processes can send


def grid(config: ConfigDict, rates: Rates) -> list[dict[str, float]]:
    """The rates to be tried: those given times each of the factors; from scratch both parts have the same factor.

    Args:
      config: `config.finetune` of a run.
      rates: of "encoder" and "classifier".
    """
    if config.from_scratch:
        pairs = [(factor, factor) for factor in config.search_encoder]
    else:
        pairs = itertools.product(config.search_encoder, config.search_head)
    return [{"encoder": rates["encoder"] * e, "classifier": rates["classifier"] * c} for e, c in pairs]


def split(part: Source, fraction: float, seed: int) -> tuple[Source, Source]:
    """(images to train on, held-out images): the fraction of each class by the seed, at least one and never all.

    Raises:
      UserError: a class has fewer than two images.
    """
    labels = labels_of(part)
    least = int(np.bincount(labels, minlength=part.num_classes).min())
    if least < 2:
        raise UserError(
            f"finetune.search_rates holds out labelled images of each class, but a class has only {least}; use more labels, or "
            "set it to False."
        )
    held = stratified(labels, part.num_classes, seed=seed, percent=100 * fraction)
    counts, all_counts = (np.bincount(x, minlength=part.num_classes) for x in (labels[held], labels))
    if (counts == all_counts).any():
        raise UserError(
            f"finetune.search_held_out is {fraction:g}, which leaves a class without images to train on; lower it."
        )
    kept = np.setdiff1d(np.arange(len(part)), held)
    return take(part, kept, f"{len(kept)} images of {part.name}"), take(
        part, held, f"{len(held)} held-out images of {part.name}"
    )


def _finite(final: Mapping[str, Any]) -> dict[str, float]:
    """The accuracy and the loss on held-out images; no accuracy if the loss is not finite, which a record has as None."""
    loss = final["loss"]
    return {"top1": final["top1"], "loss": loss} if loss is not None and math.isfinite(loss) else _NOT_FINITE


class RateSearch:
    """Trains once with each rate of a grid, in a folder of its own, and takes the rate with the best held-out accuracy."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: epath.Path,
        mesh: Mesh,
        judged: Judged,
        part: Source,
        *,
        seed: int,
        rates: Rates,
    ):
        """Args:
        config: of the task `finetune`.
        workdir: of the training that the rates are for; the search is in its folder "search".
        part: the images whose labels may be used.

        Raises:
          UserError: a class has too few images, or the images to train on are fewer than a batch.
        """
        self._config = config.copy_and_resolve_references()
        self._config.sgd.evaluate_every_epochs = config.epochs  # only at the end
        self._workdir, self._mesh, self._judged, self._seed = workdir / "search", mesh, judged, seed
        self._kept, self._held = split(part, config.finetune.search_held_out, seed)
        self._grid = grid(config.finetune, rates)
        self._training(0)  # raises what is wrong

    def run(self, session: Session, say: Callable[[str], None]) -> tuple[dict[str, float], Result]:
        """(the chosen rates, {"held_out", "chosen", "tried"}), resuming where it was stopped.

        Of equal accuracies the one with the lower held-out loss is taken, then the first. A rate at which the loss is not
        finite has the accuracy 0.

        Raises:
          UserError: the loss is finite with none of the rates.
          Preempted: as `ClassifierTraining.run`.
        """
        tried: list[dict[str, Any]] = []
        for place, rates in enumerate(self._grid):
            try:
                found = _finite(self._training(place).run(session).get("final", {"top1": 0.0, "loss": 0.0}))
            except NotFinite:
                found = _NOT_FINITE
            tried.append({"rates": rates, **found})
            say(
                f"encoder {rates['encoder']:g}, head {rates['classifier']:g}: top-1 {found['top1']:.2%} of {len(self._held)} "
                "held-out train images"
            )
        best = min(range(len(tried)), key=lambda i: (-tried[i]["top1"], tried[i]["loss"]))
        best = best if tried[best]["loss"] < math.inf else _NONE
        if jax.process_count() > 1:  # only the first process has the accuracies
            best = int(multihost_utils.broadcast_one_to_all(np.int32(best)))
        if best == _NONE:
            raise UserError("the loss is not finite with any of the learning rates; lower those in sgd.")
        chosen = self._grid[best]
        say(f"chosen: encoder {chosen['encoder']:g}, head {chosen['classifier']:g}")
        return chosen, {"held_out": len(self._held), "chosen": chosen, "tried": tried}

    def _training(self, place: int) -> ClassifierTraining:
        rates = self._grid[place]
        return ClassifierTraining(
            self._config,
            self._workdir / f"encoder_{rates['encoder']:g}_head_{rates['classifier']:g}",
            self._mesh,
            self._judged,
            self._kept,
            self._held,
            seed=self._seed,
            rates=rates,
            quiet=True,
        )
