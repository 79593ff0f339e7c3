"""bt_jax/methods/networks.py, and what all methods of two views have in common, of bt_jax/methods/{simclr,byol,vicreg}.py."""

import json
import shutil
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict
from recipes import PAIR_METHODS, pair_batches, pair_method, quick_views, relative, spec_of, three_steps_of, training

import bt_jax
from bt_jax import UserError
from bt_jax import config as config_lib
from bt_jax.methods.networks import PairNetwork, collapse_in_words
from bt_jax.models import ResNet, resnet
from bt_jax.models.heads import MLPHead
from bt_jax.runtime import mesh as mesh_lib
from bt_jax.tasks.export import export
from bt_jax.tasks.pretrain import pretrain


def test_joint_and_separate_statistics():
    """Joint statistics are those of all views as one batch; separate ones those of each view by itself."""
    encoder, projector = ResNet(blocks=(1,), bottleneck=False, small_images=True, width=4), MLPHead((8, 4))
    views = jnp.asarray(np.random.default_rng(0).standard_normal((6, 2, 8, 8, 3)), jnp.float32)
    views = views.at[:, 1].multiply(3).at[:, 1].add(2)
    apart = PairNetwork(encoder, projector)
    variables = jax.jit(lambda x: apart.init(jax.random.key(0), x, train=False))(views)
    joint, _ = training(PairNetwork(encoder, projector, joint=True))(variables, views)
    apart = training(apart)
    whole, _ = apart(variables, views.reshape(12, 1, 8, 8, 3))
    np.testing.assert_allclose(joint.reshape(12, 4), whole[:, 0], rtol=1e-5, atol=1e-6)
    separate, _ = apart(variables, views)
    for v in (0, 1):
        alone, _ = apart(variables, views[:, v : v + 1])
        np.testing.assert_allclose(separate[:, v], alone[:, 0], rtol=1e-4, atol=1e-5)
    assert relative(joint, separate) > 0.1


def test_collapse_in_words():
    assert collapse_in_words(0.3, "do this.") == ""
    assert collapse_in_words(0.012, "do this.").endswith("(spread 0.012 of 1), a collapse; do this.")


@pytest.mark.parametrize("name", PAIR_METHODS)
def test_eight_devices_equal_one(name):
    """Losses, parameters, statistics and the method's own state after three steps, to 1e-5."""
    one, eight = (three_steps_of(name, mesh_lib.make_mesh(ConfigDict({"data": n}))) for n in (1, 8))
    np.testing.assert_allclose(eight[0], one[0], rtol=1e-5)
    assert relative(eight[1], one[1]) < 1e-5
    assert len(set(one[0])) == 3


@pytest.mark.parametrize("name", PAIR_METHODS)
def test_swapped_views_and_bfloat16(name):
    """Symmetric in the views; the networks' dtype changes nothing but rounding, and the state's dtypes stay float32."""
    views = pair_batches(1)[0]
    method = pair_method(name)
    params, model_state, method_state = jax.jit(lambda: method.init(jax.random.key(1), spec_of(method)))()
    found = []
    for m, pair in ((method, views), (method, views[:, ::-1]), (pair_method(name, dtype="bfloat16"), views)):
        loss = jax.jit(lambda b, m=m: m.loss(params, model_state, method_state, b, jnp.int32(0), jax.random.key(0)))
        found.append(loss({"views": {"pair": pair}}))
    (loss, (state, _, metrics)), (swapped, _), (half, (half_state, _, _)) = found
    assert set(metrics) == set(method.metrics) and float(metrics["loss"]) == float(loss)
    assert float(swapped) == pytest.approx(float(loss), rel=1e-4)
    assert float(half) == pytest.approx(float(loss), rel=0.1) and half.dtype == jnp.float32
    chex.assert_trees_all_equal_shapes_and_dtypes(state, model_state, half_state)
    assert method.loss_flops(16) >= 0 and {"projector", "loss"} <= method.describe(16).keys()
    assert method.collapse(dict.fromkeys(method.metrics, 0.01)) and not method.collapse(
        dict.fromkeys(method.metrics, 0.9)
    )


