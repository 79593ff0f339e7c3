"""The task `export`: writes an encoder from a run, a checkpoint or PyTorch weights to a folder for use elsewhere."""

from typing import Any

from etils import epath
from ml_collections import ConfigDict

from bt_jax import config as config_lib
from bt_jax import console
from bt_jax.errors import UserError
from bt_jax.export.encoder import read_weights
from bt_jax.export.folder import cast, write_folder
from bt_jax.export.other_frameworks import check_standard, detectron2_settings, write_detectron2, write_hub
from bt_jax.export.torch_weights import classifier_to_torch, see_sound, to_torch
from bt_jax.export.weights import EncoderWeights
from bt_jax.import_path import is_import_path
from bt_jax.models.vit import VITS
from bt_jax.runtime.files import read_object
from bt_jax.runtime.paths import as_folder, as_path
from bt_jax.tasks.summary import to_load


def export(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Exports the weights that `config.init_from` names to the folder `workdir`, with the settings of `config.export`.

    Returns:
      The content of WORKDIR/encoder.json.

    Raises:
      UserError: `init_from` is empty, the weights are not finite, or the folder already has an export.
    """
    config_lib.check(config)
    if not config.init_from:
        raise UserError(
            "init_from is empty, but must name the encoder to export: --config.init_from=RUN, with the workdir of a run, one "
            "of its checkpoints, or a .pth or .safetensors file."
        )
    wanted, folder = config.export, as_folder(workdir, "--workdir")
    weights = read_weights(config.init_from, target=wanted.target)
    see_sound(weights)
    left_out = [n for n in weights.heads if not (wanted.classifier if n == "classifier" else wanted.projector)]
    weights = weights.without(left_out)
    for name in ("hub", "detectron2"):
        if wanted[name]:
            check_standard(vars(weights), f"export.{name}")
    description = write_folder(
        weights,
        folder,
        dtype=wanted.dtype,
        safetensors=wanted.safetensors,
        platforms=wanted.platforms if wanted.program else (),
    )
    _for_others(wanted, weights, description, folder, config.init_from)
    console.say(_summary(description, folder) + _told(wanted, description, folder))
    return description


def _for_others(wanted: ConfigDict, weights: EncoderWeights, description: dict, folder: epath.Path, run: str) -> None:
    """Writes the files for other frameworks, from the weights that were exported: in float32, rounded as those are."""
    if not (wanted.hub or wanted.detectron2):
        return

    def exported(variables):
        return cast(cast(variables, wanted.dtype), "float32")

    tensors = to_torch(exported(weights.variables), weights.arch)
    try:
        if wanted.detectron2:
            write_detectron2(folder / "detectron2.pkl", tensors)
        if wanted.hub:
            # Another method's head may have that name; it has no classes.
            head = classifier_to_torch(exported(weights.heads["classifier"])) if description["classes"] else {}
            write_hub(folder / "hub", tensors | head, description, measured_in(as_path(run, "init_from")))
    except OSError as error:
        raise UserError(
            f"the export in {folder} is whole, but its files for other frameworks cannot be written ({error.strerror or error}); "
            "make room, remove the folder, and run the same command again."
        ) from error


def measured_in(run: epath.Path) -> dict[str, float]:
    """The accuracies at the end of a pre-training, from 0 to 1, by what they are; {} if there are none."""
    try:
        found = read_object(run / "pretrain.json")
    except (OSError, ValueError):
        return {}
    names = {"knn_accuracy_after": "kNN accuracy", "linear_top1": "linear classifier"}
    return {text: found[name] for name, text in names.items() if isinstance(found.get(name), float)}


def _told(wanted: ConfigDict, description: dict[str, Any], folder: epath.Path) -> str:
    lines = []
    if wanted.hub:
        lines.append(f"in timm   timm.create_model('local-dir:{folder / 'hub'}', pretrained=True)")
    if wanted.detectron2:
        said = " ".join(
            f"{name} {str(value).replace(' ', '')!r}" for name, value in detectron2_settings(description).items()
        )
        lines.append(f"detection MODEL.WEIGHTS {folder / 'detectron2.pkl'} {said}")
    return "".join(f"\n{line}" for line in lines)


def _summary(description: dict[str, Any], folder: epath.Path) -> str:
    files = description["files"]
    lines = {
        "from": description["source"],
        "encoder": f"{description['arch']}, {description['features']} features for images of "
        f"{description['input_size']}×{description['input_size']}; weights in {description['weights_dtype']}",
        "sha256": description["sha256"],
    }
    if description["projector"]:
        lines["projector"] = "-".join(map(str, description["projector"]))
    if description["classes"]:
        lines["classes"] = str(description["classes"])
    shown = {"projector": description["projector"], "classifier": description["classes"]}
    if others := [name for name in description["heads"] if not shown.get(name)]:
        lines["heads"] = ", ".join(others)
    lines["to use"] = to_load(folder)
    if "safetensors" in files:
        lines["in torch"] = _in_torch(description, folder / files["safetensors"])
    elif is_import_path(description["arch"]):
        lines["in torch"] = f"no file, as torchvision has no {description['arch']}"
    if "program" in files:
        lines["anywhere"] = (
            f"jax.export.deserialize(bytearray(open({str(folder / files['program'])!r}, 'rb').read())).call(images)"
        )
    return "\n".join(f"{title:<9} {value}" for title, value in lines.items())


def _in_torch(description: dict[str, Any], path: epath.Path) -> str:
    """Code that loads the tensors into torchvision's or timm's network, or a sentence if they have no such network."""
    arch, width, classes = (description[name] for name in ("arch", "width", "classes"))
    load = f"model.load_state_dict(safetensors.torch.load_file({str(path)!r}))"
    if arch in VITS:
        patch, size = description["patch_size"], description["input_size"]
        sizes = "" if (patch, size) == (16, 224) else f"patch_size={patch}, img_size={size}, "
        sizes += "" if description["channels"] == 3 else f"in_chans={description['channels']}, "
        return f"model = timm.create_model('{arch}_patch16_224', {sizes}num_classes={classes or 0}); {load}"
    if width != 64:
        stem = " with a 3×3 stem" if description["small_images"] else ""
        return f"torchvision has these names, but no {arch} of width {width}{stem}; its networks have width 64"
    if arch == "resnet200" and description["small_images"]:
        return "timm has these names, but no resnet200 with a 3×3 stem"
    if arch == "resnet200":  # torchvision has none
        channels = "" if description["channels"] == 3 else f"in_chans={description['channels']}, "
        return f"model = timm.create_model('resnet200', {channels}num_classes={classes or 0}); {load}"
    steps = [f"model = torchvision.models.{arch}({f'num_classes={classes}' if classes else ''})"]
    if not classes:
        steps.append("model.fc = torch.nn.Identity()")
    if description["small_images"]:
        steps.append(
            f"model.conv1 = torch.nn.Conv2d({description['channels']}, 64, 3, {description['stem_stride']}, {description['stem_padding']}, bias=False)"
        )
        steps.append("model.maxpool = torch.nn.Identity()")
    elif description["channels"] != 3:
        steps.append(f"model.conv1 = torch.nn.Conv2d({description['channels']}, 64, 7, 2, 3, bias=False)")
    return "; ".join([*steps, load])
