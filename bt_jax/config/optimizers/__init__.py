"""The optimisers that a method can name, and their fields; a run has those of one."""

from bt_jax.config.field import Group
from bt_jax.config.optimizers import lars, sgd

OPTIMIZERS: dict[str, Group] = {"lars": lars.GROUP, "sgd": sgd.GROUP}
