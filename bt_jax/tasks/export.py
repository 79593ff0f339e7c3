"""The task `export`: writes an encoder from a run, a checkpoint or PyTorch weights to a folder for use elsewhere."""

from typing import Any

from etils import epath
from ml_collections import ConfigDict

from bt_jax import config as config_lib
from bt_jax import console
from bt_jax.errors import UserError
from bt_jax.export.encoder import read_weights
from bt_jax.export.folder import write_folder
from bt_jax.export.torch_weights import see_sound
from bt_jax.import_path import is_import_path
from bt_jax.runtime.paths import as_folder


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
    description = write_folder(
        weights.without(name for name in weights.heads if not wanted.get(name, True)),
        folder,
        dtype=wanted.dtype,
        safetensors=wanted.safetensors,
        platforms=wanted.platforms if wanted.program else (),
    )
    console.say(_summary(description, folder))
    return description


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
    lines["to use"] = f"python -c \"import bt_jax; print(bt_jax.load_encoder('{folder}'))\""
    if "safetensors" in files:
        lines["in torch"] = _in_torch(description, folder / files["safetensors"])
    elif is_import_path(description["arch"]):
        lines["in torch"] = f"no file, as torchvision has no {description['arch']}"
    if "program" in files:
        lines["anywhere"] = (
            f"jax.export.deserialize(bytearray(open('{folder / files['program']}', 'rb').read())).call(images)"
        )
    return "\n".join(f"{title:<9} {value}" for title, value in lines.items())


def _in_torch(description: dict[str, Any], path: epath.Path) -> str:
    """Code that loads the tensors into torchvision's network, or a sentence if it has no such network."""
    arch, width, classes = (description[name] for name in ("arch", "width", "classes"))
    if width != 64:
        stem = " with a 3×3 stem" if description["small_images"] else ""
        return f"torchvision has these names, but no {arch} of width {width}{stem}; its networks have width 64"
    steps = [f"model = torchvision.models.{arch}({f'num_classes={classes}' if classes else ''})"]
    if not classes:
        steps.append("model.fc = torch.nn.Identity()")
    if description["small_images"]:
        steps.append(f"model.conv1 = torch.nn.Conv2d(3, 64, 3, {description['stem_stride']}, 1, bias=False)")
        steps.append("model.maxpool = torch.nn.Identity()")
    return "; ".join([*steps, f"model.load_state_dict(safetensors.torch.load_file('{path}'))"])
