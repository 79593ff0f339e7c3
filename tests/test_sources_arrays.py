"""bt_jax/data/sources/arrays.py: an .npz file, and the errors for one that cannot be used."""

import io
import zipfile

import numpy as np
import pytest
from test_sources_base import images_of

from bt_jax.data.sources.arrays import array_source
from bt_jax.errors import UserError


def test_arrays_in_a_file(tmp_path):
    """Both splits have the same classes, though the test labels lack the last."""
    file = tmp_path / "set.npz"
    x, y = images_of(6), np.array([0, 1, 2, 0, 1, 3])
    np.savez(file, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    train, test = array_source(str(file), "train"), array_source(str(file), "test")
    np.testing.assert_array_equal(train.images, x)
    np.testing.assert_array_equal(train.labels, y)
    assert len(test) == 2 and train.class_names == test.class_names == ("0", "1", "2", "3")


def test_a_part_of_a_split(tmp_path):
    """As in TFDS; classes are those of the whole."""
    x, y = images_of(10), np.arange(10)
    np.savez(tmp_path / "set.npz", x_train=x, y_train=y)
    for split, expected in {
        "train[:90%]": y[:9], "train[90%:]": y[9:], "train[2:5]": y[2:5], "train[:]": y, "train[25%:75%]": y[2:8],
    }.items():  # fmt: skip
        found = array_source(str(tmp_path / "set.npz"), split)
        np.testing.assert_array_equal(found.labels, expected)
        np.testing.assert_array_equal(found.images, x[expected])
        assert len(found.class_names) == 10 and found.name.endswith(split)
    with pytest.raises(UserError, match=r"set.npz, train\[10:\] holds none of the 10 images"):
        array_source(str(tmp_path / "set.npz"), "train[10:]")
    with pytest.raises(UserError, match=r"must hold x_train\[-3:\]"):
        array_source(str(tmp_path / "set.npz"), "train[-3:]")


def test_wrong_array_files(tmp_path):
    np.savez(tmp_path / "half.npz", x_train=images_of(2), other=np.zeros(1))
    np.save(tmp_path / "one.npy", images_of(2))
    (tmp_path / "text.npz").write_text("not a zip")
    whole = (tmp_path / "half.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name, sentence in {
        "none.npz": "there is no file '.*none.npz'; data.data_dir must name an .npz file",
        "half.npz": "half.npz holds x_train, other; it must hold x_train and y_train",
        "": r"'.*' is a folder; data.data_dir must name an .npz file",
        "one.npy": r"one.npy cannot be read as an .npz file of arrays: it holds a single array \(.npy\); write one with numpy.savez",
        "text.npz": "text.npz cannot be read as an .npz file of arrays: it is not an .npz file",
        "cut.npz": "cut.npz cannot be read as an .npz file of arrays",
    }.items():
        with pytest.raises(UserError, match=sentence) as raised:
            array_source(str(tmp_path / name), "train")
        assert "pickle" not in str(raised.value), "no advice to load what is unsafe"
    np.savez(tmp_path / "val.npz", x_train=images_of(2), y_train=np.arange(2), x_val=images_of(2), y_val=np.arange(2))
    with pytest.raises(UserError, match="must hold x_test and y_test, or set data.test_split to 'val'"):
        array_source(str(tmp_path / "val.npz"), "test", "test")


@pytest.mark.parametrize(("place", "value"), [(6, 1), (30, 0xFF)])
def test_an_archive_damaged_inside(tmp_path, place, value):
    """A flag that says it is encrypted, and a name's length: the archive's own parser raises other errors than for cut files."""
    made = io.BytesIO()
    np.savez_compressed(made, x_train=images_of(4), y_train=np.arange(4))
    data = bytearray(made.getvalue())
    for start in (0, data.index(b"PK\x01\x02") + 2):  # of the member, and in the directory
        data[start + place] ^= value
    (tmp_path / "set.npz").write_bytes(bytes(data))
    with pytest.raises(UserError, match="set.npz cannot be read as an .npz file of arrays"):
        array_source(str(tmp_path / "set.npz"), "train")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64])
def test_labels_of_any_integer_type(tmp_path, dtype):
    """Keras and MedMNIST have unsigned ones."""
    x, y = images_of(4), np.array([0, 3, 1, 2], dtype)
    np.savez(tmp_path / "set.npz", x_train=x, y_train=y, x_test=x, y_test=y[::-1])
    source = array_source(str(tmp_path / "set.npz"), "train")
    assert source.labels.dtype == np.int32 and source.labels.tolist() == [0, 3, 1, 2]
    assert source.class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.array(["cat", "dog"]), r"the labels are <U3 \(2,\); they must be integers"),
        (np.array(["cat", "dog"], object), r"y_train is an array of Python objects \(labels must be integers\)"),
        (np.array([0, 10**9]), "a label is 1000000000, but there are 2 labels; number the classes from 0"),
        (np.array([0, 2**64 - 1], np.uint64), f"a label is {2**64 - 1}, but there are 2"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, labels, sentence):
    """At once, and in little memory."""
    np.savez(tmp_path / "set.npz", x_train=images_of(2), y_train=labels)
    with pytest.raises(UserError, match=sentence):
        array_source(str(tmp_path / "set.npz"), "train")


def test_a_header_that_is_larger_than_its_file(tmp_path):
    """No memory is allocated for a hundred terabytes that the file does not have."""
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive, archive.open("x_train.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 224, 224, 3)}
        np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(
        UserError, match=r"x_train.npy says it is uint8 \(1000000000, 224, 224, 3\), but holds \d+ bytes"
    ):
        array_source(str(tmp_path / "set.npz"), "train")


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (np.linspace(-2, 3, 384, dtype=np.float32).reshape(2, 8, 8, 3), r"float32 \(2, 8, 8, 3\) from -2 to 3; they must be"),
        (np.array([np.zeros((8, 8, 3)), np.zeros((9, 8, 3))], object), "images of mixed sizes make no array"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_images(tmp_path, images, sentence):
    np.savez(tmp_path / "set.npz", x_train=images, y_train=np.arange(2))
    with pytest.raises(UserError, match=sentence):
        array_source(str(tmp_path / "set.npz"), "train")
