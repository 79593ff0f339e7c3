"""The layers of a projector on features that have been computed: what each of them computes for an image.

Losses shape the projector's output, and the encoder's features are what is used afterwards. How good the layers in between are
shows how much of an image the loss discards, and where (SimCLR, Chen et al. 2020, arXiv 2002.05709, section 4.2).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax.errors import UserError
from bt_jax.models.heads import MLPHead

_BLOCK = 1024  # images at a time


def head_of(variables: Mapping[str, Any] | None, width: int, source: str) -> MLPHead:
    """The head that has these variables; which layers have norms and biases is told from them.

    Args:
      variables: {"params": …, "batch_stats": …} of a projector; None if its source has none.
      width: of the features that it is applied to.
      source: where they are from, for messages.

    Raises:
      UserError: there are none, or they are not those of an `MLPHead` for such features.
    """
    if variables is None:
        raise UserError(
            f"init_from, {source}, has no projector, which knn.layers needs; name the workdir of a pre-training run that has one."
        )
    params = variables.get("params", {})
    depth = sum(re.fullmatch(r"linear[1-9][0-9]*", name) is not None for name in params)
    last = params.get(f"linear{depth}", {})
    shapes = [np.shape(params.get(f"linear{i + 1}", {}).get("kernel", ())) for i in range(depth)]
    if depth and all(len(shape) == 2 for shape in shapes):
        head = MLPHead(
            tuple(shape[1] for shape in shapes),
            batch_norm=any(name.startswith("bn") for name in params),
            bias=depth > 1 and "bias" in params["linear1"],
            output_bias="bias" in last,
            norm_output=f"bn{depth}" in params,
        )
        expected = jax.eval_shape(lambda: head.init(jax.random.key(0), jnp.zeros((2, width), jnp.float32), train=False))
        if _shapes(expected) == _shapes(variables):
            return head
    raise UserError(
        f"the projector of init_from, {source}, is not a stack of linear layers for {width} features (bt_jax.models.MLPHead), "
        "so knn.layers cannot compute its layers; set knn.layers=False."
    )


def _shapes(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path({name: variables.get(name, {}) for name in ("params", "batch_stats")})
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}


def layer_of(head: MLPHead, variables: Mapping[str, Any], number: int) -> Callable[[np.ndarray], np.ndarray]:
    """What layer `number`, from 1, computes: features (…, F) float32 -> (…, its width) float32.

    After norm and ReLU, the last as the loss gets it; in evaluation mode and at the highest precision, on this process's first
    device, a block of images at a time.
    """
    kept = {name: jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables[name]) for name in variables}
    variables = jax.device_put(kept, jax.local_devices()[0])

    @jax.jit
    def apply(variables, rows):
        with jax.default_matmul_precision("highest"):
            _, state = head.apply(variables, rows, train=False, mutable=["intermediates"])
        return state["intermediates"][f"layer{number}"][0]

    def compute(features: np.ndarray) -> np.ndarray:
        rows = features.reshape(-1, features.shape[-1])
        found = np.empty((len(rows), head.sizes[number - 1]), np.float32)
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            padded = np.pad(part, ((0, _BLOCK - len(part)), (0, 0)))  # one shape, so that it compiles once
            found[start : start + len(part)] = apply(variables, padded)[: len(part)]
        return found.reshape(*features.shape[:-1], -1)

    return compute
