"""The optimizers that a method can use, with their fields; a run has the fields of one."""

from bt_jax.config.field import Group
from bt_jax.config.optimizers import adamw, larc, lars, sgd

OPTIMIZERS: dict[str, Group] = {"lars": lars.GROUP, "larc": larc.GROUP, "sgd": sgd.GROUP, "adamw": adamw.GROUP}
