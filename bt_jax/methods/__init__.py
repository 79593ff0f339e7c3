"""Self-supervised methods: each is its network, its loss on a batch, and what follows an update of the weights."""

from ml_collections import ConfigDict

from bt_jax.methods.barlow_twins import BarlowTwins
from bt_jax.methods.base import Method

__all__ = ["BarlowTwins", "Method", "make_method"]


def make_method(config: ConfigDict, mesh) -> Method:
    """The method that `config.method` names, built for the run's mesh."""
    return {"barlow_twins": BarlowTwins.from_config}[config.method](config, mesh)
