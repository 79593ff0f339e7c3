"""bt_jax/data/decode.py against Pillow: every format and kind of pixel a folder of images may hold."""

import io
import re
import struct

import numpy as np
import PIL
import pytest
import tensorflow as tf
from PIL import Image, ImageOps, features

from bt_jax.data import decode as decode_module
from bt_jax.data.decode import decode
from bt_jax.errors import first_line

COLOUR = np.asarray(Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)).resize((61, 47), 3))
ALPHA = np.dstack([COLOUR, np.random.default_rng(1).integers(0, 256, COLOUR.shape[:2], np.uint8)])


def encoded(pixels, kind, mode=None, **settings):
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **settings)
    return file.getvalue()


def turned(image):
    """EXIF data that ask for a turn."""
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


FILES = {
    "JPEG": encoded(COLOUR, "JPEG"),
    "JPEG of full chroma": encoded(COLOUR, "JPEG", subsampling=0),
    "progressive JPEG": encoded(COLOUR, "JPEG", progressive=True),
    "grey JPEG": encoded(COLOUR, "JPEG", "L"),
    "CMYK JPEG": encoded(COLOUR, "JPEG", "CMYK"),
    "turned JPEG": encoded(COLOUR, "JPEG", exif=turned(COLOUR)),
    "PNG": encoded(COLOUR, "PNG"),
    "PNG with alpha": encoded(ALPHA, "PNG"),
    "grey PNG with alpha": encoded(ALPHA, "PNG", "LA"),
    "palette PNG": encoded(COLOUR, "PNG", "P"),
    "black and white PNG": encoded(COLOUR, "PNG", "1"),
    "PNG of 16 bits": tf.io.encode_png(COLOUR.astype(np.uint16) * 257 + 3).numpy(),
    "GIF": encoded(COLOUR, "GIF", "P"),
    "animated GIF": encoded(
        COLOUR, "GIF", "P", save_all=True, append_images=[Image.fromarray(COLOUR[::-1]).convert("P")]
    ),
    "WebP": encoded(COLOUR, "WEBP"),
    "WebP with alpha": encoded(ALPHA, "WEBP"),
    "BMP": encoded(COLOUR, "BMP"),
    "palette BMP": encoded(COLOUR, "BMP", "P"),
    "grey BMP": encoded(COLOUR, "BMP", "L"),
    "BMP with alpha": encoded(ALPHA, "BMP"),
    "TIFF": encoded(COLOUR, "TIFF"),
    "PPM": encoded(COLOUR, "PPM"),
    "PGM": encoded(COLOUR, "PPM", "L"),
    "JPEG 2000": encoded(COLOUR, "JPEG2000"),
    **({"AVIF": encoded(COLOUR, "AVIF")} if features.check("avif") else {}),
    "one pixel": encoded(COLOUR[:1, :1], "JPEG"),
    "long and narrow": encoded(np.resize(COLOUR, (50, 10000, 3)), "JPEG"),
    "high and narrow": encoded(np.resize(COLOUR, (10000, 50, 3)), "PNG"),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_pillows(name):
    """All of them equal; JPEG libraries of different makers may differ by a level."""
    found = decode(tf.constant(FILES[name])).numpy()
    expected = np.asarray(Image.open(io.BytesIO(FILES[name])).convert("RGB"))
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (1 if "JPEG" in name or "narrow" in name else 0)
    np.testing.assert_array_equal(tf.function(decode)(tf.constant(FILES[name])), found)


def test_orientation_is_not_applied():
    """As torchvision's loader: the pixels lie as they are stored."""
    assert decode(tf.constant(FILES["turned JPEG"])).shape == COLOUR.shape


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "CMYK JPEG", "16 bits"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_if_it_is_asked_for(kind, orientation):
    """As `ImageOps.exif_transpose` does."""
    exif = Image.Exif()
    exif[0x112] = orientation
    if kind == "16 bits":
        content = encoded(DEEP, "PNG", exif=exif)
        high = Image.fromarray((DEEP >> 8).astype(np.uint8)).convert("RGB")
        expected = np.asarray(_as_exif_says(high, orientation))
    else:
        content = encoded(COLOUR, kind.split()[-1], "CMYK" if "CMYK" in kind else None, exif=exif)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    for found in (decode, tf.function(decode)):
        pixels = found(tf.constant(content), exif_orientation=True).numpy()
        assert pixels.shape == expected.shape and np.abs(pixels.astype(int) - expected).max() <= ("JPEG" in kind)


def _as_exif_says(image, orientation):
    with_tag = Image.Exif()
    with_tag[0x112] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=with_tag)
    return ImageOps.exif_transpose(Image.open(file))


def test_exif_data_that_are_damaged():
    exif = b"Exif\0\0MM\0*\xff\xff\xff\xff"
    content = encoded(COLOUR, "JPEG", exif=exif)
    np.testing.assert_array_equal(decode(tf.constant(content), exif_orientation=True), decode(tf.constant(content)))


