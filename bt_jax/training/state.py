"""All that a step changes, in one pytree, born where it will live."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bt_jax import mesh as mesh_lib
from bt_jax.methods.base import Method
from bt_jax.models.heads import projector_partition


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds, and nothing else is needed to go on: batches and random numbers follow from `step`."""

    step: jax.Array  # () int32: how many updates have been made
    params: Any  # float32
    model_state: Any  # {"batch_stats": …}, float32
    method_state: Any  # what the method keeps besides, {} for Barlow Twins
    opt_state: Any

    def encoder_variables(self) -> dict[str, Any]:
        """The encoder's variables alone, as its `apply` takes them."""
        return {"params": self.params["encoder"], "batch_stats": self.model_state["batch_stats"]["encoder"]}


def create_state(method: Method, optimizer: optax.GradientTransformation, seed: int, view_shape: tuple) -> TrainState:
    """The state at step 0, a pure function of its arguments: to be jitted."""
    params, model_state, method_state = method.init(jax.random.key(seed), view_shape)
    return TrainState(jnp.int32(0), params, model_state, method_state, optimizer.init(params))


def abstract_state(
    method: Method, optimizer: optax.GradientTransformation, view_shape: tuple, mesh: Mesh
) -> TrainState:
    """The state's shapes, dtypes and shardings, without any array: what a checkpoint is restored into.

    Replicated, but where the mesh has an axis "model" the projector is split along it, with its momentum.
    """
    has_model_axis = mesh_lib.MODEL_AXIS in mesh.axis_names

    def placed(path, leaf):
        names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
        spec = projector_partition(names) if has_model_axis else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    shapes = jax.eval_shape(lambda: create_state(method, optimizer, 0, view_shape))
    return jax.tree.map_with_path(placed, shapes)


def init_state(
    method: Method, optimizer: optax.GradientTransformation, seed: int, view_shape: tuple, mesh: Mesh
) -> TrainState:
    """The state at step 0 on the devices of the mesh; it never exists whole on the host."""
    shardings = shardings_of(abstract_state(method, optimizer, view_shape, mesh))
    return jax.jit(lambda: create_state(method, optimizer, seed, view_shape), out_shardings=shardings)()


def with_weights(
    state: TrainState, encoder: dict[str, Any], projector: dict[str, Any] | None
) -> tuple[TrainState, bool]:
    """The state with an encoder's variables from elsewhere, and a projector's where they fit.

    Args:
      encoder: {"params": …, "batch_stats": …} of host arrays, the same on all processes; likewise projector.

    Returns:
      (the state, its arrays where they were; whether the projector was taken).

    Raises:
      ValueError: the encoder is not the state's; the shapes that differ are named.
    """
    modules = {"encoder": encoder}
    if wrong := _misfits(state, "encoder", encoder):
        raise ValueError(", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""))
    fits = projector is not None and "projector" in state.params and not _misfits(state, "projector", projector)
    if fits:
        modules["projector"] = projector
    params, statistics = dict(state.params), dict(state.model_state["batch_stats"])
    for name, module in modules.items():
        params[name] = jax.tree.map(_placed_as, params[name], module["params"])
        statistics[name] = jax.tree.map(_placed_as, statistics[name], module["batch_stats"])
    model_state = {**state.model_state, "batch_stats": statistics}
    return state.replace(params=params, model_state=model_state), fits


def _misfits(state: TrainState, name: str, module: dict[str, Any]) -> list[str]:
    own = {"params": state.params[name], "batch_stats": state.model_state["batch_stats"][name]}
    own, theirs = ({jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
                   for tree in (own, module))  # fmt: skip
    return [f"{path} is {theirs.get(path, 'missing')} and must be {own.get(path, 'absent')}"
            for path in sorted(own.keys() | theirs.keys()) if own.get(path) != theirs.get(path)]  # fmt: skip


def _placed_as(there: jax.Array, value: Any) -> jax.Array:
    value = np.asarray(value, there.dtype)
    return jax.make_array_from_callback(there.shape, there.sharding, lambda index: value[index])


def shardings_of(state: TrainState) -> TrainState:
    """Where the state's arrays, or its abstract ones, live: what a jitted step is told to leave as it is."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def count_parameters(params: Any) -> int:
    """How many numbers the parameters are; takes arrays or their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
