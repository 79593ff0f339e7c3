"""bt_jax/export/init_from.py: a fresh state with the encoder, and with those heads that fit."""

import chex
import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from recipes import pair_method, small_method, spec_of

from bt_jax import UserError
from bt_jax.data.views.spec import ViewSpec
from bt_jax.engine.state import init_state
from bt_jax.export import init_from
from bt_jax.export.init_from import start_from, with_weights
from bt_jax.export.weights import EncoderWeights
from bt_jax.methods.supervised import Supervised
from bt_jax.models import LinearClassifier


def fresh(method, seed=0):
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    return init_state(method, optax.sgd(0.1), seed, spec_of(method), mesh)


def supervised(classes):
    base = small_method()
    return Supervised(base.encoder, LinearClassifier(classes), base.inputs, ViewSpec())


@pytest.fixture(scope="module")
def other():
    """What another supervised run of 5 classes has learnt."""
    state = jax.device_get(fresh(supervised(5), seed=7))
    return state.encoder_variables(), {"classifier": {"params": state.params["classifier"]}}


def test_the_encoder_and_the_heads_that_fit(other):
    encoder, heads = other
    state, taken = with_weights(fresh(supervised(5)), encoder, heads)
    assert taken == ("classifier",)
    chex.assert_trees_all_equal(jax.device_get(state.encoder_variables()), encoder)
    chex.assert_trees_all_equal(jax.device_get(state.params["classifier"]), heads["classifier"]["params"])
    for method in (supervised(4), small_method()):  # other classes; no classifier at all
        before = fresh(method)
        state, taken = with_weights(before, encoder, heads)
        assert taken == ()
        for name in state.params.keys() - {"encoder"}:
            chex.assert_trees_all_equal(state.params[name], before.params[name])
        chex.assert_trees_all_equal(jax.device_get(state.encoder_variables()), encoder)
        assert all(
            a.sharding == b.sharding for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True)
        )


def test_an_encoder_that_does_not_fit(other):
    encoder, _ = other
    wrong = {**encoder, "params": {**encoder["params"], "conv1": {"kernel": np.zeros((7, 7, 3, 4))}}}
    with pytest.raises(ValueError, match=r"\['conv1'\]\['kernel'\] is \(7, 7, 3, 4\) and must be \(3, 3, 3, 4\)"):
        with_weights(fresh(supervised(5)), wrong)


def test_what_is_said(other, monkeypatch):
    """Which parts start with the weights, which start at random, and how the images were normalised."""
    encoder, heads = other
    weights = EncoderWeights("resnet18", encoder, "step 6 of a run", width=4, small_images=True, heads=heads)
    monkeypatch.setattr(init_from, "read_weights", lambda path: weights)
    settings = {"mean": weights.mean, "std": (0.2, 0.2, 0.2)}
    model = {"arch": "resnet18", "width": 4, "small_images": True}
    config = ConfigDict({"init_from": "elsewhere", "model": model, "data": settings})
    _, notices = start_from(config, fresh(supervised(5)))
    assert notices[0] == "the encoder and the classifier start from the weights of step 6 of a run"
    assert "it was trained with data.mean=" in notices[1] and len(notices) == 2
    config.data.std = weights.std
    _, notices = start_from(config, fresh(supervised(4)))
    assert notices == [
        "the encoder starts from the weights of step 6 of a run", "its classifier does not fit 4, which starts at random"
    ]  # fmt: skip
    _, notices = start_from(config, fresh(small_method()))
    assert len(notices) == 1, "a head that the run has no place for is not spoken of"
    config.model.stem_stride, config.data.range = 2, (0.0, 4095.0)
    _, notices = start_from(config, fresh(small_method()))
    assert notices[1:] == [
        "it was trained with model.stem_stride=1, and this run has 2, which is another network",
        "it was trained with data.range=(), and this run has (0.0, 4095.0)",
    ]
    config.init_from = ""
    assert start_from(config, state := fresh(small_method())) == (state, [])


def test_what_does_not_fit_is_told(monkeypatch):
    weights = EncoderWeights("resnet50", {"params": {}, "batch_stats": {}}, "a file")
    monkeypatch.setattr(init_from, "read_weights", lambda path: weights)
    model = {"arch": "resnet18", "width": 4, "small_images": True}
    config = ConfigDict({"init_from": "f.pth", "model": model, "data": {"mean": (0.5,), "std": (0.5,)}})
    with pytest.raises(
        UserError, match=r"init_from is 'f.pth', a resnet50 of width 64, .* fit .* resnet18 .* and \d+ more"
    ):
        start_from(config, fresh(small_method()))


def test_a_target_network_starts_from_the_weights_too():
    method = pair_method("byol")
    trained = jax.device_get(fresh(method, seed=7))
    heads = {"projector": {"params": trained.params["projector"],
                           "batch_stats": trained.model_state["batch_stats"]["projector"]}}  # fmt: skip
    before = fresh(method)
    state, taken = with_weights(before, trained.encoder_variables(), heads)
    assert taken == ("projector",)
    for name in ("encoder", "projector"):
        chex.assert_trees_all_equal(jax.device_get(state.method_state["target"][name]), trained.params[name])
        statistics = jax.device_get(state.model_state["batch_stats"])
        chex.assert_trees_all_equal(statistics["target"][name], statistics[name])
    chex.assert_trees_all_equal(state.params["predictor"], before.params["predictor"])
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.device_get(state), jax.device_get(before))
