"""The train step: one pure function of (state, batch), the same on one device and on a pod."""

from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh

from bt_jax.engine.state import TrainState, shardings_of
from bt_jax.methods.base import Batch, Method
from bt_jax.optim import AnyOptimizer, Optimizer
from bt_jax.runtime import mesh as mesh_lib

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(method: Method, optimizer: AnyOptimizer, seed: int) -> Step:
    """Builds `train_step(state, batch) -> (state, metrics)`, to be jitted with the state donated.

    The step does not depend on devices: with the batch sharded over its first axis and the state replicated, the compiler
    makes the gradients and batch statistics those of the global batch. Random numbers follow from (seed, step), so that
    resuming needs no generator state.

    Args:
      optimizer: if it has schedules, their rates in this step, () float32, are among the metrics, as "learning_rate_<name>".
    """
    schedules = optimizer.schedules if isinstance(optimizer, Optimizer) else {}

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        value_and_grad = jax.value_and_grad(method.loss, has_aux=True)
        (_, (model_state, method_state, metrics)), gradients = value_and_grad(
            state.params, state.model_state, state.method_state, batch, state.step, rng
        )
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        params, method_state = method.after_update(state.params, params, method_state, step)
        rates = {f"learning_rate_{name}": schedule(state.step) for name, schedule in schedules.items()}
        return TrainState(step, params, model_state, method_state, opt_state), metrics | rates

    return train_step


def jit_step(step: Step, state: TrainState, mesh: Mesh) -> jax.stages.Wrapped:
    """A step as runs and plans compile it: the state is donated, and the new state is placed like the old one.

    Args:
      state: gives the placement; its arrays may be abstract.
    """
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings_of(state), mesh_lib.everywhere(mesh)))
