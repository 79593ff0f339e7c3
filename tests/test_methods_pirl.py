"""bt_jax/methods/pirl.py: the heads, the bank and its rows, the negatives, and exactness on devices."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from recipes import relative, run_of, spec_of, training

from bt_jax import UserError
from bt_jax import config as config_lib
from bt_jax.data.feed import make_feed, ready_batches
from bt_jax.data.order import permutation
from bt_jax.data.pipeline import train_batches
from bt_jax.data.sources.base import ArraySource
from bt_jax.data.sources.folder import FolderSource
from bt_jax.data.views.spec import Jigsaw, ViewSpec
from bt_jax.engine.state import init_state
from bt_jax.engine.step import jit_step, make_train_step
from bt_jax.facts import Facts
from bt_jax.losses import memory_cross_entropy
from bt_jax.methods import PIRL, check_source
from bt_jax.models import MLPHead, ResNet
from bt_jax.models.inputs import Inputs
from bt_jax.optim import make_optimizer, sgd
from bt_jax.runtime import mesh as mesh_lib

N, IMAGES = 16, 50


def pirl(mesh=None, dtype=jnp.float32, **settings):
    """Images of 8 pixels and patches of 4, a network of one block, 50 images."""

    def head(*sizes):
        return MLPHead(sizes, batch_norm=False, output_bias=True, dtype=dtype)

    parts = {
        "encoder": ResNet(blocks=(1,), bottleneck=False, small_images=True, width=4, dtype=dtype),
        "projector": head(12, 8),
        "patch_projector": head(12, 8),
        "patch_joint": head(8),
        "inputs": Inputs(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), dtype),
        "num_images": IMAGES,
        "view": ViewSpec(),
        "jigsaw": Jigsaw(ViewSpec(crop_scale=(0.6, 1.0)), 5),
        "patch_size": 4,
        "form": "cross_entropy",
        "temperature": 0.1,
        "negatives": 0,
        "mesh": mesh,
    }
    return PIRL(**(parts | settings))


def drawn(method, seed=0):
    """A batch; its images are distinct."""
    rng = np.random.default_rng(seed)
    views = {group.name: rng.integers(0, 256, (N, *group.shape), np.uint8) for group in method.view_groups}
    return {"views": views, "example": rng.permutation(IMAGES)[:N].astype(np.int32)}


def started(method):
    return jax.jit(lambda: method.init(jax.random.key(3), spec_of(method, N)))()


def loss_at(method, state, batch, key=0):
    return jax.jit(method.loss)(*state, batch, jnp.int32(0), jax.random.key(key))


def embeddings(method, state, batch):
    """(of the patches, of the images) (N, D), unit, put together by hand; and the encoder's statistics after both."""
    params, statistics = state[0], state[1]["batch_stats"]["encoder"]
    features = {}
    for name, size in (("patches", 4), ("image", 8)):
        images = method.inputs.normalize(jnp.asarray(batch["views"][name])).reshape(-1, size, size, 3)
        variables = {"params": params["encoder"], "batch_stats": statistics}
        features[name], new = training(method.encoder)(variables, images)
        statistics = new["batch_stats"]

    def layers(name, x):
        for number in range(1, len(params[name]) + 1):
            layer = params[name][f"linear{number}"]
            x = np.asarray(x, np.float64) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
            x = np.maximum(x, 0) if number < len(params[name]) else x
        return x

    of_patches = layers("patch_projector", features["patches"])
    if len(params["patch_projector"]) > 1:  # as in vissl's resnet50_mlphead.yaml
        of_patches = np.maximum(of_patches, 0)
    joined = layers("patch_joint", of_patches.reshape(N, -1))
    both = [joined, layers("projector", features["image"])]
    return *(z / np.linalg.norm(z, axis=1, keepdims=True) for z in both), statistics


