"""The source that a config names: the only module that knows all kinds."""

import contextlib
import functools
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from bt_jax.config.groups.data import SOURCES_OF_FILES
from bt_jax.data.sources.arrays import array_source, read_arrays
from bt_jax.data.sources.base import ArraySource, EncodedSource, Source, StreamSource, import_tfds, unreachable
from bt_jax.data.sources.declared import check_declared, values_of
from bt_jax.data.sources.folder import FolderSource
from bt_jax.data.sources.layout import has_split, is_whole
from bt_jax.data.sources.parquet import parquet_source
from bt_jax.data.sources.photographs import PHOTOGRAPHS, photograph_crops
from bt_jax.data.sources.shards import has_shards, is_one_split
from bt_jax.data.sources.tar import tar_source
from bt_jax.errors import UserError
from bt_jax.pixels import Pixels
from bt_jax.runtime.files import errors_of_files

_PACKED = {"tar": (tar_source, ".tar"), "parquet": (parquet_source, ".parquet")}


def make_source(config: ConfigDict, split: str) -> Source:
    """The source that `config.data` names.

    Args:
      config: `config.data` of a run.
      split: "train" or "test", which `config.train_split` and `config.test_split` translate.

    Raises:
      UserError: it does not exist, or is not what it should be; its images do not have the channels or the range of values that
        the config declares; it is in a store that does not answer, or refuses.
    """
    pixels = Pixels.of(config)
    with _in_reach(config):
        source = _made(config, split, pixels)
    if not pixels.are_photographs and not isinstance(source, ArraySource):
        source.pixels = pixels
        check_declared(source)
    return source


def images_as_stored(
    config: ConfigDict, split: str, count: int
) -> tuple[str, int, Iterator[tuple[str, np.ndarray | str]]]:
    """The images of the source that `config.data` names, of any channels and types, whatever it declares of them; those of
    four inks are colours, unless it declares other pixels than photographs'.

    Args:
      count: at most so many encoded images, evenly spread; those in memory are given all.

    Returns:
      A name for people, the number of images, and of each its place in words and its values (H, W, C), or why it has none.

    Raises:
      UserError: as `make_source`.
    """
    if config.source == "arrays":
        name, values, _, _ = read_arrays(config.data_dir, config[f"{split}_split"], split)
        if values.ndim not in (3, 4) or not values.size:
            raise UserError(
                f"{name}: the images are {values.shape}; they must be (N, H, W, C), or (N, H, W) for one channel."
            )
        values = values if values.ndim == 4 else values[..., None]
        return name, len(values), ((f"image {i}", image) for i, image in enumerate(values))
    photographs = Pixels.of(config).are_photographs  # or nothing is declared yet
    config = config.copy_and_resolve_references()
    config.in_memory_bytes = 0  # a TFDS set is decoded here
    with _in_reach(config):
        source = _made(config, split, Pixels(config.channels, (0.0, 65535.0)))
    if isinstance(source, ArraySource):
        return source.name, len(source), ((source.place(i), image) for i, image in enumerate(source.images))
    assert isinstance(source, (EncodedSource, StreamSource))
    return source.name, len(source), values_of(source, count, inks_as_rgb=photographs)


@contextlib.contextmanager
def _in_reach(config: ConfigDict) -> Iterator[None]:
    """Makes a UserError of what the libraries of object stores raise, when files are listed, looked for and read at the start."""
    remote = next((text for text in (config.data_dir, config.labels) if "://" in text), "")
    try:
        yield
    except errors_of_files() as error:
        if isinstance(error, OSError) and not remote:
            raise
        raise unreachable(remote or config.data_dir or config.source, error) from error


def _made(config: ConfigDict, split: str, pixels: Pixels) -> Source:
    name = config[f"{split}_split"]
    if not name and not (split == "test" and config.source in SOURCES_OF_FILES and config.test_fraction):
        raise UserError(f"data.{split}_split is empty; name the {split} split, or set monitor.every_epochs to 0.")
    if config.source == "photographs":
        crops = config.photographs
        images, labels = _photographs(split, crops.size, crops[f"{split}_per_class"])
        return ArraySource(f"crops of {len(PHOTOGRAPHS)} photographs, {split}", images, labels, tuple(PHOTOGRAPHS))
    if config.source == "folder":
        source = FolderSource(
            config.data_dir,
            name,
            config.cache_bytes,
            use=split,
            other=config.test_split if split == "train" else config.train_split,
            labels=config.labels,
            test_fraction=config.test_fraction,
        )
        source.exif_orientation = config.exif_orientation
        return source
    if config.source in _PACKED:
        make, _ = _PACKED[config.source]
        source = make(config, name, split)
        source.exif_orientation = config.exif_orientation
        return source
    if config.source == "arrays":
        return array_source(config.data_dir, name, split, pixels)
    if config.source == "tfds":
        import_tfds()
        from bt_jax.data.sources.tfds import tfds_source

        return tfds_source(config, name, split, pixels)
    raise UserError(f"data.source is {config.source!r}; it must be photographs, tfds, folder, tar, parquet or arrays.")


def test_source(config: ConfigDict, train: Source) -> Source | None:
    """The source of the test images; None if a set has none and need not: without labels, or a folder without splits.

    Args:
      config: `config.data` of a run.
      train: the source of the train images.

    Raises:
      UserError: as `make_source`.
    """
    with _in_reach(config):
        if _needs_none(config, train):
            return None
    return make_source(config, "test")


def _needs_none(config: ConfigDict, train: Source) -> bool:
    """Whether there are no test images, and need not be any."""
    if config.source == "folder" and not config.test_fraction and not has_split(config.data_dir, config.test_split):
        return train.num_classes < 2 or is_whole(config.data_dir, config.train_split)
    if config.source in _PACKED and not config.test_fraction:
        ending = _PACKED[config.source][1]
        need_not = train.num_classes < 2 or is_one_split(config.data_dir, config.train_split, ending)
        return need_not and not has_shards(config.data_dir, config.test_split, ending)
    return False


@functools.lru_cache(maxsize=2)
def _photographs(split: str, size: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """The crops, which a run and its evaluations share."""
    images, labels = photograph_crops(split, size=size, per_class=per_class)
    images.flags.writeable = labels.flags.writeable = False
    return images, labels