def test_a_format_that_this_pillow_lacks(monkeypatch):
    """The reason says so, and not only how the file begins."""
    opened = decode_module.PIL.Image.open
    content = encoded(COLOUR, "JPEG2000")

    def unknown(file):
        if file.getvalue() == content:
            raise PIL.UnidentifiedImageError("cannot identify image file <_io.BytesIO object>")
        return opened(file)

    monkeypatch.setattr(decode_module.PIL.Image, "open", unknown)
    monkeypatch.setattr(decode_module.PIL.features, "check", lambda feature: feature != "jpg_2000")
    with pytest.raises((tf.errors.OpError, ValueError)) as raised:
        decode(tf.constant(content))
    assert re.search("this Pillow, .*, was built without jpg_2000; pip install -U pillow", str(raised.value))


def test_grey_png_of_16_bits_keeps_its_high_byte():
    """Pillow would make nearly all of it white."""
    grey = np.random.default_rng(0).integers(0, 2**16, (9, 7), np.uint16)
    found = decode(tf.constant(encoded(grey, "PNG"))).numpy()
    np.testing.assert_array_equal(found, np.repeat(grey[..., None] >> 8, 3, axis=-1))


def tiff(levels, bits, photometric, order="<"):
    """A grey TIFF of one strip, written by hand: Pillow writes none of 12 bits, big-endian or with 0 for white."""
    height, width = levels.shape
    if bits == 12:
        flat = levels.reshape(-1, 2).astype(int)
        data = np.stack([flat[:, 0] >> 4, (flat[:, 0] & 15) << 4 | flat[:, 1] >> 8, flat[:, 1] & 255], -1)
        data = data.astype(np.uint8).tobytes()
    else:
        data = levels.astype(f"{order}u2").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


DEEP = np.random.default_rng(3).integers(0, 2**16, (10, 8), np.uint16)
DEEP_FILES = {
    "TIFF": (encoded(DEEP, "TIFF"), DEEP >> 8),
    "big-endian TIFF": (tiff(DEEP, 16, 1, ">"), DEEP >> 8),
    "TIFF in which 0 is white": (tiff(DEEP, 16, 0), 255 - (DEEP >> 8)),
    "TIFF of 12 bits": (tiff(DEEP >> 4, 12, 1), DEEP >> 8),
    "compressed TIFF": (encoded(DEEP, "TIFF", compression="tiff_lzw"), DEEP >> 8),
    "PGM": (encoded(DEEP, "PPM"), DEEP >> 8),
    "JPEG 2000": (encoded(DEEP, "JPEG2000"), DEEP >> 8),
    "PNG": (encoded(DEEP, "PNG"), DEEP >> 8),
}


@pytest.mark.parametrize("name", DEEP_FILES)
def test_grey_images_of_16_bits_keep_their_high_byte(name):
    """Compared with numpy; nothing turns white."""
    content, expected = DEEP_FILES[name]
    found = decode(tf.constant(content)).numpy()
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, axis=-1))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_levels_without_a_range_do_not_decode(dtype):
    content = encoded(DEEP.astype(dtype), "TIFF")
    with pytest.raises((tf.errors.OpError, ValueError)) as raised:
        decode(tf.constant(content))
    assert "32 bits; declare data.channels and data.range" in first_line(raised.value)


def without_adobe(jpeg):
    """The file without its APP14 segment, by which Adobe says that CMYK is inverted."""
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


@pytest.mark.parametrize("adobe", [True, False])
@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"quality": 100}])
def test_cmyk_jpegs_are_pillows(adobe, settings):
    """Level for level, with Adobe's marker and without."""
    content = encoded(COLOUR, "JPEG", "CMYK", **settings)
    content = content if adobe else without_adobe(content)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(decode(tf.constant(content)), expected)
    np.testing.assert_array_equal(tf.function(decode)(tf.constant(content)), expected)


JPEG = FILES["JPEG"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no known image format: it is empty"),
        (b"not an image", "no known image format: it begins with b'not an image'"),
        (JPEG[:3], "Invalid JPEG data"),
        (JPEG[: len(JPEG) // 2], "Invalid JPEG data"),
        (JPEG[:-20], "jpeg"),
        (FILES["PNG"][:-100], "PNG"),
        (FILES["WebP"][:200], "WebP|decoder|truncated|OSError"),
        (FILES["palette BMP"][:-100], "truncated"),
    ],
)
def test_what_does_not_decode_says_why(content, reason):
    """Truncated files are refused, as by Pillow, and not filled up with grey."""
    with pytest.raises((tf.errors.OpError, ValueError)) as raised:
        decode(tf.constant(content))
    assert re.search(reason, first_line(raised.value))
    with pytest.raises(tf.errors.OpError, match=reason):
        tf.function(decode)(tf.constant(content))
