"""bt_jax/export/torch_weights.py: every tensor travels, bit for bit, and none unseen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax.errors import UserError
from bt_jax.export import from_torch, projector_from_torch, projector_to_torch, to_torch
from bt_jax.models import Projector, make_encoder


def variables_of(arch, **settings):
    module = make_encoder(arch, **settings)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)


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


def test_names_are_torchvisions(golden):
    """The names of torchvision's own state dict, as the golden files list them."""
    for arch in ("resnet18", "resnet50"):
        assert set(to_torch(variables_of(arch, width=4), arch)) == set(golden(arch)["names"])


def test_projector_round_trip():
    module = Projector((8, 6, 4))
    variables = jax.tree.map(np.asarray, module.init(jax.random.key(0), jnp.zeros((2, 5)), train=False))
    state = projector_to_torch(variables)
    assert {"0.weight", "1.running_var", "3.weight", "4.bias", "6.weight"} < set(state)
    again = projector_to_torch(projector_from_torch(state))
    for name, value in state.items():
        np.testing.assert_array_equal(again[name], value)


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
