"""Encoders ready for use: `load_encoder` and its result. Needs no TensorFlow, no PyTorch and no training code."""

import dataclasses
import functools
import numbers
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from bt_jax import config as config_lib
from bt_jax.engine import checkpoint
from bt_jax.engine.storage import steps_in
from bt_jax.errors import UserError, first_line
from bt_jax.export.folder import read_exported_safetensors, read_folder
from bt_jax.export.torch_files import read_torch
from bt_jax.export.torch_weights import see_sound, weights_of_state_dict
from bt_jax.export.weights import EncoderWeights, check_description, sha256_of
from bt_jax.import_path import is_import_path
from bt_jax.models.encoders import in_dtype
from bt_jax.models.vit import VITS
from bt_jax.pixels import PHOTOGRAPHS, Pixels
from bt_jax.runtime import mesh as mesh_lib
from bt_jax.runtime.paths import as_path


class Encoder:
    """A frozen encoder with its variables.

    Attributes:
      arch: its name, such as resnet50, or its import path.
      width: F, the length of a feature vector.
      input_size: side in pixels of the images that it was trained on; a ResNet takes others too, a ViT does not.
      mean, std: of each channel, with which images are normalised, on a scale of 0 to 1.
      pixels: the channels of its images, and the range of their values where they are not of 8 bits.
      module, variables: the Linen module and its variables, for uses beyond features.
      heads: the variables of its heads in training, by name; {} if the source has none.
      step: the number of updates in its training; None if unknown.
      method: by which it was pre-trained, such as barlow_twins; None if unknown.
      source: where the weights come from, in words.
    """

    def __init__(self, weights: EncoderWeights):
        """Raises UserError if the encoder is a user's class that cannot be imported."""
        self.module, self.variables, self.heads = weights.module(), weights.variables, weights.heads
        self.arch, self.width, self.input_size = weights.arch, self.module.num_features, weights.input_size
        self.mean, self.std, self.pixels = weights.mean, weights.std, weights.pixels
        self.source, self.step, self.method = weights.source, weights.step, weights.method
        self._mesh = jax.make_mesh((jax.local_device_count(),), (mesh_lib.DATA_AXIS,), (jax.sharding.AxisType.Auto,),
                                   devices=jax.local_devices())  # fmt: skip

        def encode(variables, images, dtype):
            module, inputs = self.module, weights.inputs()
            if dtype is not None:
                module, inputs = in_dtype(module, dtype), dataclasses.replace(inputs, dtype=dtype)
            if images.dtype == weights.pixels.dtype:
                images = inputs.normalize(images)
            features: Any = module.apply(variables, images, train=False)
            return features.astype(jnp.float32)

        self._encode = jax.jit(encode, static_argnums=2, out_shardings=mesh_lib.everywhere(self._mesh))
        self._placed = jax.device_put(self.variables, mesh_lib.everywhere(self._mesh))

    @property
    def projector_variables(self) -> Any:
        """The variables of the projector, a `bt_jax.models.Projector`; None if the source has none."""
        return self.heads.get("projector")

    @property
    def classifier_variables(self) -> Any:
        """The variables of the classifier, a `bt_jax.models.LinearClassifier`; None if the source has none.

        After a run with `linear.batch_norm` they are those of one with `batch_norm=True`.
        """
        return self.heads.get("classifier")

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))
        return (
            f"<bt_jax encoder {self.arch}: {self.width} features for images of {self.input_size}×{self.input_size}"
            f"{'' if self.pixels.channels == 3 else f' with {self.pixels.channels} channels'}, {count / 1e6:.2f} M parameters, from {self.source}>"
        )

    @functools.cached_property
    def sha256(self) -> str:
        """The sha256 of all variables, in the order of their paths; the same weights always have the same."""
        return sha256_of(self.variables)

    def features(self, images: Any, *, block: int = 256, normalised: bool = False) -> np.ndarray:
        """The features of images, with running statistics, so that those of an image do not depend on the others.

        Args:
          images: (N, H, W, C), N possibly 0, of NumPy, JAX, PyTorch or TensorFlow: uint8, which is normalised as in training,
            or normalised floats, (x / 255 - mean) / std. With a declared range: values in it of any type, or normalised floats with
            normalised=True.
          block: images per pass through the network, over all local devices.
          normalised: True accepts any floats as normalised. Otherwise floats that look as if they are not are refused: all of
            them from 0 to 1, or from 0 to far above the range of normalised pixels; and with a declared range all are values in it.

        Returns:
          (N, F) float32.

        Raises:
          UserError: another type, shape or dtype, floats that are not normalised, or a block that is not a positive integer.
        """
        if isinstance(block, bool) or not isinstance(block, numbers.Integral) or block < 1:
            raise UserError(f"block is {block!r}; it must be a positive integer, the number of images per pass.")
        images = host_images(images, self.pixels)
        if self.pixels.range:
            images = images.astype(np.float32) if normalised else levels_of(images, self.pixels)
        elif images.dtype != np.uint8 and not normalised:
            self._check_normalised(images)
        return self._in_blocks(images, int(block))

    def features_of_levels(self, levels: np.ndarray, *, block: int = 256, dtype: Any = None) -> np.ndarray:
        """Like `features`, for levels (N, H, W, C) as `pixels` has them: uint8, or uint16 with a declared range.

        Args:
          dtype: that the network computes in, in place of the encoder's own.
        """
        return self._in_blocks(levels, block, None if dtype is None else jnp.dtype(dtype))

    def _in_blocks(self, images: np.ndarray, block: int, dtype: Any = None) -> np.ndarray:
        block = -(-min(block, max(len(images), 1)) // self._mesh.size) * self._mesh.size
        return np.concatenate([np.zeros((0, self.width), np.float32), *self._blocks(images, block, dtype)])

    def _check_normalised(self, images: np.ndarray) -> None:
        """Raises UserError for floats that are not finite, or clearly are unnormalised pixels: normalised ones include negative numbers."""
        if not np.isfinite(images).all():
            first = int(np.argmax(~np.isfinite(images).all(axis=(1, 2, 3))))
            raise UserError(f"images has NaN or infinite values, first in image {first}; replace them.")
        low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
        largest = max((1 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))
        if low < 0 or low == high or not (high <= 1 or high > 2 * largest):
            return
        scale, to_do = ("1", "(x - mean) / std") if high <= 1 else ("255", "(x / 255 - mean) / std")
        raise UserError(
            f"images is {images.dtype} from {low:.3g} to {high:.3g}, which looks like pixels of 0 to {scale} that are not "
            f"normalised; pass uint8 of 0 to 255, or {to_do} with the encoder's mean and std; normalised=True accepts them "
            "unchanged."
        )

    def _blocks(self, images: np.ndarray, block: int, dtype: Any) -> Iterator[np.ndarray]:
        sharding = mesh_lib.over_batch(self._mesh)
        for start in range(0, len(images), block):
            part = images[start : start + block]
            padded = np.pad(
                part, ((0, block - len(part)), (0, 0), (0, 0), (0, 0))
            )  # one shape, so that it compiles once
            yield np.asarray(self._encode(self._placed, jax.device_put(padded, sharding), dtype))[: len(part)]


def host_images(images: Any, pixels: Pixels = PHOTOGRAPHS) -> np.ndarray:
    """Images from any library as a NumPy array in the machine's byte order.

    Raises:
      UserError: they are not an array (N, H, W, C) with pixels, of uint8 or floats, or with a declared range of any real type.
    """
    channels = pixels.channels
    what = f"{type(images).__module__}.{type(images).__name__}".removeprefix("builtins.")
    try:
        if hasattr(images, "detach"):  # PyTorch
            images = images.detach().cpu()
        if callable(getattr(images, "numpy", None)):  # TensorFlow too
            images = images.numpy()
    except Exception as error:  # from another library, for example if it cannot convert bfloat16
        raise UserError(
            f"images is a {what} that cannot be converted to NumPy ({first_line(error)}); pass uint8 or float32."
        ) from None
    shape = getattr(images, "shape", None)
    if not isinstance(shape, tuple) or not hasattr(images, "dtype"):
        raise UserError(f"images is {'None' if images is None else what}; it must be an array (N, H, W, {channels}).")
    if len(shape) == 4 and shape[-1] != channels and shape[1] == channels:
        raise UserError(
            f"images is {shape}, with channels second; they must be last: use images.transpose(0, 2, 3, 1), or permute in "
            "PyTorch."
        )
    if len(shape) != 4 or shape[-1] != channels:
        raise UserError(f"images is {shape}; it must be (N, H, W, {channels}).")
    if 0 in shape[1:]:
        raise UserError(f"images is {shape}, without pixels; height and width must be at least 1.")
    integers = pixels.range and jnp.issubdtype(images.dtype, jnp.integer)
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating) and not integers:
        raise UserError(f"images is {images.dtype}; it must be uint8 (0 to 255), or normalised floats.")
    images = np.asarray(images)
    if images.dtype.kind == "V":  # bfloat16 and other types that NumPy does not know
        return images.astype(np.float32)
    if images.dtype.itemsize > 8:  # float128, which JAX does not support
        return images.astype(np.float64)
    return images.astype(images.dtype.newbyteorder("="), copy=False)


