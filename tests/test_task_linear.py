"""bt_jax/tasks/linear.py: the task from its command to its file."""

import argparse
import collections
import json
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from recipes import evaluation_of, no_room_for
from test_torch_files import Global, save

import bt_jax
from bt_jax import config as config_lib
from bt_jax.engine.checkpoint import Checkpoints
from bt_jax.errors import UserError
from bt_jax.evaluation import results
from bt_jax.export import to_torch
from bt_jax.export.encoder import read_weights
from bt_jax.export.weights import sha256_of
from bt_jax.models import make_encoder, resnet
from bt_jax.tasks.linear import describe_sgd, linear


@pytest.fixture
def config(judged):
    return evaluation_of(judged[1], "linear")


def test_sgd(config, tmp_path, capsys):
    """Final and best epoch apart; the config, the checkpoint's step and hash, and the seed are in the file."""
    config.sgd.learning_rate_head = 30.0
    result = linear(config, str(tmp_path / "run"))
    said = capsys.readouterr().out
    for part in ("frozen encoder; SGD, 2 epochs in batches of 8, learning rate 30 × 8/256, cosine", "step 7 of", "top-1, final",
                 "top-1, best", "biased, as it is chosen on test images", "after epoch 2", "bt_jax.evaluation.table"):  # fmt: skip
        assert part in said, part
    there = json.loads((tmp_path / "run" / "linear.json").read_text())
    assert there == json.loads(json.dumps(result))
    run = there["runs"][0]
    assert run["final"]["images"] == 25 and run["steps"] == 14 and run["best"]["epoch"] in (1, 2)
    assert run["best"]["top1"] >= run["final"]["top1"] > 0.6
    assert there["checkpoint"]["step"] == 7 and len(there["checkpoint"]["sha256"]) == 64
    assert there["config"]["sgd"]["learning_rate_head"] == 30.0 and there["seeds"] == [0]

    linear(config, str(tmp_path / "run"))  # again: nothing is left to do, and the numbers stay
    again = json.loads((tmp_path / "run" / "linear.json").read_text())
    assert again["runs"][0]["final"] == run["final"] and again["runs"][0]["best"] == run["best"]


def test_cached_with_repeats(config, tmp_path, capsys):
    """Features once; mean and spread over the seeds."""
    config.linear.cached, config.repeats = True, 3
    result = linear(config, str(tmp_path / "run"))
    assert result["seeds"] == [0, 1, 2] and len(result["runs"]) == 3
    assert result["mean"]["final.top1"] > 0.9
    assert result["spread"]["final.top1"] is not None
    said = capsys.readouterr().out
    assert "L-BFGS" in said and "3 seeds" in said and "best epoch" not in said


def test_a_fit_that_stops_early_is_told(config, tmp_path, capsys):
    config.linear.cached, config.linear.max_iterations = True, 2
    result = linear(config, str(tmp_path / "run"))
    assert result["runs"][0]["iterations"] == 2
    assert "L-BFGS stopped at linear.max_iterations, 2, before it had converged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "momentum 0.9, weight decay 1e-06; crop and flip; in float32"),
        ({"sgd.nesterov": True, "supervised.view.jitter": 0.8, "dtype": "bfloat16"},
         "momentum of Nesterov 0.9, weight decay 1e-06; crop, flip and colours; in bfloat16"),
    ],
)  # fmt: skip
def test_the_protocol_says_what_is_done(config, changes, words):
    config.update_from_flattened_dict(changes)
    assert describe_sgd(config).endswith(words) and "batch norm" not in describe_sgd(config)
    config.linear.batch_norm = True
    assert describe_sgd(config).startswith("frozen encoder; batch norm on the features; SGD, ")


def official_files(folder):
    """All that the official main.py and evaluate.py save, with a ResNet-50 of four blocks; and their other forms in use."""
    rng = np.random.default_rng(0)
    encoder = make_encoder("resnet50", width=4)
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    backbone = to_torch(
        jax.tree.map(lambda s: rng.random(s.shape, np.float32) - 0.4 * (len(s.shape) > 1), shapes), "resnet50"
    )
    projector, features = {}, 128
    for i in (0, 3):
        projector[f"{i}.weight"] = rng.standard_normal((16, features), np.float32)
        projector |= {
            f"{i + 1}.{name}": np.ones(16, np.float32) for name in ("weight", "bias", "running_mean", "running_var")
        }
        projector[f"{i + 1}.num_batches_tracked"], features = np.array(625000), 16
    projector["6.weight"] = rng.standard_normal((16, 16), np.float32)
    fc = {"fc.weight": rng.standard_normal((1000, 128), np.float32), "fc.bias": np.zeros(1000, np.float32)}

    def under(prefix, tensors):
        return {f"{prefix}{name}": value for name, value in tensors.items()}

    loss = {
        "running_mean": np.zeros(16, np.float32),
        "running_var": np.ones(16, np.float32),
        "num_batches_tracked": np.array(9),
    }
    filtered = Global("__main__ exclude_bias_and_norm")
    group = {"lr": 0.0016, "weight_decay": 1e-6, "momentum": 0.9, "eta": 0.001, "weight_decay_filter": filtered,
             "lars_adaptation_filter": filtered, "params": list(range(9))}  # fmt: skip
    whole = under("module.backbone.", backbone) | under("module.projector.", projector) | under("module.bn.", loss)
    half = {name: value.astype(np.float16) if value.dtype == np.float32 else value for name, value in backbone.items()}
    trees = {
        "resnet50": collections.OrderedDict(backbone),
        "checkpoint": {
            "epoch": 1000,
            "model": collections.OrderedDict(whole),
            "optimizer": {
                "state": {0: {"mu": np.ones((4, 3, 7, 7), np.float32)}},
                "param_groups": [group, dict(group)],
            },
        },
        "lincls": {
            "epoch": 100,
            "best_acc": argparse.Namespace(top1=73.3, top5=91.0),
            "model": collections.OrderedDict(under("module.", backbone | fc)),
            "optimizer": {
                "state": {0: {"momentum_buffer": fc["fc.weight"]}},
                "param_groups": [{"lr": 0.0, "params": [0, 1]}],
            },
            "scheduler": {"T_max": 100, "eta_min": 0, "base_lrs": [0.1], "last_epoch": 100, "_last_lr": [0.0]},
        },
        "distributed": collections.OrderedDict(under("module.", backbone)),
        "half": collections.OrderedDict(half),
    }
    return {name: save(folder / f"{name}.pth", tree) for name, tree in trees.items()}


