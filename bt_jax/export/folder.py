"""The export folder: an encoder for use elsewhere, without its run.

    encoder.json            the encoder's description and source, and the sha256 of everything in the folder; written last
    encoder/                an Orbax checkpoint of {"params", "batch_stats"}; likewise each head, such as projector/
    encoder.safetensors     the same with torchvision's names, a classifier as fc.*, or timm's for a ViT, a classifier as head.*;
                            projector.safetensors with official names
    encoder.jax_export      a program that includes the weights: uint8 (b, S, S, C) for any b, or with a declared range float32
                            values, -> float32 (b, F)

Local or `gs://`. Everything is checked against its sha256 when it is read; exports from before 3981ea2 have only the encoder's.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bt_jax.engine.storage import cause_of, of_storage, quiet_orbax
from bt_jax.errors import UserError, first_line
from bt_jax.export.safetensors_files import read_safetensors, write_safetensors
from bt_jax.export.torch_weights import (
    classifier_name,
    classifier_to_torch,
    projector_sizes,
    projector_to_torch,
    to_torch,
    weights_of_state_dict,
)
from bt_jax.export.weights import EncoderWeights, Tree, check_description, sha256_of
from bt_jax.import_path import is_import_path
from bt_jax.models.vit import VITS
from bt_jax.runtime.files import read_object, sealed, write_whole
from bt_jax.runtime.paths import absolute

_BEGUN = "export.begun"  # names what an export writes, until it is complete
FORMAT = 1  # of encoder.json; increases when older versions cannot read it

# The fields of `EncoderWeights` that encoder.json has, with their types.
_FIELDS: dict[str, tuple[type, ...]] = {
    "arch": (str,), "width": (int,), "small_images": (bool,), "stem_stride": (int,), "stem_padding": (int,), "patch_size": (int,), "dtype": (str,),
    "input_size": (int,), "mean": (list,), "std": (list,), "channels": (int,), "range": (list,), "step": (int, type(None)), "source": (str,),
    "config_hash": (str, type(None)), "method": (str, type(None)),
}  # fmt: skip


def write_folder(
    weights: EncoderWeights,
    folder: epath.Path,
    *,
    dtype: str = "float32",
    safetensors: bool = True,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> dict[str, Any]:
    """Writes an export folder, which is valid once encoder.json exists.

    Args:
      dtype: in which weights are stored, float32 or bfloat16.
      safetensors: whether to write them with PyTorch's names too. Those exist for a ResNet and a ViT, and for the heads "projector", a
        `Projector`, and "classifier", a `LinearClassifier`.
      platforms: of the program; without any, no program is written.

    Returns:
      The content of encoder.json.

    Raises:
      UserError: the folder already has an export, or files with the same names; it cannot be written (then nothing of the
        export is left in it); a package that writing the program needs is missing.
    """
    if platforms and importlib.util.find_spec("flatbuffers") is None:
        raise UserError(
            "writing a program needs the package flatbuffers, which is not installed; pip install flatbuffers, or set "
            "export.program=False to export without one."
        )
    begun = folder / _BEGUN
    if begun.exists():  # by an export that was killed
        _remove(folder, [*begun.read_text().split("\n"), "encoder.json", "encoder.json.new", _BEGUN])
    if (folder / "encoder.json").exists():
        raise UserError(f"{folder} already has an export; choose another --workdir, or remove it first.")
    if (folder / "config.json").exists() or (folder / "checkpoints").exists():
        raise UserError(f"{folder} is the workdir of a run; choose another --workdir for the export.")
    kept = {name: cast(tree, dtype) for name, tree in {"encoder": weights.variables, **weights.heads}.items()}
    files = {name: name for name in kept}
    in_torch = {name: tensors for name, tree in kept.items() if (tensors := _in_torch(name, tree, weights.arch))}
    description = {name: getattr(weights, name) for name in _FIELDS} | {
        "format": FORMAT,
        "features": weights.module().num_features,
        "weights_dtype": dtype,
        "sha256": sha256_of(cast(kept["encoder"], "float32")),
        "heads": sorted(weights.heads),
        "heads_sha256": {name: sha256_of(cast(kept[name], "float32")) for name in sorted(weights.heads)},
        "projector": list(projector_sizes(kept["projector"])) if "projector" in in_torch else None,
        "classes": len(kept["classifier"]["params"]["linear"]["bias"]) if "classifier" in in_torch else None,
    }
    if safetensors and "encoder" in in_torch:
        files["safetensors"] = "encoder.safetensors"
    if platforms:
        files["program"] = "encoder.jax_export"
    written = [folder / name for name in (*files.values(), "projector.safetensors")]
    if existing := [path.name for path in written if path.exists() and not (path / "_METADATA").exists()]:
        raise UserError(
            f"{folder} already has {existing[0]}, which the export would replace; choose another --workdir."
        )
    quiet_orbax()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        begun.write_text("\n".join(path.name for path in written))
        for name, tree in kept.items():
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
                writer.save(absolute(folder) / name, args=ocp.args.StandardSave(tree), force=True)
        if "safetensors" in files:
            _write_safetensors(folder, in_torch, dtype, description)
        if "program" in files:
            _write_program(folder / files["program"], portable_program(weights, kept["encoder"], platforms))
        for name, tree in kept.items():
            _check_same(folder / name, _read_tree(folder / name), tree)
        description["files"] = files
        single = sorted(path for path in set(written) if path.is_file())
        description = _sealed(description | {"files_sha256": {path.name: _sha256_of_file(path) for path in single}})
        write_whole(folder / "encoder.json", json.dumps(description, indent=2) + "\n")
        begun.unlink()
    except Exception as error:
        _remove(folder, [*(path.name for path in written), _BEGUN])
        if isinstance(error, UserError) or not of_storage(error):
            raise
        raise UserError(
            f"the export cannot be written to {folder} ({cause_of(error)}); nothing of it was left in the folder."
        ) from error
    return description


def _remove(folder: epath.Path, names: Sequence[str]) -> None:
    """Removes what a failed export has written, and the folder if nothing else is in it."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: the folder has other files
        for path in list(folder.iterdir()):
            if path.name.partition(".orbax-checkpoint-tmp")[0] in names:
                path.rmtree() if path.is_dir() else path.unlink()
        folder.rmdir()


