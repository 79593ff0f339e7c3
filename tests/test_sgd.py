"""bt_jax/optim/sgd.py against PyTorch's SGD, written out in numpy."""

import jax
import numpy as np
import optax
import pytest

from bt_jax.optim import sgd

RATES = (0.5, 0.1, 0.02, 0.02)


def by_numpy(weight, *, decay, momentum, nesterov):
    """torch.optim.SGD: decay, then momentum, then the rate."""
    buffer = np.zeros_like(weight)
    for rate in RATES:
        gradient = np.sin(weight) + decay * weight
        buffer = momentum * buffer + gradient
        weight = weight - rate * (gradient + momentum * buffer if nesterov else buffer)
    return weight


def by_optax(params, transformation):
    state = transformation.init(params)
    for _ in RATES:
        updates, state = transformation.update(jax.tree.map(np.sin, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def falling(factor=1.0):
    return lambda step: factor * jax.numpy.asarray(RATES)[step]


@pytest.mark.parametrize("nesterov", [False, True])
def test_pytorchs_order(nesterov):
    """In float64, over a falling schedule; each part with its own rate."""
    weight = np.random.default_rng(0).standard_normal(4)
    settings = {"momentum": 0.9, "nesterov": nesterov}
    with jax.enable_x64(True):
        transformation = sgd({"head": falling(), "encoder": falling(0.0)}, weight_decay=0.1, **settings)
        found, _ = by_optax({"head": {"kernel": weight}, "encoder": {"kernel": weight}}, transformation)
    np.testing.assert_allclose(found["head"]["kernel"], by_numpy(weight, decay=0.1, **settings), rtol=1e-12)
    np.testing.assert_array_equal(found["encoder"]["kernel"], weight)


def test_what_has_no_rate_is_frozen():
    """Its parameters stay bit for bit, decay included, and no momentum is kept for them."""
    params = {"head": {"kernel": np.ones((2, 3))}, "encoder": {"kernel": np.ones((5, 7))}}
    found, state = by_optax(params, sgd({"head": falling()}, weight_decay=0.1))
    np.testing.assert_array_equal(found["encoder"]["kernel"], params["encoder"]["kernel"])
    assert (found["head"]["kernel"] != 1).all()
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert (2, 3) in shapes and (5, 7) not in shapes


def test_norms_may_go_without_decay():
    """If asked, scales and shifts of norms are not decayed; biases of linear layers always are."""
    layers = {
        "bn1": {"scale": np.ones(2), "bias": np.ones(2)},
        "linear": {"kernel": np.ones((2, 2)), "bias": np.ones(2)},
    }
    for decay_norms in (True, False):
        transformation = sgd({"head": 1.0}, momentum=0.0, weight_decay=0.5, decay_norms=decay_norms)
        zeros = jax.tree.map(np.zeros_like, {"head": layers})
        updates, _ = transformation.update(zeros, transformation.init({"head": layers}), {"head": layers})
        found = jax.tree.map(lambda u: float(np.mean(u)), updates["head"])
        norm = -0.5 if decay_norms else 0.0
        assert found == {"bn1": {"scale": norm, "bias": norm}, "linear": {"kernel": -0.5, "bias": -0.5}}
