"""bt_jax/methods/byol.py: the online and the target network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from recipes import one_program, pair_batches, pair_method, relative, spec_of, training

from bt_jax.engine.state import init_state
from bt_jax.engine.step import make_train_step
from bt_jax.losses import byol_loss
from bt_jax.methods.networks import PairNetwork
from bt_jax.runtime import mesh as mesh_lib


@pytest.fixture(scope="module")
def method():
    return pair_method("byol")


@pytest.fixture(scope="module")
def start(method):
    return jax.jit(lambda: method.init(jax.random.key(3), spec_of(method)))()


def test_parts_of_the_state(method, start):
    """The target starts at other values than the online network, has statistics of its own, and no predictor."""
    params, model_state, method_state = start
    assert set(params) == {"encoder", "projector", "predictor"}
    assert set(model_state["batch_stats"]) == {"encoder", "projector", "predictor", "target"}
    assert set(method_state["target"]) == {"encoder", "projector"} == set(model_state["batch_stats"]["target"])
    online = params["encoder"]["conv1"]["kernel"]
    assert relative(method_state["target"]["encoder"]["conv1"]["kernel"], online) > 0.5
    assert set(params["predictor"]) == {"linear1", "bn1", "linear2"}
    assert set(params["projector"]["linear1"]) == {"kernel", "bias"} and set(params["projector"]["linear2"]) == {
        "kernel"
    }


def test_loss_is_that_of_the_networks(method, start):
    """Put together by hand; the target runs in training mode, on the batch's statistics, and keeps its own."""
    params, model_state, method_state = start
    views = method.inputs.normalize(jnp.asarray(pair_batches(1)[0]))
    statistics = model_state["batch_stats"]
    network = PairNetwork(method.encoder, method.projector)
    train = training(network)
    parts = ("encoder", "projector")
    online = {"params": {n: params[n] for n in parts}, "batch_stats": {n: statistics[n] for n in parts}}
    z, _ = train(online, views)
    p, _ = training(method.predictor)({"params": params["predictor"], "batch_stats": statistics["predictor"]}, z)
    target = {"params": method_state["target"], "batch_stats": statistics["target"]}
    t, new_target = train(target, views)
    batch = {"views": {"pair": pair_batches(1)[0]}}
    moved = []

    def traced(params, model_state, method_state, *more):
        loss, (new, after, _) = method.loss(params, model_state, method_state, *more)
        moved.append(after is not method_state)
        return loss, new

    loss, new = jax.jit(traced)(params, model_state, method_state, batch, 0, jax.random.key(0))
    assert float(loss) == pytest.approx(float(byol_loss(p[:, 0], p[:, 1], t[:, 0], t[:, 1])), rel=1e-5)
    assert moved == [False], "the loss does not move the target"
    found, expected = new["batch_stats"]["target"], new_target["batch_stats"]
    assert relative(found["projector"]["bn1"]["mean"], expected["projector"]["bn1"]["mean"]) < 1e-5
    assert relative(found["encoder"]["bn1"]["var"], statistics["target"]["encoder"]["bn1"]["var"]) > 1e-3
    evaluated = one_program(network.apply, "train")(target, views, train=False)
    assert relative(evaluated, t) > 0.1, "running statistics would be another target"


def test_the_target_moves_after_the_update_towards_the_updated_network(method):
    """ξ + (1-τ)(θ_{k+1} - ξ) with the τ of the step just done, counted from 0; statistics are not averaged."""
    mesh = mesh_lib.make_mesh(ConfigDict({"data": 1}))
    optimizer = optax.sgd(0.1)
    state = init_state(method, optimizer, 0, spec_of(method), mesh)
    step = jax.jit(make_train_step(method, optimizer, seed=0))
    state = state.replace(step=jnp.int32(20))
    new, _ = step(state, {"views": {"pair": pair_batches(1)[0]}})
    tau = 1 - (1 - 0.996) * (np.cos(np.pi * 20 / method.total_steps) + 1) / 2
    moved = 0
    for name in ("encoder", "projector"):
        leaves = (
            jax.tree.leaves(tree[name])
            for tree in (state.method_state["target"], new.params, new.method_state["target"])
        )
        for old, online, found in zip(*leaves, strict=True):
            expected = np.asarray(old, np.float64) + (1 - tau) * (
                np.asarray(online, np.float64) - np.asarray(old, np.float64)
            )
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
            moved += bool(np.any(np.asarray(found) != np.asarray(old)))
    assert moved >= 4
    old, found = (s.model_state["batch_stats"]["target"]["encoder"]["bn1"]["mean"] for s in (state, new))
    online = new.model_state["batch_stats"]["encoder"]["bn1"]["mean"]
    assert relative(found, np.asarray(old) + (1 - tau) * (np.asarray(online) - np.asarray(old))) > 1e-2


def test_momentum_at_the_start_the_middle_and_the_end(method):
    """τ by the step and not by the epoch: 0.996, 0.998 and 1."""
    params, method_state = (
        {"encoder": jnp.ones(2), "projector": jnp.ones(2)},
        {"target": {"encoder": jnp.zeros(2), "projector": jnp.zeros(2)}},
    )
    total = method.total_steps
    assert total == 64
    for done, tau in ((1, 0.996), (total // 2 + 1, 0.998), (total + 1, 1.0)):
        _, found = method.after_update(params, params, method_state, jnp.int32(done))
        np.testing.assert_allclose(1 - found["target"]["encoder"], tau, atol=1e-7)


def test_with_a_momentum_of_0_the_target_is_the_online_network():
    method = pair_method("byol", target_momentum=0.0, target_momentum_at_end=0.0)
    params = {"encoder": jnp.ones(2), "projector": jnp.full(2, 3.0)}
    target = {"target": {"encoder": jnp.zeros(2), "projector": jnp.zeros(2)}}
    for done in (1, method.total_steps // 2, method.total_steps):
        _, found = method.after_update(params, params, target, jnp.int32(done))
        jax.tree.map(np.testing.assert_array_equal, found["target"], params)


def test_no_gradient_reaches_the_target_and_all_of_it_the_online_network(method, start):
    params, model_state, method_state = start

    def loss(params, target):
        batch = {"views": {"pair": pair_batches(1)[0]}}
        return method.loss(params, model_state, {"target": target}, batch, jnp.int32(0), jax.random.key(0))[0]

    online, target = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, method_state["target"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(target))
    assert all(np.any(leaf) for leaf in jax.tree.leaves((online["predictor"]["linear2"], online["encoder"]["conv1"])))


def test_without_a_predictor():
    """An ablation: the embedding itself is compared."""
    method = pair_method("byol", predictor=())
    params, model_state, method_state = method.init(jax.random.key(0), spec_of(method))
    assert set(params) == {"encoder", "projector"} and set(method.heads()) == {"projector"}
    batch = {"views": {"pair": pair_batches(1)[0]}}
    loss, (new, _, _) = method.loss(params, model_state, method_state, batch, jnp.int32(0), jax.random.key(0))
    assert np.isfinite(loss) and set(new["batch_stats"]) == set(model_state["batch_stats"])
    assert "predictor none" in method.describe(16)["projector"]
