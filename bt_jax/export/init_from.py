"""Starting a run from existing weights: `config.init_from`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bt_jax.engine.state import TrainState, shape_differences
from bt_jax.errors import UserError, some
from bt_jax.export.encoder import read_weights
from bt_jax.export.weights import Tree
from bt_jax.import_path import is_import_path
from bt_jax.models.vit import VITS


def start_from(config: ConfigDict, state: TrainState) -> tuple[TrainState, list[str]]:
    """A new state with the weights that `config.init_from` names, if any.

    Returns:
      (the state, sentences about the source of its weights).

    Raises:
      UserError: the weights do not exist, or belong to another encoder than the config's.
    """
    source, model, data = config.init_from, config.model, config.data
    if not source:
        return state, []
    weights = read_weights(source)
    try:
        state, taken = with_weights(state, weights.variables, weights.heads)
    except ValueError as error:
        found, wanted = f"{weights.arch} of width {weights.width}", f"{model.arch} of width {model.width}"
        if weights.arch in VITS:
            found = f"{weights.arch} with patches of {weights.patch_size} pixels for images of {weights.input_size}"
        if model.arch in VITS:
            wanted = f"{model.arch} with patches of {model.patch_size} pixels for images of {data.image_size}"
        else:
            wanted += f" with small_images={model.small_images}"
        raise UserError(
            f"init_from is {source!r}, a {found}, which does not fit the config's {wanted} ({error})."
        ) from None
    start = "start" if taken else "starts"
    notices = [
        f"{' and '.join(f'the {name}' for name in ('encoder', *taken))} {start} from the weights of {weights.source}"
    ]
    notices += [
        f"its {name} does not fit {_widths(state.params[name])}, which starts at random"
        for name in weights.heads
        if name in state.params and name not in taken
    ]
    if weights.arch not in VITS and not is_import_path(weights.arch):  # what no shape depends on
        for name in ("stem_stride", "stem_padding"):
            if (theirs := getattr(weights, name)) != (own := model.get(name, 1)):
                notices.append(
                    f"it was trained with model.{name}={theirs}, and this run has {own}, which is another network"
                )
    if weights.range != (own := tuple(data.get("range", ()))):
        notices.append(f"it was trained with data.range={weights.range}, and this run has {own}")
    if (weights.mean, weights.std) != (tuple(data.mean), tuple(data.std)):
        notices.append(f"it was trained with data.mean={weights.mean} and data.std={weights.std}")
    return state, notices


def with_weights(
    state: TrainState, encoder: Tree, heads: Mapping[str, Tree] | None = None
) -> tuple[TrainState, tuple[str, ...]]:
    """The state with an encoder's variables, and those of the heads that the state has too and that fit.

    A target network (`Method`, `method_state`) gets the same.

    Args:
      encoder: {"params": …, "batch_stats": …} of host arrays, the same on all processes; likewise each of the heads.

    Returns:
      (the state, with its placement unchanged; the names of the heads that were used).

    Raises:
      ValueError: the encoder does not fit the state; the differing shapes are named.
    """
    if wrong := shape_differences(_network(state, "encoder"), encoder):
        raise ValueError(some(wrong))
    fitting = {
        name: head
        for name, head in (heads or {}).items()
        if name in state.params and not shape_differences(_network(state, name), head)
    }
    networks, statistics = {"encoder": encoder, **fitting}, dict(state.model_state["batch_stats"])
    params, method_state = _with(state.params, networks, "params"), state.method_state
    if target := method_state.get("target") if isinstance(method_state, Mapping) else None:
        method_state = {**method_state, "target": _with(target, networks, "params")}
        statistics["target"] = _with(statistics["target"], networks, "batch_stats")
    model_state = {**state.model_state, "batch_stats": _with(statistics, networks, "batch_stats")}
    new = dataclasses.replace(state, params=params, model_state=model_state, method_state=method_state)
    return new, tuple(fitting)


def _with(trees: Mapping[str, Any], networks: Mapping[str, Tree], part: str) -> dict[str, Any]:
    """`trees` with that part of the networks, where `trees` has arrays for it."""
    new = {
        name: jax.tree.map(_placed_as, trees[name], network[part])
        for name, network in networks.items()
        if trees.get(name)
    }
    return {**trees, **new}


def _network(state: TrainState, name: str) -> Tree:
    return {"params": state.params[name], "batch_stats": state.model_state["batch_stats"].get(name, {})}


def _widths(params: Any) -> str:
    """The widths of a head's layers, in order: `512-512-128`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return "-".join(str(leaf.shape[-1]) for path, leaf in leaves if path[-1] == jax.tree_util.DictKey("kernel"))


def _placed_as(there: jax.Array, value: Any) -> jax.Array:
    value = np.asarray(value, there.dtype)
    return jax.make_array_from_callback(there.shape, there.sharding, lambda index: value[index])
