"""bt_jax/data/sources/arrays.py: an .npz file, and what is said of one that cannot be used."""

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


def test_wrong_array_files(tmp_path):
    np.savez(tmp_path / "half.npz", x_train=images_of(2), other=np.zeros(1))
    np.save(tmp_path / "one.npy", images_of(2))
    (tmp_path / "text.npz").write_text("not a zip")
    whole = (tmp_path / "half.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name, sentence in {
        "none.npz": "there is no file '.*none.npz'; data.data_dir must name an .npz file",
        "half.npz": "half.npz holds x_train, other; it must hold x_train and y_train",
        "one.npy": "one.npy cannot be read as an .npz file of arrays",
        "text.npz": "text.npz cannot be read as an .npz file of arrays",
        "cut.npz": "cut.npz cannot be read as an .npz file of arrays",
    }.items():
        with pytest.raises(UserError, match=sentence):
            array_source(str(tmp_path / name), "train")


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