@pytest.mark.parametrize("sizes", [(12, 8), (8,)])
def test_loss_is_that_of_the_networks(sizes):
    """Patches first, with statistics of their own; a last ReLU in their head if it has several layers; all other images as
    negatives; λ between the two."""
    heads = {name: MLPHead(sizes, batch_norm=False, output_bias=True) for name in ("projector", "patch_projector")}
    method = pirl(patch_weight=0.3, **heads)
    state, batch = started(method), drawn(method)
    assert set(state[0]) == {"encoder", "projector", "patch_projector", "patch_joint"} and set(state[2]) == {"bank"}
    assert state[2]["bank"].shape == (1024, 8)
    np.testing.assert_allclose(np.linalg.norm(state[2]["bank"], axis=1), 1, rtol=1e-6)
    of_patches, of_image, statistics = embeddings(method, state, batch)
    bank, terms = np.asarray(state[2]["bank"], np.float64)[:IMAGES], []
    for u in (of_patches, of_image):
        cosines = u @ bank.T
        logs = cosines / 0.1 - np.log(np.exp(cosines / 0.1).sum(axis=1, keepdims=True))
        terms.append(-np.mean(logs[np.arange(N), batch["example"]]))
    loss, (new, _, metrics) = loss_at(method, state, batch)
    assert float(loss) == pytest.approx(0.3 * terms[0] + 0.7 * terms[1], rel=1e-4)
    assert float(metrics["patches"]) == pytest.approx(terms[0], rel=1e-4) and set(metrics) == set(method.metrics)
    chex.assert_trees_all_close(new["batch_stats"]["encoder"], statistics, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{"form": "nce", "negatives": 20}, {"negatives": 20}, {}])
def test_rows_of_the_batch_move_half_way_and_no_others(settings):
    """By the image's embedding, after scoring; no gradient goes to the bank."""
    method = pirl(**settings)
    state, batch = started(method), drawn(method)
    _, of_image, _ = embeddings(method, state, batch)
    _, (_, new, _) = loss_at(method, state, batch)
    expected = np.asarray(state[2]["bank"], np.float64)
    moved = 0.5 * expected[batch["example"]] + 0.5 * of_image
    expected[batch["example"]] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    np.testing.assert_allclose(new["bank"], expected, rtol=1e-3, atol=1e-5)
    others = np.setdiff1d(np.arange(1024), batch["example"])
    np.testing.assert_array_equal(np.asarray(new["bank"])[others], np.asarray(state[2]["bank"])[others])

    def loss(bank):
        return method.loss(*state[:2], state[2] | {"bank": bank}, batch, jnp.int32(0), jax.random.key(0))[0]

    assert not np.any(jax.jit(jax.grad(loss))(state[2]["bank"]))


def test_an_images_own_row_is_never_its_negative():
    """Of 20 drawn rows of 50 images many are rows of the batch; the loss leaves out each image's own."""
    method = pirl(negatives=20)
    state, batch = started(method), drawn(method)
    numbers = np.asarray(jax.random.randint(jax.random.key(0), (20,), 0, IMAGES))
    assert np.isin(batch["example"], numbers).any() and numbers.max() < IMAGES
    counted = numbers[None, :] != batch["example"][:, None]
    of_patches, of_image, _ = embeddings(method, state, batch)
    bank = np.asarray(state[2]["bank"], np.float64)
    terms = [
        [float(memory_cross_entropy(np.sum(u * bank[batch["example"]], axis=1), u @ bank[numbers].T, mask)) for u in (of_patches, of_image)]
        for mask in (counted, np.ones_like(counted))
    ]  # fmt: skip
    loss = float(loss_at(method, state, batch)[0])
    assert loss == pytest.approx(np.mean(terms[0]), rel=1e-4) != pytest.approx(np.mean(terms[1]), rel=1e-3)
    assert float(loss_at(method, state, batch, key=1)[0]) != pytest.approx(loss, rel=1e-5), "others in the next step"


def test_normalizer_is_that_of_the_first_batch():
    method = pirl(form="nce", negatives=20, temperature=0.5)
    params, model_state, first = started(method)
    assert first["normalizer"] == 0
    _, (model_state, second, _) = loss_at(method, (params, model_state, first), drawn(method))
    _, (_, third, _) = loss_at(method, (params, model_state, second), drawn(method, 1), key=1)
    assert 10 < float(second["normalizer"]) < 500 and third["normalizer"] == second["normalizer"]


def test_an_image_that_occurs_twice():
    """As a stand-in: the first of its embeddings moves the row, on any device."""
    method = pirl()
    state, batch = started(method), drawn(method)
    _, of_image, _ = embeddings(method, state, batch)
    batch["example"][5] = batch["example"][2]
    _, (_, new, _) = loss_at(method, state, batch)
    row = 0.5 * np.asarray(state[2]["bank"])[batch["example"][2]] + 0.5 * of_image[2]
    np.testing.assert_allclose(new["bank"][batch["example"][2]], row / np.linalg.norm(row), rtol=1e-3, atol=1e-5)


