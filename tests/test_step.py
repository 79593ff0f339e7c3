"""bt_jax/engine/step.py and state.py: a whole official run, and the same results on any number of devices."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from recipes import (
    SIZES,
    five_steps,
    pair_method,
    recipe,
    relative,
    small_method,
    small_optimizer,
    spec_of,
    three_steps_of_two_sizes,
)

from bt_jax import config as config_lib
from bt_jax.engine.state import TrainState, abstract_state, check_split, count_parameters, init_state
from bt_jax.engine.step import jit_step, make_train_step
from bt_jax.errors import UserError
from bt_jax.export import from_torch, projector_from_torch, projector_to_torch, to_torch
from bt_jax.facts import Facts
from bt_jax.methods import BarlowTwins
from bt_jax.models import Projector, make_encoder
from bt_jax.models.inputs import Inputs
from bt_jax.optim import make_optimizer
from bt_jax.planning.compiled import collectives
from bt_jax.runtime import mesh as mesh_lib

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def official_start(golden, dtype="float32"):
    """Method, optimiser, state and batch of trajectory.npz, and its arrays."""
    results = golden("trajectory")
    settings = json.loads(str(results["settings"]))
    method = BarlowTwins(
        encoder=make_encoder(settings["arch"], dtype=jnp.dtype(dtype)),
        projector=Projector(tuple(settings["projector"]), dtype=jnp.dtype(dtype)),
        inputs=Inputs(48, *IMAGENET, jnp.dtype(dtype)),
        lambd=settings["lambd"],
    )
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), spec_of(method)))
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
    size, steps = settings["batch_size"], settings["steps_per_epoch"]
    optimizer = make_optimizer(config, Facts(size * steps, 0, batch_size=size, epochs=settings["epochs"]))
    state = TrainState(jnp.int32(0), params, stats, {}, optimizer.init(params))
    batch = {"views": {"pair": np.stack([results["view_a_uint8"], results["view_b_uint8"]], axis=1)}}
    return method, optimizer, state, batch, results


def test_golden_trajectory(golden):
    """A whole official run, 24 steps of warm-up and cosine: losses, gradients at the start, arrays at the end.

    The run amplifies rounding errors some tenfold a step from the third on: the official program itself, run again in
    float32 on another number of threads, differs from these losses by up to 6e-3 and from the arrays at the end by up to
    1.5e-2 (experiments/results/trajectory.md). So float32 is held to 1e-3 where that can be, and loosely after that; the
    exact comparison, in float64, is the next test.
    """
    method, optimizer, state, batch, results = official_start(golden)
    gradients = jax.jit(jax.grad(lambda p: method.loss(p, state.model_state, {}, batch, 0, None)[0]))(state.params)
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
    # 24 steps run for longer than they compile, other than in most tests: see conftest.py.
    step = jax.jit(make_train_step(method, optimizer, seed=0), compiler_options={"xla_backend_optimization_level": 1})
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture(scope="module")
def of_one_device():
    """Parameters and losses of five steps on one device; the form changes nothing (tests/test_losses_barlow_twins.py)."""
    state, losses = five_steps(mesh_lib.make_mesh(ConfigDict({"data": 1})))
    return jax.device_get(state.params), losses


@pytest.mark.parametrize(("model", "form"), [(1, "gram"), (1, "correlation"), (2, "gram"), (2, "correlation")])
def test_the_device_count_is_not_a_hyper_parameter(of_one_device, model, form):
    """Five steps on one device, on eight, and on four by two: the same losses and parameters to 1e-5."""
    mesh = mesh_lib.make_mesh(ConfigDict({"data": -1, "model": model}))
    state, losses = five_steps(mesh, form=form)
    params, expected = of_one_device
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert relative(_flat(jax.device_get(state.params)), _flat(params)) < 1e-5
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {8}
    method = small_method(mesh, sizes=SIZES)
    planned = abstract_state(method, small_optimizer(), spec_of(method), mesh)
    for leaf, plan in zip(jax.tree.leaves(state), jax.tree.leaves(planned), strict=True):
        assert leaf.sharding.is_equivalent_to(plan.sharding, leaf.ndim), "steps leave everything where it was"


def test_views_of_two_sizes_on_any_number_of_devices():
    """Three steps on one device and on eight, of a batch with two groups: losses and parameters to 1e-5."""
    losses, params = zip(
        *(three_steps_of_two_sizes(mesh_lib.make_mesh(ConfigDict({"data": n}))) for n in (1, 8)), strict=True
    )
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert relative(params[1], params[0]) < 1e-5


def test_gradients_on_eight_devices_are_those_of_one():
    """To 1e-5, on one batch."""
    views = np.random.default_rng(0).integers(0, 256, (16, 2, 16, 16, 3), np.uint8)
    found = []
    for data in (1, 8):
        mesh = mesh_lib.make_mesh(ConfigDict({"data": data}))
        method = small_method(mesh)
        state = init_state(method, small_optimizer(), 0, spec_of(method), mesh)
        gradient = jax.jit(jax.grad(lambda p, s, b, m=method: m.loss(p, s, {}, b, 0, None)[0]))
        found.append(
            _flat(gradient(state.params, state.model_state, mesh_lib.put_batch(mesh, 16, {"views": {"pair": views}})))
        )
    assert relative(found[1], found[0]) < 1e-5


def test_a_model_axis_halves_the_projector():
    """On each device: kernels and their momentum to exactly half; all of it, batch norms included, to 51 %."""
    held = {}
    for model in (1, 2):
        mesh = mesh_lib.make_mesh(ConfigDict({"data": -1, "model": model}))
        method = small_method(mesh, sizes=(64, 64, 64))
        state = init_state(method, small_optimizer(), 0, spec_of(method), mesh)
        for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)):
            name = jax.tree_util.keystr(path)
            if "projector" in name:
                sizes = {shard.data.nbytes for shard in leaf.addressable_shards}
                assert len(sizes) == 1 and len(leaf.addressable_shards) == 8
                held[name, model] = sizes.pop()
    kernels = {name for name, _ in held if "kernel" in name}
    assert len(kernels) == 6, "three layers, each with its momentum"
    for name in kernels:
        assert held[name, 1] == 2 * held[name, 2]
    assert sum(v for (_, m), v in held.items() if m == 2) < 0.51 * sum(v for (_, m), v in held.items() if m == 1)


def test_the_compiled_step_sends_no_d_squared_for_its_loss():
    """On 8 devices 4·N·D/P numbers by all-to-alls and 2·N² by an all-reduce; the rest is gradients and statistics."""
    n, d, devices = 32, 256, 8
    mesh = mesh_lib.make_mesh(ConfigDict({"data": devices}))
    method, optimizer = small_method(mesh, sizes=(16, d)), small_optimizer()
    state = abstract_state(method, optimizer, spec_of(method, n), mesh)
    views = jax.ShapeDtypeStruct((n, 2, 16, 16, 3), jnp.uint8, sharding=mesh_lib.over_batch(mesh))
    step = jit_step(make_train_step(method, optimizer, 0), state, mesh)
    found = collectives(step.lower(state, {"views": {"pair": views}}).compile().as_text(), devices)
    assert {c.kind for c in found} == {"all-reduce", "all-to-all"} and {c.group for c in found} == {devices}
    moved = sum(c.bytes for c in found if c.kind == "all-to-all")
    assert moved == 4 * 4 * n * d / devices
    shapes = [shape for c in found for shape in c.shapes]
    assert shapes.count(("f32", (n, n))) == 2
    assert not any(dims == (d, d) for _, dims in shapes)
    gradients = 4 * count_parameters(state.params)
    # For each view and channel, of each norm two sums forward and three back at most.
    channels = sum(leaf.size for leaf in jax.tree.leaves(state.model_state)) // 2
    statistics = 4 * 2 * 5 * channels
    of_loss = sum(c.bytes for c in found) - gradients
    assert moved + 8 * n * n <= of_loss <= moved + 8 * n * n + statistics + 64


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_state_is_born_where_it_lives():
    """Replicated over the mesh from the start; the optimiser's state too."""
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    optimizer = small_optimizer()
    method = small_method(mesh)
    state = init_state(method, optimizer, 3, spec_of(method), mesh)
    assert all(
        leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(state)
    )
    again = init_state(method, optimizer, 3, spec_of(method), mesh)
    jax.tree.map(np.testing.assert_array_equal, state, again)