def read_folder(folder: epath.Path) -> EncoderWeights:
    """The weights in an export folder, as float32.

    Raises:
      UserError: encoder.json is damaged or points outside the folder, weights are missing or have changed, or another file of
        the export has changed (a removed one is ignored).
    """
    path = folder / "encoder.json"
    try:
        description = read_object(path)
        weights = _described(description, {})
        shapes = None if is_import_path(weights.arch) else weights.shapes()
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise UserError(f"{path} is not the description of an export ({first_line(error)}).") from None
    if type(description.get("format")) is not int or description["format"] != FORMAT:
        raise UserError(f"{path} has format {description.get('format')!r}, but this bt_jax reads format {FORMAT}.")
    files = description.get("files")
    if not isinstance(files, dict) or "encoder" not in files:
        raise UserError(f"{path} lists no encoder among its files.")
    shapes = shapes or weights.shapes()  # of a user's class; a failed import raises its own UserError
    heads = description.get("heads", ("projector", "classifier"))  # exports of 57dd817 and before do not list them
    if not isinstance(heads, (list, tuple)) or not all(isinstance(name, str) for name in heads):
        raise UserError(f"{path} is not the description of an export (its field heads is no list of names).")
    parts = {name: _inside(folder, files[name]) for name in ("encoder", *heads) if name in files}
    trees = {name: cast(_read_tree(part), "float32") for name, part in parts.items()}
    found = jax.tree.map(lambda x: (x.shape, x.dtype), trees["encoder"])
    if found != jax.tree.map(lambda x: (x.shape, x.dtype), shapes):
        raise UserError(f"{parts['encoder']} does not have the variables of the {weights.arch} that {path} describes.")
    _check_hashes(trees, {"sha256": None} | description, path, parts)
    for name, expected in _hashes(description, "files_sha256").items():
        if (file := _inside(folder, name)).exists() and _sha256_of_file(file) != expected:
            raise UserError(
                f"{file} does not have the sha256 in {path}, so it was changed or damaged; export again, or remove the file."
            )
    return _described(description, trees)


