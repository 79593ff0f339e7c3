"""bt_jax/engine/dispatch.py: several steps at once are the same steps. Real ones are in tests/test_task_pretrain.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax.engine.dispatch import make_program


def step(state, batch):
    state = state * 2 + batch
    return state, {"loss": state + 0.5}


def prepare(resident, item):
    return item["number"] if resident is None else resident[item["number"]]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_so_many_steps_in_their_order(count):
    """Each on its own batch, made of what is resident; metrics of each; a single one too has the axis of steps."""
    resident, numbers = jnp.arange(10.0) ** 2, jnp.arange(count) + 3
    program = jax.jit(make_program(step, prepare))
    state, metrics = program(jnp.float32(1), {"resident": resident, "items": {"number": numbers}})
    expected, losses = 1.0, []
    for number in range(3, 3 + count):
        expected, loss = step(expected, number**2)
        losses.append(loss["loss"])
    assert float(state) == expected
    np.testing.assert_array_equal(metrics["loss"], np.array(losses, np.float32))
    assert ("scan" in str(jax.make_jaxpr(program)(state, {"resident": resident, "items": {"number": numbers}}))) == (
        count > 1
    )


def test_items_of_one_step_where_nothing_is_resident():
    state, metrics = make_program(step, prepare)(1.0, {"number": 4})
    assert (state, metrics) == (6.0, {"loss": 6.5})


def test_ready_batches_need_no_program():
    assert make_program(step) is step
