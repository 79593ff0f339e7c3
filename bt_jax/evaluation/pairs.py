"""Pairs of training views, by whose features alignment and uniformity are told (health.py)."""

from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.feed import train_batches
from bt_jax.data.sources.base import Source
from bt_jax.data.views.spec import ViewSpec
from bt_jax.evaluation.features import FeatureExtractor
from bt_jax.runtime import mesh as mesh_lib


class Pairs:
    """Both views, as pre-training draws them, of a few images: those that the first batches of a run would show."""

    def __init__(
        self,
        source: Source,
        config: ConfigDict,
        mesh: Mesh,
        *,
        specs: tuple[ViewSpec, ...],
        batch_size: int,
        count: int,
    ):
        """Args:
        config: of a run: its data and seed.
        specs: how the two views are drawn.
        batch_size: images whose features are computed at once.
        count: of images, at most.
        """
        self._source, self._config, self._mesh, self._specs = source, config, mesh, specs
        self._size = batch_size
        # A source smaller than a batch has none: then there are no pairs.
        self.count = min(count, len(source) // batch_size * batch_size)
        self._batches: list[dict[str, np.ndarray]] | None = None

    def features(self, extract: FeatureExtractor, variables: Any) -> tuple[np.ndarray, np.ndarray]:
        """The features of the first and of the second views, (count, F) both; the same views at every call."""
        size = self._size
        rows = mesh_lib.process_rows(self._mesh, size)
        if self._batches is None:
            steps = -(-self.count // size)
            arguments = {"seed": self._config.seed, "batch_size": size, "rows": rows, "num_steps": steps}
            arguments |= {"specs": self._specs}
            self._batches = list(train_batches(self._source, self._config.data, **arguments))

        def one(view):
            for number, batch in enumerate(self._batches):
                mask = number * size + rows < self.count
                yield {"image": np.ascontiguousarray(batch["views"][:, view]), "label": batch["label"], "mask": mask}

        return extract(variables, one(0), size)[0], extract(variables, one(1), size)[0]
