"""bt_jax/export/torch_weights.py: every tensor is converted, bit for bit, and none is ignored silently."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax.errors import UserError
from bt_jax.export import (
    classifier_from_torch,
    classifier_to_torch,
    from_torch,
    projector_from_torch,
    projector_to_torch,
    to_torch,
)
from bt_jax.export.torch_weights import see_sound, weights_of_state_dict
from bt_jax.models import LinearClassifier, Projector, make_encoder


@functools.cache
def shapes_of(arch, **settings):
    module = make_encoder(arch, **settings)
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))


def variables_of(arch, **settings):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes_of(arch, **settings))


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_round_trip_is_bit_equal(arch):
    """There and back again, counters included, for torchvision's stem and the small one."""
    for settings in ({"width": 8}, {"width": 4, "small_images": True}):
        state = to_torch(variables_of(arch, **settings), arch)
        state["bn1.num_batches_tracked"] = np.array(12345, np.int64)
        again = to_torch(from_torch(state, arch), arch)
        assert again.keys() == state.keys()
        for name, value in state.items():
            assert again[name].dtype == value.dtype
            np.testing.assert_array_equal(again[name], value, err_msg=name)


@pytest.mark.parametrize("arch", ["resnet152", "resnet200"])
def test_the_deepest_networks(arch):
    """Recognised, and bit-equal after a round trip; once, as tracing them takes seconds."""
    state = to_torch(variables_of(arch, width=2), arch)
    found = weights_of_state_dict(state, "here")
    assert (found.arch, found.width, found.small_images) == (arch, 2, False)
    again = to_torch(found.variables, arch)
    assert again.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_names_are_torchvisions(golden):
    """The names of torchvision's own state dict, as the golden files list them."""
    for arch in ("resnet18", "resnet50"):
        assert set(to_torch(variables_of(arch, width=4), arch)) == set(golden(arch)["names"])


def test_a_projector_of_other_names():
    """Is named, for any names of layers."""
    with pytest.raises(UserError, match="fc1.weight"):
        projector_from_torch({"0.weight": np.zeros((4, 5), np.float32), "fc1.weight": np.zeros((4, 4), np.float32)})
    with pytest.raises(UserError, match="not the weights of a projector"):
        projector_from_torch({"fc1.weight": np.zeros((4, 4), np.float32)})


def test_projector_round_trip():
    module = Projector((8, 6, 4))
    variables = jax.tree.map(np.asarray, module.init(jax.random.key(0), jnp.zeros((2, 5)), train=False))
    state = projector_to_torch(variables)
    assert {"0.weight", "1.running_var", "3.weight", "4.bias", "6.weight"} < set(state)
    again = projector_to_torch(projector_from_torch(state))
    for name, value in state.items():
        np.testing.assert_array_equal(again[name], value)


def test_variables_that_are_none():
    """Only the parameters, without their name."""
    with pytest.raises(UserError, match="these are not the variables of a resnet18: params/conv1 is missing"):
        to_torch(variables_of("resnet18", width=2)["params"], "resnet18")


def test_every_fault_is_listed():
    """Unknown, missing and misshapen, in one sentence."""
    state = to_torch(variables_of("resnet18", width=4), "resnet18")
    del state["layer1.0.bn1.bias"]
    state["fc.weight"] = np.zeros((10, 32), np.float32)
    state["layer2.0.conv1.weight"] = np.zeros((8, 4, 1, 1), np.float32)
    with pytest.raises(UserError) as error:
        from_torch(state, "resnet18")
    for part in (
        "fc.weight is unknown",
        "layer1.0.bn1.bias is missing",
        "layer2.0.conv1.weight is (8, 4, 1, 1) and must be (8, 4, 3, 3)",
    ):
        assert part in str(error.value)
    with pytest.raises(UserError, match="conv1.weight"):
        from_torch({}, "resnet18")
    with pytest.raises(UserError, match="bn3/scale is missing"):
        to_torch(variables_of("resnet18", width=4), "resnet50")
    with pytest.raises(ValueError, match="no encoder 'resnet51'.*did you mean 'resnet50'"):
        from_torch(state, "resnet51")


