"""The train state: everything that a step changes, in one pytree, created on the mesh."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from bt_jax.errors import UserError
from bt_jax.methods.base import Batch, Method
from bt_jax.optim import AnyOptimizer
from bt_jax.runtime.mesh import MODEL_AXIS


@flax.struct.dataclass
class TrainState:
    """The state in a checkpoint; resuming needs nothing else, as batches and random numbers follow from `step`."""

    step: jax.Array  # () int32, the number of updates
    params: Any  # float32
    model_state: Any  # {"batch_stats": …}, float32
    method_state: Any  # the method's own, {} for Barlow Twins
    opt_state: Any

    def encoder_variables(self) -> dict[str, Any]:
        """The encoder's variables only, for its `apply`."""
        return {"params": self.params["encoder"], "batch_stats": self.model_state["batch_stats"]["encoder"]}


def create_state(method: Method, optimizer: AnyOptimizer, seed: int, batch_spec: Batch) -> TrainState:
    """The state at step 0; a pure function, to be jitted.

    Args:
      batch_spec: shapes and dtypes of a batch, from `bt_jax.data.views.spec.batch_spec`.
    """
    params, model_state, method_state = method.init(jax.random.key(seed), batch_spec)
    return TrainState(jnp.int32(0), params, model_state, method_state, optimizer.init(params))


def abstract_state(method: Method, optimizer: AnyOptimizer, batch_spec: Batch, mesh: Mesh) -> TrainState:
    """The state's shapes, dtypes and shardings, without arrays, for restoring a checkpoint.

    `method.partition` decides the placement of each array; Barlow Twins splits its projector and its momentum along a mesh's
    axis "model".
    """

    def placed(path, leaf):
        names = tuple(str(getattr(key, "key", getattr(key, "name", ""))) for key in path)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, method.partition(names)))

    shapes = jax.eval_shape(lambda: create_state(method, optimizer, 0, batch_spec))
    return jax.tree.map_with_path(placed, shapes)


def check_split(method: Method, state: TrainState, mesh: Mesh) -> None:
    """Raises UserError if the mesh has an axis "model" and nothing in the state is split along it: it would gain nothing."""
    if MODEL_AXIS in mesh.axis_names and not any(MODEL_AXIS in leaf.sharding.spec for leaf in jax.tree.leaves(state)):
        raise UserError(
            f"mesh.model is {mesh.shape[MODEL_AXIS]}, but {method.title or method.name} has no layers that are split over devices; "
            "leave it at 1 (Barlow Twins splits its projector)."
        )


def init_state(method: Method, optimizer: AnyOptimizer, seed: int, batch_spec: Batch, mesh: Mesh) -> TrainState:
    """The state at step 0, created on the devices of the mesh and never on the host."""
    shardings = shardings_of(abstract_state(method, optimizer, batch_spec, mesh))
    return jax.jit(lambda: create_state(method, optimizer, seed, batch_spec), out_shardings=shardings)()


def shardings_of(state: TrainState) -> TrainState:
    """The shardings of a state's arrays, which may be abstract."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def count_parameters(params: Any) -> int:
    """The number of parameters; takes arrays or abstract ones."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def shape_differences(expected: Any, found: Any) -> list[str]:
    """The arrays whose shapes differ between two pytrees, with both shapes in words."""
    wanted, actual = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (expected, found)
    )
    return [
        f"{path} is {actual.get(path, 'missing')} and must be {wanted.get(path, 'absent')}"
        for path in sorted(wanted.keys() | actual.keys())
        if wanted.get(path) != actual.get(path)
    ]
