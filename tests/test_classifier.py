"""bt_jax/evaluation/classifier.py: interruption at any step, signals, 1 and 8 devices."""

import json
import os
import signal

import chex
import jax
import numpy as np
import pytest
from etils import epath
from recipes import evaluation_of

from bt_jax.data.sources.make import make_source
from bt_jax.engine.checkpoint import Checkpoints
from bt_jax.engine.run import restored_or_new
from bt_jax.engine.session import Session
from bt_jax.errors import Preempted, UserError
from bt_jax.evaluation import classifier
from bt_jax.evaluation.classifier import ClassifierTraining
from bt_jax.evaluation.judged import judged_encoder
from bt_jax.runtime.preemption import Preemption

FROZEN, TUNED = {"classifier": 20.0}, {"classifier": 2.0, "encoder": 0.5}


class Killed(Exception):
    """Represents anything that kills a process."""


def mesh_of(devices):
    return jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])


@pytest.fixture
def config(judged):
    """Of the task `linear`, with two steps per epoch."""
    config = evaluation_of(judged[1], "linear")
    config.batch_size = 24
    return config


def training(config, workdir, rates, *, mesh=None, test=None, **more):
    mesh = mesh or mesh_of(8)
    train, own_test = (make_source(config.data, split) for split in ("train", "test"))
    return ClassifierTraining(
        config, epath.Path(workdir), mesh, judged_encoder(config, mesh), train, test or own_test, seed=3, rates=rates,
        quiet=True, **more,
    )  # fmt: skip


def run(made):
    """As a task runs it, with its signal handlers."""
    with Preemption() as preemption:
        return made.run(Session(made.setup.workdir, preemption))


def final_state(made):
    checkpoints = Checkpoints(made.setup.workdir)
    start = restored_or_new(made.setup, checkpoints)
    checkpoints.close()
    return start.step, jax.device_get(start.state)


@pytest.mark.parametrize("rates", [FROZEN, TUNED], ids=["frozen", "tuned"])
def test_interrupted_and_resumed_is_bit_equal(config, tmp_path, monkeypatch, rates):
    """By a kill or by a signal: weights, statistics, momentum and the counts of each epoch are those of an uninterrupted run."""
    expected = run(training(config, tmp_path / "whole", rates))
    step, whole = final_state(training(config, tmp_path / "whole", rates))
    assert step == 4 and expected["final"]["images"] == 25
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    make_feed = classifier.make_feed

    def end_after(count, act):
        class Cut:
            def __init__(self, *args, **kwargs):
                self._feed = make_feed(*args, **kwargs)
                self.words, self.prepare = self._feed.words, self._feed.prepare

            def batches(self, start, total):
                for i, delivery in enumerate(self._feed.batches(start, total)):
                    if i == count:
                        act()
                    yield delivery

        monkeypatch.setattr(classifier, "make_feed", Cut)

    def kill():
        raise Killed

    def tell():
        os.kill(os.getpid(), signal.SIGTERM)

    # Within the first epoch, with nothing saved; within the second, from the start; and from there by a signal, which saves the step
    # that is being made. Each start goes on from what the one before has left.
    workdir = tmp_path / "interrupted"
    for after, act, error, saved in (
        (1, kill, Killed, []),
        (3, kill, Killed, ["2"]),
        (0, tell, Preempted, ["2", "3"]),
    ):
        end_after(after, act)
        with pytest.raises(error):
            run(training(config, workdir, rates))
        assert sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()) == saved
    monkeypatch.setattr(classifier, "make_feed", make_feed)
    found = run(training(config, workdir, rates))
    assert found["final"] == expected["final"] and found["best"] == expected["best"]
    chex.assert_trees_all_equal(final_state(training(config, workdir, rates))[1], whole)
    again = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = {"images_per_second": 0, "input_wait": 0}
    assert [r | timed for r in again] == [json.loads(line) | timed for line in lines]


@pytest.mark.parametrize("rates", [FROZEN, TUNED], ids=["frozen", "tuned"])
def test_the_devices_make_no_difference(config, tmp_path, rates):
    """The same weights except for the last digits, and all metrics equal.

    A frozen encoder is bit-equal afterwards, and so is the original of a tuned one, which others may go on to use.
    """
    made = [training(config, tmp_path / str(devices), rates, mesh=mesh_of(devices)) for devices in (1, 8)]
    judged = made[0]._judged
    before = jax.tree.map(np.array, judged.variables)
    found = [run(one) for one in made]
    chex.assert_trees_all_equal(before, jax.device_get(judged.variables))
    states = [final_state(one)[1] for one in made]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    after = states[0].encoder_variables()
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), before["batch_stats"], after["batch_stats"])
    assert all(jax.tree.leaves(changed)) == ("encoder" in rates), "running statistics follow the new images"
    if "encoder" not in rates:
        chex.assert_trees_all_equal(before, after)
    for name in ("final", "best"):
        for key, value in found[0][name].items():
            assert found[1][name][key] == (pytest.approx(value, rel=1e-4) if key == "loss" else value), key


