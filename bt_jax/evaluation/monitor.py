"""Monitors an encoder during training: the accuracy of a kNN classifier, and label-free measures of the features."""

from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.eval_batches import eval_batches
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.make import make_source
from bt_jax.errors import UserError
from bt_jax.evaluation.features import FeatureExtractor, frozen, raw_pixels
from bt_jax.evaluation.health import health
from bt_jax.evaluation.knn import knn_accuracy
from bt_jax.evaluation.pairs import Pairs
from bt_jax.models.inputs import Inputs
from bt_jax.runtime import mesh as mesh_lib

Labelled = tuple[np.ndarray, np.ndarray]  # features (n, F) and labels (n,)


class KnnMonitor:
    """kNN accuracy of an encoder on labelled subsets: train images vote on the classes of test images.

    It also reports label-free measures, which show a collapse before an accuracy does (bt_jax/evaluation/health.py).
    """

    def __init__(
        self,
        settings: ConfigDict,
        data: ConfigDict,
        *,
        encoder: nn.Module,
        inputs: Inputs,
        train: Source,
        pairs: Pairs | None,
        mesh: Mesh,
    ):
        """Args:
        settings: `config.monitor` of a run; data: `config.data`.
        pairs: the pairs of views for alignment and uniformity; None to leave these out.

        Raises:
          UserError: the batch does not divide among the devices, there are fewer than two classes, or the splits' classes
            differ.
        """
        self._settings, self._data, self._train, self._mesh = settings, data, train, mesh
        self.test = make_source(data, "test")
        mesh_lib.check_batch_size(mesh, settings.batch_size, "monitor.batch_size")
        for source in (train, self.test):
            if source.num_classes < 2:
                raise UserError(
                    f"{source.name} has {source.num_classes} class(es), but the kNN monitor needs at least 2; "
                    "set monitor.every_epochs to 0 to train without it."
                )
        if train.class_names != self.test.class_names:
            odd = sorted(set(train.class_names) ^ set(self.test.class_names))
            raise UserError(
                f"{train.name} and {self.test.name} have different classes ({', '.join(odd[:3])}…); "
                "use splits with the same classes, or set monitor.every_epochs to 0."
            )
        self._inputs, self._pairs = inputs, pairs
        self._extract = FeatureExtractor(frozen(encoder), mesh, inputs)

    def __call__(self, variables: Any) -> float:
        """The accuracy, 0 to 1, of an encoder with these variables."""
        return self._accuracy(*self._features(self._extract, variables))

    def report(self, variables: Any) -> dict[str, float]:
        """The accuracy as `knn_accuracy`, and the measures of `bt_jax.evaluation.health.health` by name."""
        train, test = self._features(self._extract, variables)
        views = self._pairs.features(self._extract, variables) if self._pairs is not None else None
        return {"knn_accuracy": self._accuracy(train, test), **health(test[0], views)}

    def raw_pixels(self) -> float:
        """The accuracy, 0 to 1, with the normalised pixels as features."""
        extract = FeatureExtractor(raw_pixels, self._mesh, self._inputs)
        return self._accuracy(*self._features(extract, None))

    def _features(self, extract: FeatureExtractor, variables: Any) -> tuple[Labelled, Labelled]:
        settings = self._settings
        train = extract(variables, self._batches(self._train, settings.train_examples), settings.batch_size)
        return train, extract(variables, self._batches(self.test, settings.test_examples), settings.batch_size)

    def _accuracy(self, train: Labelled, test: Labelled) -> float:
        settings, mesh = self._settings, self._mesh
        k, temperature = min(settings.k, len(train[0])), settings.temperature
        return knn_accuracy(*train, *test, num_classes=self._train.num_classes, k=k, temperature=temperature, mesh=mesh)

    def _batches(self, source: Source, limit: int):
        size = self._settings.batch_size
        rows = mesh_lib.process_rows(self._mesh, size)
        return eval_batches(source, self._data, batch_size=size, rows=rows, limit=limit)
