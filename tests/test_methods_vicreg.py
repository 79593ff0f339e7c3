"""bt_jax/methods/vicreg.py: separate statistics, the expander, and the loss of the network's embeddings."""

import jax
import jax.numpy as jnp
import pytest
from recipes import pair_batches, pair_method, spec_of, training

from bt_jax.losses import vicreg_loss
from bt_jax.methods.networks import PairNetwork


def test_loss_is_that_of_the_networks_embeddings():
    """Each view with statistics of its own; the weights of the config; biases in all layers but the last."""
    method = pair_method("vicreg", invariance=10.0, variance=5.0, covariance=2.0)
    params, model_state, method_state = jax.jit(lambda: method.init(jax.random.key(3), spec_of(method)))()
    assert method_state == {} and set(params["projector"]["linear1"]) == {"kernel", "bias"}
    assert set(params["projector"]["linear2"]) == {"kernel"} and "bn2" not in params["projector"]
    views = method.inputs.normalize(jnp.asarray(pair_batches(1)[0]))
    network = PairNetwork(method.encoder, method.projector)
    z, _ = training(network)({"params": params, **model_state}, views)
    expected, parts = vicreg_loss(z[:, 0], z[:, 1], invariance=10.0, variance=5.0, covariance=2.0)
    batch = {"views": {"pair": pair_batches(1)[0]}}
    loss, (_, _, metrics) = jax.jit(method.loss)(params, model_state, {}, batch, 0, jax.random.key(0))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for name in ("invariance", "variance", "covariance"):
        assert float(metrics[name]) == pytest.approx(float(parts[name]), rel=1e-4)


def test_description():
    """0.99 μ if all embeddings are the same; 2λ + 2ν(D-1)/(N-1) for unrelated views of unit variance."""
    text = pair_method("vicreg").describe(8)["loss"]
    assert "24.75 for a collapsed network" in text and "about 52.0 for unrelated views" in text