def test_an_image_that_does_not_decode(tmp_path):
    """Its row of the bank stays, and the row of the image that stands in for it moves, by that image's embedding."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{number:02}.png")
    config = config_lib.default(method="pirl").data
    config.image_size, config.max_bad_fraction = 8, 0.1
    bad = int(permutation(0, 0, IMAGES)[3])  # the fourth image of the first batch
    (tmp_path / f"{bad:02}.png").write_bytes(b"no image")
    source = FolderSource(str(tmp_path), ".")
    crops = ViewSpec(jitter=0.0, grayscale=0.0, blur=0.0)  # quick to build
    method = pirl(form="nce", negatives=20, view=crops, jigsaw=Jigsaw(crops, 5))
    check_source(method, source)
    (batch,) = train_batches(source, config, method.view_groups, seed=0, batch_size=N, rows=np.arange(N), num_steps=1)
    instead = (bad + 1) % IMAGES
    assert batch["example"][3] == instead and bad not in batch["example"] and set(source.bad) == {bad}
    state = started(method)
    _, of_image, _ = embeddings(method, state, batch)
    _, (_, new, _) = loss_at(method, state, {name: batch[name] for name in ("views", "example")})
    old, bank = np.asarray(state[2]["bank"], np.float64), np.asarray(new["bank"])
    np.testing.assert_array_equal(bank[bad], old[bad].astype(np.float32))
    first = list(batch["example"]).index(instead)
    row = 0.5 * old[instead] + 0.5 * of_image[first]
    np.testing.assert_allclose(bank[instead], row / np.linalg.norm(row), rtol=1e-3, atol=1e-5)


def three_steps(mesh, **settings):
    method, optimizer = pirl(mesh, **settings), sgd(dict.fromkeys(started(pirl())[0], 0.1))
    state = init_state(method, optimizer, 0, spec_of(method, N), mesh)
    step, losses = jit_step(make_train_step(method, optimizer, 0), state, mesh), []
    for seed in range(3):
        state, metrics = step(state, mesh_lib.put_batch(mesh, N, drawn(method, seed)))
        losses.append(float(metrics["loss"]))
    arrays = jax.device_get((state.params, state.model_state, state.method_state))
    return state, losses, np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(arrays)])


@pytest.mark.parametrize("settings", [{"form": "nce", "negatives": 20}, {}])
def test_devices(settings):
    """One, eight, and 2 × 4 with a split bank: the same losses, parameters and bank to 1e-5."""
    _, losses, one = three_steps(mesh_lib.make_mesh(ConfigDict({"data": 1})), **settings)
    for mesh in ({"data": 8}, {"data": 2, "model": 4}):
        state, found, arrays = three_steps(mesh_lib.make_mesh(ConfigDict(mesh)), **settings)
        np.testing.assert_allclose(found, losses, rtol=1e-5)
        assert relative(arrays, one) < 1e-5
        shards = state.method_state["bank"].addressable_shards
        assert {shard.data.shape for shard in shards} == {(128, 8)}


@pytest.mark.parametrize("settings", [{"form": "nce", "negatives": 20}, {}])
def test_no_device_receives_the_whole_bank(settings):
    mesh = mesh_lib.make_mesh(ConfigDict({"data": 8}))
    method, optimizer = pirl(mesh, **settings), sgd(dict.fromkeys(started(pirl())[0], 0.1))
    state = init_state(method, optimizer, 0, spec_of(method, N), mesh)
    batch = mesh_lib.put_batch(mesh, N, drawn(method))
    text = jit_step(make_train_step(method, optimizer, 0), state, mesh).lower(state, batch).compile().as_text()
    assert "f32[128,8]" in text and not re.search(r"f32\[1024,8\]", text)
    assert "all-to-all(" not in text and "f32[2,102" not in text, "nor the cosines with all of it"


def test_bfloat16():
    full, half = pirl(form="nce", negatives=20), pirl(form="nce", negatives=20, dtype=jnp.bfloat16)
    state, batch = started(full), drawn(full)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, started(half))
    (loss, (_, one, _)), (other, (_, two, _)) = (loss_at(m, state, batch) for m in (full, half))
    assert float(other) == pytest.approx(float(loss), rel=0.1) and other.dtype == jnp.float32
    chex.assert_trees_all_equal_shapes_and_dtypes(one, two)


def test_numbers_of_the_images_are_those_of_the_training_set():
    """The same image has the same number in both epochs, from the host and from the device."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    images[:] = np.arange(40)[:, None, None, None] * 6
    source = ArraySource("numbers", images, np.zeros(40, np.int32))
    plain = ViewSpec(crop_scale=(1.0, 1.0), jitter=0, grayscale=0, blur=0, flip=0)
    method = pirl(view=plain, jigsaw=Jigsaw(plain, 5))
    mesh = mesh_lib.make_mesh(ConfigDict({"data": 1}))
    for views in ("host", "device"):
        data = config_lib.default(method="pirl").data
        data.update(source="arrays", image_size=8, views=views, threads=1)
        facts = Facts.of(source, batch_size=16, epochs=2)
        feed = make_feed(source, data, method.view_groups, mesh=mesh, seed=0, facts=facts)
        for batch in ready_batches(feed, 0, facts.total_steps):
            np.testing.assert_array_equal(batch["views"]["image"][:, 0, 4, 4, 0], 6 * np.asarray(batch["example"]))