def test_a_whole_run_resumes_to_the_same_bits(tmp_path, monkeypatch, capsys):
    """By the harness that all methods share: BYOL, which has every kind of state, stopped after the first epoch and resumed."""
    name = "byol"
    monkeypatch.setitem(resnet.BLOCKS, "resnet18", (1,))
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = (rng.integers(0, 120, (64, 8, 8, 3)) + 120 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images[:16], y_test=labels[:16])
    config = config_lib.default(method=name)
    config.batch_size, config.epochs, config.optimizer.warmup_epochs = 16, 2, 1
    config.data.update(source="arrays", data_dir=str(tmp_path / "set.npz"), image_size=8, eval_resize=0, threads=2)
    config.model.update(arch="resnet18", width=4, small_images=True)
    config[name].projector = (16, 8)
    quick_views(config)
    config.mesh.data = 1
    config.monitor.update(every_epochs=2, batch_size=16, k=5, pairs=16)
    config.log.update(every_steps=1, tensorboard=False)
    config.report.write = False
    pretrain(config, str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert f"pretrain with {name}" in said and "projector 16-8" in said and " spread " in said
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"alignment", "uniformity"} <= set().union(*records)

    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "8")
    pretrain(config, str(tmp_path / "again"))
    whole, again = (bt_jax.load_encoder(str(tmp_path / folder)) for folder in ("run", "again"))
    assert whole.step == again.step == 8 and whole.sha256 == again.sha256
    chex.assert_trees_all_equal(whole.heads, again.heads)
    assert set(whole.heads) == set(pair_method(name).heads())
    states = [saved_state(tmp_path / folder) for folder in ("run", "again")]
    chex.assert_trees_all_equal(*states)

    online, target = (bt_jax.load_encoder(str(tmp_path / "run"), target=wanted) for wanted in (False, True))
    chex.assert_trees_all_equal(online.variables["params"], states[0]["params"]["encoder"])
    chex.assert_trees_all_equal(target.variables["params"], states[0]["method_state"]["target"]["encoder"])
    statistics = states[0]["model_state"]["batch_stats"]
    chex.assert_trees_all_equal(target.variables["batch_stats"], statistics["target"]["encoder"])
    assert set(target.heads) == {"projector"} and "target network" in target.source and online.sha256 != target.sha256
    wanted = config_lib.default("export")
    wanted.init_from, wanted.export.target, wanted.export.program = str(tmp_path / "run"), True, False
    assert export(wanted, str(tmp_path / "exported"))["sha256"] == target.sha256
    with pytest.raises(
        UserError, match="is not a run or one of its checkpoints, and only those can have a target network"
    ):
        bt_jax.load_encoder(str(tmp_path / "exported"), target=True)


def saved_state(workdir):
    """All arrays of a run's last checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Orbax, that the topology could be another
        state = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / "8" / "state")
    assert set(state["method_state"]["target"]) == {"encoder", "projector"}
    return state


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("simclr", {"simclr.temperature": 0.0}, "simclr.temperature is 0.0, but must be a positive number"),
        ("byol", {"byol.target_momentum": 1.5}, "byol.target_momentum is 1.5, but must be between 0 and 1"),
        ("byol", {"byol.target_momentum": -0.1}, "byol.target_momentum is -0.1, but must be between 0 and 1"),
        ("byol", {"byol.predictor": (0,)}, "byol.predictor is .*, but must be positive integers, or empty"),
        ("simclr", {"batch_size": 1}, "batch_size is 1, but must be an integer of at least 2"),
        (
            "vicreg",
            {"vicreg.invariance": 0.0, "vicreg.variance": 0.0, "vicreg.covariance": 0.0},
            "are all 0, but one must be",
        ),
        ("simclr", {"optimizer.scaling": "root"}, "optimizer.scaling is 'root', but must be 'linear' or 'sqrt'"),
    ],
)
def test_bad_settings(name, changes, words):
    config = config_lib.default(method=name)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        config_lib.check(config)
