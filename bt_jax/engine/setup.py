"""The parts of a training."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.feed import Feed
from bt_jax.data.sources.base import Source
from bt_jax.data.views.spec import batch_spec
from bt_jax.engine.due import Cadence
from bt_jax.engine.state import TrainState, abstract_state, init_state
from bt_jax.facts import Facts
from bt_jax.methods.base import Method
from bt_jax.optim import Optimizer
from bt_jax.reporting.trackers import check_tracker
from bt_jax.reporting.writers import check_tensorboard


@dataclasses.dataclass(frozen=True)
class Setup:
    """A training before its first step; nothing in it changes while it runs.

    Attributes:
      workdir: the folder for checkpoints and metrics.
      seed: for the parameters, the order of images and their views.
      sources: the training set, then others whose unreadable images are reported too.
      test: the one of them that the result is measured on, if a resumed run must have the same; None otherwise.
      cadence: when it saves and looks.
      checkpoint, log, profile: these groups of the config.
      dtype: of the computation, by name.
      config: the whole config as a plain dict, for the notes beside a checkpoint.
      advice: what to change if the loss is not finite, a sentence.
    """

    workdir: epath.Path
    seed: int
    facts: Facts
    method: Method
    optimizer: Optimizer
    feed: Feed
    mesh: Mesh
    sources: tuple[Source, ...]
    cadence: Cadence
    checkpoint: ConfigDict
    log: ConfigDict
    profile: ConfigDict
    dtype: str
    config: Mapping[str, Any]
    advice: str
    test: Source | None = None

    @property
    def fingerprints(self) -> tuple[str, str | None]:
        """The fingerprints of the training set and of `test`, by which a resumed run recognises them."""
        train = self.sources[0].fingerprint if self.sources else ""
        return train, None if self.test is None else self.test.fingerprint

    def check_parts(self) -> None:
        """Raises UserError if a package is missing that the run would need only later."""
        if self.log.tensorboard:
            check_tensorboard(self.workdir)
        for name, wanted in {"wandb": self.log.wandb, "mlflow": self.log.mlflow}.items():
            if wanted:
                check_tracker(name)

    @property
    def batch_spec(self) -> dict[str, Any]:
        """The shapes and dtypes of a batch."""
        return batch_spec(self.method.view_groups, self.facts.batch_size)

    def abstract_state(self) -> TrainState:
        """The state's shapes, dtypes and shardings."""
        return self._abstract_state

    @functools.cached_property
    def _abstract_state(self) -> TrainState:  # traces the networks, which takes a second
        return abstract_state(self.method, self.optimizer, self.batch_spec, self.mesh)

    def init_state(self) -> TrainState:
        """The state at step 0, on the devices."""
        return init_state(self.method, self.optimizer, self.seed, self.batch_spec, self.mesh)
