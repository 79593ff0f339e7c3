"""bt_jax/data/values.py: image files of other channels and depths, by the libraries that write them."""

import io
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from bt_jax import config as config_lib
from bt_jax.data import values
from bt_jax.data.decode import decode
from bt_jax.data.sources.make import make_source
from bt_jax.data.values import decode_levels, read_values
from bt_jax.pixels import Pixels

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (6, 8), np.uint16)


def encoded(array, kind, mode=None, **settings):
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits(kind):
    values, orientation = read_values(encoded(DEEP, kind))
    np.testing.assert_array_equal(values, DEEP[..., None])
    assert values.dtype == np.uint16 and orientation == 1


@pytest.mark.parametrize("channels", [3, 4])
def test_png_of_16_bits_in_colour(channels):
    """Of which Pillow would keep the high byte."""
    image = RNG.integers(0, 65536, (5, 7, channels), np.uint16)
    values, _ = read_values(tf.io.encode_png(image).numpy())
    np.testing.assert_array_equal(values, image)


def test_other_files_of_pillow():
    """As they are stored; palettes and bits as what they stand for."""
    rgb = RNG.integers(0, 256, (6, 8, 3), np.uint8)
    np.testing.assert_array_equal(read_values(encoded(rgb, "PNG"))[0], rgb)
    np.testing.assert_array_equal(read_values(encoded(DEEP.astype(np.float32), "TIFF"))[0][..., 0], DEEP)
    assert read_values(encoded(rgb[..., 0], "JPEG"))[0].shape == (6, 8, 1)
    buffer = io.BytesIO()
    Image.fromarray(rgb).quantize(8).save(buffer, "PNG")
    assert read_values(buffer.getvalue())[0].shape == (6, 8, 3)
    buffer = io.BytesIO()
    Image.new("1", (3, 2), 1).save(buffer, "PNG")
    np.testing.assert_array_equal(read_values(buffer.getvalue())[0], np.full((2, 3, 1), 255))


@pytest.mark.parametrize(
    ("kind", "settings", "order"),
    [
        (np.uint16, {"photometric": "minisblack", "planarconfig": "contig"}, (0, 1, 2)),
        (np.float32, {"photometric": "minisblack", "planarconfig": "separate"}, (2, 0, 1)),
        (np.int16, {"photometric": "minisblack"}, (2, 0, 1)),  # pages
        (np.uint8, {"photometric": "minisblack", "planarconfig": "contig", "compression": "deflate"}, (0, 1, 2)),
    ],
)
def test_tiff_of_many_bands(kind, settings, order):
    """Samples, planes and pages are channels."""
    tifffile = pytest.importorskip("tifffile")
    image = RNG.integers(0, 100, (6, 8, 13)).astype(kind)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image.transpose(order), **settings)
    values, _ = read_values(buffer.getvalue())
    assert values.dtype == kind
    np.testing.assert_array_equal(values, image)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_grey_of_inks(kind):
    """As Pillow turns CMYK to grey; with four channels the inks are as stored, and alpha is no ink."""
    if kind == "TIFF":
        pytest.importorskip("tifffile")
    rgb = np.repeat(RNG.integers(0, 256, (2, 3, 3), np.uint8), 8, 0).repeat(8, 1)
    content, buffer = io.BytesIO(), io.BytesIO()
    Image.fromarray(rgb).convert("CMYK").save(content, kind)
    inks = Image.open(content)
    found = decode_levels(content.getvalue(), Pixels(1))
    np.testing.assert_array_equal(found[..., 0], np.asarray(inks.convert("RGB").convert("L")))
    assert np.abs(found[..., 0].astype(int) - np.asarray(Image.fromarray(rgb).convert("L"))).max() < 16
    np.testing.assert_array_equal(decode_levels(content.getvalue(), Pixels(4)), np.asarray(inks))
    Image.fromarray(np.dstack([rgb, rgb[..., :1]])).save(buffer, "PNG")
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    np.testing.assert_array_equal(decode_levels(buffer.getvalue(), Pixels(1))[..., 0], grey)


