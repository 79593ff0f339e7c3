"""The commands as functions, for programs and notebooks: `bt_jax.load_config`, `bt_jax.pretrain` and `bt_jax.embed`."""

import functools
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, overload

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from bt_jax import config as config_lib
from bt_jax.config import files
from bt_jax.data.eval_batches import evaluation_views
from bt_jax.data.values import levels_of_image
from bt_jax.engine.session import Session
from bt_jax.errors import UserError
from bt_jax.evaluation.judged import run_task
from bt_jax.evaluation.neighbours import read_embeddings
from bt_jax.export.encoder import Encoder, host_images, levels_of, load_encoder
from bt_jax.pixels import Pixels
from bt_jax.runtime.paths import as_path
from bt_jax.runtime.preemption import Preemption
from bt_jax.tasks import embed as embed_task
from bt_jax.tasks.pretrain import pretrain as run_pretrain

_BLOCK = 1024  # images that are resized at a time, or a batch where that is more

Images = np.ndarray | Iterable[Any]  # an array of NumPy, JAX, PyTorch or TensorFlow; or arrays and Pillow's images


class Embeddings(NamedTuple):
    """The features of the images of a folder.

    Attributes:
      features: (N, F) float32.
      paths: (N,) of strings, relative to the folder.
    """

    features: np.ndarray
    paths: np.ndarray


def load_config(config: str | os.PathLike, **changes: Any) -> ConfigDict:
    """The config of a file, to be looked at, changed, and given to `pretrain`.

    Args:
      config: a file, or the name of a config of configs/ in the current folder or of the package, each with an optional
        ":ARGUMENT": "quickstart", "quickstart:simclr", "my_own.py". `bt_jax --list` names all.
      **changes: fields, as for `pretrain`.

    Raises:
      UserError: there is no such config, it cannot be read, or a change is of no field.
    """
    return _changed(files.read(config), changes)


def pretrain(
    config: ConfigDict | str | os.PathLike, workdir: str | os.PathLike | None = None, **changes: Any
) -> dict[str, Any]:
    """Pre-trains an encoder, or resumes the run in `workdir`; the same call goes on with an interrupted run.

        bt_jax.pretrain("quickstart")
        bt_jax.pretrain("quickstart:simclr", "runs/mine", epochs=20, data={"source": "folder", "data_dir": "images"})

    Progress is printed; in a notebook in a line that is replaced. Interrupting the kernel, or Ctrl-C, saves first.

    Args:
      config: as for `load_config`, or a config, which is not modified.
      workdir: the folder of the run, local or gs://; by default runs/<name of the config>.
      **changes: fields of the config, those of a group as a dictionary; or by full names, `**{"data.data_dir": "images"}`.

    Returns:
      The content of WORKDIR/pretrain.json: the last metrics, kNN accuracy before and after (with labels), steps, seconds.
      `bt_jax.load_encoder(workdir)` gives the encoder.

    Raises:
      UserError: bad input, in one sentence; the loss is not finite; another run holds the workdir.
      Preempted: the run was interrupted, and is saved; a SystemExit.
    """
    if isinstance(config, ConfigDict):
        if workdir is None:
            raise UserError("a config has no name to make a workdir of; pass workdir, the folder of the run.")
        wanted = _changed(config.copy_and_resolve_references(), changes)
    else:
        wanted = load_config(config, **changes)
        workdir = f"runs/{files.name_of(config)}" if workdir is None else workdir
    if wanted.task != "pretrain":
        raise UserError(
            f"the config's task is {wanted.task!r}, not 'pretrain'; such configs are run by bt_jax --config=FILE."
        )
    return run_pretrain(wanted, os.fspath(workdir))


@overload
def embed(
    images: str | os.PathLike,
    encoder: Encoder | str | os.PathLike,
    *,
    workdir: str | os.PathLike | None = None,
    **changes: Any,
) -> Embeddings: ...
@overload
def embed(
    images: Images,
    encoder: Encoder | str | os.PathLike,
    *,
    workdir: str | os.PathLike | None = None,
    **changes: Any,
) -> np.ndarray: ...


