"""bt_jax/evaluation/rate_search.py: which images are held out, the grid, the choice, and resuming."""

import json
import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from recipes import evaluation_of

import bt_jax
from bt_jax.data.sources.base import ArraySource
from bt_jax.errors import UserError
from bt_jax.evaluation.classifier import ClassifierTraining
from bt_jax.evaluation.few_labels_table import few_labels_table
from bt_jax.evaluation.rate_search import RateSearch, grid, split
from bt_jax.tasks.finetune import finetune


@pytest.fixture
def config(judged):
    """30 labels, of which six are held out; two rates of the head."""
    config = evaluation_of(judged[1], "finetune")
    config.finetune.update(percent=50.0, search_rates=True, search_encoder=(1.0,), search_head=(0.01, 1.0))
    config.batch_size = 24
    return config


def labelled(counts):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    return ArraySource("numbers", images, labels, [f"class {i}" for i in range(len(counts))])


def test_split():
    """Disjoint, together all, a share of each class, by the seed."""
    source = labelled([10, 5, 20])
    kept, held = split(source, 0.2, seed=3)
    assert np.bincount(held.labels).tolist() == [2, 1, 4] and np.bincount(kept.labels).tolist() == [8, 4, 16]
    numbers = [set(part.images[:, 0, 0, 0].tolist()) for part in (kept, held)]
    assert not numbers[0] & numbers[1] and numbers[0] | numbers[1] == set(range(35))
    assert set(split(source, 0.2, seed=3)[1].images[:, 0, 0, 0].tolist()) == numbers[1]
    assert set(split(source, 0.2, seed=4)[1].images[:, 0, 0, 0].tolist()) != numbers[1]
    with pytest.raises(UserError, match="a class has only 1; use more labels, or set it to False"):
        split(labelled([10, 1]), 0.2, seed=0)
    with pytest.raises(UserError, match="search_held_out is 0.9, which leaves a class without images to train on"):
        split(labelled([10, 3]), 0.9, seed=0)


def test_grid():
    """All pairs of factors; from scratch one factor for both."""
    settings = ConfigDict({"from_scratch": False, "search_encoder": (0.5, 2.0), "search_head": (1.0, 10.0)})
    rates = {"encoder": 0.1, "classifier": 1.0}
    found = [(r["encoder"], r["classifier"]) for r in grid(settings, rates)]
    assert found == [(0.05, 1.0), (0.05, 10.0), (0.2, 1.0), (0.2, 10.0)]
    settings.from_scratch = True
    assert [(r["encoder"], r["classifier"]) for r in grid(settings, rates)] == [(0.05, 0.5), (0.2, 2.0)]


def test_the_best_rate_on_held_out_images_is_used(config, tmp_path, capsys):
    """The training that follows is that with this rate and all labels, to the bit."""
    result = finetune(config, str(tmp_path / "searched"))
    said = capsys.readouterr().out
    search = result["runs"][0]["search"]
    assert search["held_out"] == 6 and len(search["tried"]) == 2
    order = sorted(search["tried"], key=lambda point: (-point["top1"], point["loss"]))
    assert search["chosen"] == order[0]["rates"] and len({point["loss"] for point in order}) == 2
    assert "of 6 held-out train images" in said and "chosen: encoder" in said and "chosen on held-out train" in said
    assert result["runs"][0]["train_images"] == 30
    assert json.loads((tmp_path / "searched" / "finetune.json").read_text())["runs"][0]["search"] == search
    (note,) = [line for line in few_labels_table([("here", result)]).splitlines() if line.startswith("1. ")]
    assert f"chosen on held-out train images, {search['chosen']['encoder']:g} and" in note
    config.finetune.search_rates = False
    config.sgd.learning_rate_encoder = search["chosen"]["encoder"]
    config.sgd.learning_rate_head = search["chosen"]["classifier"]
    finetune(config, str(tmp_path / "given"))
    one, other = (bt_jax.load_encoder(str(tmp_path / name)) for name in ("searched", "given"))
    assert one.sha256 == other.sha256


def test_a_search_that_was_stopped_goes_on(config, tmp_path, monkeypatch):
    whole = finetune(config, str(tmp_path / "whole"))
    run, calls = ClassifierTraining.run, []

    def stopped_at_the_second(self, session):
        calls.append(self.setup.workdir.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(self, session)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ClassifierTraining, "run", stopped_at_the_second)
        finetune(config, str(tmp_path / "again"))
    again = finetune(config, str(tmp_path / "again"))
    assert again["runs"][0]["search"] == whole["runs"][0]["search"]
    one, other = (bt_jax.load_encoder(str(tmp_path / name)) for name in ("whole", "again"))
    assert one.sha256 == other.sha256


def test_a_rate_whose_loss_is_not_finite_is_not_chosen(config, tmp_path):
    config.batch_size = 8
    config.finetune.search_head = (1e38, 1.0)
    search = finetune(config, str(tmp_path / "run"))["runs"][0]["search"]
    assert search["tried"][0]["top1"] == 0 and search["chosen"] == search["tried"][1]["rates"]
    config.finetune.search_head = (1e38,)
    with pytest.raises(UserError, match="not finite with any of the learning rates; lower those in sgd"):
        finetune(config, str(tmp_path / "none"))


@pytest.mark.parametrize("loss", [None, float("inf"), float("nan")])
def test_a_held_out_loss_that_is_not_finite(config, loss):
    """Counts as no accuracy, be it fresh or None, as a record of an earlier start has it; the other rate is chosen."""
    search = RateSearch.__new__(RateSearch)
    search._grid = [{"encoder": 1.0, "classifier": c} for c in (1.0, 2.0)]
    search._held = range(5)
    ends = iter([{"top1": 0.9, "loss": loss}, {"top1": 0.8, "loss": 1.0}])
    search._training = lambda _: types.SimpleNamespace(run=lambda _: {"final": next(ends)})
    chosen, found = search.run(None, lambda _: None)
    assert chosen == search._grid[1] and [point["top1"] for point in found["tried"]] == [0.0, 0.8]