def test_what_is_said():
    method = pirl(form="nce", negatives=20)
    said = method.describe(N)
    assert said["views"] == "the image, and 9 patches of 4 pixels" and "50 images × 8" in said["bank"]
    assert f"about {np.log(21) + 20 * np.log(1.05):.2f} at the start" in said["loss"]
    assert "49 negatives, all other images" in pirl().describe(N)["bank"]
    assert "about 3.91 at the start" in pirl().describe(N)["loss"]
    assert "spread 0.010" in method.collapse({"spread": 0.01}) and not method.collapse({"spread": 0.5})
    eight = pirl(mesh_lib.make_mesh(ConfigDict({"data": 8})))
    assert "0.0312 MiB, 0.00391 MiB on each device" in eight.describe(N)["bank"] and eight.loss_flops(N) > 0


def test_bad_input():
    config = config_lib.default(method="pirl")
    config.data.source = "photographs"
    config_lib.check(config)
    config.pirl.patch_size = 90
    with pytest.raises(UserError, match="pirl.patch_size is 90, but must be at most pirl.cell, which is 85"):
        config_lib.check(config)
    facts = Facts(32000, 0, batch_size=16, epochs=1)
    with pytest.raises(UserError, match="negatives is 32000, but the training set has only 31999 other images"):
        PIRL.build(config_lib.default(method="pirl").pirl, encoder=pirl().encoder, inputs=pirl().inputs, facts=facts, mesh=None)  # fmt: skip
    stream = ConfigDict({"name": "a stream", "num_classes": 2, "stable_examples": False})
    with pytest.raises(UserError, match="pirl needs images with stable numbers, but a stream is read as a stream"):
        check_source(pirl(), stream)


def test_official_optimizer():
    """SGD without decay of batch norms and biases, 0.03 × N/256, and a cosine by the epoch to a thousandth."""
    config = config_lib.default(method="pirl")
    config.epochs = 800
    optimizer = make_optimizer(config.optimizer, Facts(1_281_167, 0, batch_size=1024, epochs=800))
    rate = optimizer.schedules["weights"]
    assert float(rate(0)) == float(rate(1250)) == pytest.approx(0.12)
    assert float(rate(1251 * 400)) == pytest.approx(0.00012 + 0.5 * (0.12 - 0.00012), rel=1e-5)
    params = {
        "linear": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "bn": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    }
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    moved = jax.tree.map(lambda u: bool(np.any(u)), updates)
    assert moved == {"linear": {"kernel": True, "bias": False}, "bn": {"scale": False, "bias": False}}


def test_a_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    """Stopped after the first epoch, bank and normalizer included."""
    states = run_of("pirl", tmp_path, monkeypatch, projector=(8,), negatives=20, patch_size=4, cell=5)
    chex.assert_trees_all_equal(*states)
    assert states[0]["method_state"]["bank"].shape == (1024, 8) and states[0]["method_state"]["normalizer"] > 0
