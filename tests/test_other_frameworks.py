"""bt_jax/export/other_frameworks.py: names of Detectron2, and the folder for timm and the hub; loaded there if it is installed."""

import dataclasses
import json
import pickle

import jax
import numpy as np
import pytest
from etils import epath

import bt_jax
from bt_jax import config as config_lib
from bt_jax.errors import UserError
from bt_jax.export.encoder import read_weights
from bt_jax.export.other_frameworks import check_standard, detectron2_names, detectron2_settings, model_card
from bt_jax.export.safetensors_files import read_safetensors, write_safetensors
from bt_jax.export.torch_weights import to_torch
from bt_jax.export.weights import encoder_shapes
from bt_jax.models.resnet import make_resnet
from bt_jax.tasks.export import export


def tensors_of(arch, **settings):
    """Random tensors by torchvision's names."""
    rng = np.random.default_rng(0)
    shapes = encoder_shapes(make_resnet(arch, **settings))
    variables = jax.tree.map(lambda x: rng.uniform(0.5, 1, x.shape).astype(np.float32), shapes)
    return to_torch(variables, arch)


def exported(tmp_path, **settings):
    tensors = tensors_of("resnet18", **settings)
    write_safetensors(epath.Path(tmp_path / "in.safetensors"), tensors, {})
    config = config_lib.default("export")
    config.init_from = str(tmp_path / "in.safetensors")
    config.export.update(hub=True, detectron2=True, program=False)
    return tensors, export(config, str(tmp_path / "out"))


def test_names_of_detectron2():
    """Those of its ResNet-50, in number and for each kind; nothing is lost."""
    tensors = {name: np.array(i) for i, name in enumerate(_names_of_resnet50())}
    found = detectron2_names(tensors)
    assert len(found) == 53 * 5 and len({int(value) for value in found.values()}) == len(found)
    for ours, theirs in {
        "conv1.weight": "stem.conv1.weight",
        "bn1.running_var": "stem.conv1.norm.running_var",
        "layer1.0.conv2.weight": "res2.0.conv2.weight",
        "layer1.0.bn3.bias": "res2.0.conv3.norm.bias",
        "layer2.0.downsample.0.weight": "res3.0.shortcut.weight",
        "layer4.0.downsample.1.running_mean": "res5.0.shortcut.norm.running_mean",
        "layer4.2.bn1.weight": "res5.2.conv1.norm.weight",
    }.items():
        assert found[theirs] == tensors[ours]
    assert all(name.startswith(("stem.", "res")) for name in found)


def _names_of_resnet50():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["conv1.weight", *(f"bn1.{part}" for part in norm), "fc.weight", "fc.bias"]
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            for layer in (1, 2, 3):
                names += [
                    f"layer{stage}.{block}.conv{layer}.weight",
                    *(f"layer{stage}.{block}.bn{layer}.{p}" for p in norm),
                ]
            if block == 0:
                names += [f"layer{stage}.0.downsample.0.weight", *(f"layer{stage}.0.downsample.1.{p}" for p in norm)]
    return names


