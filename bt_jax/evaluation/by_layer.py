"""Measures of an encoder's features and of each layer of the projector on them, in one table."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from bt_jax.evaluation.cached_probe import CachedProbe
from bt_jax.evaluation.health import rankme
from bt_jax.evaluation.knn import knn_accuracy
from bt_jax.evaluation.layers import layer_of
from bt_jax.evaluation.lidar import lidar
from bt_jax.evaluation.results import Result
from bt_jax.models.heads import MLPHead

L2S = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Features to be measured, and passed through a projector.

    Attributes:
      train, test: (n, F) and (m, F) float32, with labels (n,) and (m,).
      ranked: rows of `test` for RankMe.
      views: (i, q, F), views of images for LiDAR; None for no LiDAR.
    """

    train: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    ranked: np.ndarray
    views: np.ndarray | None

    def through(self, layer: Callable[[np.ndarray], np.ndarray]) -> "Measured":
        views = None if self.views is None else layer(self.views)
        return dataclasses.replace(self, train=layer(self.train), test=layer(self.test), views=views)


def measure_layers(
    features: Measured,
    head: MLPHead,
    variables: Any,
    *,
    num_classes: int,
    k: int,
    temperature: float,
    seed: int,
    mesh: Mesh,
) -> list[Result]:
    """[{"layer", "width", "knn_top1", "linear_top1", "rankme", "lidar", "seconds"}, …]: first the encoder, then each layer.

    One layer's outputs are in memory at a time, beside the encoder's features.

    Args:
      head, variables: the projector (`bt_jax.evaluation.layers.head_of`).
      k, temperature: of the kNN classifier; seed: for the train images on which the probe's l2 is chosen.
    """
    rows = []
    for number in range(len(head.sizes) + 1):
        begin = time.monotonic()
        here = features.through(layer_of(head, variables, number)) if number else features
        settings = {"num_classes": num_classes, "mesh": mesh}
        probe = CachedProbe(here.train, here.labels, **settings)
        classifier, l2, _ = probe.fit_best(L2S, seed=seed)
        rows.append(
            {
                "layer": f"projector, layer {number}" if number else "encoder",
                "width": here.train.shape[1],
                "knn_top1": knn_accuracy(
                    here.train, here.labels, here.test, here.test_labels, k=k, temperature=temperature, **settings
                ),
                "linear_top1": probe.count(classifier, here.test, here.test_labels).result()["top1"],
                "l2": l2,
                "rankme": rankme(here.test[here.ranked]) if here.test.any() else 0.0,
                **({} if here.views is None else {"lidar": lidar(here.views)}),
                "seconds": round(time.monotonic() - begin, 1),
            }
        )
    return rows


def table_of_layers(rows: Sequence[Result], *, k: int, train_images: int) -> str:
    """The measures as lines of at most 80 columns."""
    lines = [f"{'':<20}{'width':>6}{f'kNN, k={k}':>12}{'linear probe':>14}{'RankMe':>9}{'LiDAR':>9}"]
    for row in rows:
        last = f"{row['lidar']:.1f}" if "lidar" in row else "—"
        lines.append(
            f"{row['layer']:<20}{row['width']:>6}{row['knn_top1']:>12.2%}{row['linear_top1']:>14.2%}"
            f"{row['rankme']:>9.1f}{last:>9}"
        )
    lines += [
        f"kNN and linear probe: top-1 of the test images, with {train_images} train images.",
        "RankMe and LiDAR: effective ranks. Layers are taken after batch norm and ReLU,",
        "where they have them; the last is the embedding.",
    ]
    return "\n".join(lines)
