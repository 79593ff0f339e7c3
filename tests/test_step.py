"""bt_jax/training/step.py and state.py: a whole official run, and the number of devices that changes nothing."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import recipe, relative, small_method

from bt_jax import config as config_lib
from bt_jax import mesh as mesh_lib
from bt_jax.export import from_torch, projector_from_torch, projector_to_torch, to_torch
from bt_jax.methods import BarlowTwins
from bt_jax.models import Projector, make_encoder
from bt_jax.optim import make_optimizer
from bt_jax.training.state import TrainState, init_state
from bt_jax.training.step import make_train_step

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def official_start(golden, dtype="float32"):
    """Method, optimiser, state and batch of trajectory.npz, and its arrays."""
    results = golden("trajectory")
    settings = json.loads(str(results["settings"]))
    method = BarlowTwins(
        encoder=make_encoder(settings["arch"], dtype=jnp.dtype(dtype)),
        projector=Projector(tuple(settings["projector"]), dtype=jnp.dtype(dtype)),
        lambd=settings["lambd"],
        form="auto",
        mean=IMAGENET[0],
        std=IMAGENET[1],
        dtype=jnp.dtype(dtype),
    )
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), (48, 48, 3)))
    salt = int(results["salt"])

    def by_recipe(part, prefix, names_of, back):
        zeros = {
            "params": jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes[0][part]),
            "batch_stats": jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes[1]["batch_stats"][part]),
        }
        names = {n: v.shape for n, v in names_of(zeros).items() if not n.endswith("num_batches_tracked")}
        return back({n: recipe(f"{prefix}.{n}", shape, salt) for n, shape in names.items()})

    encoder = by_recipe("encoder", "backbone", lambda v: to_torch(v, "resnet18"), lambda s: from_torch(s, "resnet18"))
    projector = by_recipe("projector", "projector", projector_to_torch, projector_from_torch)
    params = {"encoder": encoder["params"], "projector": projector["params"]}
    stats = {"batch_stats": {"encoder": encoder["batch_stats"], "projector": projector["batch_stats"]}}

    params, stats = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, stats))

    config = config_lib.default().optimizer
    config.learning_rate_weights, config.learning_rate_biases = settings["base_lr_weights"], settings["base_lr_biases"]
    config.weight_decay, config.warmup_epochs = settings["weight_decay"], settings["warmup_epochs"]
    lengths = {k: settings[k] for k in ("batch_size", "steps_per_epoch", "epochs")}
    optimizer = make_optimizer(config, **lengths)
    state = TrainState(jnp.int32(0), params, stats, {}, optimizer.init(params))
    batch = {"views": np.stack([results["view_a_uint8"], results["view_b_uint8"]], axis=1)}
    return method, optimizer, state, batch, results


def test_golden_trajectory(golden):
    """A whole official run, 24 steps of warm-up and cosine: losses, gradients at the start, arrays at the end.

    The run amplifies rounding errors some tenfold a step from the third on: the official program itself, run again in
    float32 on another number of threads, differs from these losses by up to 6e-3 and from the arrays at the end by up to
    1.5e-2 (experiments/results/trajectory.md). So float32 is held to 1e-3 where that can be, and loosely after that; the
    exact comparison, in float64, is the next test.
    """
    method, optimizer, state, batch, results = official_start(golden)
    gradients = jax.jit(jax.grad(lambda p: method.loss(p, state.model_state, {}, batch, None)[0]))(state.params)
    for found, name in (
        (gradients["projector"]["linear1"]["kernel"], "grad_norm_projector0_step0"),
        (gradients["encoder"]["conv1"]["kernel"], "grad_norm_conv1_step0"),
    ):
        assert float(jnp.linalg.norm(found)) == pytest.approx(float(results[name]), rel=1e-3)

    state, losses = follow(method, optimizer, state, batch, 24)
    np.testing.assert_allclose(losses[:7], results["losses"][:7], rtol=1e-3)
    np.testing.assert_allclose(losses, results["losses"], rtol=2e-2)
    assert int(state.step) == 24
    params, stats = state.params, state.model_state["batch_stats"]
    for found, name in (
        (np.transpose(params["encoder"]["conv1"]["kernel"], (3, 2, 0, 1)), "backbone.conv1.weight"),
        (params["encoder"]["bn1"]["scale"], "backbone.bn1.weight"),
        (params["projector"]["bn1"]["bias"], "projector.1.bias"),
        (stats["encoder"]["bn1"]["mean"], "backbone.bn1.running_mean"),
        (stats["encoder"]["layer4_1"]["bn2"]["var"], "backbone.layer4.1.bn2.running_var"),
        (stats["projector"]["bn2"]["var"], "projector.4.running_var"),
    ):
        assert relative(found, results[f"final_{name}"]) < 3e-2, name


def test_golden_trajectory_in_float64(golden):
    """The same run in float64 equals the official step in float64 to 1e-12.

    Three steps, since XLA's float64 convolutions are slow on a CPU; BT_JAX_TRAJECTORY_STEPS=24 makes it the whole run.
    """
    steps = int(os.environ.get("BT_JAX_TRAJECTORY_STEPS", "3"))
    with jax.enable_x64(True):
        method, optimizer, state, batch, _ = official_start(golden, "float64")
        _, losses = follow(method, optimizer, state, batch, steps)
    np.testing.assert_allclose(losses, golden("trajectory_float64")["losses"][:steps], rtol=1e-12)


def follow(method, optimizer, state, batch, steps):
    """The state after so many steps on one batch, and the loss before each."""
    step = jax.jit(make_train_step(method, optimizer, seed=0))
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.parametrize("form", ["gram", "correlation"])
def test_the_device_count_is_not_a_hyper_parameter(form):
    """Five steps on one device and on eight: the same losses and gradients to 1e-5, on the same batches."""
    rng = np.random.default_rng(0)
    batches = rng.integers(0, 256, (5, 16, 2, 16, 16, 3), np.uint8)
    config = config_lib.default().optimizer
    optimizer = make_optimizer(config, batch_size=256, steps_per_epoch=2, epochs=12)
    runs = []
    for devices in (1, 8):
        mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
        method = small_method(mesh, form=form)
        state = init_state(method, optimizer, 0, (16, 16, 3), mesh)
        step = jax.jit(make_train_step(method, optimizer, seed=0), donate_argnums=0)
        gradient = jax.jit(jax.grad(lambda p, s, b, m=method: m.loss(p, s, {}, b, None)[0]))
        run = []
        for views in batches:
            batch = mesh_lib.put_batch(mesh, 16, {"views": views})
            found = jax.device_get(gradient(state.params, state.model_state, batch))
            state, metrics = step(state, batch)
            run.append((found, float(metrics["loss"])))
        assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {devices}
        runs.append((run, jax.device_get(state.params)))
    for (one, loss_one), (eight, loss_eight) in zip(runs[0][0], runs[1][0], strict=True):
        assert loss_eight == pytest.approx(loss_one, rel=1e-5)
        assert relative(_flat(eight), _flat(one)) < 1e-5
    assert relative(_flat(runs[1][1]), _flat(runs[0][1])) < 1e-5


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_state_is_born_where_it_lives():
    """Replicated over the mesh from its first moment; the optimiser's state too."""
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    optimizer = make_optimizer(config_lib.default().optimizer, batch_size=256, steps_per_epoch=2, epochs=12)
    state = init_state(small_method(mesh), optimizer, 3, (16, 16, 3), mesh)
    assert all(
        leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(state)
    )
    again = init_state(small_method(mesh), optimizer, 3, (16, 16, 3), mesh)
    jax.tree.map(np.testing.assert_array_equal, state, again)


def test_bfloat16_is_near_float32():
    """Computing in bfloat16 keeps parameters, statistics and optimiser in float32, and the loss near."""
    batch = {"views": np.random.default_rng(0).integers(0, 256, (16, 2, 16, 16, 3), np.uint8)}
    optimizer = make_optimizer(config_lib.default().optimizer, batch_size=256, steps_per_epoch=2, epochs=12)
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    losses = []
    for dtype in (jnp.float32, jnp.bfloat16):
        method = small_method(dtype=dtype)
        state = init_state(method, optimizer, 0, (16, 16, 3), mesh)
        state, metrics = jax.jit(make_train_step(method, optimizer, seed=0))(state, batch)
        floats = {leaf.dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)}
        assert floats == {jnp.dtype("float32")}
        losses.append(float(metrics["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
