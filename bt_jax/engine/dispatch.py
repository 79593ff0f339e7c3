"""What the host starts at once: a step on a batch, or several where the device holds what their batches are made of."""

from collections.abc import Callable
from typing import Any

import jax

from bt_jax.engine.state import TrainState

Program = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_program(train_step: Program, prepare: Callable[[Any, Any], Any] | None = None) -> Program:
    """Builds `program(state, delivery) -> (state, metrics)` of a step, to be jitted with the state donated.

    Args:
      train_step: of (state, batch), as `make_train_step` builds it.
      prepare: (resident, item) -> batch, as `Feed.prepare`; None where batches come ready from the host.

    Returns:
      A function of a delivery: a batch; what `prepare` takes for an item, of one step; or {"resident": …, "items": …}, items
      with an axis of steps in front, all of which are made. Metrics have that axis too, then.
    """
    if prepare is None:
        return train_step

    def program(state: TrainState, delivery: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        if "items" not in delivery:
            return train_step(state, prepare(None, delivery))
        resident, items = delivery["resident"], delivery["items"]

        def step(state, item):
            return train_step(state, prepare(resident, item))

        if len(jax.tree.leaves(items)[0]) == 1:  # a loop of one costs the compiler what it could do across its border
            state, metrics = step(state, jax.tree.map(lambda x: x[0], items))
            return state, jax.tree.map(lambda x: x[None], metrics)
        return jax.lax.scan(step, state, items)

    return program