@pytest.mark.parametrize("count", [1, 7])
def test_small_test_sets(config, tmp_path, count):
    """Each of 1 and of 7 images on 8 devices is counted once."""
    from bt_jax.data.subsets import take

    test = take(make_source(config.data, "test"), np.arange(count), "few")
    found = run(training(config, tmp_path / "run", FROZEN, test=test))
    assert found["final"]["images"] == count and (found["final"]["top1"] * count) % 1 == 0


def test_warm_up(config, tmp_path):
    """Both rates rise from 0 step by step; then they are those of the schedule without a warm-up, whose epochs still count."""
    config.epochs, config.sgd.decay_epochs, config.sgd.schedule = 4, (2, 3), "steps"
    plain = training(config, tmp_path / "plain", TUNED).setup.optimizer.schedules
    config.sgd.warmup_epochs = 1
    warm = training(config, tmp_path / "warm", TUNED).setup.optimizer
    assert "warm-up 1 epochs, then ×0.1 after epochs 2, 3" in warm.description
    for part, rate in TUNED.items():
        found = [float(warm.schedules[part](step)) for step in range(8)]
        peak = rate * 24 / 256
        np.testing.assert_allclose(found[:2], [0, peak / 2], rtol=1e-6)
        np.testing.assert_allclose(found[2:], [float(plain[part](step)) for step in range(2, 8)], rtol=1e-6)
        np.testing.assert_allclose(found[2:], [peak, peak, peak / 10, peak / 10, peak / 100, peak / 100], rtol=1e-6)


def test_a_batch_norm_on_the_features(config, tmp_path):
    """Test images are judged with the running statistics, so that their batches make no difference."""
    found = []
    for size in (8, 32):
        config.features.batch_size = size
        made = training(config, tmp_path / str(size), FROZEN, batch_norm=True)
        found.append(run(made)["final"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    running = final_state(made)[1].model_state["batch_stats"]["classifier"]["bn"]
    assert np.any(running["mean"]) and np.any(running["var"] != 1)


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("biases", [True, False])
def test_what_is_decayed(config, tmp_path, norms, biases):
    """Without a gradient only weight decay moves parameters: kernels, and norms and the classifier's bias if so set."""
    config.sgd.update(weight_decay=0.1, decay_norms=norms, decay_biases=biases)
    made = training(config, tmp_path, TUNED)
    params = jax.tree.map(np.ones_like, jax.device_get(made.setup.init_state().params))
    nothing = jax.tree.map(np.zeros_like, params)
    updates, _ = made.setup.optimizer.update(nothing, made.setup.optimizer.init(params), params)
    moved = {
        jax.tree_util.keystr(path): bool(np.any(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }
    bias = "['classifier']['linear']['bias']"
    assert moved.pop(bias) == biases
    assert all(changed == (norms or "kernel" in path) for path, changed in moved.items())
    assert not all("kernel" in path for path in moved)


def test_bad_input(config, tmp_path):
    config.batch_size = 12
    with pytest.raises(UserError, match="batch_size is 12, which does not divide among 8 devices"):
        training(config, tmp_path / "run", FROZEN)
    config.batch_size = 64
    with pytest.raises(UserError, match="has 60 images, fewer than a batch of 64"):
        training(config, tmp_path / "run", FROZEN)


def test_a_loss_that_is_not_finite_stops_it(config, tmp_path):
    """What is not finite is never saved."""
    with pytest.raises(UserError, match=r"the loss is not finite at step \d+ .*Lower the rates in sgd"):
        run(training(config, tmp_path / "run", {"classifier": 1e30, "encoder": 1e30}))
    assert not [p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]


def test_other_test_images_are_not_resumed_with(config, tmp_path):
    """As their numbers would be mixed with those of before; and so with other images to train on."""
    from bt_jax.data.subsets import take

    test = make_source(config.data, "test")
    run(training(config, tmp_path, FROZEN))
    with pytest.raises(UserError, match="checkpoint 4 was saved .the fingerprint of the test images was .* and is now"):
        run(training(config, tmp_path, FROZEN, test=take(test, np.arange(len(test))[::-1], "turned round")))
    assert run(training(config, tmp_path, FROZEN, test=test))["final"]["images"] == len(test)