def levels_of(images: np.ndarray, pixels: Pixels) -> np.ndarray:
    """The levels of values in a declared range, (N, H, W, C).

    Raises:
      UserError: more than a hundredth of them lie outside the range, or some are NaN.
    """
    if images.size and (outside := pixels.outside(images)) > 0.01:
        low, high = pixels.ends
        raise UserError(
            f"images reaches from {np.nanmin(images):g} to {np.nanmax(images):g}, and {outside:.1%} of it lies outside the range of the "
            f"encoder's images, {low.min():g} to {high.max():g}; pass values in that range, or normalised floats with normalised=True."
        )
    try:
        return pixels.levels(images)
    except ValueError as error:
        raise UserError(f"images cannot be used: {error}.") from None


def load_encoder(path: str | os.PathLike, *, target: bool = False, **stated: Any) -> Encoder:
    """The encoder of a run, of an export, or of weights from PyTorch.

    Args:
      path: local or gs://, one of
        an export folder (task `export`);
        the workdir of a pre-training with any method, or of an evaluation that trains a classifier (its newest readable
        checkpoint is used), or one of its checkpoints, WORKDIR/checkpoints/STEP;
        a .safetensors file, or a .pth from torch.save, with a state dict with torchvision's names: the official resnet50.pth
        and checkpoint.pth, files of the official evaluate.py, or of solo-learn and lightly, from which only the encoder is
        read (`source` says what was left out); or with timm's names, for a ViT. No code in a .pth is run.
      target: of a run with a target network (`byol`) that network's encoder, in place of the online one.
      **stated: of a .pth or .safetensors of other programs, what such files do not say: `mean` and `std` of each channel, on a scale of 0
        to 1, by default ImageNet's (of other than three channels 0 and 1); `input_size` in pixels, by default 224, or 32 with a 3×3 stem;
        `stem_stride` and `stem_padding` of a 3×3 stem, by default 1, or of solo-learn's files a padding of 2.

    Raises:
      UserError: the path is none of these, or is damaged, incomplete or inconsistent; it has no target network; it says itself
        what is stated.
    """
    return Encoder(read_weights(path, target=target, **stated))