def test_projector_of_many_layers():
    """The names follow the numbers, beyond nine as well."""
    module = Projector((4,) * 11)
    variables = jax.tree.map(np.asarray, module.init(jax.random.key(0), jnp.zeros((2, 5)), train=False))
    state = projector_to_torch(variables)
    assert state["30.weight"].shape == (4, 4) and "28.running_mean" in state
    again = projector_from_torch(state)
    np.testing.assert_array_equal(again["params"]["linear10"]["kernel"], variables["params"]["linear10"]["kernel"])


def test_classifier_round_trip():
    rng = np.random.default_rng(0)
    state = {"fc.weight": rng.random((7, 5), np.float32), "fc.bias": rng.random(7, np.float32)}
    variables = classifier_from_torch(state)
    assert variables["params"]["linear"]["kernel"].shape == (5, 7)
    for name, value in classifier_to_torch(variables).items():
        np.testing.assert_array_equal(value, state[name])
    with pytest.raises(UserError, match="fc.bias is missing"):
        classifier_from_torch({"fc.weight": state["fc.weight"]})


def test_a_classifiers_batch_norm_becomes_part_of_it():
    """The same logits by one linear layer."""
    rng = np.random.default_rng(0)
    module, features = LinearClassifier(7, batch_norm=True), rng.standard_normal((6, 5)).astype(np.float32)
    variables = jax.tree.map(
        lambda x: rng.uniform(0.5, 2, x.shape).astype(np.float32), module.init(jax.random.key(0), features)
    )
    state = classifier_to_torch(variables)
    assert {name: value.dtype for name, value in state.items()} == dict.fromkeys(("fc.weight", "fc.bias"), np.float32)
    expected = module.apply(variables, features)
    np.testing.assert_allclose(features @ state["fc.weight"].T + state["fc.bias"], expected, rtol=1e-5, atol=1e-5)


def small(prefix="", arch="resnet18", **settings):
    state = to_torch(variables_of(arch, **({"width": 4} | settings)), arch)
    return {f"{prefix}{name}": value for name, value in state.items()}


PROJECTOR = {"0.weight": np.ones((6, 32), np.float32)}
FC = {"fc.weight": np.ones((10, 32), np.float32), "fc.bias": np.zeros(10, np.float32)}


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "encoder.", "state.model.encoder."])
def test_an_encoder_behind_any_prefix(prefix):
    """With its projector and its classifier, if it has them; the loss's statistics are left out."""
    outer = "".join(f"{part}." for part in prefix.split(".")[:-2])
    state = small(prefix) | {f"{prefix}{name}": value for name, value in FC.items()}
    state |= {f"{outer}projector.{name}": value for name, value in PROJECTOR.items()}
    state |= {f"{outer}bn.running_mean": np.zeros(6, np.float32)}
    weights = weights_of_state_dict(state, "here")
    assert (weights.arch, weights.width, weights.small_images, weights.input_size) == ("resnet18", 4, False, 224)
    expected = from_torch(small(), "resnet18")
    np.testing.assert_array_equal(
        weights.variables["params"]["layer4_1"]["conv2"]["kernel"], expected["params"]["layer4_1"]["conv2"]["kernel"]
    )
    assert "batches" not in weights.variables["batch_stats"]["bn1"], "the module itself makes none"
    assert weights.projector_variables["params"]["linear1"]["kernel"].shape == (32, 6)
    assert weights.classifier_variables["params"]["linear"]["kernel"].shape == (32, 10)


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_the_architecture_is_told_by_names_and_shapes(arch):
    found = weights_of_state_dict(small(arch=arch, width=2, small_images=True), "here")
    assert (found.arch, found.width, found.small_images, found.input_size) == (arch, 2, True, 32)
    assert found.projector_variables is None and found.classifier_variables is None


def numbered(prefix):
    """An encoder as torch.nn.Sequential(*list(resnet.children())[:-1]) names it."""
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    parts = {name.partition("."): value for name, value in small().items()}
    return {f"{prefix}{numbers[first]}.{rest}": value for (first, _, rest), value in parts.items()}


ZEROS = np.zeros((4, 4), np.float32)


