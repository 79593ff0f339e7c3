"""Optimisers as optax chains, and their learning-rate schedules."""

from bt_jax.optim.recipe import lars, make_optimizer, make_schedules, warmup_cosine

__all__ = ["lars", "make_optimizer", "make_schedules", "warmup_cosine"]
