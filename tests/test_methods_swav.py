"""bt_jax/methods/swav.py: statistics by size, prototypes outside of the gradient, the queue, and exactness on devices."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from recipes import relative, run_of, spec_of, training

import bt_jax
from bt_jax import UserError
from bt_jax import config as config_lib
from bt_jax.data.views.spec import ViewSpec
from bt_jax.engine.state import init_state
from bt_jax.engine.step import make_train_step
from bt_jax.facts import Facts
from bt_jax.losses import sinkhorn, swav_loss
from bt_jax.methods import SwAV
from bt_jax.models import MLPHead, Prototypes, ResNet
from bt_jax.models.inputs import Inputs
from bt_jax.optim import larc
from bt_jax.runtime import mesh as mesh_lib

N, K = 16, 6


def swav(mesh=None, dtype=jnp.float32, **settings):
    """Two crops of 8 pixels and three of 6, a network of one block, six prototypes."""
    parts = {
        "encoder": ResNet(blocks=(1,), bottleneck=False, small_images=True, width=4, dtype=dtype),
        "projector": MLPHead((16, 8), output_bias=True, dtype=dtype),
        "prototypes": Prototypes(K),
        "inputs": Inputs(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), dtype),
        "view": ViewSpec(),
        "small_view": ViewSpec(),
        "small_crops": 3,
        "small_size": 6,
        "mesh": mesh,
    }
    return SwAV(**(parts | settings))


def crops(method, seed=0):
    rng = np.random.default_rng(seed)
    return {group.name: rng.integers(0, 256, (N, *group.shape), np.uint8) for group in method.view_groups}


def started(method):
    return jax.jit(lambda: method.init(jax.random.key(3), spec_of(method, N)))()


def loss_at(method, state, step, seed=0):
    return jax.jit(method.loss)(*state, {"views": crops(method, seed)}, jnp.int32(step), jax.random.key(0))


def embeddings(method, state, seed=0):
    """(unit embeddings (N, V, D), scores (N, V, K)), the networks put together by hand."""
    params, model_state, _ = state
    views, statistics, features = crops(method, seed), model_state["batch_stats"]["encoder"], []
    for group in method.view_groups:
        images = method.inputs.normalize(jnp.asarray(views[group.name])).reshape(-1, group.size, group.size, 3)
        variables = {"params": params["encoder"], "batch_stats": statistics}
        found, new = training(method.encoder)(variables, images)
        statistics = new["batch_stats"]
        features.append(found.reshape(N, group.num_views, -1))
    together = jnp.concatenate(features, axis=1)
    head = {"params": params["projector"], "batch_stats": model_state["batch_stats"]["projector"]}
    z, _ = training(method.projector)(head, together.reshape(-1, together.shape[-1]))
    u = np.asarray(z, np.float64).reshape(N, together.shape[1], -1)
    u /= np.linalg.norm(u, axis=-1, keepdims=True)
    return u, u @ np.asarray(params["prototypes"]["kernel"], np.float64), statistics


def test_loss_is_that_of_the_networks():
    """Crops of a size share batch statistics, and the running ones are updated size by size; the head sees all crops."""
    method = swav()
    state = started(method)
    assert set(state[0]) == {"encoder", "projector", "prototypes"} and state[2] == {}
    np.testing.assert_allclose(np.linalg.norm(state[0]["prototypes"]["kernel"], axis=0), 1, rtol=1e-6)
    assert set(state[0]["projector"]["linear2"]) == {"kernel", "bias"}
    _, scores, statistics = embeddings(method, state)
    codes = np.stack([sinkhorn(scores[:, i].astype(np.float32)) for i in (0, 1)], axis=1)
    expected, _ = swav_loss(scores.astype(np.float32), codes)
    loss, (new, same, metrics) = loss_at(method, state, 0)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4) and same == {}
    assert tuple(sorted(metrics)) == tuple(sorted(method.metrics)) and 1 <= float(metrics["prototypes"]) <= K
    chex.assert_trees_all_close(new["batch_stats"]["encoder"], statistics, rtol=1e-4, atol=1e-6)


def test_without_small_crops_it_predicts_each_large_crop_from_the_other():
    method = swav(small_crops=0)
    assert [group.name for group in method.view_groups] == ["large"]
    state = started(method)
    _, scores, _ = embeddings(method, state)
    logs = scores / 0.1 - np.log(np.exp(scores / 0.1).sum(axis=2, keepdims=True))
    q = [np.asarray(sinkhorn(scores[:, i].astype(np.float32)), np.float64) for i in (0, 1)]
    expected = -np.mean(np.sum(q[0] * logs[:, 1] + q[1] * logs[:, 0], axis=1)) / 2
    assert float(loss_at(method, state, 0)[0]) == pytest.approx(expected, rel=1e-4)


def one_step(method, optimizer, state, seed=0):
    return jax.jit(make_train_step(method, optimizer, 0))(state, {"views": crops(method, seed)})[0]


def new_state(method, optimizer, devices=1):
    return init_state(method, optimizer, 0, spec_of(method, N), mesh_lib.make_mesh(ConfigDict({"data": devices})))


def test_prototypes_are_scaled_after_the_update_and_outside_of_the_gradient():
    """C - rate · ∂L/∂C, and then unit columns; the gradient has a part along each prototype, as it does not pass the norm."""
    method, optimizer = swav(), optax.sgd(0.5)
    state = new_state(method, optimizer)
    new = one_step(method, optimizer, state)

    def loss(kernel):
        params = {**state.params, "prototypes": {"kernel": kernel}}
        batch = {"views": crops(method)}
        return method.loss(params, state.model_state, {}, batch, jnp.int32(0), jax.random.key(0))[0]

    kernel = state.params["prototypes"]["kernel"]
    gradient = np.asarray(jax.jit(jax.grad(loss))(kernel), np.float64)
    assert np.abs(np.sum(gradient * np.asarray(kernel), axis=0)).max() > 1e-3
    moved = np.asarray(kernel, np.float64) - 0.5 * gradient
    np.testing.assert_allclose(
        new.params["prototypes"]["kernel"], moved / np.linalg.norm(moved, axis=0), rtol=1e-4, atol=1e-5
    )


def test_frozen_prototypes():
    """Neither the gradient nor decay nor momentum moves them, and afterwards they start as if they had just been made."""
    optimizer = larc(1.0, weight_decay=0.1, trust_coefficient=0.1)
    held = swav(freeze_steps=3)
    state = new_state(held, optimizer)
    first = np.asarray(state.params["prototypes"]["kernel"])
    for seed in range(3):
        state = one_step(held, optimizer, state, seed)
        np.testing.assert_array_equal(state.params["prototypes"]["kernel"], first)
    assert relative(state.params["projector"]["linear1"]["kernel"], new_state(held, optimizer).params["projector"]["linear1"]["kernel"]) > 1e-3  # fmt: skip
    fresh = state.replace(opt_state=optimizer.init(state.params))
    moved, without_momentum = (one_step(held, optimizer, s, 3).params["prototypes"]["kernel"] for s in (state, fresh))
    np.testing.assert_array_equal(moved, without_momentum)
    assert relative(moved, first) > 1e-3


def test_queue():
    """Fills from its step on with the large crops' embeddings, newest first; is used when full, with its own rows kept out."""
    method = swav(queue=2 * N, queue_start=1)
    params, model_state, method_state = started(method)
    assert method_state["queue"].shape == (2, 2 * N, 8) and not np.any(method_state["queue"])
    entered = []
    for step in range(5):
        state = (params, model_state, method_state)
        u, scores, _ = embeddings(method, state, seed=step)
        rows = [scores[:, i] for i in (0, 1)]
        if step >= 3:  # two batches have entered, at steps 1 and 2
            kernel = np.asarray(params["prototypes"]["kernel"], np.float64)
            assert np.all(np.linalg.norm(method_state["queue"], axis=-1) > 0.99), "no rows of zeros are assigned"
            rows = [np.concatenate([np.asarray(method_state["queue"][i]) @ kernel, rows[i]]) for i in (0, 1)]
        codes = np.stack([np.asarray(sinkhorn(r.astype(np.float32)))[-N:] for r in rows], axis=1)
        expected, _ = swav_loss(scores.astype(np.float32), codes)
        loss, (model_state, method_state, _) = loss_at(method, state, step, seed=step)
        assert float(loss) == pytest.approx(float(expected), rel=1e-4), step
        if step >= 1:
            entered.insert(0, u[:, :2])
        kept = np.concatenate([*entered, np.zeros((2 * N, 2, 8))])[: 2 * N]
        np.testing.assert_allclose(method_state["queue"], kept.swapaxes(0, 1), rtol=1e-3, atol=1e-5)