_UNSAID = ("mean", "std", "input_size", "stem_stride", "stem_padding")  # by files of other programs


def read_weights(path: str | os.PathLike, *, target: bool = False, **stated: Any) -> EncoderWeights:
    """The weights for `load_encoder`; arguments and errors as there."""
    if unknown := stated.keys() - set(_UNSAID):
        raise UserError(f"there is no argument {min(unknown)!r}; what can be stated is {', '.join(_UNSAID)}.")
    weights, is_bare = _read(path, target)
    if not stated:
        return weights
    if not is_bare:
        raise UserError(f"{path} says itself what its {' and '.join(stated)} is; leave out the argument.")
    if weights.arch in VITS and stated.get("input_size", weights.input_size) != weights.input_size:
        raise UserError(
            f"input_size is {stated['input_size']!r}, but the position embedding in {path} is for images of {weights.input_size}."
        )
    stated = {name: tuple(value) if name in ("mean", "std") else value for name, value in stated.items()}
    weights = dataclasses.replace(weights, **stated)
    try:
        check_description(weights)
    except ValueError as error:
        raise UserError(str(error).replace("its field ", "", 1) + ".") from None
    return weights


def _read(path: str | os.PathLike, target: bool) -> tuple[EncoderWeights, bool]:
    """The weights, and whether they are of another program, which says nothing of the images."""
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(
            f"the path of an encoder is {type(path).__name__}; it must be the workdir of a run, an export folder, or a .pth or "
            ".safetensors file."
        )
    text = os.fspath(path)
    scheme = text.partition("://")[0] if "://" in text else ""
    if scheme == "file":
        raise UserError(f"{text} is a URL; use the path itself, {text.removeprefix('file://')}.")
    if scheme in ("http", "https", "ftp"):
        raise UserError(
            f"{text} is a URL, but weights are not downloaded from the web; save the file and use its path."
        )
    place = as_path(text, "init_from")
    if target and ((place / "encoder.json").exists() or not place.is_dir()):
        raise UserError(f"{place} is not a run or one of its checkpoints, and only those can have a target network.")
    if (place / "encoder.json").exists():
        return read_folder(place), False
    if (place / "model.safetensors").exists() and not (place / "checkpoints").exists():
        raise UserError(
            f"{place} is a folder for timm and the hub; name the file in it, {place / 'model.safetensors'}."
        )
    if place.exists() and not place.is_dir():
        with place.open("rb") as file:
            start = file.read(9)
        if place.suffix == ".safetensors" or start[8:] == b"{":
            weights, is_bare = read_exported_safetensors(place)
        else:
            weights, is_bare = weights_of_state_dict(read_torch(place), str(place)), True
        see_sound(weights)
        return weights, is_bare
    if place.parent.name == "checkpoints" and not place.exists() and (steps := steps_in(place.parent)):
        raise UserError(
            f"{place} is neither the workdir of a run nor one of its checkpoints; {place.parent} has those of "
            f"{'step' if len(steps) == 1 else 'steps'} {', '.join(map(str, steps))}."
        )
    if place.name == "checkpoints" and (steps := steps_in(place)):
        raise UserError(
            f"{place} is not the workdir of a run; name {place.parent}, or a checkpoint, {place / str(steps[-1])}."
        )
    if place.parent.name == "checkpoints" and place.name.isdigit() and place.exists():
        return _of_run(place.parent.parent, int(place.name), target), False
    return _of_run(place, None, target), False


