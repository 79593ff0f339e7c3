"""All that a step changes, in one pytree, born where it will live."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from bt_jax.methods.base import Batch, Method
from bt_jax.optim import AnyOptimizer


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


def create_state(method: Method, optimizer: AnyOptimizer, seed: int, batch_spec: Batch) -> TrainState:
    """The state at step 0, a pure function of its arguments: to be jitted.

    Args:
      batch_spec: shapes and dtypes of a batch, as `bt_jax.data.views.spec.batch_spec` gives them.
    """
    params, model_state, method_state = method.init(jax.random.key(seed), batch_spec)
    return TrainState(jnp.int32(0), params, model_state, method_state, optimizer.init(params))


def abstract_state(method: Method, optimizer: AnyOptimizer, batch_spec: Batch, mesh: Mesh) -> TrainState:
    """The state's shapes, dtypes and shardings, without any array: what a checkpoint is restored into.

    Each array is placed as `method.partition` says; Barlow Twins splits its projector, and its momentum, along a mesh's
    axis "model".
    """

    def placed(path, leaf):
        names = tuple(str(getattr(key, "key", getattr(key, "name", ""))) for key in path)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, method.partition(names)))

    shapes = jax.eval_shape(lambda: create_state(method, optimizer, 0, batch_spec))
    return jax.tree.map_with_path(placed, shapes)


def init_state(method: Method, optimizer: AnyOptimizer, seed: int, batch_spec: Batch, mesh: Mesh) -> TrainState:
    """The state at step 0 on the devices of the mesh; it never exists whole on the host."""
    shardings = shardings_of(abstract_state(method, optimizer, batch_spec, mesh))
    return jax.jit(lambda: create_state(method, optimizer, seed, batch_spec), out_shardings=shardings)()


def shardings_of(state: TrainState) -> TrainState:
    """Where the state's arrays, or its abstract ones, live: what a jitted step is told to leave as it is."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def count_parameters(params: Any) -> int:
    """How many numbers the parameters are; takes arrays or their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def shape_differences(expected: Any, found: Any) -> list[str]:
    """The arrays whose shapes differ between two pytrees, a few words each; [] where none does."""
    own, theirs = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (expected, found)
    )
    return [
        f"{path} is {theirs.get(path, 'missing')} and must be {own.get(path, 'absent')}"
        for path in sorted(own.keys() | theirs.keys())
        if own.get(path) != theirs.get(path)
    ]


def listed(differences: list[str]) -> str:
    """The first three of many."""
    return ", ".join(differences[:3]) + (f" and {len(differences) - 3} more" if len(differences) > 3 else "")
