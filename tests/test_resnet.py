"""bt_jax/models/resnet.py against the official networks, and the shapes that it documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals
from recipes import one_program, recipe, relative, training

from bt_jax.export import from_torch, to_torch
from bt_jax.export.weights import encoder_shapes
from bt_jax.models import make_encoder, resnet
from bt_jax.models.resnet import BLOCKS, ResNet
from bt_jax.runtime import mesh as mesh_lib


def official(golden, arch):
    """The encoder, its variables by the recipe, and the golden results."""
    results = golden(arch)
    encoder = make_encoder(arch)
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    names = {n: v.shape for n, v in to_torch(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes), arch).items()}
    assert set(results["names"]) == set(names)
    salt = int(results["salt"])
    state = {n: recipe(n, s, salt) for n, s in names.items() if not n.endswith("num_batches_tracked")}
    return encoder, from_torch(state, arch), results


def started(encoder, images):
    """Its first variables."""
    return one_program(encoder.init, "train")(jax.random.key(0), images, train=False)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_golden_features(golden, arch):
    """Features of the official network, evaluating and training, and the statistics after, to 1e-4."""
    encoder, variables, results = official(golden, arch)
    images = results["images_nhwc"]
    assert (
        relative(one_program(encoder.apply, "train")(variables, images, train=False), results["features_eval"]) < 1e-4
    )
    features, after = training(encoder)(variables, images)
    assert relative(features, results["features_train"]) < 1e-4
    stats = after["batch_stats"]
    last, norm = ("layer4_1", "bn2") if arch == "resnet18" else ("layer4_2", "bn3")
    assert relative(stats["bn1"]["mean"], results["bn1_running_mean_after"]) < 1e-4
    assert relative(stats["bn1"]["var"], results["bn1_running_var_after"]) < 1e-4
    assert relative(stats[last][norm]["var"], results["layer4_last_bn_running_var_after"]) < 1e-4


@pytest.mark.parametrize("arch", BLOCKS)
def test_shapes(arch):
    """Width 64 gives torchvision's 512 or 2048 features; views come out as they went in."""
    for width, small in ((64, False), (8, True)):
        encoder = make_encoder(arch, width=width, small_images=small)
        out = jax.eval_shape(
            lambda e=encoder: e.init_with_output(jax.random.key(0), jnp.zeros((2, 3, 32, 32, 3)), train=False)
        )
        assert out[0].shape == (2, 3, encoder.num_features)
        assert encoder.num_features == width * (8 if arch in ("resnet18", "resnet34") else 32)


@pytest.mark.parametrize(
    ("arch", "width", "parameters"),
    [
        ("resnet152", 64, 58_143_808),  # torchvision's 60 192 808 without its classifier's 2 049 000
        ("resnet50", 128, 93_907_072),  # "ResNet-50 (2×)", 94 M: Grill et al. 2020, table 1
        ("resnet200", 128, 250_128_512),  # "ResNet-200 (2×)", 250 M: the same
    ],
)
def test_parameters_are_those_of_the_papers(arch, width, parameters):
    shapes = encoder_shapes(make_encoder(arch, width=width))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == parameters


def test_views_are_normalised_apart():
    """Two views in one call are two calls of the official program: same features, same statistics."""
    encoder = make_encoder("resnet18", width=4, small_images=True)
    views = jax.random.normal(jax.random.key(1), (6, 2, 16, 16, 3)) * jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1, 1)
    variables, train = started(encoder, views), training(encoder)
    together, after = train(variables, views)
    apart, stats = [], variables["batch_stats"]
    for v in range(2):
        features, new = train({**variables, "batch_stats": stats}, views[:, v])
        apart.append(features)
        stats = new["batch_stats"]
    np.testing.assert_allclose(together, jnp.stack(apart, 1), rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after["batch_stats"], stats)


