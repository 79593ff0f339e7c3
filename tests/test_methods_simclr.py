"""bt_jax/methods/simclr.py: joint statistics, the projector, and the loss of the network's embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import pair_batches, pair_method, spec_of, training

from bt_jax.losses import nt_xent
from bt_jax.methods.networks import PairNetwork


@pytest.fixture(scope="module")
def start():
    method = pair_method("simclr", temperature=0.5)
    return method, *jax.jit(lambda: method.init(jax.random.key(3), spec_of(method)))()


def test_loss_is_that_of_both_views_in_one_batch(start):
    """Joint statistics, as in the official code; with separate ones the loss would be another."""
    method, params, model_state, method_state = start
    assert method_state == {}
    views = method.inputs.normalize(jnp.asarray(pair_batches(1)[0]))
    losses = {}
    for joint in (True, False):
        network = PairNetwork(method.encoder, method.projector, joint=joint)
        z, _ = training(network)({"params": params, **model_state}, views)
        losses[joint] = float(nt_xent(z[:, 0], z[:, 1], temperature=0.5)[0])
    batch = {"views": {"pair": pair_batches(1)[0]}}
    loss, (new, _, metrics) = method.loss(params, model_state, {}, batch, jnp.int32(0), jax.random.key(0))
    assert float(loss) == pytest.approx(losses[True], rel=1e-5) != pytest.approx(losses[False], rel=1e-4)
    assert 0 <= float(metrics["accuracy"]) <= 1
    both = views.reshape(32, 8, 8, 3)
    first = jax.lax.conv_general_dilated(
        both, params["encoder"]["conv1"]["kernel"], (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(
        new["batch_stats"]["encoder"]["bn1"]["mean"], 0.1 * np.mean(first, axis=(0, 1, 2)), rtol=1e-3, atol=1e-5
    )


def test_projector(start):
    """Batch norm after every layer, the last without a shift; no biases; kernels from normal(0, 0.01)."""
    _, params, _, _ = start
    projector = params["projector"]
    assert {name: sorted(part) for name, part in projector.items()} == {
        "linear1": ["kernel"], "bn1": ["bias", "scale"], "linear2": ["kernel"], "bn2": ["scale"],
    }  # fmt: skip
    wide = pair_method("simclr", projector=(256, 256))
    kernel = wide.projector.init(jax.random.key(0), jnp.zeros((2, 64)), train=False)["params"]["linear2"]["kernel"]
    assert np.std(kernel) == pytest.approx(0.01, rel=0.03)


def test_without_negatives_only_the_other_view_is_in_the_loss():
    """An ablation: equal embeddings have the lowest loss, and the gradient is that of the cosine."""
    method = pair_method("simclr", temperature=0.5, negatives=False)
    z_a, z_b = np.random.default_rng(0).standard_normal((2, 16, 8)).astype(np.float32)
    cosines = np.sum(z_a * z_b, axis=1) / np.linalg.norm(z_a, axis=1) / np.linalg.norm(z_b, axis=1)
    loss, parts = method.pair_loss(z_a, z_b)
    assert float(loss) == pytest.approx(-np.mean(cosines) / 0.5, rel=1e-5)
    assert set(parts) == {"accuracy", "spread"}
    same = np.ones((16, 8), np.float32)
    assert float(method.pair_loss(same, same)[0]) == pytest.approx(-2.0)
    ours = jax.grad(lambda z: method.pair_loss(z, z_b)[0])(z_a)
    unit_a, unit_b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z_a, z_b))
    expected = -(unit_b - cosines[:, None] * unit_a) / np.linalg.norm(z_a, axis=1, keepdims=True) / 16 / 0.5
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    assert "never below -2, which a collapsed network has too" in method.describe(16)["loss"]


def test_both_views_have_one_distribution_and_the_loss_is_described(start):
    method = start[0]
    (group,) = method.view_groups
    assert group.draws[0] == group.draws[1] and group.draws[0].hue == 0.2 and group.draws[0].solarize == 0
    text = pair_method("simclr").describe(2048)["loss"]
    assert "about 8.32 for unrelated views" in text and "never below 0.17" in text and "temperature 0.1" in text
