"""Image files that are not photographs to their values: any number of channels, whole numbers of any depth, and floats.

TIFF is read by tifffile, DICOM by pydicom, 16-bit PNG in colour by TensorFlow, arrays by numpy, and the rest by Pillow. Values
come as they are stored, those of DICOM after its rescaling; where 0 is stored for white they are inverted.
"""

import io
import warnings

import numpy as np
import PIL.Image

from bt_jax.data.sources.base import LARGEST_IMAGE
from bt_jax.errors import UserError, first_line
from bt_jax.parts import import_part
from bt_jax.pixels import Pixels

# On odd metadata, with which the image is taken as it is. Images are read on several threads, which may not change the filters.
warnings.filterwarnings("ignore", module=r"(PIL|tifffile|pydicom)\b")

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NPY = b"\x93NUMPY"
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 274  # a tag of TIFF and EXIF
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_WHITE_IS_ZERO = 0  # of the second
_AS_STORED = ("L", "LA", "RGB", "RGBA", "CMYK", "I", "F")  # modes of Pillow


def decode_levels(encoded: bytes, pixels: Pixels, *, exif_orientation: bool = False) -> np.ndarray:
    """The levels (H, W, C) of an image file's bytes.

    Raises:
      ValueError: in words for a sentence: it is no image, is cut off, or does not have such pixels; a package is missing.
    """
    values, orientation = read_values(encoded, pixels)
    return turned(pixels.levels(values), orientation if exif_orientation else 1)


def in_8_bits(image: PIL.Image.Image) -> np.ndarray:
    """An image's pixels as RGB, (H, W, 3) uint8; of 16 bits the high ones.

    Raises:
      ValueError: in words for a sentence: it has 32 bits or floats, whose levels have no known range.
    """
    # Pillow scales portable grey maps of more than 8 bits to 16, but gives them the mode of 32.
    of_16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    if not of_16:
        if image.mode in ("I", "F"):
            raise ValueError(f"its pixels are of mode {image.mode}, 32 bits; declare data.channels and data.range")
        return np.asarray(image.convert("RGB"))
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    levels = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # which Pillow inverts in 8 bits only
        levels = 255 - levels
    return np.repeat(levels[..., None], 3, axis=-1)


def levels_of_image(image: PIL.Image.Image, pixels: Pixels, *, exif_orientation: bool = False) -> np.ndarray:
    """The levels (H, W, C) of an image of Pillow, as of its file (`decode`).

    Raises:
      ValueError: in words for a sentence: it is cut off, or does not have such pixels.
    """
    try:
        if pixels.are_photographs:
            levels = in_8_bits(image)
        else:
            values = _values_of_image(image)
            levels = pixels.levels(
                as_declared(values if values.ndim == 3 else values[..., None], image.mode == "CMYK", pixels)
            )
    except OSError as error:  # it is decoded only now
        raise ValueError(first_line(error)) from None
    return turned(levels, image.getexif().get(_ORIENTATION, 1) if exif_orientation else 1)


def as_declared(values: np.ndarray, is_cmyk: bool, pixels: Pixels) -> np.ndarray:
    """The values (H, W, C) of an image; those of a coloured one of 8 bits as grey, if one channel without a range is declared."""
    if pixels.channels != 1 or pixels.range or values.dtype != np.uint8 or values.shape[-1] not in (3, 4):
        return values
    if values.shape[-1] == 4 and is_cmyk:
        values = _of_inks(values)
    return np.asarray(PIL.Image.fromarray(values[..., :3]).convert("L"))[..., None]


def inks_as_colours(encoded: bytes, values: np.ndarray) -> np.ndarray:
    """The values (H, W, C) of an image file's bytes; of one in CMYK as red, green and blue, (H, W, 3) uint8."""
    return _of_inks(values) if values.dtype == np.uint8 and values.shape[-1] == 4 and _is_cmyk(encoded) else values


def _of_inks(values: np.ndarray) -> np.ndarray:
    inks = PIL.Image.frombytes("CMYK", values.shape[1::-1], np.ascontiguousarray(values).tobytes())
    return np.asarray(inks.convert("RGB"))


def _is_cmyk(encoded: bytes) -> bool:
    try:
        with PIL.Image.open(io.BytesIO(encoded)) as image:
            return image.mode == "CMYK"
    except Exception:  # a file of another library
        return False


def read_values(encoded: bytes, pixels: Pixels | None = None) -> tuple[np.ndarray, int]:
    """The values (H, W, C) of an image file's bytes, as stored, and its EXIF orientation, 1 to 8; raises as `decode_levels`.

    Args:
      pixels: that are declared, if any: the values are then as `as_declared` gives them.
    """
    try:
        values, orientation = _reader(encoded)(encoded)
    except UserError as error:  # a missing package
        raise ValueError(str(error).rstrip(".")) from None
    except PIL.UnidentifiedImageError:  # its own text names an object in memory
        what = f"it begins with {encoded[:12]!r}" if encoded else "it is empty"
        raise ValueError(f"no known image format: {what}") from None
    except Exception as error:  # on damaged files these libraries raise nearly anything
        raise ValueError(f"{type(error).__name__}: {first_line(error)}") from None
    if not values.size:
        raise ValueError("it has no pixels")
    values = values if values.ndim == 3 else values[..., None]
    if pixels is not None:
        values = as_declared(values, values.shape[-1] == 4 and _is_cmyk(encoded), pixels)
    return values, orientation


