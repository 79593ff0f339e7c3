"""A run that starts from weights that are there: `config.init_from`."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bt_jax.engine.state import TrainState
from bt_jax.errors import UserError
from bt_jax.export.encoder import read_weights


def start_from(config: ConfigDict, state: TrainState) -> tuple[TrainState, list[str]]:
    """The fresh state with the weights that `config.init_from` names, where it names any.

    Returns:
      (the state, sentences about where its weights come from).

    Raises:
      UserError: there are no such weights, or their encoder is not the config's.
    """
    source, model, data = config.init_from, config.model, config.data
    if not source:
        return state, []
    weights = read_weights(source)
    try:
        state, projector = with_weights(state, weights.variables, weights.projector_variables)
    except ValueError as error:
        raise UserError(
            f"init_from is {source!r}, a {weights.arch} of width {weights.width}, which does not fit the config's "
            f"{model.arch} of width {model.width} with small_images={model.small_images} ({error})."
        ) from None
    what = "the encoder and the projector begin" if projector else "the encoder begins"
    notices = [f"{what} with the weights of {weights.source}"]
    if weights.projector_variables is not None and not projector:
        notices.append(f"its projector does not fit {'-'.join(map(str, model.projector))}, which begins at random")
    if (weights.mean, weights.std) != (tuple(data.mean), tuple(data.std)):
        notices.append(f"it was trained with data.mean={weights.mean} and data.std={weights.std}")
    return state, notices


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