def test_the_queue_changes_the_loss_only_when_it_is_full():
    with_queue, without = swav(queue=2 * N, queue_start=0), swav()
    params, model_state, state = started(with_queue)
    for step in range(3):
        loss, (_, state, _) = loss_at(with_queue, (params, model_state, state), step, seed=step)
        plain = float(loss_at(without, (params, model_state, {}), step, seed=step)[0])
        assert (float(loss) == pytest.approx(plain, rel=1e-6)) == (step < 2)


def five_steps(mesh):
    method = swav(mesh, queue=N, queue_start=1, freeze_steps=1)
    optimizer = larc(0.3, trust_coefficient=0.02)
    state = init_state(method, optimizer, 0, spec_of(method, N), mesh)
    step, losses = jax.jit(make_train_step(method, optimizer, 0), donate_argnums=0), []
    for seed in range(5):
        state, metrics = step(state, mesh_lib.put_batch(mesh, N, {"views": crops(method, seed)}))
        losses.append(float(metrics["loss"]))
    arrays = jax.device_get((state.params, state.model_state, state.method_state))
    return losses, np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(arrays)])


def test_devices():
    """One, eight, and 2 × 4: the same losses, parameters, statistics and queue to 1e-5, the queue in use."""
    one = five_steps(mesh_lib.make_mesh(ConfigDict({"data": 1})))
    assert len(set(one[0])) == 5
    for mesh in ({"data": 8}, {"data": 2, "model": 4}):
        found = five_steps(mesh_lib.make_mesh(ConfigDict(mesh)))
        np.testing.assert_allclose(found[0], one[0], rtol=1e-5)
        assert relative(found[1], one[1]) < 1e-5