def test_tiff_in_which_0_is_white():
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, DEEP, photometric="miniswhite")
    np.testing.assert_array_equal(read_values(buffer.getvalue())[0][..., 0], 65535 - DEEP)


def test_orientation():
    """Turned if it is asked for; the channels stay where they are."""
    tifffile = pytest.importorskip("tifffile")
    image, buffer = RNG.integers(0, 65536, (3, 4, 2), np.uint16), io.BytesIO()
    tifffile.imwrite(buffer, image, photometric="minisblack", planarconfig="contig", extratags=[(274, "H", 1, 6, True)])
    pixels = Pixels(2, (0.0, 65535.0))
    np.testing.assert_array_equal(decode_levels(buffer.getvalue(), pixels), image)
    turned = decode_levels(buffer.getvalue(), pixels, exif_orientation=True)
    np.testing.assert_array_equal(turned, np.rot90(image, -1))


def dicom(values, **fields):
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    file = pydicom.Dataset()
    file.file_meta = meta
    file.Rows, file.Columns = values.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = 16
    file.BitsStored, file.HighBit, file.PixelRepresentation = 12, 11, 0
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    for name, value in fields.items():
        setattr(file, name, value)
    file.PixelData = values.astype(np.uint16).tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return buffer.getvalue()


def test_dicom():
    """Rescaled to its unit; 0 as white is inverted; of several frames the first."""
    stored = RNG.integers(0, 4096, (6, 8), np.uint16)
    values, _ = read_values(dicom(stored, RescaleSlope=2, RescaleIntercept=-1024))
    np.testing.assert_array_equal(values[..., 0], 2.0 * stored - 1024)
    np.testing.assert_array_equal(
        read_values(dicom(stored, PhotometricInterpretation="MONOCHROME1"))[0][..., 0], 4095 - stored
    )
    frames = np.stack([stored, stored[::-1]])
    np.testing.assert_array_equal(read_values(dicom(frames, NumberOfFrames=2))[0][..., 0], stored)
    levels = decode(tf.constant(dicom(stored)), Pixels(1, (0.0, 4095.0))).numpy()
    assert np.abs(levels[..., 0] - stored * (65535 / 4095)).max() <= 0.51
    with pytest.raises(
        (tf.errors.OpError, ValueError), match=r"it is DICOM, which is read if data.channels and data.range"
    ):
        decode(tf.constant(dicom(stored)))


def test_levels_in_a_pipeline():
    """The type and the channels are known before anything is read."""
    content, pixels = encoded(DEEP, "PNG"), Pixels(1, (0.0, 65535.0))
    dataset = tf.data.Dataset.from_tensors(content).map(lambda x: decode(x, pixels))
    assert dataset.element_spec.shape.as_list() == [None, None, 1] and dataset.element_spec.dtype == tf.uint16
    np.testing.assert_array_equal(next(dataset.as_numpy_iterator())[..., 0], DEEP)


def test_colours_become_grey_where_one_channel_of_8_bits_is_declared():
    """Pillow's grey; with a declared range three channels are an error."""
    rgb = RNG.integers(0, 256, (6, 8, 3), np.uint8)
    found = decode_levels(encoded(rgb, "PNG"), Pixels(1))
    np.testing.assert_array_equal(found[..., 0], np.asarray(Image.fromarray(rgb).convert("L")))
    with pytest.raises(ValueError, match="it has 3 channels, but data.channels is 1"):
        decode_levels(encoded(rgb, "PNG"), Pixels(1, (0.0, 255.0)))


@pytest.mark.parametrize(
    ("content", "pixels", "expected"),
    [
        (b"", Pixels(1), "no known image format: it is empty"),
        (b"not an image at all", Pixels(1), "no known image format: it begins with b'not an image'"),
        (encoded(DEEP, "PNG"), Pixels(1), "its values are uint16, but without data.range images have 8 bits"),
        (encoded(DEEP, "PNG"), Pixels(2, (0.0, 1.0)), "it has 1 channel, but data.channels is 2"),
        (encoded(DEEP, "PNG")[:60], Pixels(1, (0.0, 1.0)), "Error"),
        (encoded(DEEP, "TIFF")[:40], Pixels(1, (0.0, 1.0)), "."),
    ],
)
def test_what_cannot_be_used(content, pixels, expected):
    with pytest.raises(ValueError, match=expected):
        decode_levels(content, pixels)