def test_an_export_for_both(tmp_path, capsys):
    tensors, description = exported(tmp_path)
    hub = tmp_path / "out" / "hub"
    found, metadata = read_safetensors(epath.Path(hub / "model.safetensors"))
    assert metadata.keys() == {"format", "bt_jax"} and metadata["format"] == "pt" and found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
    assert bt_jax.load_encoder(hub / "model.safetensors").sha256 == description["sha256"]
    with pytest.raises(UserError, match="is a folder for timm and the hub; name the file in it, .*model.safetensors"):
        bt_jax.load_encoder(hub)
    config = json.loads((hub / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["num_features"]) == (
        "resnet18",
        0,
        description["features"],
    )
    assert config["pretrained_cfg"]["input_size"] == [3, 224, 224] and config["pretrained_cfg"]["mean"] == [
        0.485,
        0.456,
        0.406,
    ]
    assert "Nothing was measured" in (hub / "README.md").read_text()
    saved = pickle.loads((tmp_path / "out" / "detectron2.pkl").read_bytes())
    assert saved["matching_heuristics"] is True and saved["__author__"] == "bt_jax"
    np.testing.assert_array_equal(saved["model"]["res2.0.conv1.weight"], tensors["layer1.0.conv1.weight"])
    said = capsys.readouterr().out
    assert "in timm   timm.create_model('local-dir:" in said
    assert "MODEL.RESNETS.RES2_OUT_CHANNELS '64'" in said, "without which Detectron2 refuses a resnet18"
    assert "MODEL.PIXEL_MEAN '[123.675,116.28,103.53]'" in said and "MODEL.RESNETS.STRIDE_IN_1X1 'False'" in said
    assert "MODEL.RESNETS.NORM 'SyncBN' MODEL.BACKBONE.FREEZE_AT '0'" in said, "Detectron2's defaults freeze both"


def test_rounded_weights_are_those_of_the_export(tmp_path):
    """The hub's file has the hash on its card, and the normalisation of the export."""
    write_safetensors(epath.Path(tmp_path / "in.safetensors"), tensors_of("resnet18"), {})
    weights = dataclasses.replace(read_weights(str(tmp_path / "in.safetensors")), mean=(0.5, 0.5, 0.5), heads={
        "classifier": {"params": {"other": {"kernel": np.ones((3, 3), np.float32)}}}  # another method's, without classes
    })  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bt_jax.tasks.export.read_weights", lambda *_, **__: weights)
        config = config_lib.default("export")
        config.init_from = "in"
        config.export.update(hub=True, program=False, dtype="bfloat16")
        description = export(config, str(tmp_path / "out"))
    encoder = bt_jax.load_encoder(tmp_path / "out" / "hub" / "model.safetensors")
    assert encoder.sha256 == description["sha256"] != weights and encoder.mean == (0.5, 0.5, 0.5)
    assert description["sha256"][:16] in (tmp_path / "out" / "hub" / "README.md").read_text()
    assert bt_jax.load_encoder(tmp_path / "out").sha256 == encoder.sha256


def test_a_network_that_detectron2_does_not_have():
    standard = {"arch": "resnet200", "width": 64, "small_images": False, "channels": 3, "range": ()}
    check_standard(standard, "export.hub")
    with pytest.raises(UserError, match="the encoder is a resnet200, of which Detectron2 has none"):
        check_standard(standard, "export.detectron2")
    assert "MODEL.RESNETS.RES2_OUT_CHANNELS" not in detectron2_settings(
        standard | {"arch": "resnet50", "mean": (), "std": ()}
    )


def test_a_card_has_the_runs_numbers():
    description = {"channels": 3, "range": [],
        "arch": "resnet50", "features": 2048, "input_size": 224, "method": "barlow_twins", "step": 300, "classes": None,
        "source": "step 300 of runs/x", "sha256": "a" * 64,
    }  # fmt: skip
    card = model_card(description, {"kNN accuracy": 0.654})
    assert card.startswith("---\nlibrary_name: timm\n") and "| kNN accuracy | 65.4 % |" in card
    assert "Trained by Barlow Twins with bt_jax, 300 steps. An image encoder of 2048 features" in card


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"width": 8},
            "export.hub is True, but the encoder is a resnet18 of width 8, which other frameworks do not have",
        ),
        ({"small_images": True}, "the encoder is a resnet18 with a 3×3 stem, which"),
    ],
)
def test_encoders_that_others_do_not_have(tmp_path, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        exported(tmp_path, **settings)
    assert not (tmp_path / "out").exists()


def test_in_timm(tmp_path):
    """Features of the same images, to 1e-4, with every tensor loaded."""
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    import bt_jax

    exported(tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path / 'out' / 'hub'}", pretrained=True).eval()
    images = np.random.default_rng(1).standard_normal((2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    ours = bt_jax.load_encoder(str(tmp_path / "out")).features(images, normalised=True)
    assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs)