def is_dicom(encoded: bytes) -> bool:
    """Whether these are the bytes of a DICOM file, after its preamble."""
    return encoded[128:132] == b"DICM"


def is_npy(encoded: bytes) -> bool:
    """Whether these are the bytes of an .npy file, as which arrays of TFDS sets are handed on."""
    return encoded.startswith(_NPY)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The image, turned and mirrored by an EXIF orientation: transposed from 5 on, then mirrored."""
    pixels = pixels.transpose(1, 0, 2) if orientation in (5, 6, 7, 8) else pixels
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    return np.ascontiguousarray(pixels[::-1] if orientation in (3, 4, 7, 8) else pixels)


def _reader(encoded: bytes):
    if encoded[:4] in _TIFF:
        return _tiff
    if is_dicom(encoded):
        return _dicom
    if is_npy(encoded):
        return _npy
    deep_in_colour = encoded[: len(_PNG)] == _PNG and encoded[24:25] == b"\x10" and encoded[25:26] != b"\0"
    return _deep_png if deep_in_colour else _by_pillow


def _tiff(encoded: bytes) -> tuple[np.ndarray, int]:
    """Samples, planes and pages all are channels."""
    tifffile = import_part(
        "tifffile", use="TIFF with other channels or depths", name="tifffile", package="tifffile imagecodecs"
    )
    with tifffile.TiffFile(io.BytesIO(encoded)) as file:
        series, page = file.series[0], file.pages[0]
        _check_size(series.nbytes)
        values, axes = series.asarray(), series.axes
        orientation = page.tags[_ORIENTATION].value if _ORIENTATION in page.tags else 1
        inverted = page.photometric == _WHITE_IS_ZERO and values.dtype.kind == "u"
    others = [axis for axis, name in enumerate(axes) if name not in "YX"]
    values = values.transpose(axes.index("Y"), axes.index("X"), *others)
    values = values.reshape(*values.shape[:2], -1)
    return (np.iinfo(values.dtype).max - values if inverted else values), orientation


def _check_size(count: int) -> None:
    if count > LARGEST_IMAGE:
        raise ValueError(f"its header claims {count} bytes of values, but an image may have {LARGEST_IMAGE} at most")


def _dicom(encoded: bytes) -> tuple[np.ndarray, int]:
    """The first frame."""
    pydicom = import_part("pydicom", use="DICOM", name="pydicom")
    pixels = import_part("pydicom.pixels", use="DICOM", name="pydicom 3", package="'pydicom>=3'")
    file = pydicom.dcmread(io.BytesIO(encoded))
    _check_size(
        file.Rows * file.Columns * file.SamplesPerPixel * int(file.get("NumberOfFrames") or 1) * file.BitsAllocated // 8
    )
    values = file.pixel_array
    if int(file.get("NumberOfFrames") or 1) > 1:
        values = values[0]
    if file.PhotometricInterpretation == "MONOCHROME1":  # 0 is white
        values = (-1 if file.PixelRepresentation else 2**file.BitsStored - 1) - values
    return pixels.apply_modality_lut(values, file), 1


def _npy(encoded: bytes) -> tuple[np.ndarray, int]:
    """Nothing is allocated: an array that claims more values than there are does not fit the shape."""
    file = io.BytesIO(encoded)
    shape, in_fortran, dtype = NPY_HEADERS[np.lib.format.read_magic(file)](file)
    return np.frombuffer(encoded, dtype, offset=file.tell()).reshape(shape, order="F" if in_fortran else "C"), 1


def _deep_png(encoded: bytes) -> tuple[np.ndarray, int]:
    """In which Pillow keeps 8 of 16 bits."""
    from bt_jax.data.tensorflow_import import tf

    width, height = (int.from_bytes(encoded[at : at + 4], "big") for at in (16, 20))
    _check_size(width * height * 2 * 4)
    return tf.io.decode_png(encoded, channels=0, dtype=tf.uint16).numpy(), 1


def _by_pillow(encoded: bytes) -> tuple[np.ndarray, int]:
    with PIL.Image.open(io.BytesIO(encoded)) as image:
        orientation = image.getexif().get(_ORIENTATION, 1)
        return _values_of_image(image), orientation


def _values_of_image(image: PIL.Image.Image) -> np.ndarray:
    if image.mode in _AS_STORED or image.mode.startswith("I;16"):
        return np.asarray(image)
    return np.asarray(image.convert({"1": "L", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGB")))
