"""Monitors an encoder during training: label-free measures of the features and, with labels, the accuracy of a kNN classifier."""

import dataclasses
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.eval_batches import eval_batches
from bt_jax.data.order import evenly
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.make import make_source
from bt_jax.data.subsets import check_apart, check_labels
from bt_jax.errors import UserError
from bt_jax.evaluation.features import FeatureExtractor, frozen, raw_pixels
from bt_jax.evaluation.health import health
from bt_jax.evaluation.kept_images import KeptImages
from bt_jax.evaluation.knn import knn_accuracy
from bt_jax.evaluation.pairs import Pairs
from bt_jax.models.inputs import Inputs
from bt_jax.runtime import mesh as mesh_lib

Labelled = tuple[np.ndarray, np.ndarray]  # features (n, F) and labels (n,)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a monitor has computed in a look.

    Attributes:
      features: (n, F) float32 of the images that are measured; labels: (n,) int32, -1 without labels.
      places: (n,) int64, their positions among the images that are measured; bad images are left out.
      examples: (n,) int64, their numbers in the source.
      views: the features of two views of other images, (m, F) float32 both; None without pairs.
    """

    features: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    examples: np.ndarray
    views: tuple[np.ndarray, ...] | None


class FeatureMonitor:
    """Label-free measures of an encoder's features (bt_jax/evaluation/health.py), which show a collapse.

    Attributes:
      source: whose images are measured, evenly spread over it.
      words: what is not measured, and why; "" if all is.
      seen: what the last look has computed; None before the first.
      kept: copies of the images, if they are to be shown; None by default.
    """

    def __init__(
        self,
        settings: ConfigDict,
        data: ConfigDict,
        *,
        encoder: nn.Module,
        inputs: Inputs,
        source: Source,
        pairs: Pairs | None,
        mesh: Mesh,
        words: str = "",
    ):
        """Args:
        settings: `config.monitor` of a run; data: `config.data`.
        pairs: the pairs of views for alignment and uniformity; None to leave these out.

        Raises:
          UserError: the batch does not divide among the devices.
        """
        mesh_lib.check_batch_size(mesh, settings.batch_size, "monitor.batch_size")
        self.source, self.words = source, words
        self.seen: Seen | None = None
        self.kept: KeptImages | None = None
        self._settings, self._data, self._mesh = settings, data, mesh
        self._inputs, self._pairs = inputs, pairs
        self._extract = FeatureExtractor(frozen(encoder), mesh, inputs)

    def report(self, variables: Any) -> dict[str, float]:
        """The measures of `bt_jax.evaluation.health.health` by name, of an encoder with these variables."""
        self.seen = self._seen(variables)
        return health(self.seen.features, self.seen.views)

    def _seen(self, variables: Any) -> Seen:
        settings, source = self._settings, self.source
        batches, size, limit = (
            self._batches(source, settings.test_examples),
            settings.batch_size,
            settings.test_examples,
        )
        if self.kept is not None:
            rows = mesh_lib.process_rows(self._mesh, size)
            batches = self.kept.passing(batches, rows, size, min(len(source), limit))
        parts = zip(*self._extract.parts(variables, batches, size), strict=True)
        features, labels, places = map(np.concatenate, parts)
        return Seen(features, labels, places, evenly(len(source), limit)[places], self._views(variables))

    def _views(self, variables: Any) -> tuple[np.ndarray, ...] | None:
        return self._pairs.features(self._extract, variables) if self._pairs is not None else None

    def _batches(self, source: Source, limit: int):
        size = self._settings.batch_size
        rows = mesh_lib.process_rows(self._mesh, size)
        return eval_batches(source, self._data, batch_size=size, rows=rows, limit=limit)


class KnnMonitor(FeatureMonitor):
    """kNN accuracy of an encoder on labelled subsets: train images vote on the classes of test images.

    It also reports label-free measures, which show a collapse before an accuracy does.
    """

    def __init__(
        self,
        settings: ConfigDict,
        data: ConfigDict,
        *,
        encoder: nn.Module,
        inputs: Inputs,
        train: Source,
        test: Source | None = None,
        pairs: Pairs | None,
        mesh: Mesh,
    ):
        """Args as for `FeatureMonitor`, and:
        train, test: the images that vote, and those that are classified; by default the test split of `data`.

        Raises:
          UserError: the batch does not divide among the devices, there are fewer than two classes, or the splits' classes
            differ.
        """
        test = make_source(data, "test") if test is None else test
        super().__init__(settings, data, encoder=encoder, inputs=inputs, source=test, pairs=pairs, mesh=mesh)
        self.test, self._train = test, train
        check_apart(train, test)
        for source in (train, test):
            if source.num_classes < 2:
                has = f"{source.num_classes} class(es)" if source.num_classes else "no labels"
                raise UserError(
                    f"{source.name} has {has}, but the kNN monitor needs at least 2 classes; set monitor.every_epochs to 0 to "
                    "train without it, or data.labels to 'none'."
                )
        if train.class_names != test.class_names:
            if odd := sorted(set(train.class_names) ^ set(test.class_names)):
                found, remedy = f"different classes ({', '.join(odd[:3])}…)", "use splits with the same classes"
            else:
                found, remedy = "their classes in different orders", "name a file of the labels of both in data.labels"
            raise UserError(f"{train.name} and {test.name} have {found}; {remedy}, or set monitor.every_epochs to 0.")

    def __call__(self, variables: Any) -> float:
        """The accuracy, 0 to 1, of an encoder with these variables."""
        return self._accuracy(*self._both(self._extract, variables))

    def report(self, variables: Any) -> dict[str, float]:
        """The accuracy as `knn_accuracy`, and the measures of `bt_jax.evaluation.health.health` by name."""
        settings = self._settings
        train = self._extract(variables, self._batches(self._train, settings.train_examples), settings.batch_size)
        self.seen = seen = self._seen(variables)
        accuracy = self._accuracy(train, (seen.features, seen.labels))
        return {"knn_accuracy": accuracy, **health(seen.features, seen.views)}

    def raw_pixels(self) -> float:
        """The accuracy, 0 to 1, with the normalised pixels as features."""
        extract = FeatureExtractor(raw_pixels, self._mesh, self._inputs)
        return self._accuracy(*self._both(extract, None))

    def _both(self, extract: FeatureExtractor, variables: Any) -> tuple[Labelled, Labelled]:
        settings = self._settings
        train = extract(variables, self._batches(self._train, settings.train_examples), settings.batch_size)
        return train, extract(variables, self._batches(self.test, settings.test_examples), settings.batch_size)

    def _accuracy(self, train: Labelled, test: Labelled) -> float:
        settings, mesh = self._settings, self._mesh
        for (_, labels), source in ((train, self._train), (test, self.test)):
            check_labels(labels, source, all_classes=False)  # those in records are known only now
        k, temperature = min(settings.k, len(train[0])), settings.temperature
        return knn_accuracy(*train, *test, num_classes=self._train.num_classes, k=k, temperature=temperature, mesh=mesh)
