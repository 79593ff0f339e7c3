"""A ResNet as other frameworks take it: a folder for timm and the Hugging Face hub, and a file for Detectron2.

    hub/config.json, hub/model.safetensors, hub/README.md    timm.create_model("local-dir:FOLDER/hub", pretrained=True), or
                                                             uploaded, "hf-hub:OWNER/NAME"
    detectron2.pkl                                           MODEL.WEIGHTS of Detectron2's configs for VOC and COCO

torchvision's detectors need no file of their own: `model.backbone.body.load_state_dict` takes encoder.safetensors.
"""

import json
import pickle
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from bt_jax.errors import UserError
from bt_jax.export.safetensors_files import write_safetensors
from bt_jax.import_path import is_import_path
from bt_jax.runtime.files import write_whole

_NORMAL_WIDTH = 64


def check_standard(description: Mapping[str, Any], use: str) -> None:
    """Raises UserError if an encoder is not one of the networks that timm and Detectron2 have.

    Args:
      description: with "arch", "width", "small_images", "channels" and "range" of an encoder.
      use: the field that asks for it, for the message.
    """
    arch, width = description["arch"], description["width"]
    if is_import_path(arch) or not arch.startswith("resnet"):
        why = f"a {arch}"
    elif width != _NORMAL_WIDTH:
        why = f"a {arch} of width {width}"
    elif description["small_images"]:
        why = f"a {arch} with a 3×3 stem"
    elif use == "export.detectron2" and arch == "resnet200":
        raise UserError("export.detectron2 is True, but the encoder is a resnet200, of which Detectron2 has none.")
    elif use == "export.detectron2" and (description["channels"] != 3 or description["range"]):
        raise UserError(
            "export.detectron2 is True, but the encoder is not for photographs, which Detectron2 takes only."
        )
    else:
        return
    raise UserError(
        f"{use} is True, but the encoder is {why}, which other frameworks do not have; they have ResNets of width "
        f"{_NORMAL_WIDTH} with a 7×7 stem."
    )


def detectron2_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a ResNet by Detectron2's names, from torchvision's; without counters and classifier.

    Source: detectron2, tools/convert-torchvision-to-d2.py and modeling/backbone/resnet.py.
    """
    found = {}
    for name, tensor in tensors.items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        name = re.sub(r"^layer(\d)", lambda stage: f"res{int(stage[1]) + 1}", name)
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
        found[name if name.startswith("res") else f"stem.{name}"] = tensor
    return found


def write_detectron2(path: epath.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the pickle that Detectron2 reads: {"model", "__author__", "matching_heuristics"}, arrays in float32."""
    model = {name: np.asarray(tensor, np.float32) for name, tensor in detectron2_names(tensors).items()}
    path.write_bytes(pickle.dumps({"model": model, "__author__": "bt_jax", "matching_heuristics": True}, protocol=4))


def detectron2_settings(description: Mapping[str, Any]) -> dict[str, Any]:
    """What a Detectron2 config must say for these weights, by dotted name; pixels are from 0 to 255.

    Detectron2 by default freezes batch norm and the first stages. The paper trains all of them, with batch norm over all GPUs:
    appendix C.2, after MoCo (facebookresearch/moco, detection/configs/Base-RCNN-C4-BN.yaml).
    """
    depth = int(description["arch"].removeprefix("resnet"))
    return {
        "MODEL.PIXEL_MEAN": [round(255 * value, 3) for value in description["mean"]],
        "MODEL.PIXEL_STD": [round(255 * value, 3) for value in description["std"]],
        "MODEL.RESNETS.DEPTH": depth,
        **({"MODEL.RESNETS.RES2_OUT_CHANNELS": 64} if depth in (18, 34) else {}),
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.NORM": "SyncBN",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "INPUT.FORMAT": "RGB",
    }


def write_hub(
    folder: epath.Path, tensors: Mapping[str, np.ndarray], description: Mapping[str, Any], measured: Mapping[str, Any]
) -> None:
    """Writes a folder that `huggingface_hub` uploads and timm loads.

    Args:
      tensors: of encoder and, if there is one, classifier, by torchvision's names, which are timm's too.
      description: the content of encoder.json.
      measured: accuracies from 0 to 1 by what they are, for the model card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classes, side = description["classes"] or 0, description["input_size"]
    config = {
        "architecture": description["arch"],
        "num_classes": classes,
        "num_features": description["features"],
        "global_pool": "avg",
        "pretrained_cfg": {
            "tag": "bt_jax", "custom_load": False, "input_size": [3, side, side], "fixed_input_size": False,
            "interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "center", "mean": list(description["mean"]),
            "std": list(description["std"]), "num_classes": classes, "pool_size": [side // 32, side // 32],
            "first_conv": "conv1", "classifier": "fc",
        },
    }  # fmt: skip
    if (channels := description["channels"]) != 3:
        config["model_args"] = {"in_chans": channels}
        # Else timm would convert the first convolution, which it takes for one of three channels.
        config["pretrained_cfg"] |= {"input_size": [channels, side, side], "first_conv": None}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt", "bt_jax": json.dumps(description)})
    write_whole(folder / "config.json", json.dumps(config, indent=2) + "\n")
    write_whole(folder / "README.md", model_card(description, measured))


def model_card(description: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """The hub's README.md: what the encoder is, how it was trained, what was measured, and how it is loaded."""
    arch, features, side = description["arch"], description["features"], description["input_size"]
    method = {"barlow_twins": "Barlow Twins"}.get(description["method"] or "", description["method"])
    trained = f"Trained by {method} with bt_jax" if method else "Converted by bt_jax"
    steps = f", {description['step']} steps" if description["step"] else ""
    rows = "".join(f"| {what} | {100 * value:.1f} % |\n" for what, value in measured.items())
    numbers = (
        f"| measured | |\n|---|---|\n{rows}" if rows else "Nothing was measured in the run that this comes from.\n"
    )
    classes = f" and a classifier of {description['classes']} classes" if description["classes"] else ""
    images = "" if description["channels"] == 3 else f" and {description['channels']} channels"
    if ends := description["range"]:
        images += f", whose values from {ends[0]:g} to {ends[1]:g} are scaled to 0 to 1" if len(ends) == 2 else (
            ", whose values are scaled to 0 to 1, each channel in a range of its own: " + ", ".join(f"{e:g}" for e in ends)
        )  # fmt: skip
    return (
        f"---\nlibrary_name: timm\ntags:\n- image-feature-extraction\n- self-supervised\n---\n\n# {arch}\n\n"
        f"{trained}{steps}. An image encoder of {features} features{classes}, for images of {side}×{side}{images}.\n\n"
        f"{numbers}\n```python\nimport timm\n\n"
        f'model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True, num_classes={description["classes"] or 0})\n```\n\n'
        f"Source: {description['source']}.\nWeights: sha256 {description['sha256'][:16]}….\n"
    )
