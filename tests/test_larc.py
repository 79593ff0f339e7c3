"""bt_jax/optim/larc.py: the official order, what has no norm, and frozen parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bt_jax.optim import larc


def apex(params, gradients, *, rate, decay, momentum=0.9, trust=0.001):
    """apex's LARC around torch.optim.SGD, in numpy: parameters after steps with these gradients."""
    params = {name: w.copy() for name, w in params.items()}
    buffers = {}
    for step in gradients:
        for name, g in step.items():
            w = params[name]
            of_w, of_g = np.linalg.norm(w), np.linalg.norm(g)
            if of_w != 0 and of_g != 0:
                g = (g + decay * w) * (trust * of_w / (of_g + of_w * decay + 1e-8))
            buffers[name] = momentum * buffers[name] + g if name in buffers else g
            params[name] = w - rate * buffers[name]
    return params


def test_it_is_the_official_order():
    """Matrices and vectors alike are decayed and adapted; a bias that is zero takes the plain gradient."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.standard_normal((4, 3)), "scale": 1 + 0.1 * rng.standard_normal(3), "bias": np.zeros(3)}
    gradients = [{name: 10 * rng.standard_normal(w.shape) for name, w in params.items()} for _ in range(5)]
    expected = apex(params, gradients, rate=0.3, decay=0.1)
    with jax.enable_x64(True):
        optimizer = larc(0.3, weight_decay=0.1)
        found = jax.tree.map(jnp.asarray, params)
        state = optimizer.init(found)
        for step in gradients:
            updates, state = optimizer.update(jax.tree.map(jnp.asarray, step), state, found)
            found = optax.apply_updates(found, updates)
        for name in params:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)


def test_without_a_gradient_nothing_moves():
    """Neither decay nor momentum reaches a parameter whose gradient has always been zero."""
    params = {"prototypes": jnp.eye(3), "w": jnp.ones(2)}
    optimizer = larc(1.0, weight_decay=0.5)
    state = optimizer.init(params)
    for _ in range(3):
        gradients = {"prototypes": jnp.zeros((3, 3)), "w": jnp.ones(2)}
        updates, state = optimizer.update(gradients, state, params)
        assert not np.any(updates["prototypes"])
        assert np.all(np.asarray(updates["w"]) != 0)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_gradients_size_does_not_matter(scale):
    params = {"w": jnp.arange(1.0, 7.0).reshape(2, 3)}
    gradient = jnp.array([[1.0, -2, 3], [0.5, 1, -1]])
    optimizer = larc(0.1, weight_decay=0.0)
    one, _ = optimizer.update({"w": gradient}, optimizer.init(params), params)
    other, _ = optimizer.update({"w": scale * gradient}, optimizer.init(params), params)
    np.testing.assert_allclose(one["w"], other["w"], rtol=1e-4)
