"""Encoded images to pixels, as Pillow decodes them and `convert("RGB")` converts (the official loader's way).

JPEG and PNG, the usual formats, go through TensorFlow: the same levels as Pillow's, without its lock. The rest (JPEGs in CMYK,
which TensorFlow inverts by another rule, GIF, BMP, WebP, TIFF, …) goes through Pillow itself. Alpha is dropped, the first of
several frames is taken, and the EXIF orientation is ignored, as in torchvision. One difference is deliberate, as Pillow's
conversion clips levels above 255, nearly always to white: grey images of 16 bits keep their high byte, as coloured ones do
(those of 12 bits their highest 8 bits), and those of 32 bits or floats, whose levels have no known range, do not decode.
"""

import io

import numpy as np
import PIL.Image

from bt_jax.data.tensorflow_import import tf

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_PNG = b"\x89PNG\r\n\x1a\n"


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes an image file's bytes.

    Args:
      encoded: () string.

    Returns:
      (H, W, 3) uint8.

    Raises:
      tf.errors.OpError, or ValueError outside of a graph: (when run) it is not an image, or it is cut off.
    """

    def jpeg():
        # Pillow asks the same library for the exact inverse transform and smooth chroma.
        return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE", fancy_upscaling=True)

    def png():
        return tf.io.decode_png(encoded, channels=3)

    def other():
        return tf.numpy_function(_by_pillow, [encoded], tf.uint8, stateful=False)

    is_png = tf.strings.substr(encoded, 0, len(_PNG)) == _PNG

    def any_jpeg():
        return tf.cond(tf.io.extract_jpeg_shape(encoded)[2] == 4, other, jpeg)

    image = tf.cond(tf.io.is_jpeg(encoded), any_jpeg, lambda: tf.cond(is_png, png, other))
    return tf.ensure_shape(image, (None, None, 3))


def _by_pillow(encoded: bytes | np.ndarray) -> np.ndarray:
    if isinstance(encoded, np.ndarray):  # outside of a graph
        encoded = encoded.item()
    try:
        with PIL.Image.open(io.BytesIO(encoded)) as image:
            return _in_8_bits(image)
    except PIL.UnidentifiedImageError:  # its own text names an object in memory
        what = f"it begins with {encoded[:12]!r}" if encoded else "it is empty"
        raise ValueError(f"no known image format: {what}") from None
    except Exception as error:  # on damaged files Pillow raises nearly anything
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _in_8_bits(image: PIL.Image.Image) -> np.ndarray:
    """Its pixels as RGB, (H, W, 3) uint8."""
    # Pillow scales portable grey maps of more than 8 bits to 16, but gives them the mode of 32.
    of_16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    if not of_16:
        if image.mode in ("I", "F"):
            raise ValueError(f"its pixels are of mode {image.mode}, 32 bits; convert it to 8 or 16 bits per channel")
        return np.asarray(image.convert("RGB"))
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    levels = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white, which Pillow inverts in 8 bits only
        levels = 255 - levels
    return np.repeat(levels[..., None], 3, axis=-1)
