"""One dispatch: a step on a batch, or several steps if the device holds the data for their batches."""

from collections.abc import Callable
from typing import Any

import jax

from bt_jax.engine.state import TrainState

Program = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_program(train_step: Program, prepare: Callable[[Any, Any], Any] | None = None) -> Program:
    """Builds `program(state, delivery) -> (state, metrics)` from a step, to be jitted with the state donated.

    Args:
      train_step: (state, batch) -> (state, metrics), from `make_train_step`.
      prepare: (resident, item) -> batch, as `Feed.prepare`; None if the host delivers batches.

    Returns:
      A function of a delivery: a batch; the item of one step, for `prepare`; or {"resident": …, "items": …}, where items have
      a leading axis of steps, all of which are run. Metrics then have that axis too.
    """
    if prepare is None:
        return train_step

    def program(state: TrainState, delivery: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        if "items" not in delivery:
            return train_step(state, prepare(None, delivery))
        resident, items = delivery["resident"], delivery["items"]

        def step(state, item):
            return train_step(state, prepare(resident, item))

        if len(jax.tree.leaves(items)[0]) == 1:  # a loop of one step would only hinder the compiler
            state, metrics = step(state, jax.tree.map(lambda x: x[0], items))
            return state, jax.tree.map(lambda x: x[None], metrics)
        return jax.lax.scan(step, state, items)

    return program
