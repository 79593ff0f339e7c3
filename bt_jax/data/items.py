"""What a source's `fetch` returns, as TensorFlow sees it, and how it becomes an image."""

import functools
from collections.abc import Callable

from bt_jax.data.decode import decode
from bt_jax.data.sources.base import ArraySource, EncodedSource, IndexedSource
from bt_jax.data.tensorflow_import import tf


def items_spec(source: IndexedSource) -> tf.TensorSpec:
    """Shape and type of what `source.fetch` returns for n examples."""
    if isinstance(source, ArraySource):
        return tf.TensorSpec((None, *source.images.shape[1:]), tf.as_dtype(source.images.dtype))
    return tf.TensorSpec((None,), tf.string)


def pixels_of(source: IndexedSource) -> Callable[[tf.Tensor], tf.Tensor]:
    """The function from one such item to its image, levels (H, W, C) as `source.pixels` says."""
    if isinstance(source, ArraySource):
        return lambda pixels: pixels
    assert isinstance(source, EncodedSource)
    turned = functools.partial(decode, pixels=source.pixels, exif_orientation=source.exif_orientation)
    return (lambda path: turned(tf.io.read_file(path))) if source.gives_paths else turned
