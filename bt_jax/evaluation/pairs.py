"""Views of a few images: pairs for alignment and uniformity (health.py), and more of them for LiDAR (lidar.py)."""

from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.feed import make_feed, ready_batches
from bt_jax.data.sources.base import Source
from bt_jax.data.views.spec import ViewGroup
from bt_jax.evaluation.features import FeatureExtractor
from bt_jax.facts import Facts
from bt_jax.runtime import mesh as mesh_lib


class Pairs:
    """Two views, or more, each of a few images: the views of the first batches of a run."""

    def __init__(
        self,
        source: Source,
        data: ConfigDict,
        group: ViewGroup,
        views: tuple[int, ...] = (0, 1),
        *,
        seed: int,
        count: int,
        batch_size: int,
        mesh: Mesh,
    ):
        """Args:
        data: `config.data` of a run.
        group: the distributions of the views; views: which of the group.
        count: the largest number of images; fewer if the source has fewer.
        batch_size: images per pass through the encoder, over all devices.
        """
        self._source, self._data, self._group, self._views = source, data, group, views
        self._seed, self._size, self._mesh = seed, batch_size, mesh
        # A source smaller than a batch has no pairs.
        self.count = min(count, len(source) // batch_size * batch_size)
        self._batches: list[np.ndarray] | None = None

    def features(self, extract: FeatureExtractor, variables: Any) -> tuple[np.ndarray, ...] | None:
        """The features of the first views, of the second and so on, each (count, F), or None without images; every call has
        the same views.
        """
        if not self.count:
            return None
        if self._batches is None:
            self._batches = self._drawn()
        rows = mesh_lib.process_rows(self._mesh, self._size)

        def one(view):
            for number, views in enumerate(self._batches):
                mask = number * self._size + rows < self.count
                yield {"image": np.ascontiguousarray(views[:, view]), "label": np.zeros_like(rows), "mask": mask}

        return tuple(extract(variables, one(view), self._size)[0] for view in self._views)

    def _drawn(self) -> list[np.ndarray]:
        """The views in this process's rows of each batch, kept in the host's memory, as training needs the device's."""
        facts = Facts(len(self._source), self._source.num_classes, self._size, epochs=1)
        feed = make_feed(
            self._source, self._data, (self._group,), mesh=self._mesh, seed=self._seed, facts=facts, may_reside=False
        )
        batches = ready_batches(feed, 0, -(-self.count // self._size))
        return [mesh_lib.local_rows(batch["views"][self._group.name]) for batch in batches]
