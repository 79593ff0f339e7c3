"""bt_jax/methods: what the train step asks of a method, and Barlow Twins as one."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import small_method

from bt_jax import barlow_twins_loss
from bt_jax.config import schema as config_lib
from bt_jax.methods import Method, make_method


def test_loss_is_the_loss_of_the_networks_embeddings():
    """Both views in one pass: the same as the encoder, the projector and the loss put together by hand."""
    method = small_method()
    params, model_state, method_state = method.init(jax.random.key(0), (8, 8, 3))
    assert method_state == {}
    views = np.random.default_rng(0).integers(0, 256, (8, 2, 8, 8, 3), np.uint8)
    loss, (new_state, _, metrics) = method.loss(params, model_state, {}, {"views": views}, jax.random.key(1))
    scaled = (views / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    encoder = {"params": params["encoder"], "batch_stats": model_state["batch_stats"]["encoder"]}
    features, _ = method.encoder.apply(encoder, scaled, train=True, mutable=["batch_stats"])
    projector = {"params": params["projector"], "batch_stats": model_state["batch_stats"]["projector"]}
    z, _ = method.projector.apply(projector, features, train=True, mutable=["batch_stats"])
    expected, parts = barlow_twins_loss(z[:, 0], z[:, 1], lambd=0.0051)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert tuple(metrics) == method.metrics and float(metrics["on_diagonal"]) == pytest.approx(
        float(parts["on_diagonal"]), rel=1e-4
    )
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), model_state, new_state)
    assert all(jax.tree.leaves(changed))


def test_every_method_keeps_the_protocol():
    """The names and arguments that `Method` lists, for all that the config knows."""
    wanted = {name: f for name, f in vars(Method).items() if inspect.isfunction(f) and not name.startswith("_")}
    assert set(wanted) == {"init", "loss", "after_update", "describe"}
    for name in config_lib.METHODS:
        config = config_lib.default()
        config.method = name
        method = make_method(config, None)
        assert method.metrics[0] == "loss"
        for part, function in wanted.items():
            assert (
                list(inspect.signature(getattr(method, part)).parameters)
                == list(inspect.signature(function).parameters)[1:]
            )


def test_description():
    """Start and floor of the loss for the official setting: D(1+1/N)+λD(D-1)/N, and rank(C) ≤ N-1."""
    method = make_method(config_lib.default(), None)
    text = method.describe(2048)["loss"]
    start = 8192 * (1 + 1 / 2048) + 0.0051 * 8192 * 8191 / 2048
    assert f"about {start:.1f} " in text