def test_headers_that_claim_too_much():
    """Nothing of that size is made: a TIFF of 3 GB in 200 bytes, and such a DICOM and PNG."""
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, DEEP)
    content = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        for name in ("ImageWidth", "ImageLength"):
            tag = file.pages[0].tags[name]
            content[tag.valueoffset : tag.valueoffset + 4] = (40_000).to_bytes(4, "little")
    png = bytearray(tf.io.encode_png(RNG.integers(0, 65536, (5, 7, 3), np.uint16)).numpy())
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    huge = dicom(np.zeros((2, 2), np.uint16), NumberOfFrames=2**30)
    for claimed in (bytes(content), bytes(png), huge):
        with pytest.raises(
            ValueError, match=r"its header claims \d+ bytes of values, but an image may have 1073741824 at most"
        ):
            read_values(claimed)


def test_without_the_packages(monkeypatch):
    """Which are named, with what to install."""
    monkeypatch.setitem(sys.modules, "tifffile", None)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(
        ValueError, match=r"needs tifffile, which cannot be imported .*; pip install tifffile imagecodecs$"
    ):
        read_values(b"II*\0" + bytes(100))
    with pytest.raises(ValueError, match=r"DICOM needs pydicom, .*; pip install pydicom$"):
        read_values(bytes(128) + b"DICM" + bytes(100))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64, ">u2"])
def test_arrays(kind):
    """As TFDS sets hold them."""
    values = RNG.integers(0, 99, (5, 7, 4)).astype(kind)
    for array in (values, np.asfortranarray(values)):
        file = io.BytesIO()
        np.save(file, array)
        np.testing.assert_array_equal(read_values(file.getvalue())[0], values)


def test_damaged_arrays():
    """Of objects, cut off, or of another length than they claim: nothing is unpickled, and nothing allocated."""
    file = io.BytesIO()
    np.save(file, np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot create an OBJECT array"):
        read_values(file.getvalue())
    file = io.BytesIO()
    np.save(file, DEEP)
    for encoded in (
        file.getvalue()[:-2],
        file.getvalue()[:20],
        file.getvalue().replace(b"(6, 8)", b"(6000000, 8000000)"),
    ):
        with pytest.raises(ValueError):
            read_values(encoded)


def test_a_folder_of_coloured_images_as_grey(tmp_path):
    """They are looked at before a run as they will be decoded."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "train" / name / "0.png")
    config = config_lib.default().data
    config.update(source="folder", data_dir=str(tmp_path), channels=1, mean=(0.5,), std=(0.5,))
    assert make_source(config, "train").pixels == Pixels(1)


def test_warnings_stay_as_they_are_on_several_threads(monkeypatch):
    """Whichever thread ends first."""
    begun, first, second = threading.Barrier(3), threading.Event(), threading.Event()

    def reader(content):
        def read(content):
            begun.wait(20)
            (first if content == b"1" else second).wait(20)
            return np.zeros((2, 2, 1), np.uint8), 1

        return read

    before = list(warnings.filters)
    monkeypatch.setattr(values, "_reader", reader)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(read_values, b"1")
        two = pool.submit(read_values, b"2")
        begun.wait(20)
        first.set()
        one.result(20)
        second.set()
        two.result(20)
    assert list(warnings.filters) == before


def test_odd_metadata_is_silent():
    """Whatever the libraries that read images say of it; others keep their voice."""
    program = (
        "import warnings, bt_jax.data.values\n"
        "for module in ('PIL.TiffImagePlugin', 'pydicom', 'tifffile.tifffile', 'PILLOWS'):\n"
        "    warnings.warn_explicit('odd', UserWarning, f'{module}.py', 1, module=module)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stderr == "PILLOWS.py:1: UserWarning: odd\n"
