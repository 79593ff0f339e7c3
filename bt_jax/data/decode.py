"""Encoded images to pixels, as Pillow decodes them and `convert("RGB")` converts (the official loader's way).

JPEG and PNG, which is nearly all there is, go through TensorFlow: level for level Pillow's, without its lock. The rest
(GIF, BMP, WebP, TIFF and what else it knows) goes through Pillow itself. Alpha is dropped, the first frame of several is
taken, and the orientation in EXIF is not applied, as torchvision does not either. One difference is meant: grey PNGs of
16 bits keep their high byte, as coloured ones do; Pillow's conversion clips them, nearly always to white.
"""

import io

import numpy as np

from bt_jax.data.tensorflow_import import tf

_PNG = b"\x89PNG\r\n\x1a\n"


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes an image file's bytes.

    Args:
      encoded: () string.

    Returns:
      (H, W, 3) uint8.

    Raises:
      tf.errors.OpError, or ValueError outside of a graph: (when run) it is not an image, or not a whole one.
    """

    def jpeg():
        # The exact inverse transform and smooth chroma are what Pillow asks of the same library.
        return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE", fancy_upscaling=True)

    def png():
        return tf.io.decode_png(encoded, channels=3)

    def other():
        return tf.numpy_function(_by_pillow, [encoded], tf.uint8, stateful=False)

    is_png = tf.strings.substr(encoded, 0, len(_PNG)) == _PNG
    image = tf.cond(tf.io.is_jpeg(encoded), jpeg, lambda: tf.cond(is_png, png, other))
    return tf.ensure_shape(image, (None, None, 3))


def _by_pillow(encoded: bytes | np.ndarray) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    if isinstance(encoded, np.ndarray):  # outside of a graph
        encoded = encoded.item()
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:  # its own text names an object in memory
        what = f"it begins with {encoded[:12]!r}" if encoded else "it is empty"
        raise ValueError(f"no known image format: {what}") from None
    except Exception as error:  # on damaged files Pillow raises nearly anything
        raise ValueError(f"{type(error).__name__}: {error}") from None