def test_last_norm_of_a_block_starts_at_zero(monkeypatch):
    """So that each block begins as the identity (the official zero_init_residual); of two stages, the others are like the second."""
    for arch, norm in (("resnet18", "bn2"), ("resnet50", "bn3")):
        monkeypatch.setitem(resnet.BLOCKS, arch, (1, 2))
        params = started(make_encoder(arch, width=4), jnp.zeros((1, 32, 32, 3)))["params"]
        for name, block in params.items():
            if name.startswith("layer"):
                assert not block[norm]["scale"].any() and block["bn1"]["scale"].all()
        plain = started(make_encoder(arch, width=4, zero_init_residual=False), jnp.zeros((1, 32, 32, 3)))["params"]
        assert all(block[norm]["scale"].all() for name, block in plain.items() if name.startswith("layer"))


def test_convolutions_start_as_torchvisions():
    """Normal with variance 2 / fan_out, here of layers with many more outputs than inputs and the reverse."""
    variables = started(make_encoder("resnet18", width=32), jnp.zeros((1, 32, 32, 3)))
    for layer in ("conv1", ("layer2_0", "conv1"), ("layer3_0", "downsample_conv")):
        params = variables["params"]
        for name in (layer,) if isinstance(layer, str) else layer:
            params = params[name]
        side, _, _, outputs = params["kernel"].shape
        assert float(params["kernel"].std()) == pytest.approx(np.sqrt(2 / (side**2 * outputs)), rel=0.05), layer


def test_bfloat16_keeps_float32_parameters_and_statistics():
    encoder = make_encoder("resnet18", width=4, small_images=True, dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    variables = started(encoder, images)
    features, after = training(encoder)(variables, images)
    assert features.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, after))} == {jnp.dtype("float32")}
    exact, _ = training(make_encoder("resnet18", width=4, small_images=True))(variables, images)
    assert relative(features, exact) < 0.05


def test_statistics_are_of_the_global_batch():
    """Eight devices with two images each normalise as one device with sixteen."""
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    encoder = make_encoder("resnet18", width=4, small_images=True)
    images = jax.random.normal(jax.random.key(0), (16, 2, 16, 16, 3))
    variables, apply = started(encoder, images), training(encoder)
    one, after_one = apply(variables, images)
    spread = jax.device_put(images, mesh_lib.over_batch(mesh))
    many, after_many = apply(jax.device_put(variables, mesh_lib.everywhere(mesh)), spread)
    assert len(many.sharding.device_set) == 8
    assert relative(many, one) < 1e-5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after_many, after_one)


def test_bad_input():
    with pytest.raises(ValueError, match="no encoder 'resnet5'.*did you mean 'resnet50'"):
        make_encoder("resnet5")
    with pytest.raises(ValueError, match=r"images is \(1, 32, 32\)"):
        make_encoder("resnet18").init(jax.random.key(0), jnp.zeros((1, 32, 32)), train=False)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_remat_keeps_less_and_computes_the_same(bottleneck, capsys):
    """Loss, statistics and gradients to 1e-5 of those without; of the activations, only convolutions' outputs are kept."""
    encoders = [
        ResNet((2, 1), bottleneck, small_images=not bottleneck, width=4, remat=remat) for remat in (False, True)
    ]
    assert encoders[0] == encoders[1]  # the same network, for exports and evaluations
    images = jax.random.normal(jax.random.key(1), (4, 2, 32, 32, 3))
    variables = started(encoders[0], images)
    assert jax.tree.structure(variables) == jax.tree.structure(encoder_shapes(encoders[1]))

    def loss(params, encoder):
        features, new = encoder.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(features)), new

    results, kept = [], []
    for encoder in encoders:
        results.append(jax.jit(jax.value_and_grad(lambda p, e=encoder: loss(p, e), has_aux=True))(variables["params"]))
        print_saved_residuals(lambda p, e=encoder: loss(p, e)[0], variables["params"])
        shapes = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "from the argument" not in line]
        kept.append([s for s in shapes if s.count(",") == 3 and s.partition("[")[2].startswith("8,")])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *results)
    convolutions = sum(leaf.ndim == 4 for leaf in jax.tree.leaves(variables["params"]))
    assert len(kept[1]) <= convolutions + 1 < len(kept[0]) / 2  # and the images