def test_bfloat16_is_near_float32():
    """Computing in bfloat16 keeps parameters, statistics and optimiser in float32, and the loss close."""
    batch = {"views": {"pair": np.random.default_rng(0).integers(0, 256, (16, 2, 16, 16, 3), np.uint8)}}
    optimizer = small_optimizer()
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    losses = []
    for dtype in (jnp.float32, jnp.bfloat16):
        method = small_method(dtype=dtype)
        state = init_state(method, optimizer, 0, spec_of(method), mesh)
        state, metrics = jax.jit(make_train_step(method, optimizer, seed=0))(state, batch)
        floats = {leaf.dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)}
        assert floats == {jnp.dtype("float32")}
        losses.append(float(metrics["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("name", ["simclr", "vicreg"])
def test_a_method_that_splits_nothing(name):
    """An axis "model" would only repeat all its layers; Barlow Twins splits its projector."""
    mesh = mesh_lib.make_mesh(ConfigDict({"data": 4, "model": 2}))
    method = pair_method(name, mesh)
    with pytest.raises(
        UserError, match=f"mesh.model is 2, but {method.title} has no layers that are split over devices; "
    ):
        check_split(method, abstract_state(method, small_optimizer(), spec_of(method), mesh), mesh)
    split = small_method(mesh)
    check_split(split, abstract_state(split, small_optimizer(), spec_of(split), mesh), mesh)
    alone = mesh_lib.make_mesh(ConfigDict({"data": 8}))
    check_split(method, abstract_state(method, small_optimizer(), spec_of(method), alone), alone)
