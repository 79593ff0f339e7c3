"""Optimizers as optax chains, and their learning-rate schedules."""

from bt_jax.optim.adamw import adamw
from bt_jax.optim.larc import larc
from bt_jax.optim.lars import lars
from bt_jax.optim.make import AnyOptimizer, Optimizer, make_optimizer
from bt_jax.optim.schedules import warmup_cosine
from bt_jax.optim.sgd import sgd

__all__ = ["AnyOptimizer", "Optimizer", "adamw", "larc", "lars", "make_optimizer", "sgd", "warmup_cosine"]