@pytest.mark.parametrize(
    ("state", "left_out"),
    [
        (
            lambda: small("backbone.") | small("momentum_backbone.") | {"classifier.weight": ZEROS, "classifier.bias": ZEROS[0]}
            | {"projector.0.weight": ZEROS, "projector.0.bias": ZEROS[0], "momentum_projector.0.weight": ZEROS}
            | {"queue": ZEROS, "queue_ptr": ZEROS},
            "classifier.*, momentum_backbone.*, momentum_projector.*, projector.*, queue, queue_ptr",
        ),
        (lambda: numbered("backbone.") | {"projection_head.layers.0.weight": ZEROS}, "projection_head.*"),
        (
            lambda: numbered("backbone.") | numbered("backbone_momentum.") | {"criterion.memory_bank.bank": ZEROS},
            "backbone_momentum.*, criterion.*",
        ),
        (lambda: numbered("model.backbone.") | {"model.prediction_head.layers.0.weight": ZEROS}, "model.prediction_head.*"),
        (lambda: numbered(""), ""),
    ],
)  # fmt: skip
def test_files_of_solo_learn_and_lightly(state, left_out):
    """The encoder is taken, and the message says what was left out."""
    weights = weights_of_state_dict(state(), "here")
    assert weights.source == (f"here, without its {left_out}" if left_out else "here") and not weights.heads
    expected = weights_of_state_dict(small(), "here").variables
    jax.tree.map(np.testing.assert_array_equal, weights.variables, expected)


def test_the_stem_of_solo_learn_is_padded_by_two():
    """In its networks for small images, which torchvision's names do not tell; lightly's and others' are padded by one."""
    beside = {"classifier.weight": ZEROS, "classifier.bias": ZEROS[0]}
    shallow = small(small_images=True)
    ours = {f"backbone.{name}": value for name, value in shallow.items()}
    found = weights_of_state_dict(ours | beside, "here")
    assert (found.small_images, found.stem_padding) == (True, 2)
    assert weights_of_state_dict(shallow, "here").stem_padding == 1
    assert weights_of_state_dict(small("backbone.") | beside, "here").stem_padding == 1, "of 7 × 7"
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    one = weights_of_state_dict(shallow, "here").module()
    np.testing.assert_allclose(
        found.module().apply(found.variables, images, train=False),
        one.apply(found.variables, wide, train=False),
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_own_resnet_of_lightly():
    """Its children have other numbers, and the downsampling is a shortcut."""
    numbers = {"conv1": "0", "bn1": "1", "layer1": "2", "layer2": "3", "layer3": "4", "layer4": "5"}
    parts = {name.partition("."): value for name, value in small(small_images=True).items()}
    state = {
        f"backbone.{numbers[a]}.{b.replace('downsample', 'shortcut')}": value for (a, _, b), value in parts.items()
    }
    found = weights_of_state_dict(state | {"projection_head.layers.0.weight": ZEROS}, "here")
    expected = weights_of_state_dict(small(small_images=True), "here")
    assert (found.arch, found.small_images, found.stem_padding) == (expected.arch, True, 1)
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)