def embed(
    images: str | os.PathLike | Images,
    encoder: Encoder | str | os.PathLike,
    *,
    workdir: str | os.PathLike | None = None,
    **changes: Any,
) -> Embeddings | np.ndarray:
    """The features of the images of a folder, or of images in memory, by the same way to the encoder's size.

    Of each image the shorter side is resized to 256/224 of the encoder's `input_size` and the centre is cut out; with
    `data={"eval_resize": 0}` the whole image is resized. `Encoder.features` takes images that need no resizing.

    Args:
      images: a folder with images at any depth, or what else data.data_dir may be; or images in memory: (N, H, W, C), or
        as many arrays (H, W, C) or images of Pillow of any sizes; uint8, or values in the range of the encoder's images.
      encoder: from `bt_jax.load_encoder`, or a path for it: a run, an export, a .pth or a .safetensors file.
      workdir: of a folder of images: where embeddings.npz is kept and an interrupted call goes on; by default nothing is
        kept.
      **changes: fields of the task `embed`, as for `pretrain`, such as features={"batch_size": 64}.

    Returns:
      Of a folder (features, paths), without the images that cannot be read, which are printed; of images in memory the features,
      (N, F) float32.

    Raises:
      UserError: bad input, or features that are not finite.
      Preempted: with a workdir, the call was interrupted; whole pieces are kept.
    """
    if not isinstance(encoder, Encoder):
        encoder = load_encoder(encoder)
    config = config_lib.default("embed")
    config.init_from = encoder.source
    if not isinstance(images, (str, os.PathLike)):
        if workdir is not None:
            raise UserError("workdir is for a folder of images; features of images in memory are only returned.")
        config.data.data_dir = "."  # of no use
        _changed(config, changes)
        config_lib.check(config)
        _check_encoder(config, encoder)
        data = embed_task.data_for(config.data, encoder)
        size = config.features.batch_size
        levels = _blocks(images, data, encoder.pixels, max(_BLOCK, size))
        found = [np.zeros((0, encoder.width), np.float32)]
        for block in levels:
            found.append(encoder.features_of_levels(block, block=size, dtype=config.dtype))
            if not (finite := np.isfinite(found[-1]).all(axis=1)).all():
                place = sum(map(len, found[:-1])) + int(np.argmin(finite))
                raise UserError(f"the features of image {place} are not finite; check the weights of {encoder.source}.")
        return np.concatenate(found)
    config.data.data_dir = os.fspath(images)
    _changed(config, changes)
    _check_encoder(config, encoder)
    if workdir is not None:
        run_task(config, os.fspath(workdir), functools.partial(embed_task.embed_images, encoder=encoder))
        return Embeddings(*read_embeddings(os.fspath(workdir)))
    if jax.process_count() > 1:
        raise UserError(
            "several processes embed a folder together only in a workdir that all of them see; pass workdir."
        )
    with tempfile.TemporaryDirectory(prefix="bt_jax_embed_") as folder:
        # Outside its `with`, no signal is handled: Ctrl-C has its usual effect.
        nothing_to_save = Session(as_path(folder, "workdir"), Preemption())
        run_task(config, folder, functools.partial(embed_task.embed_images, encoder=encoder, within=nothing_to_save))
        return Embeddings(*read_embeddings(folder))


def _check_encoder(config: ConfigDict, encoder: Encoder) -> None:
    if config.init_from != encoder.source:
        raise UserError(
            f"init_from is {config.init_from!r}, but the encoder is given as an argument; leave init_from out."
        )


def _blocks(images: Images, data: ConfigDict, pixels: Pixels, most: int) -> Iterator[np.ndarray]:
    """The images as the encoder sees them, levels (n, S, S, C), at most so many at a time."""

    def seen(levels):
        return evaluation_views(levels, data.eval_resize, data.image_size, pixels)

    if hasattr(images, "shape"):
        whole = _levels(images, pixels)
        for start in range(0, len(whole), most):
            yield seen(whole[start : start + most])
        return
    if isinstance(images, Image.Image) or not isinstance(images, Iterable):
        what = "a single image" if isinstance(images, Image.Image) else type(images).__name__
        raise UserError(f"images is {what}; {_are_images(pixels)}.")
    block: list[np.ndarray] = []
    for number, image in enumerate(images):
        if isinstance(image, Image.Image):
            try:
                levels = levels_of_image(image, pixels, exif_orientation=data.exif_orientation)
            except ValueError as error:
                raise UserError(f"image {number} cannot be used: {error}.") from None
        elif len(getattr(image, "shape", ())) == 3:
            try:
                levels = _levels(image[None], pixels)[0]
            except UserError as error:
                raise UserError(f"image {number}: {error}") from None
        else:
            what = getattr(image, "shape", None) or type(image).__name__
            raise UserError(f"image {number} is {what}; {_are_images(pixels)}.")
        block.append(seen(levels[None])[0])
        if len(block) == most:
            yield np.stack(block)
            block = []
    if block:
        yield np.stack(block)


def _are_images(pixels: Pixels) -> str:
    shape = f"H, W, {pixels.channels}"
    return f"images are a folder's name, an array (N, {shape}), or a list of arrays ({shape}) or images of Pillow"


def _levels(images: Any, pixels: Pixels) -> np.ndarray:
    images = host_images(images, pixels)
    if pixels.range:
        return levels_of(images, pixels)
    if images.dtype != np.uint8:
        raise UserError(
            f"images is {images.dtype}; it must be uint8 (0 to 255). Encoder.features takes normalised floats."
        )
    return images


def _changed(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """`config` after changes of its fields, which are nested or have full names.

    Raises:
      UserError: some of them are no fields.
    """
    flat = dict(_flat(changes))
    config_lib.check_names(flat, config)
    with config.unlocked():
        for name, value in flat.items():
            *groups, last = name.split(".")
            place = functools.reduce(lambda group, part: group[part], groups, config)
            try:
                place[last] = value
            except (TypeError, ValueError):
                with place.ignore_type():  # `check` says what it must be
                    place[last] = value
    return config


def _flat(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in changes.items():
        if isinstance(value, (Mapping, ConfigDict)):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            plain = value.item() if isinstance(value, np.generic) else value
            yield f"{prefix}{name}", os.fspath(plain) if isinstance(plain, os.PathLike) else plain
