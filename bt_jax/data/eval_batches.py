"""The images of a source as evaluations see them, with TensorFlow or without: the entry point for both."""

from collections.abc import Iterator
from typing import TypeGuard

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from bt_jax.data.order import check_rows, evenly
from bt_jax.data.sources.base import ArraySource, Source, import_tensorflow
from bt_jax.pixels import PHOTOGRAPHS, Pixels


def eval_batches(
    source: Source, config: ConfigDict, *, batch_size: int, rows: np.ndarray, limit: int | None = None, first: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Each image exactly once, in the source's order; the last batch is padded.

    Images that do not decode are masked, and recorded in `source.bad`. If views are made on the device and the set is in
    memory, TensorFlow is not imported.

    Args:
      config: `config.data` of a run.
      batch_size: of the global batch.
      rows: the rows of the global batch to make, (n,), increasing: all of them, or this process's share.
      limit: at most this many images, evenly spread over the source.
      first: the batch to begin with, from 0; those before it are not made.

    Yields:
      {"image": (n, S, S, C) uint8 or uint16, "label": (n,) int32, "mask": (n,) bool: false where a row is padding or does not
      decode}; as many batches on every process.

    Raises:
      UserError: TensorFlow is needed but not installed; (while iterating) too many images do not decode.
      ValueError: rows that are not rows of a batch.
    """
    check_rows(rows, batch_size)
    check_reader(source, config)
    if _in_numpy(source, config):
        return _of_arrays(source, config, batch_size, rows, limit, first)
    from bt_jax.data import eval_pipeline

    return eval_pipeline.eval_batches(source, config, batch_size=batch_size, rows=rows, limit=limit, first=first)


def check_tensorflow(config: ConfigDict) -> None:
    """Raises UserError if `config.data` of a run needs TensorFlow whatever its source holds, and it is absent."""
    if config.views != "device" or config.source not in ("arrays", "photographs"):
        import_tensorflow()


def check_reader(source: Source, config: ConfigDict) -> None:
    """Raises UserError if TensorFlow is needed and absent: to be called before anything is written."""
    if not _in_numpy(source, config):
        import_tensorflow()


def _in_numpy(source: Source, config: ConfigDict) -> TypeGuard[ArraySource]:
    return config.views == "device" and isinstance(source, ArraySource)


def _of_arrays(
    source: ArraySource, config: ConfigDict, batch_size: int, rows: np.ndarray, limit: int | None, first: int
):
    shown = evenly(len(source), limit)
    for start in range(first * batch_size, len(shown), batch_size):
        places = start + rows
        mask = places < len(shown)
        examples = shown[np.minimum(places, len(shown) - 1)]
        if source.bad:
            mask &= [int(example) not in source.bad for example in examples]
        images, labels = source.fetch(source.usable(examples))
        views = evaluation_views(images, config.eval_resize, config.image_size, source.pixels)
        yield {"image": views, "label": labels, "mask": mask}


def evaluation_views(images: np.ndarray, resize: int, size: int, pixels: Pixels = PHOTOGRAPHS) -> np.ndarray:
    """The images as evaluations see them, made by Pillow: what views.host.evaluation_view gives, for levels (N, H, W, C)."""
    height, width = images.shape[1:3]
    if resize:
        short = min(height, width)
        new_height, new_width = resize * height // short, resize * width // short
    else:
        new_height, new_width = size, size
    if (new_height, new_width) != (height, width):
        images = np.stack([_resized(x, new_height, new_width, pixels) for x in images])
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return images[:, top : top + size, left : left + size]


def _resized(image: np.ndarray, height: int, width: int, pixels: Pixels) -> np.ndarray:
    def by_pillow(x):
        first = Image.fromarray(x).resize((width, image.shape[0]), Image.Resampling.BILINEAR)
        return np.asarray(first.resize((width, height), Image.Resampling.BILINEAR))

    if pixels.are_photographs:
        return by_pillow(image)
    channels = [by_pillow(np.ascontiguousarray(image[..., c], np.float32)) for c in range(pixels.channels)]
    return np.clip(np.stack(channels, axis=-1) + 0.5, 0, pixels.top).astype(pixels.dtype)
