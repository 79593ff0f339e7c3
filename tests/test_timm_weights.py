"""bt_jax/export/timm_weights.py: every tensor is converted, bit for bit, and none is ignored silently."""

import jax
import numpy as np
import pytest

from bt_jax.errors import UserError
from bt_jax.export import from_torch, to_torch
from bt_jax.export.torch_weights import classifier_name, see_sound, weights_of_state_dict
from bt_jax.export.weights import encoder_shapes
from bt_jax.models.vit import VITS, make_vit

HEAD = {"head.weight": np.ones((10, 12), np.float32), "head.bias": np.zeros(10, np.float32)}
PROJECTOR = {"0.weight": np.ones((6, 12), np.float32)}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(VITS, "vit_tiny", (12, 2, 3))


def tensors(prefix="", size=12):
    """A vit_tiny's for patches of 4 pixels, by timm's names."""
    rng = np.random.default_rng(0)
    shapes = encoder_shapes(make_vit("vit_tiny", patch_size=4), size)
    variables = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)
    return {f"{prefix}{name}": value for name, value in to_torch(variables, "vit_tiny").items()}


def test_round_trip_is_bit_equal():
    """Shapes are PyTorch's: (out, in) for linear layers, (out, 3, 4, 4) for the patches."""
    state = tensors()
    assert state["blocks.1.mlp.fc1.weight"].shape == (48, 12) and state["patch_embed.proj.weight"].shape == (
        12,
        3,
        4,
        4,
    )
    again = to_torch(from_torch(state, "vit_tiny"), "vit_tiny")
    assert again.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
def test_an_encoder_behind_any_prefix(prefix):
    """With its projector and its classifier, which timm calls head; patches and image size are read from shapes."""
    outer = "".join(f"{part}." for part in prefix.split(".")[:-2])
    state = tensors(prefix) | {f"{prefix}{name}": value for name, value in HEAD.items()}
    state |= {f"{outer}projector.{name}": value for name, value in PROJECTOR.items()}
    weights = weights_of_state_dict(state, "here")
    assert (weights.arch, weights.patch_size, weights.input_size) == ("vit_tiny", 4, 12)
    jax.tree.map(np.testing.assert_array_equal, weights.variables, from_torch(tensors(), "vit_tiny"))
    assert weights.variables.keys() == {"params"}
    assert jax.tree.map(np.shape, weights.variables) == jax.tree.map(lambda s: s.shape, weights.shapes())
    assert weights.classifier_variables["params"]["linear"]["kernel"].shape == (12, 10)
    assert weights.projector_variables["params"]["linear1"]["kernel"].shape == (12, 6)
    assert (classifier_name("vit_tiny"), classifier_name("resnet50")) == ("head", "fc")
    see_sound(weights)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"blocks.0.ls1.gamma": np.ones(12)}, "not the weights of a vit_tiny: blocks.0.ls1.gamma is unknown"),
        ({"head.0.weight": np.ones((3, 12))}, "not the weights of a linear classifier: .*head.0.weight is unknown"),
        ({"blocks.0.attn.qkv.bias": None}, "blocks.0.attn.qkv.bias is missing"),
        ({"norm.weight": np.ones(11)}, r"norm.weight is \(11,\) and must be \(12,\)"),
        (
            {"blocks.2.norm1.weight": np.ones(12)},
            "here holds a ViT of 3 blocks of width 12; known architectures: vit_tiny",
        ),
        (
            {"pos_embed": np.ones((1, 9, 12))},
            r"here holds a ViT, but pos_embed is \(1, 9, 12\), not \(1, 1 \+ n², width\)",
        ),
        ({"pos_embed": np.ones((1, 10**18 + 1, 0))}, r"pos_embed is \(1, 10+1, 0\), not"),
        ({"patch_embed.proj.weight": np.ones((12, 48))}, r"proj.weight is \(12, 48\), not \(width, 3, patch, patch\)"),
        (
            {"cls_token": None},
            "here holds no ResNet in torchvision's names, .*, and no ViT in timm's, cls_token, pos_embed",
        ),
        ({f"online.{name}": value for name, value in HEAD.items()}, "online.head.weight is unknown"),
    ],
)
def test_what_is_no_vit_of_timm(change, sentence):
    """One sentence, which names what is missing, unknown or of another shape."""
    state = {name: value for name, value in (tensors() | change).items() if value is not None}
    with pytest.raises(UserError, match=sentence) as error:
        weights_of_state_dict(state, "here")
    assert len(str(error.value)) < 700 and "\n" not in str(error.value)


def test_variables_of_another_network():
    with pytest.raises(
        UserError, match="not the variables of a vit_tiny: params/patch_embed or params/pos_embed is missing"
    ):
        to_torch({"params": {"conv1": {"kernel": np.ones((3, 3, 3, 4))}}}, "vit_tiny")
    with pytest.raises(UserError, match=r"params/cls_token is \(1, 1, 12\) and must be \(1, 1, 384\)"):
        to_torch(from_torch(tensors(), "vit_tiny"), "vit_small")
