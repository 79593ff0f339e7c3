"""bt_jax/tasks/linear.py: the task from its command to its file."""

import json
import pkgutil

import numpy as np
import pytest
from PIL import Image
from recipes import evaluation_of, no_room_for

import bt_jax
from bt_jax import config as config_lib
from bt_jax.engine.checkpoint import Checkpoints
from bt_jax.errors import UserError
from bt_jax.evaluation import results
from bt_jax.tasks.linear import linear


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
