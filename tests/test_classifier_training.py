"""bt_jax/evaluation/classifier_training.py: PyTorch's SGD, its schedules, interruption at any step, 1 and 8 devices."""

import json

import chex
import jax
import numpy as np
import pytest
from etils import epath
from recipes import evaluation_of

from bt_jax import config as config_lib
from bt_jax.data.sources.make import make_source
from bt_jax.engine.checkpoint import Checkpoints
from bt_jax.errors import UserError
from bt_jax.evaluation import classifier_training
from bt_jax.evaluation.classifier_training import ClassifierTraining, rate_factor
from bt_jax.evaluation.judged import judged_encoder

FROZEN, TUNED = {"head": 20.0}, {"head": 2.0, "encoder": 0.5}


class Killed(Exception):
    """Stands for whatever ends a process in the middle."""


def mesh_of(devices):
    return jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])


def training(config, workdir, rates, *, mesh=None, test=None, **more):
    mesh = mesh or mesh_of(8)
    train, own_test = (make_source(config.data, split) for split in ("train", "test"))
    return ClassifierTraining(
        config, epath.Path(workdir), mesh, judged_encoder(config, mesh), train, test or own_test, seed=3, rates=rates,
        quiet=True, **more,
    )  # fmt: skip


def final_state(made):
    checkpoints = Checkpoints(made.workdir)
    state, step, _ = made._restored(checkpoints)
    checkpoints.close()
    return step, jax.device_get(state)


@pytest.mark.parametrize("rates", [FROZEN, TUNED], ids=["frozen", "tuned"])
def test_interrupted_and_resumed_is_bit_equal(judged, tmp_path, monkeypatch, rates):
    """Weights, statistics, momentum and the counts of each epoch are those of one piece."""
    config = evaluation_of(judged[1], "linear")
    config.batch_size = 24  # two steps an epoch
    expected = training(config, tmp_path / "whole", rates).run()
    step, whole = final_state(training(config, tmp_path / "whole", rates))
    assert step == 4 and expected["final"]["images"] == 25
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    prefetch = classifier_training.mesh_lib.prefetch_to_mesh

    def until(steps):
        def cut(*arguments):
            for i, batch in enumerate(prefetch(*arguments)):
                if i == steps:
                    raise Killed
                yield batch

        return cut

    for killed_after in (1, 3):  # within the first epoch, with nothing saved, and within the second
        workdir = tmp_path / f"killed_after_{killed_after}"
        monkeypatch.setattr(classifier_training.mesh_lib, "prefetch_to_mesh", until(killed_after))
        with pytest.raises(Killed):
            training(config, workdir, rates).run()
        monkeypatch.setattr(classifier_training.mesh_lib, "prefetch_to_mesh", prefetch)
        found = training(config, workdir, rates).run()
        assert found["final"] == expected["final"] and found["best"] == expected["best"]
        chex.assert_trees_all_equal(final_state(training(config, workdir, rates))[1], whole)
        again = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        rate = "images_per_second"
        assert [r | {rate: 0} for r in again] == [json.loads(line) | {rate: 0} for line in lines]


@pytest.mark.parametrize("rates", [FROZEN, TUNED], ids=["frozen", "tuned"])
def test_the_devices_make_no_difference(judged, tmp_path, rates):
    """The same weights but for the last digits, and every metric equal.

    A frozen encoder is bit-equal afterwards, and so is the original of a tuned one, which others may go on to use.
    """
    config = evaluation_of(judged[1], "linear")
    config.batch_size = 24
    made = [training(config, tmp_path / str(devices), rates, mesh=mesh_of(devices)) for devices in (1, 8)]
    before = jax.tree.map(np.array, made[0].judged.variables)
    found = [one.run() for one in made]
    chex.assert_trees_all_equal(before, jax.device_get(made[0].judged.variables))
    states = [final_state(one)[1] for one in made]
    assert ("encoder" in states[0].params) == ("encoder" in rates)
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    changed = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), before["batch_stats"], states[0].batch_stats or before["batch_stats"]
    )
    assert all(jax.tree.leaves(changed)) == ("encoder" in rates), "running statistics follow the new images"
    for name in ("final", "best"):
        for key, value in found[0][name].items():
            assert found[1][name][key] == (pytest.approx(value, rel=1e-4) if key == "loss" else value), key


def test_the_step_is_pytorchs_sgd():
    """Decay, then momentum, then the rate, over a few steps, in numpy."""
    rng = np.random.default_rng(0)
    weight, decay, momentum = rng.standard_normal(4), 0.1, 0.9
    buffer, expected = np.zeros(4), weight.copy()
    params, held = {"head": weight.astype(np.float64)}, {"head": np.zeros(4)}
    for rate in (0.5, 0.1, 0.02):
        gradient = np.sin(expected)
        buffer = momentum * buffer + gradient + decay * expected
        expected = expected - rate * buffer
        params, held = classifier_training.sgd_update(
            params, held, {"head": np.sin(params["head"])}, {"head": rate}, weight_decay=decay, momentum=momentum
        )
    np.testing.assert_allclose(params["head"], expected, rtol=1e-6)


def test_schedules():
    """Cosine by the epoch as the official evaluate.py; ×0.2 after 12 and 16; ÷10 at two equal intervals of 14 epochs."""
    sgd = config_lib.default("linear").sgd
    cosine = [rate_factor(sgd, epoch, 100) for epoch in (0, 25, 50, 99)]
    np.testing.assert_allclose(cosine, [1, (1 + np.sqrt(0.5)) / 2, 0.5, (1 + np.cos(0.99 * np.pi)) / 2])
    sgd.schedule, sgd.decay_epochs, sgd.decay_factor = "steps", (12, 16), 0.2
    assert [rate_factor(sgd, e, 20) for e in (0, 11, 12, 15, 16, 19)] == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])
    from configs import transfer_places

    places = transfer_places.get_config()
    factors = [rate_factor(places.sgd, epoch, 14) for epoch in range(14)]
    assert factors == pytest.approx([1] * 5 + [0.1] * 5 + [0.01] * 4)


@pytest.mark.parametrize("count", [1, 7])
def test_small_test_sets(judged, tmp_path, count):
    """Of 1 and 7 images on 8 devices each is counted once."""
    from bt_jax.data.subsets import take

    config = evaluation_of(judged[1], "linear")
    test = take(make_source(config.data, "test"), np.arange(count), "few")
    found = training(config, tmp_path / "run", FROZEN, test=test).run()
    assert found["final"]["images"] == count and (found["final"]["top1"] * count) % 1 == 0


def test_bad_input(judged, tmp_path):
    config = evaluation_of(judged[1], "linear")
    config.batch_size = 12
    with pytest.raises(UserError, match="batch_size is 12, which does not divide among 8 devices"):
        training(config, tmp_path / "run", FROZEN)
    config.batch_size = 64
    with pytest.raises(UserError, match="has 60 images, fewer than a batch of 64"):
        training(config, tmp_path / "run", FROZEN)


def test_a_loss_that_is_not_finite_stops_it(judged, tmp_path):
    """What is not finite is never saved."""
    config = evaluation_of(judged[1], "linear")
    with pytest.raises(UserError, match=r"the loss is not finite at step \d+ .*Lower the rates in sgd"):
        training(config, tmp_path / "run", {"head": 1e30, "encoder": 1e30}).run()
    assert not [p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]