def read_exported_safetensors(path: epath.Path) -> tuple[EncoderWeights, bool]:
    """The weights in a .safetensors file with torchvision's or timm's names, and whether they are without the description that an
    export's file has.

    Raises:
      UserError: as `read_safetensors` and `weights_of_state_dict`.
    """
    tensors, metadata = read_safetensors(path)
    # Recognised by content too, as a flipped bit may be in the name `bt_jax` itself.
    ours = {name: text for name, text in metadata.items() if name == "bt_jax" or '"config_hash": ' in str(text)}
    weights = weights_of_state_dict(tensors, str(path))
    if not ours:
        return weights, True
    try:
        description = json.loads(ours["bt_jax"])
        described = _described(description, {})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} has a damaged description ({first_line(error)}); export it again.") from None
    same = (
        "arch",
        "width",
        "small_images",
        "patch_size",
        "channels",
        *(["input_size"] if weights.arch in VITS else []),
    )
    if any(getattr(described, name) != getattr(weights, name) for name in same):
        raise UserError(f"{path} describes a {described.arch}, but has the weights of a {weights.arch}.")
    trees = {"encoder": weights.variables, **weights.heads}
    _check_hashes(trees, description, path, dict.fromkeys(trees, path))
    return _described(description, trees), False


def _check_hashes(trees: dict[str, Tree], description: dict, path: epath.Path, parts: dict[str, epath.Path]) -> None:
    """Raises UserError for weights, or a description, that do not have their known hash.

    Args:
      trees: the float32 variables of the encoder and the heads, read from `parts`.
      path: the file with the description.
    """
    known = {name: sha for name, sha in _hashes(description, "heads_sha256").items() if name in trees}
    if "sha256" in description:
        known["encoder"] = description["sha256"]
    for name, expected in known.items():
        if (sha256 := sha256_of(trees[name])) != expected:
            raise UserError(
                f"the weights in {parts[name]} have the sha256 {sha256[:12]}… instead of {str(expected)[:12]}… in {path}, so "
                "they were changed or damaged; export them again."
            )
    if "description_sha256" in description and _sealed(description) != description:
        raise UserError(
            f"the description of the export in {path} was changed or damaged after it was written; export it again."
        )


def _hashes(description: dict, field: str) -> dict[str, str]:
    found = description.get(field)  # exports of 3981ea2 and before have none
    return found if isinstance(found, dict) else {}


def _sealed(description: dict) -> dict:
    return sealed(description, "description_sha256")


def _sha256_of_file(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**24):
            digest.update(block)
    return digest.hexdigest()


def portable_program(weights: EncoderWeights, variables: Tree, platforms: Sequence[str]) -> bytes:
    """A serialised `jax.export` program: images (b, S, S, C), b at least 1 -> features (b, F) float32.

    Images are uint8, or, if the encoder's images have a declared range, float32 values in it. It includes the weights and the normalisation; `jax.export.deserialize(…).call(images)` runs it on any of the platforms,
    with only JAX and flatbuffers.
    """
    module, inputs, size = weights.module(), weights.inputs(), weights.input_size
    variables = jax.tree.map(np.asarray, cast(variables, "float32"))

    low, high = (end.astype(np.float32).reshape(1, 1, 1, -1) for end in inputs.pixels.ends)

    def encode(images):
        if inputs.pixels.range:
            x = jnp.clip((images - low) / (high - low), 0, 1)
            images = jnp.floor(x * inputs.pixels.top + 0.5).astype(inputs.pixels.dtype)
        features: Any = module.apply(variables, inputs.normalize(images), train=False)
        return features.astype(jnp.float32)

    (batch,) = jax.export.symbolic_shape("b")
    kind = jnp.float32 if inputs.pixels.range else jnp.uint8
    images = jax.ShapeDtypeStruct((batch, size, size, inputs.pixels.channels), kind)
    return bytes(jax.export.export(jax.jit(encode), platforms=tuple(platforms))(images).serialize())


