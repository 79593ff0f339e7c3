"""bt_jax/evaluation/layers.py: each layer against numpy in float64, for the heads of three methods."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax import UserError
from bt_jax.evaluation.layers import head_of, layer_of
from bt_jax.models import MLPHead, Projector

SIZES = (7, 6, 5)
HEADS = {
    "barlow_twins": Projector(SIZES),
    "barlow_twins without norms": Projector(SIZES, batch_norm=False),
    "simclr": MLPHead(SIZES, bias=False, norm_output=True),
    "pirl": MLPHead(SIZES[:1], batch_norm=False, output_bias=True),
    "byol": MLPHead(SIZES),
    "swav": MLPHead(SIZES, output_bias=True),
}


def drawn(head, width=4):
    """Variables of a head with no value at its neutral start; variances are positive."""
    variables = jax.eval_shape(lambda: head.init(jax.random.key(0), jnp.zeros((2, width)), train=False))
    variables = {name: variables[name] for name in variables if name != "intermediates"}
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        low = 0.2 if path[-1].key == "var" else -1.0
        return rng.uniform(low, 1.0, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


def by_hand(variables, features):
    params, statistics, x, found = variables["params"], variables.get("batch_stats", {}), np.float64(features), []
    depth = sum(name.startswith("linear") for name in params)
    for i in range(1, depth + 1):
        x = x @ params[f"linear{i}"]["kernel"] + params[f"linear{i}"].get("bias", 0.0)
        if f"bn{i}" in params:
            norm, running = params[f"bn{i}"], statistics[f"bn{i}"]
            x = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5) * norm["scale"] + norm.get("bias", 0.0)
        x = np.maximum(x, 0) if i < depth else x
        found.append(x)
    return found


@pytest.mark.parametrize("name", HEADS)
def test_layers_equal_numpy(name):
    """More rows than a block has, with an axis for views; features of both signs, so that the ReLU matters."""
    variables = drawn(HEADS[name])
    features = np.random.default_rng(0).normal(size=(700, 2, 4)).astype(np.float32)
    head = head_of(variables, 4, "a run")
    expected = by_hand(variables, features)
    assert len(head.sizes) == len(expected)
    for number, layer in enumerate(expected, 1):
        found = layer_of(head, variables, number)(features)
        assert found.dtype == np.float32 and found.shape == layer.shape
        np.testing.assert_allclose(found, layer, rtol=2e-5, atol=2e-5)
    if len(expected) > 1:
        assert (expected[0] == 0).any() and (expected[-1] < 0).any()


def test_what_is_no_such_head():
    with pytest.raises(UserError, match="init_from, file.pth, has no projector, which knn.layers needs"):
        head_of(None, 4, "file.pth")
    variables = drawn(HEADS["byol"])
    with pytest.raises(UserError, match="is not a stack of linear layers for 9 features"):
        head_of(variables, 9, "run")
    for odd in (
        {},
        {"params": {"dense": {"kernel": np.zeros((4, 4))}}},
        {"params": {"linear2": {"kernel": np.zeros((4, 4))}}},
    ):
        with pytest.raises(UserError, match="is not a stack of linear layers"):
            head_of(odd, 4, "run")
    variables["params"]["attention"] = {"kernel": np.zeros((4, 4))}
    with pytest.raises(UserError, match="is not a stack of linear layers"):
        head_of(variables, 4, "run")