def _of_run(workdir: epath.Path, step: int | None, target: bool) -> EncoderWeights:
    path = workdir / "config.json"
    try:
        # A checkpoint has the config too, in case it was copied without the rest of the workdir.
        text = path.read_text() if path.exists() else checkpoint.config_text(workdir, step)
    except OSError:
        text = None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not the config of a run (it is not UTF-8).") from None
    if text is None and not workdir.exists():
        raise UserError(
            f"{workdir} does not exist; name the workdir of a run, an export folder, or a .pth or .safetensors file."
        )
    if text is None:
        raise UserError(
            f"{workdir} is not the workdir of a run (it has no config.json), an export folder, or a .pth or .safetensors file."
        )
    try:
        config = config_lib.from_json(text)
        if config.task != "pretrain" and (saved := checkpoint.config_text(workdir, step)):
            config = config_lib.from_json(saved)  # with the normalisation of the encoder's own training
        model, data = config.model, config.data
        weights = EncoderWeights(
            arch=model.arch,
            variables={},
            source="",
            width=model.width,
            small_images=model.small_images,
            stem_stride=model.stem_stride,
            stem_padding=model.get("stem_padding", 1),
            patch_size=model.get("patch_size", 16),  # which runs of before ViTs lack
            dtype=config.dtype,
            input_size=data.image_size,
            mean=tuple(data.mean),
            std=tuple(data.std),
            channels=data.get("channels", 3),  # which runs of before have not, like `range`
            range=tuple(data.get("range", ())),
            config_hash=config_lib.fingerprint(config),
            method=config.method if config.task == "pretrain" else None,
        )
        check_description(weights)
        shapes = None if is_import_path(weights.arch) else weights.shapes()
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the config of a run ({error}).") from None
    shapes = shapes or weights.shapes()
    try:
        networks, step = checkpoint.restore_networks(workdir, shapes, step, target=target)
    except UserError:
        if config.task == "pretrain":
            raise
        part = (
            f"one of its trainings, such as {workdir}/seed_{config.seed}, or " if config.get("repeats", 1) > 1 else ""
        )
        raise UserError(
            f"{workdir} is the workdir of an evaluation ({config.task}), which has no encoder; name {part}the run that it "
            f"evaluated, {config.init_from or 'none here'}."
        ) from None
    if (saved := checkpoint.config_text(workdir, step)) is not None:
        _check_config(config, saved, path, step)
    variables = networks.pop("encoder")
    return dataclasses.replace(
        weights,
        variables=variables,
        heads=networks,
        step=step,
        source=f"step {step} of {workdir}{', target network' if target else ''}",
    )


def _check_config(config: ConfigDict, text: str, path: epath.Path, step: int) -> None:
    """Raises UserError if config.json, which has no hash, differs from the checkpoint's config in the encoder's fields."""
    try:
        saved = config_lib.from_json(text)
    except (ValueError, AttributeError, KeyError, TypeError):  # from another version, whose weights can still be used
        return
    fields = [f"model.{name}" for name in saved.model] + [
        "data.image_size",
        "data.mean",
        "data.std",
        "data.channels",
        "data.range",
    ]
    for field in fields:
        group, name = field.split(".")
        found, expected = config.get(group).get(name), saved.get(group).get(name)
        if found != expected:
            raise UserError(
                f"{path} has {field}={found!r}, but the checkpoint of step {step} was trained with {expected!r}; correct it, "
                "or remove the file, as the checkpoint has the config too."
            )