def test_unknown_networks_in_one_line():
    """Not a list of all their tensors."""
    known, shape = to_torch(variables_of("resnet50", width=4), "resnet50"), (8, 2, 3, 3)
    grouped = {n: np.zeros(shape, np.float32) if n.endswith("conv2.weight") else v for n, v in known.items()}
    wide = {n: np.repeat(v, 2, 0) if n.endswith(".conv1.weight") else v for n, v in known.items()}
    odd = {
        n: np.zeros((3, *v.shape[1:]), np.float32) if n.startswith("layer") and v.ndim else v for n, v in known.items()
    }
    for state, sentence in (
        (grouped, r"here holds a ResNeXt \(convolutions of 4 groups\) of 3-4-6-3 bottleneck blocks; known archit"),
        (wide, r"here holds a Wide ResNet \(8 channels within the first block where a ResNet has 4\) of 3-4-6-3"),
        ({f"blocks.{i}.weight": ZEROS for i in range(500)}, "here holds no ResNet in torchvision's names"),
        (
            odd | {"layer1.0.conv1.weight": known["layer1.0.conv1.weight"], "layer1.0.conv2.weight": ZEROS},
            "; and 2.. more",
        ),
    ):
        with pytest.raises(UserError, match=sentence) as error:
            weights_of_state_dict(state, "here")
        assert len(str(error.value)) < 700 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("bn1.running_var", -0.5, "encoder/bn1/var, a variance, is -0.5"),
        ("layer4.1.bn2.running_var", np.nan, "encoder/layer4_1/bn2/var is not finite"),
        ("conv1.weight", np.inf, "encoder/conv1/kernel is not finite"),
        ("fc.bias", np.nan, "classifier/linear/bias is not finite"),
    ],
)
def test_weights_that_cannot_be_right(name, value, sentence):
    state = {n: np.abs(v) for n, v in (small() | FC).items()}
    see_sound(weights_of_state_dict(state, "here"))
    state[name] = np.full_like(state[name], value)
    with pytest.raises(UserError, match=f"the weights of here are damaged, or their training diverged: {sentence}"):
        see_sound(weights_of_state_dict(state, "here"))


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("conv1.weight", "conv1.wieght"),
        ("bn1.weight", "bn_1.weight"),
        ("layer1.0.conv1.weight", "layer1.0.conv_1.weight"),
        ("layer1.0.conv3.weight", "layer1.0.conv3.weights"),
        ("layer4.2.conv1.weight", "layer4.2.con1.weight"),
        ("layer4.2.bn3.running_var", "layer4.2.bn3.runing_var"),
        ("layer2.0.downsample.0.weight", "layer2.0.downsampel.0.weight"),
    ],
)
def test_a_mistake_in_one_name(prefix, name, mistake):
    """Names it and what is meant, wherever it is."""
    state = small(prefix, "resnet50")
    state[prefix + mistake] = state.pop(prefix + name)
    with pytest.raises(UserError) as error:
        weights_of_state_dict(state, "here")
    assert mistake in str(error.value) and f"{name}" in str(error.value).replace(mistake, ""), str(error.value)
    assert len(str(error.value)) < 300 or "known" in str(error.value)


def test_a_mistake_in_a_name_of_a_head():
    heads = {f"module.projector.{n}": v for n, v in PROJECTOR.items()} | {
        f"module.backbone.{n}": v for n, v in FC.items()
    }
    for name, mistake, sentence in (
        (
            "module.projector.0.weight",
            "module.projector.0.wieght",
            "layer 0.weight is missing; 0.wieght may be meant for it",
        ),
        ("module.backbone.fc.bias", "module.backbone.fc.bais", r"fc.bais is unknown \(did you mean fc.bias\?\)"),
        (
            "module.backbone.bn1.bias",
            "module.bakbone.bn1.bias",
            r"module.bakbone.bn1.bias is unknown.*bn1.bias is missing",
        ),
    ):
        state = small("module.backbone.") | heads
        state[mistake] = state.pop(name)
        with pytest.raises(UserError, match=sentence):
            weights_of_state_dict(state, "here")


def test_no_tensor_is_left_unseen():
    """None, several, of an unknown architecture, or with tensors that belong to nothing."""
    for state, sentence in (
        ({"w": np.zeros(3)}, "here holds no ResNet in torchvision's names"),
        (small("online.") | small("target."), r"several encoders \(online.*, target.*\); keep one"),
        (
            small() | {"layer1.2.conv1.weight": np.zeros(1)},
            "a ResNet of 3-2-2-2 basic blocks; known architectures: resnet18",
        ),
        (small() | {"queue": np.zeros(3), "fc.0.weight": np.zeros(3)}, "queue is unknown"),
        (small() | {"fc.0.weight": np.zeros(3)}, "fc.0.weight is unknown; fc.weight is missing|fc.0.weight is unknown"),
        (small("module.backbone.") | {"module.head.weight": np.zeros(3)}, "module.head.weight is unknown"),
        (small() | {"projector.1.weight": np.zeros(3)}, "not the weights of a projector"),
    ):
        with pytest.raises(UserError, match=sentence):
            weights_of_state_dict(state, "here")