def test_bfloat16():
    """Only rounding differs; embeddings, prototypes, codes and the queue are float32."""
    full, half = swav(queue=N), swav(queue=N, dtype=jnp.bfloat16)
    state = started(full)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, started(half))
    (loss, (_, queue, _)), (other, (_, half_queue, _)) = (loss_at(m, state, 0) for m in (full, half))
    assert float(other) == pytest.approx(float(loss), rel=0.05) and other.dtype == jnp.float32
    chex.assert_trees_all_equal_shapes_and_dtypes(queue, half_queue)


def test_what_is_said():
    method = swav(queue=2 * N, queue_start=4)
    said = method.describe(N)
    assert said["crops"] == "2 of 8 pixels, 3 of 6" and "6 prototypes, held for 0 steps" in said["projector"]
    assert said["queue"].endswith("filled from step 4 and used from step 6") and "about 1.79" in said["loss"]
    well = {"loss": 1.0, "prototypes": 3.0, "spread": 0.8}
    assert method.collapse(well) == ""
    assert "nearest to the same prototype (1.2 of 6 in use)" in method.collapse(well | {"prototypes": 1.2})
    assert "the same for all images (spread 0.010 of 1)" in method.collapse(well | {"spread": 0.01})
    assert dataclasses.replace(method, queue=0).loss_flops(N) == 2 * 8 * K * 3 * N * 5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"swav.prototypes": 500}, "swav.prototypes is 500, more than the 256 embeddings that batch_size and swav.queue"),
        ({"swav.queue": 300, "swav.queue_from_epoch": 1}, "swav.queue is 300, but must be a multiple of batch_size, such as 256 or 512"),
        ({"swav.queue": 512, "swav.queue_from_epoch": 100}, "swav.queue_from_epoch is 100, but must be less than epochs, which is 100"),
        ({"swav.small_size": 64}, "swav.small_size is 64, but must be at most data.image_size, which is 32"),
        ({"swav.iterations": -1}, "swav.iterations is -1, but must be an integer of at least 0"),
    ],
)  # fmt: skip
def test_bad_config(changes, sentence):
    config = config_lib.default(method="swav")
    config.batch_size, config.epochs, config.data.image_size, config.data.source = 256, 100, 32, "photographs"
    config.swav.update(prototypes=128, small_size=16)
    config_lib.check(config)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=sentence):
        config_lib.check(config)


def test_build_counts_epochs():
    """Freezing and the queue are given in epochs: 313 steps of the official 4096 would be another time at 256."""
    settings = config_lib.default(method="swav").swav
    settings.update(queue=3840, queue_from_epoch=15)
    facts = Facts(num_examples=1_281_167, num_classes=0, batch_size=256, epochs=200)
    method = SwAV.build(settings, encoder=swav().encoder, inputs=swav().inputs, facts=facts, mesh=None)
    assert method.freeze_steps == 5004 and method.queue_start == 15 * 5004


def test_a_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    """Stopped after the first epoch, with prototypes frozen until then and a queue half full."""
    states = run_of(
        "swav",
        tmp_path,
        monkeypatch,
        projector=(16, 8),
        prototypes=K,
        small_crops=2,
        small_size=6,
        queue=96,
        queue_from_epoch=0,
    )
    chex.assert_trees_all_equal(*states)
    queue = states[0]["method_state"]["queue"]
    assert queue.shape == (2, 96, 8) and np.all(np.linalg.norm(queue, axis=-1) > 0.99)
    assert set(bt_jax.load_encoder(str(tmp_path / "run")).heads) == {"projector", "prototypes"}
