"""torchvision's names and layouts <-> Linen variables, numpy arrays on both sides.

    convolution   weight (O, I, H, W)        <->  params/…/kernel (H, W, I, O)
    linear        weight (O, I)              <->  params/…/kernel (I, O)
    batch norm    weight, bias               <->  params/…/scale, bias
                  running_mean, running_var  <->  batch_stats/…/mean, var

`num_batches_tracked`, which PyTorch counts and uses for nothing here, rides along in batch_stats/…/batches (an encoder's
`apply` does not look at it), so that a round trip gives back every tensor, bit for bit.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax.errors import UserError
from bt_jax.models import Projector, make_encoder

Tree = dict[str, Any]
Entry = tuple[str, tuple[str, ...]]  # torch name, path in the variables


def from_torch(state_dict: Mapping[str, Any], arch: str) -> dict[str, Tree]:
    """An encoder's variables from torchvision's tensors.

    Args:
      state_dict: torch tensors or numpy arrays, by torchvision's names, without the classifier's `fc.*`. The stem (7×7, or
        3×3 for small images) and the width are read from `conv1.weight`.
      arch: as for `make_encoder`.

    Returns:
      {"params": …, "batch_stats": …} of float32 numpy arrays.

    Raises:
      UserError: names unknown or missing, or shapes wrong: all are listed.
    """
    if "conv1.weight" not in state_dict or np.ndim(state_dict["conv1.weight"]) != 4:
        raise UserError(
            f"these are no weights of a {arch}: conv1.weight, (width, 3, 7, 7) or (width, 3, 3, 3), is not there."
        )
    width, _, side, _ = np.shape(state_dict["conv1.weight"])
    encoder = make_encoder(arch, width=width, small_images=side == 3)
    shapes = _shapes(encoder, (1, 32, 32, 3))
    return _convert(state_dict, shapes, _encoder_name, f"a {arch}")


def to_torch(variables: Mapping[str, Tree], arch: str) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: numpy arrays by torchvision's names, to load with `strict=True`.

    Raises:
      UserError: the variables are not of this architecture.
    """
    params = variables["params"]
    if "conv1" not in params:
        raise UserError(f"these are no variables of a {arch}: params/conv1 is not there.")
    side, _, _, width = np.shape(params["conv1"]["kernel"])
    shapes = _shapes(make_encoder(arch, width=width, small_images=side == 3), (1, 32, 32, 3))
    return _convert_back(variables, shapes, _encoder_name, f"a {arch}")


def projector_from_torch(state_dict: Mapping[str, Any]) -> dict[str, Tree]:
    """A projector's variables from the official names, `{0,3,6}.weight` and `{1,4}.*` for three layers.

    Raises:
      UserError: as `from_torch`.
    """
    layers = sorted(int(n.split(".")[0]) for n, v in state_dict.items() if n.endswith(".weight") and np.ndim(v) == 2)
    if not layers:
        raise UserError("these are no weights of a projector: there is no linear layer 0.weight.")
    sizes = tuple(np.shape(state_dict[f"{i}.weight"])[0] for i in layers)
    features = np.shape(state_dict[f"{layers[0]}.weight"])[1]
    return _convert(state_dict, _shapes(Projector(sizes), (1, features)), _projector_name, "a projector")


def projector_to_torch(variables: Mapping[str, Tree]) -> dict[str, np.ndarray]:
    """The inverse of `projector_from_torch`."""
    kernels = [part["kernel"] for name, part in sorted(variables["params"].items()) if name.startswith("linear")]
    shapes = _shapes(Projector(tuple(k.shape[1] for k in kernels)), (1, kernels[0].shape[0]))
    return _convert_back(variables, shapes, _projector_name, "a projector")


def _shapes(module: Any, input_shape: tuple[int, ...]) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of every variable by its path, without computing any."""
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(input_shape), train=False))
    return {_path(keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)}


def _path(keys: tuple) -> tuple[str, ...]:
    return tuple(key.key for key in keys)


def _encoder_name(part: tuple[str, ...]) -> str:
    """('layer1_0', 'downsample_conv') -> layer1.0.downsample.0"""
    name = ".".join(part).replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
    return name.replace("_", ".")


def _projector_name(part: tuple[str, ...]) -> str:
    """linear1, bn1, linear2, … -> 0, 1, 3, …: a ReLU stands between."""
    (name,) = part
    return str(3 * (int(name[-1]) - 1) + (1 if name.startswith("bn") else 0))


_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def _entries(shapes: Mapping[tuple[str, ...], tuple], naming: Callable) -> list[Entry]:
    return [(f"{naming(path[1:-1])}.{_LEAVES[path[-1]]}", path) for path in shapes]


def _counters(shapes: Mapping[tuple[str, ...], tuple], naming: Callable) -> list[Entry]:
    """Where each norm's `num_batches_tracked` rides along."""
    return [
        (f"{naming(path[1:-1])}.num_batches_tracked", (*path[:-1], "batches")) for path in shapes if path[-1] == "mean"
    ]


def _convert(state_dict: Mapping[str, Any], shapes: Mapping, naming: Callable, what: str) -> dict[str, Tree]:
    entries, counters = _entries(shapes, naming), _counters(shapes, naming)
    known = {name for name, _ in entries + counters}
    wrong = [f"{name} is unknown" for name in state_dict if name not in known]
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
        raise UserError(f"these are not the weights of {what}: {'; '.join(wrong)}.")
    return variables


def _convert_back(variables: Mapping[str, Tree], shapes: Mapping, naming: Callable, what: str) -> dict[str, np.ndarray]:
    given = {_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(dict(variables))}
    counters = dict((path, name) for name, path in _counters(shapes, naming))
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


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return {4: lambda: (shape[3], shape[2], shape[0], shape[1]), 2: lambda: shape[::-1]}.get(
        len(shape), lambda: shape
    )()


def _to_linen(x: np.ndarray) -> np.ndarray:
    return x.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[x.ndim])


def _to_torch(x: np.ndarray) -> np.ndarray:
    return x.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[x.ndim])


def _put(tree: Tree, path: tuple[str, ...], value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