def _in_torch(name: str, variables: Tree, arch: str) -> dict[str, np.ndarray] | None:
    """A network's tensors by PyTorch's names; None if there are none."""
    convert = {
        "encoder": None if is_import_path(arch) else functools.partial(to_torch, arch=arch),
        "projector": projector_to_torch,
        "classifier": functools.partial(classifier_to_torch, name=classifier_name(arch)),
    }.get(name)
    if convert is None:
        return None
    try:
        return convert(cast(variables, "float32"))
    except UserError:  # another method's head with that name
        if name == "encoder":
            raise
        return None


def _write_program(path: epath.Path, program: bytes) -> None:
    path.write_bytes(program)
    if path.read_bytes() != program:
        raise _differs(path)


def _check_same(path: epath.Path, found: Tree, expected: Tree) -> None:
    """Raises UserError for a part that does not read back bit for bit."""
    leaves, wanted = (jax.tree_util.tree_leaves_with_path(tree) for tree in (found, expected))
    if [place for place, _ in leaves] != [place for place, _ in wanted] or any(
        a.dtype != b.dtype or np.asarray(a).tobytes() != np.asarray(b).tobytes()
        for (_, a), (_, b) in zip(leaves, wanted, strict=True)
    ):
        raise _differs(path)


def _differs(path: epath.Path) -> UserError:
    return UserError(f"{path} was written, but reads back differently; export to another --workdir.")


def _write_safetensors(folder: epath.Path, in_torch: dict[str, Any], dtype: str, description: dict) -> None:
    encoder = in_torch["encoder"] | in_torch.get("classifier", {})
    written = {"encoder.safetensors": (encoder, {"bt_jax": json.dumps(_sealed(description))})}
    if "projector" in in_torch:
        written["projector.safetensors"] = (in_torch["projector"], {})
    for name, (tensors, metadata) in written.items():
        path, tensors = folder / name, cast(tensors, dtype)
        write_safetensors(path, tensors, {"format": "pt", **metadata})  # the transformers library needs "format"
        _check_same(path, read_safetensors(path)[0], tensors)


def cast(tree: Tree, dtype: str) -> Tree:
    """The arrays of a tree, floats as `dtype`, integers unchanged."""

    def of_leaf(leaf):
        leaf = np.asarray(leaf)
        return leaf.astype(jnp.dtype(dtype)) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(of_leaf, tree)


def _described(description: dict, trees: dict[str, Tree]) -> EncoderWeights:
    later = {"method", "patch_size", "channels", "range", "stem_padding"}  # fields that exports of before do not have
    fields = {name: description[name] for name in _FIELDS if name in description or name not in later}
    wrong = [name for name, value in fields.items() if type(value) not in _FIELDS[name]]
    if wrong:
        raise ValueError(f"its field {wrong[0]} has the wrong type")
    fields |= {name: tuple(fields[name]) for name in ("mean", "std", "range") if name in fields}
    heads = {name: tree for name, tree in trees.items() if name != "encoder"}
    weights = EncoderWeights(**fields, variables=trees.get("encoder", {}), heads=heads)
    check_description(weights)
    return weights


def _inside(folder: epath.Path, name: Any) -> epath.Path:
    """FOLDER/NAME, after checking that it is in the folder itself."""
    if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise UserError(f"{folder / 'encoder.json'} points to {str(name)[:80]!r}, which is not in the folder itself.")
    path = folder / name
    if "://" not in str(folder):
        real = pathlib.Path(os.path.realpath(path))  # follows links, unlike epath
        if real.parent != pathlib.Path(os.path.realpath(folder)):
            raise UserError(f"{path} leads outside the export folder, to {real}.")
    return path


def _read_tree(path: epath.Path) -> Tree:
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            return reader.restore(absolute(path), args=ocp.args.StandardRestore())
    except Exception as error:  # from JSON, tensorstore or the file system
        raise UserError(f"{path} cannot be read ({first_line(error)}); export it again.") from None