def test_from_all_that_the_official_project_publishes(config, tmp_path, capsys, monkeypatch):
    """The same weights, and so the same numbers, from each file; in half precision rounded."""
    monkeypatch.setitem(resnet.BLOCKS, "resnet50", (1, 1, 1, 1))
    config.model.update(arch="resnet50", width=4, small_images=False)
    config.linear.update(cached=True, l2=(0.1,), max_iterations=20)
    files, found = official_files(tmp_path), {}
    for name in ("resnet50", "checkpoint", "lincls"):
        config.init_from = str(files[name])
        result = linear(config, str(tmp_path / name))
        assert f"encoder   resnet50, 128 features, from {files[name]}" in capsys.readouterr().out
        numbers = {name: value for name, value in result["mean"].items() if name.startswith(("final.", "held_out"))}
        found[name] = numbers, result["checkpoint"]["sha256"]
    assert found["checkpoint"] == found["lincls"] == found["resnet50"]
    assert sha256_of(read_weights(str(files["distributed"])).variables) == found["resnet50"][1]
    whole, half = (read_weights(str(files[name])).variables for name in ("resnet50", "half"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7), half, whole)


def test_an_encoder_of_another_architecture(config, tmp_path):
    """Both are named, and nothing is left behind."""
    config.model.arch, config.model.width = "resnet50", 64
    with pytest.raises(UserError, match="resnet18 of width 4 with a 3×3 stem.*resnet50 of width 64"):
        linear(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_checkpoint(config, judged, tmp_path):
    workdir, _ = judged
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "config.json").write_text((workdir / "config.json").read_text())
    config.init_from = str(tmp_path / "young")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        linear(config, str(tmp_path / "run"))


def test_nothing_to_judge(config):
    config.init_from = ""
    with pytest.raises(UserError, match="init_from is empty, but must name the encoder that linear evaluates"):
        config_lib.check(config)


@pytest.mark.parametrize("task", ["linear", "finetune", "knn", "transfer"])
def test_images_without_labels(judged, tmp_path, task):
    """Whatever needs labels says so, and leaves nothing behind."""
    for i in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
    config = evaluation_of(judged[1], task)
    config.data.update(source="folder", data_dir=str(tmp_path / "images"), test_fraction=0.5)
    run = pkgutil.resolve_name(f"bt_jax.tasks.{task}:{task}")
    with pytest.raises(
        UserError, match=f"images has no labels, but the task {task} needs them; data.labels says where"
    ):
        run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_other_weights_than_at_the_beginning(config, judged, tmp_path):
    """A resumed evaluation never mixes two encoders."""
    workdir, _ = judged
    linear(config, str(tmp_path / "run"))
    written = json.loads((tmp_path / "run" / "judged.json").read_text())
    (tmp_path / "run" / "judged.json").write_text(json.dumps(written | {"sha256": "0" * 64}))
    with pytest.raises(UserError, match="started with other weights"):
        linear(config, str(tmp_path / "run"))
    assert Checkpoints(workdir).steps() == [7], "what is judged stays as it is"


def test_weights_that_are_not_finite(config, tmp_path, monkeypatch):
    """The image and the layer are named."""

    def spoilt(path):
        encoder = bt_jax.load_encoder(path)
        encoder.variables["params"]["layer2_0"]["conv2"]["kernel"] *= float("nan")
        return encoder

    monkeypatch.setattr("bt_jax.evaluation.judged.load_encoder", spoilt)
    config.linear.cached = True
    with pytest.raises(
        UserError, match=r"features of image 0 of .*train are not finite, first in layer layer2_0/conv2"
    ):
        linear(config, str(tmp_path / "run"))


def test_a_full_disk(config, tmp_path, monkeypatch, capsys):
    """The numbers are printed before the file fails, and a message says so."""
    config.linear.cached = True
    no_room_for(monkeypatch, results, "linear.json")
    with pytest.raises(
        UserError,
        match=r"linear.json cannot be written \(No space left on device\), so the numbers are only in the output above",
    ):
        linear(config, str(tmp_path / "run"))
    assert "top-1, final" in capsys.readouterr().out
