"""All that a step changes, in one pytree, born where it will live."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bt_jax.methods.base import Method
from bt_jax.models.heads import projector_partition
from bt_jax.runtime import mesh as mesh_lib


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


def shardings_of(state: TrainState) -> TrainState:
    """Where the state's arrays, or its abstract ones, live: what a jitted step is told to leave as it is."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def count_parameters(params: Any) -> int:
    """How many numbers the parameters are; takes arrays or their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
