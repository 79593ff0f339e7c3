"""bt_jax/methods/supervised.py: a classifier on an encoder that is trained, or frozen."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from recipes import relative, spec_of, training

import bt_jax
from bt_jax import UserError
from bt_jax.config import default
from bt_jax.data.views.spec import ViewSpec
from bt_jax.facts import Facts
from bt_jax.methods.supervised import Supervised
from bt_jax.models import LinearClassifier, ResNet, resnet
from bt_jax.models.inputs import Inputs
from bt_jax.runtime import mesh as mesh_lib
from bt_jax.tasks.pretrain import pretrain

FACTS = Facts(num_examples=64, num_classes=5, batch_size=16, epochs=2)
INPUTS = Inputs(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def method_of(**changes):
    encoder = ResNet(blocks=(1, 1), bottleneck=False, small_images=True, width=4)
    settings = ConfigDict({"label_smoothing": 0.0, "view": dataclasses.asdict(ViewSpec(blur=0.0))})
    method = Supervised.build(settings, encoder=encoder, inputs=INPUTS, facts=FACTS, mesh=None)
    return dataclasses.replace(method, **changes)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (16, 1, 16, 16, 3), np.uint8)
    labels = rng.integers(0, 5, 16).astype(np.int32)
    return {"views": {"image": views}, "label": labels, "example": np.arange(16, dtype=np.int32)}


def test_a_batch_norm_before_the_classifier(batch):
    """Of frozen features: the batch's statistics in training, from which the running ones follow; the encoder's stay."""
    method = method_of(classifier=LinearClassifier(5, batch_norm=True), freeze_encoder=True)
    params, model_state, _ = jax.jit(lambda: method.init(jax.random.key(3), spec_of(method)))()
    params["classifier"]["bn"]["scale"] = jnp.linspace(0.5, 2, 8)
    loss, (new, _, _) = jax.jit(method.loss)(params, model_state, {}, batch, 0, jax.random.key(0))
    encoder = {"params": params["encoder"], "batch_stats": model_state["batch_stats"]["encoder"]}
    images = INPUTS.normalize(jnp.asarray(batch["views"]["image"][:, 0]))
    features = np.asarray(method.encoder.apply(encoder, images, train=False), np.float64)
    mean, var = features.mean(axis=0), features.var(axis=0)
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["classifier"])
    normalised = (features - mean) / np.sqrt(var + 1e-5) * head["bn"]["scale"] + head["bn"]["bias"]
    logits = normalised @ head["linear"]["kernel"] + head["linear"]["bias"]
    terms = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(16), batch["label"]]
    assert float(loss) == pytest.approx(terms.mean(), rel=1e-5)
    after = new["batch_stats"]
    np.testing.assert_allclose(after["classifier"]["bn"]["mean"], 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["classifier"]["bn"]["var"], 0.9 + 0.1 * var * 16 / 15, rtol=1e-4)
    chex.assert_trees_all_equal(after["encoder"], model_state["batch_stats"]["encoder"])


@pytest.fixture(scope="module")
def start():
    method = method_of()
    return jax.jit(lambda: method.init(jax.random.key(3), spec_of(method)))()


def gradient_of(method):
    return jax.jit(jax.grad(lambda p, s, b: method.loss(p, s, {}, b, 0, None), has_aux=True))


def test_the_loss_is_the_networks_cross_entropy(start, batch):
    """Of one view; the statistics follow the batch."""
    method, (params, model_state, method_state) = method_of(), start
    assert method_state == {} and method.view_groups[0].num_views == 1
    loss, (new, _, metrics) = jax.jit(method.loss)(params, model_state, {}, batch, 0, jax.random.key(0))
    images = INPUTS.normalize(jnp.asarray(batch["views"]["image"][:, 0]))
    encoder = {"params": params["encoder"], "batch_stats": model_state["batch_stats"]["encoder"]}
    features, statistics = training(method.encoder)(encoder, images)
    logits = LinearClassifier(5).apply({"params": params["classifier"]}, features)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
    assert float(loss) == float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["accuracy"]) == float(np.mean(np.argmax(logits, 1) == batch["label"]))
    chex.assert_trees_all_close(new["batch_stats"]["encoder"], statistics["batch_stats"], rtol=1e-5, atol=1e-6)
    smoothed, _ = method_of(label_smoothing=0.2).loss(params, model_state, {}, batch, 0, None)
    assert float(smoothed) != pytest.approx(float(loss), rel=1e-5)


def test_a_frozen_encoder_has_no_gradient_and_keeps_its_statistics(start, batch):
    """Its features use running statistics, so that the classifier is trained on the features that it is evaluated on."""
    params, model_state, _ = start
    statistics = jax.tree.map(lambda s: s + 0.1, model_state)
    gradient, (new, _, _) = gradient_of(method_of(freeze_encoder=True))(params, statistics, batch)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["encoder"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["classifier"]))
    chex.assert_trees_all_equal(new, statistics)
    learning, _ = gradient_of(method_of())(params, statistics, batch)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(learning["encoder"]["conv1"]))

    encoder = {"params": params["encoder"], "batch_stats": statistics["batch_stats"]["encoder"]}
    features = method_of().encoder.apply(encoder, INPUTS.normalize(batch["views"]["image"][:, 0]), train=False)

    def probe(classifier):
        logits = LinearClassifier(5).apply({"params": classifier}, features)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    chex.assert_trees_all_close(gradient["classifier"], jax.grad(probe)(params["classifier"]), rtol=1e-4, atol=1e-6)


def test_initial_values(start):
    """As evaluations have always had them: the key is split, first for the classifier and then for the encoder."""
    method, (params, model_state, _) = method_of(), start
    classifier_rng, encoder_rng = jax.random.split(jax.random.key(3))
    encoder = method.encoder.init(encoder_rng, jnp.zeros((2, 16, 16, 3)), train=False)
    classifier = LinearClassifier(5).init(classifier_rng, jnp.zeros((1, 8)))
    chex.assert_trees_all_close(params, {"encoder": encoder["params"], "classifier": classifier["params"]}, rtol=1e-6)
    chex.assert_trees_all_equal(model_state["batch_stats"], {"encoder": encoder["batch_stats"]})
    assert method.heads()["classifier"] == LinearClassifier(5)


def test_gradients_on_eight_devices_are_those_of_one(start, batch):
    params, model_state, _ = start
    found = []
    for devices in (1, 8):
        mesh = mesh_lib.make_mesh(ConfigDict({"data": devices}))
        placed = jax.device_put((params, model_state), mesh_lib.everywhere(mesh))
        gradient, _ = gradient_of(method_of())(*placed, mesh_lib.put_batch(mesh, 16, batch))
        found.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)]))
    assert relative(found[1], found[0]) < 1e-5


def test_description():
    assert method_of().describe(16)["loss"] == "about 1.61 at the start, ln 5"
    assert "never below 0.39" in method_of(label_smoothing=0.1).describe(16)["loss"]


def test_a_set_without_labels():
    with pytest.raises(UserError, match="supervised training needs labels of at least 2 classes, .* has 0"):
        Supervised.build(
            ConfigDict(), encoder=None, inputs=INPUTS, facts=dataclasses.replace(FACTS, num_classes=0), mesh=None
        )


def test_a_whole_run(tmp_path, monkeypatch, capsys):
    """By the harness that all methods share: it learns colours, resumes to the same bits, and its classifier is saved."""
    monkeypatch.setitem(resnet.BLOCKS, "resnet18", (1, 1))
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = (rng.integers(0, 120, (64, 16, 16, 3)) + 120 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images[:16], y_test=labels[:16])
    config = default(method="supervised")
    config.batch_size, config.epochs, config.dtype = 16, 4, "float32"
    config.data.update(source="arrays", data_dir=str(tmp_path / "set.npz"), image_size=16, eval_resize=0, threads=2)
    config.model.update(arch="resnet18", width=4, small_images=True)
    config.mesh.data = 1
    config.monitor.update(every_epochs=4, batch_size=16, k=5, pairs=16)
    config.log.tensorboard = False
    config.report.write = False
    pretrain(config, str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "one view of 16×16" in said and "2, with a linear classifier on 8 features" in said and " acc " in said
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["accuracy"] for r in records if "accuracy" in r][-1] == 1.0
    assert not any("alignment" in r for r in records), "no two views show the same image"

    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "16")
    pretrain(config, str(tmp_path / "again"))
    whole, again = (bt_jax.load_encoder(str(tmp_path / name)) for name in ("run", "again"))
    assert whole.step == again.step == 16 and whole.sha256 == again.sha256
    chex.assert_trees_all_equal(whole.heads, again.heads)
    logits = LinearClassifier(2).apply(whole.classifier_variables, whole.features(images))
    assert np.mean(np.argmax(logits, axis=1) == labels) > 0.9
