"""bt_jax/data/sources/photographs.py: all are found, and train and test crops share no pixel."""

import numpy as np
import pytest

from bt_jax.data.sources import photographs
from bt_jax.data.sources.photographs import PHOTOGRAPHS, load_photograph, photograph_crops
from bt_jax.errors import UserError
from bt_jax.evaluation.knn import knn_accuracy


def test_photographs_are_all_there():
    """17 of them, in colour; the largest is reduced."""
    shapes = [load_photograph(name).shape for name in PHOTOGRAPHS]
    assert len(shapes) == 17
    assert all(shape[2] == 3 and 380 <= max(shape) <= 640 for shape in shapes)


def test_photograph_crops_are_the_same_at_every_call():
    first, labels = photograph_crops("test", size=24, per_class=3)
    again, _ = photograph_crops("test", size=24, per_class=3)
    assert first.shape == (51, 24, 24, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(labels, np.repeat(np.arange(17), 3))
    assert labels.dtype == np.int32
    other, _ = photograph_crops("train", size=24, per_class=3)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("shape", [(200, 500), (500, 200)])
def test_train_and_test_crops_share_no_pixel(monkeypatch, shape):
    """A photograph that is white in the middle fifth of its longer side: test crops see only that, train crops none."""
    photograph = np.zeros((*shape, 3), np.uint8)
    middle = slice(200, 300)
    if shape[1] == 500:
        photograph[:, middle] = 255
    else:
        photograph[middle] = 255
    monkeypatch.setattr(photographs, "load_photograph", lambda name: photograph)
    assert photograph_crops("train", size=16, per_class=40)[0].max() == 0
    assert photograph_crops("test", size=16, per_class=40)[0].min() == 255


def test_raw_pixels_leave_something_to_learn():
    """The quickstart's baseline: kNN on raw 32×32 pixels is right for about two crops in five, chance for one in 17."""
    train, train_labels = photograph_crops("train", size=32, per_class=300)
    test, test_labels = photograph_crops("test", size=32, per_class=60)
    flat = [(images.reshape(len(images), -1) / 255.0 - 0.45).astype(np.float32) for images in (train, test)]
    accuracy = knn_accuracy(flat[0], train_labels, flat[1], test_labels, num_classes=17, k=20)
    assert 0.33 < accuracy < 0.46


def test_a_package_that_is_not_there(monkeypatch):
    monkeypatch.setitem(PHOTOGRAPHS, "moon", (("no_such_package", "data", "scikit-image"), "moon.png"))
    with pytest.raises(UserError, match="moon.png comes with scikit-image.*pip install scikit-image"):
        load_photograph("moon")
