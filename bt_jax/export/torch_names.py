"""PyTorch's names and layouts <-> Linen variables, for any network: numpy arrays on both sides.

    convolution   weight (O, I, H, W)        <->  params/…/kernel (H, W, I, O)
    linear        weight (O, I)              <->  params/…/kernel (I, O)
    norm          weight, bias               <->  params/…/scale, bias
    batch norm    running_mean, running_var  <->  batch_stats/…/mean, var

Other parameters keep their names and layouts. `num_batches_tracked`, which nothing here uses, is kept in batch_stats/…/batches (an
encoder's `apply` ignores it), so that a round trip returns every tensor bit for bit.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from bt_jax.errors import UserError
from bt_jax.export.weights import Tree

Entry = tuple[str, tuple[str, ...]]  # torch name, path in the variables
Shapes = dict[tuple[str, ...], tuple[int, ...]]  # of every variable, by its path
Naming = Callable[[tuple[str, ...]], str]  # a module's name in PyTorch by its path in the parameters


def flat(variables: Tree) -> Shapes:
    """The shape of every variable by its path."""
    return {path_of(keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)}


def path_of(keys: tuple) -> tuple[str, ...]:
    """JAX's keys as names."""
    return tuple(key.key for key in keys)


_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def _entries(shapes: Shapes, naming: Naming) -> list[Entry]:
    return [
        (f"{naming(path[1:-1])}.{_LEAVES[path[-1]]}" if path[-1] in _LEAVES else ".".join(path[1:]), path)
        for path in shapes
    ]


def _counters(shapes: Shapes, naming: Naming) -> list[Entry]:
    """The place of each norm's `num_batches_tracked`."""
    return [
        (f"{naming(path[1:-1])}.num_batches_tracked", (*path[:-1], "batches")) for path in shapes if path[-1] == "mean"
    ]


def from_names(state_dict: Mapping[str, Any], shapes: Shapes, naming: Naming, what: str) -> dict[str, Tree]:
    """The variables of those shapes, float32, from tensors.

    Args:
      what: the network in words, such as "a resnet50", for the error.

    Raises:
      UserError: unknown or missing names, or wrong shapes; the first eight are listed.
    """
    entries, counters = _entries(shapes, naming), _counters(shapes, naming)
    known = {name for name, _ in entries + counters}
    absent = [name for name, _ in entries if name not in state_dict]
    wrong = [f"{name} is unknown{_hint(name, absent)}" for name in state_dict if name not in known]
    variables: dict[str, Tree] = {}
    for name, path in entries:
        expected = _torch_shape(shapes[path])
        if name not in state_dict:
            wrong.append(f"{name} is missing")
        elif np.shape(state_dict[name]) != expected:
            wrong.append(f"{name} is {np.shape(state_dict[name])} and must be {expected}")
        else:
            _put(variables, path, np.ascontiguousarray(_to_linen(np.asarray(state_dict[name], np.float32))))
    for name, path in counters:
        if name in state_dict:  # weights older than PyTorch 0.4.1 have none
            _put(variables, path, np.asarray(state_dict[name], np.int64))
    if wrong:
        raise UserError(f"these are not the weights of {what}: {_few(wrong)}.")
    return variables


def to_names(variables: Mapping[str, Tree], shapes: Shapes, naming: Naming, what: str) -> dict[str, np.ndarray]:
    """The inverse of `from_names`: contiguous float32 arrays, and the counters."""
    given = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(dict(variables))}
    counters = {path: name for name, path in _counters(shapes, naming)}
    wrong = ["/".join(path) + " is unknown" for path in given if path not in shapes and path not in counters]
    state_dict = {}
    for name, path in _entries(shapes, naming):
        if path not in given:
            wrong.append("/".join(path) + " is missing")
        elif given[path].shape != shapes[path]:
            wrong.append(f"{'/'.join(path)} is {given[path].shape} and must be {shapes[path]}")
        else:
            state_dict[name] = np.ascontiguousarray(_to_torch(np.asarray(given[path], np.float32)))
    if wrong:
        raise UserError(f"these are not the variables of {what}: {'; '.join(wrong)}.")
    for path, name in counters.items():
        state_dict[name] = np.asarray(given.get(path, 0), np.int64)
    return state_dict


def _hint(name: str, absent: list[str]) -> str:
    """Which of the names that are absent this one may be meant for."""
    found = nearest(name, absent)
    return f" (did you mean {found}?)" if found else ""


def nearest(name: str, others: Iterable[str]) -> str:
    """The one of the other names that differs least from it, "" if all are quite different."""
    return next(iter(difflib.get_close_matches(name, others, n=1, cutoff=0.7)), "")


def _few(faults: list[str]) -> str:
    """The first eight faults and the number of others, for a sentence."""
    return "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return {4: lambda: (shape[3], shape[2], shape[0], shape[1]), 2: lambda: shape[::-1]}.get(
        len(shape), lambda: shape
    )()


def _to_linen(x: np.ndarray) -> np.ndarray:
    return x.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(x.ndim, range(x.ndim)))


def _to_torch(x: np.ndarray) -> np.ndarray:
    return x.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(x.ndim, range(x.ndim)))


def _put(tree: Tree, path: tuple[str, ...], value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
