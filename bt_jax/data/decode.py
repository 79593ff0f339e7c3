"""Encoded images to pixels, as Pillow decodes them and `convert("RGB")` converts (the official loader's way).

JPEG and PNG, the usual formats, go through TensorFlow: the same levels as Pillow's, without its lock. The rest (JPEGs in CMYK,
which TensorFlow inverts by another rule, GIF, BMP, WebP, TIFF, AVIF, …) goes through Pillow itself. Alpha is dropped, the first of
several frames is taken, and the EXIF orientation is ignored, as in torchvision, unless it is asked for. One difference is deliberate, as Pillow's
conversion clips levels above 255, nearly always to white: grey images of 16 bits keep their high byte, as coloured ones do
(those of 12 bits their highest 8 bits), and those of 32 bits or floats, whose levels have no known range, do not decode.

Images of other channels or depths, which a run declares in `data.channels` and `data.range`, go through values.py.
"""

import functools
import io

import numpy as np
import PIL.features
import PIL.Image

from bt_jax.data.tensorflow_import import tf
from bt_jax.data.values import decode_levels, in_8_bits, is_dicom, is_npy, turned
from bt_jax.pixels import PHOTOGRAPHS, Pixels

_ORIENTATION = 274  # a tag of EXIF
_FEATURES = {
    b"ftypavif": "avif",
    b"ftypavis": "avif",
    b"jP  \r\n\x87\n": "jpg_2000",
}  # of Pillow, by bytes 4 to 12 of a file
_PNG = b"\x89PNG\r\n\x1a\n"


def decode(encoded: tf.Tensor, pixels: Pixels = PHOTOGRAPHS, *, exif_orientation: bool = False) -> tf.Tensor:
    """Decodes an image file's bytes.

    Args:
      encoded: () string.
      exif_orientation: whether the image is turned as its EXIF data say.

    Returns:
      Levels (H, W, C), as `pixels` says.

    Raises:
      tf.errors.OpError, or ValueError outside of a graph: (when run) it is not an image, or it is cut off.
    """
    if not pixels.are_photographs:

        def values(encoded):
            return decode_levels(_bytes(encoded), pixels, exif_orientation=exif_orientation)

        image = tf.numpy_function(values, [encoded], tf.as_dtype(pixels.dtype), stateful=False)
        return tf.ensure_shape(image, (None, None, pixels.channels))

    def jpeg():
        # Pillow asks the same library for the exact inverse transform and smooth chroma.
        return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE", fancy_upscaling=True)

    def png():
        return tf.io.decode_png(encoded, channels=3)

    def other():
        by_pillow = functools.partial(_by_pillow, exif_orientation=exif_orientation)
        return tf.ensure_shape(tf.numpy_function(by_pillow, [encoded], tf.uint8, stateful=False), (None, None, 3))

    def upright(image):
        return _upright(image, encoded) if exif_orientation else image

    is_png = tf.strings.substr(encoded, 0, len(_PNG)) == _PNG

    def any_jpeg():
        return tf.cond(tf.io.extract_jpeg_shape(encoded)[2] == 4, other, lambda: upright(jpeg()))

    image = tf.cond(tf.io.is_jpeg(encoded), any_jpeg, lambda: tf.cond(is_png, lambda: upright(png()), other))
    return tf.ensure_shape(image, (None, None, 3))


def _upright(image: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
    """The image, turned and mirrored by the orientation in the file: transposed from 5 on, then mirrored."""
    orientation = tf.ensure_shape(tf.numpy_function(_orientation, [encoded], tf.int64, stateful=False), ())

    def among(*orientations):
        return tf.reduce_any(orientation == tf.constant(orientations, tf.int64))

    image = tf.cond(among(5, 6, 7, 8), lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    image = tf.cond(among(2, 3, 6, 7), lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(among(3, 4, 7, 8), lambda: tf.reverse(image, [0]), lambda: image)


def _orientation(encoded: bytes | np.ndarray) -> np.int64:
    """The EXIF orientation of a JPEG or PNG, 1 to 8; 1 if it has none that can be read."""
    try:
        with PIL.Image.open(io.BytesIO(_bytes(encoded))) as image:
            return np.int64(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # on damaged data Pillow raises nearly anything
        return np.int64(1)


def _bytes(encoded: bytes | np.ndarray) -> bytes:
    return encoded.item() if isinstance(encoded, np.ndarray) else encoded  # an array outside of a graph


def _by_pillow(encoded: bytes | np.ndarray, *, exif_orientation: bool = False) -> np.ndarray:
    encoded = _bytes(encoded)
    if is_npy(encoded):
        return decode_levels(encoded, PHOTOGRAPHS)
    try:
        with PIL.Image.open(io.BytesIO(encoded)) as image:
            pixels = in_8_bits(image)
            # A TIFF was turned when its pixels were loaded, and its tag is gone then.
            orientation = image.getexif().get(_ORIENTATION, 1) if exif_orientation else 1
            return turned(pixels, orientation)
    except PIL.UnidentifiedImageError:  # its own text names an object in memory
        what = f"it begins with {encoded[:12]!r}" if encoded else "it is empty"
        feature = _FEATURES.get(encoded[4:12])
        if feature and not PIL.features.check(feature):
            what = f"this Pillow, {PIL.__version__}, was built without {feature}; pip install -U pillow"
        if is_dicom(encoded):
            what = "it is DICOM, which is read if data.channels and data.range are declared"
        raise ValueError(f"no known image format: {what}") from None
    except Exception as error:  # on damaged files Pillow raises nearly anything
        raise ValueError(f"{type(error).__name__}: {error}") from None
