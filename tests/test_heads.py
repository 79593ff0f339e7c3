"""bt_jax/models/heads.py: the projector's layers and the classifier's start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bt_jax.models import LinearClassifier, MLPHead, Projector
from bt_jax.models.heads import projector_partition


def started(module, x):
    """Its first variables."""
    return jax.jit(lambda: module.init(jax.random.key(0), x, train=False))()


def test_projector_is_the_official_stack():
    """Linear without bias, norm, ReLU, linear: written out in numpy with running statistics."""
    projector = Projector((16, 8))
    x = jax.random.normal(jax.random.key(1), (5, 2, 6))
    variables = started(projector, x)
    assert jax.tree.map(jnp.shape, variables["params"]) == {
        "linear1": {"kernel": (6, 16)}, "bn1": {"scale": (16,), "bias": (16,)}, "linear2": {"kernel": (16, 8)}
    }  # fmt: skip
    first, last = (np.asarray(variables["params"][f"linear{i}"]["kernel"], np.float64) for i in (1, 2))
    hidden = np.maximum(np.asarray(x, np.float64) @ first / np.sqrt(1 + 1e-5), 0)
    np.testing.assert_allclose(projector.apply(variables, x, train=False), hidden @ last, rtol=1e-4, atol=1e-6)


def test_layers_are_given_only_to_who_asks():
    """After linear, norm and ReLU each; the last is the result. Initial variables and a plain call have none of them."""
    projector = Projector((16, 8))
    x = jax.random.normal(jax.random.key(1), (5, 6))
    variables = started(projector, x)
    assert set(variables) == {"params", "batch_stats"}
    result, kept = projector.apply(variables, x, train=False, mutable=["intermediates"])
    (first,), (last,) = (kept["intermediates"][name] for name in ("layer1", "layer2"))
    kernel = np.asarray(variables["params"]["linear1"]["kernel"], np.float64)
    expected = np.maximum(np.asarray(x, np.float64) @ kernel / np.sqrt(1 + 1e-5), 0)
    np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(last, result)


def test_biases_of_the_last_layer_and_the_others():
    x = jnp.ones((4, 6))
    for hidden, last in ((True, False), (True, True), (False, True), (False, False)):
        head = MLPHead((5, 3), bias=hidden, output_bias=last)
        params = started(head, x)["params"]
        assert ("bias" in params["linear1"], "bias" in params["linear2"]) == (hidden, last)


def test_projector_starts_as_torch_linear():
    """Uniform in ∓ 1/√fan_in."""
    kernel = started(Projector((2048,)), jnp.zeros((2, 64)))["params"]["linear1"]["kernel"]
    assert abs(float(jnp.abs(kernel).max()) - 1 / 8) < 1e-4
    assert abs(float(kernel.std()) - 1 / 8 / np.sqrt(3)) < 1e-3


def test_classifier_starts_as_the_official():
    params = LinearClassifier(1000).init(jax.random.key(0), jnp.zeros((2, 64)))["params"]["linear"]
    assert abs(float(params["kernel"].std()) - 0.01) < 2e-4
    assert not params["bias"].any()


@pytest.mark.parametrize(
    ("path", "spec"),
    [
        (("params", "projector", "linear1", "kernel"), (None, "model")),
        (("batch_stats", "projector", "bn1", "mean"), ("model",)),
        (("opt_state", None, "trace", "projector", "linear2", "kernel"), ("model", None)),
        (("params", "projector", "bn2", "scale"), ()),
        (("params", "projector", "linear3", "kernel"), (None, "model")),
        (("params", "encoder", "layer4_1", "conv1", "kernel"), ()),
    ],
)
def test_layers_are_split_in_turns(path, spec):
    """By outputs, by inputs, by outputs: each layer takes its input as the one before leaves it split."""
    assert projector_partition(path) == PartitionSpec(*spec)
