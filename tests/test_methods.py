"""bt_jax/methods: the protocol, Barlow Twins as a method, and the errors for classes that are not methods."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recipes import AS_IN_RUNS, small_method, spec_of, training

from bt_jax import UserError, barlow_twins_loss
from bt_jax import config as config_lib
from bt_jax.data.views.spec import ViewGroup, ViewSpec
from bt_jax.engine.state import create_state
from bt_jax.engine.step import make_train_step
from bt_jax.facts import Facts
from bt_jax.methods import METHODS, Method, make_method
from bt_jax.methods.checks import _ARGUMENTS, check_source
from bt_jax.models import resnet

FACTS = Facts(num_examples=40_000, num_classes=3, batch_size=8, epochs=2)  # more images than PIRL has negatives


def test_loss_is_the_loss_of_the_networks_embeddings():
    """Both views in one pass: the same as the encoder, the projector and the loss put together by hand."""
    method = small_method()
    params, model_state, method_state = jax.jit(lambda: method.init(jax.random.key(0), spec_of(method)))()
    assert method_state == {}
    views = np.random.default_rng(0).integers(0, 256, (8, 2, 8, 8, 3), np.uint8)
    batch = {"views": {"pair": views}}
    order = []  # of the metrics, which a compiled program sorts

    def traced(*given):
        loss, (new_state, _, metrics) = method.loss(*given)
        order.append(tuple(metrics))
        return loss, new_state, metrics

    loss, new_state, metrics = jax.jit(traced)(params, model_state, {}, batch, 0, jax.random.key(1))
    scaled = (views / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    encoder = {"params": params["encoder"], "batch_stats": model_state["batch_stats"]["encoder"]}
    features, _ = training(method.encoder)(encoder, scaled)
    projector = {"params": params["projector"], "batch_stats": model_state["batch_stats"]["projector"]}
    z, _ = training(method.projector)(projector, features)
    expected, parts = barlow_twins_loss(z[:, 0], z[:, 1], lambd=0.0051)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert order[0] == method.metrics and float(metrics["on_diagonal"]) == pytest.approx(
        float(parts["on_diagonal"]), rel=1e-4
    )
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), model_state, new_state)
    assert all(jax.tree.leaves(changed))


def test_every_method_keeps_the_protocol():
    """The names and arguments that `Method` lists, for all methods of the config; each function is checked."""
    wanted = {name: f for name, f in vars(Method).items() if inspect.isfunction(f) and not name.startswith("_")}
    assert set(wanted) - {"loss_levels"} == set(_ARGUMENTS), "a class that is no subclass may do without loss_levels"
    assert set(METHODS) == set(config_lib.METHODS)
    for name in METHODS:
        method = make_method(config_lib.default(method=name), FACTS, None)
        assert method.metrics[0] == "loss" and method.name == name
        parts = {"loss", *method.loss_levels(FACTS.batch_size).weights}
        assert method.title and set(method.metric_words) == set(method.metrics) - parts, "what the report says"
        for part, function in wanted.items():
            assert (
                list(inspect.signature(getattr(method, part)).parameters)
                == list(inspect.signature(function).parameters)[1:]
            )


@pytest.mark.parametrize("name", METHODS)
def test_remat_changes_no_gradient(name, monkeypatch):
    """For every method: the gradients of a step with `model.remat` are those without, to 1e-5."""
    monkeypatch.setitem(resnet.BLOCKS, "resnet18", (1,))
    found = []
    for remat in (False, True):
        config = config_lib.default(method=name)
        config.model.update(arch="resnet18", width=4, small_images=True, remat=remat)
        config.data.image_size = 16
        # Remat is the encoder's, and default projectors' kernels of 8192 × 8192 would take most of the time.
        if "projector" in config[name]:
            config[name].projector = (32, 16)
        method = make_method(config, FACTS, None)
        spec = spec_of(method, 8)
        state = jax.jit(lambda method=method, spec=spec: method.init(jax.random.key(0), spec))()
        rng = np.random.default_rng(0)
        batch = jax.tree.map(
            lambda s, rng=rng: rng.integers(0, 3 if s.ndim == 1 else 256, s.shape).astype(s.dtype), spec
        )
        gradient, given = jax.value_and_grad(method.loss, has_aux=True), (*state, batch, 0, jax.random.key(1))
        found.append(jax.jit(gradient, compiler_options=AS_IN_RUNS)(*given))
        assert str(jax.make_jaxpr(gradient)(*given)).count("remat") >= remat
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(found[0][1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale), found[0][1], found[1][1])
    assert float(found[0][0][0]) == pytest.approx(float(found[1][0][0]), rel=1e-5)


def test_description():
    """Start and floor of the loss for the official setting: D(1+1/N)+λD(D-1)/N, and rank(C) ≤ N-1."""
    method = make_method(config_lib.default(), FACTS, None)
    text = method.describe(2048)["loss"]
    start = 8192 * (1 + 1 / 2048) + 0.0051 * 8192 * 8191 / 2048
    assert f"about {start:.1f} " in text


class Own(Method):
    """A method with only what it must have."""

    name, config_group, metrics = "own", "own", ("loss",)

    def __init__(self, encoder, views):
        self.encoder, self.view_groups = encoder, views

    @classmethod
    def build(cls, settings, *, encoder, inputs, facts, mesh):
        return cls(encoder, (ViewGroup("image", (ViewSpec(),), inputs.image_size),))

    def init(self, rng, batch_spec):
        return {}, {}, {}

    def loss(self, params, model_state, method_state, batch, step, rng):
        return 0.0, ({}, {}, {})


class NoLoss(Method):
    config_group, fields, optimizer = "own", {}, "lars"
    build = Own.build

    def init(self, rng):
        return {}, {}, {}


class Wrong(Own):
    name = 3
    metrics = ("accuracy",)
    alignment = ("image", 0, 1)

    def init(self, rng):
        return {}, {}, {}

    def describe(self):
        return {}


class OneView(Own):
    alignment = ("image", 0, 1)


class NotADefinition:
    name = "bare"


not_a_class = Own.loss


class OddBuild(Own):
    @classmethod
    def build(cls, config):
        return cls(None, ())


def built(path):
    config = config_lib.default()
    with config.unlocked():
        config.own = {}
    config.method = path
    return make_method(config, FACTS, None)


def test_a_users_own_method():
    """By its import path; what it does not define comes from the protocol."""
    method = built("test_methods:Own")
    assert (method.name, method.alignment, method.heads(), method.loss_flops(8)) == ("own", None, {}, 0.0)
    assert method.after_update("old", "new", "state", 1) == ("new", "state")
    assert method.encoder.num_features == 2048


class Prototypes(Own):
    """Prototypes of length 1, and a target that follows the parameters; the arguments of each call are kept."""

    def init(self, rng, batch_spec):
        params = {"encoder": {"w": jnp.ones(3)}, "prototypes": jnp.eye(2, 3)}
        return params, {"batch_stats": {"encoder": {}}}, {"target": jnp.zeros(3), "steps": jnp.zeros(2, jnp.int32)}

    def loss(self, params, model_state, method_state, batch, step, rng):
        loss = jnp.sum((params["prototypes"] @ params["encoder"]["w"] - 3) ** 2)
        steps = method_state["steps"].at[0].set(step)
        return loss, (model_state, {**method_state, "steps": steps}, {"loss": loss})

    def after_update(self, old_params, params, method_state, step):
        rows = params["prototypes"]
        rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
        moved = params["encoder"]["w"] - old_params["encoder"]["w"]
        target = method_state["target"] + moved
        steps = method_state["steps"].at[1].set(step)
        return {**params, "prototypes": rows}, {"target": target, "steps": steps}


def test_what_follows_an_update():
    """It may change the parameters that the next step starts with; it sees those before and after; steps are counted."""
    method = built("test_methods:Prototypes")
    optimizer = optax.sgd(0.1)
    state = create_state(method, optimizer, 0, spec_of(method))
    step = jax.jit(make_train_step(method, optimizer, 0))
    w, rows = np.ones(3), np.eye(2, 3)
    for number in (1, 2):
        state, _ = step(state, {})
        error = 2 * (rows @ w - 3)
        w, rows = w - 0.1 * error @ rows, rows - 0.1 * np.outer(error, w)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(state.params["encoder"]["w"], w, rtol=1e-5)
        np.testing.assert_allclose(state.params["prototypes"], rows, rtol=1e-5)
        np.testing.assert_allclose(state.method_state["target"], w - 1, rtol=1e-5, atol=1e-6)
        assert state.method_state["steps"].tolist() == [number - 1, number]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nowhere.at_all:Own", "method is 'nowhere.at_all:Own', but there is no module 'nowhere'; install its package"),
        ("test_methods:Owm", r"but test_methods has no 'Owm' \(did you mean 'Own'\?\)"),
        ("test_methods:", "must be an import path of the form 'package.module:Name'"),
        ("test_methods:not_a_class", "which is a function, but must be a class"),
        ("test_methods:NoLoss", "loss is missing"),
        ("test_methods:NotADefinition", "build is missing; init is missing; loss is missing; after_update is missing"),
        ("test_methods:OddBuild", r"build takes \(config\), but is called with \(settings, \*?,? ?encoder"),
        (
            "test_methods:Wrong",
            r"init takes \(rng\), but is called with \(rng, batch_spec\); describe takes \(\), but .*; name is 3, but must be a "
            r"string; metrics is \('accuracy',\), but must be a tuple of names, 'loss' the first",
        ),
        ("test_methods:OneView", r"alignment is \('image', 0, 1\), which does not name two views of view_groups"),
    ],
)
def test_what_is_no_method(path, sentence):
    """One sentence with every part that is missing or wrong."""
    with pytest.raises(UserError, match=sentence) as caught:
        built(path)
    assert len(str(caught.value).splitlines()) == 1


def test_what_a_method_needs_of_its_training_set():
    method = built("test_methods:Own")

    class Set:
        name, num_classes, stable_examples = "a set", 0, False

    check_source(method, Set())
    method.needs_labels = True
    with pytest.raises(UserError, match="own needs labels of at least 2 classes, but a set has 0"):
        check_source(method, Set())
    method.needs_labels, method.needs_stable_examples = False, True
    with pytest.raises(UserError, match="own needs images with stable numbers, but a set is read as a stream"):
        check_source(method, Set())
