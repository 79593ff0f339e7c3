"""bt_jax/data/sources/base.py: arrays in memory, and the cache of what has been read."""

import numpy as np
import pytest

from bt_jax.data.sources import base
from bt_jax.data.sources.base import ArraySource, BytesCache
from bt_jax.errors import UserError


def images_of(n, height=8, width=6):
    return np.random.default_rng(n).integers(0, 256, (n, height, width, 3), np.uint8)


def test_arrays_in_memory():
    source = ArraySource("mine", images_of(5), np.array([0, 2, 1, 0, 2]))
    assert len(source) == 5 and source.num_classes == 3 and source.class_names == ("0", "1", "2")
    assert source.labels.dtype == np.int32


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (images_of(4).astype(np.float32), np.zeros(4, int), r"mine: the images are float32 \(4, 8, 6, 3\)"),
        (images_of(4)[..., 0], np.zeros(4, int), r"must be uint8 \(N, H, W, 3\)"),
        (images_of(4)[..., :1], np.zeros(4, int), r"must be uint8 \(N, H, W, 3\)"),
        (images_of(4), np.zeros(3, int), r"the labels are int64 \(3,\)"),
        (images_of(4), np.zeros((4, 1), int), r"they must be integers \(4,\)"),
        (images_of(4), np.zeros(4), "float64"),
        (images_of(4), np.array([0, 1, -1, 2]), "run from -1 to 2"),
        (images_of(4)[:0], np.zeros(0, int), "none of these numbers may be 0"),
    ],
)
def test_wrong_arrays(images, labels, sentence):
    with pytest.raises(UserError, match=sentence):
        ArraySource("mine", images, labels)


def test_a_fingerprint_tells_other_examples(monkeypatch):
    """By any pixel, label, class or their order, and not by the name; of a large set by some of its images."""
    images, labels = images_of(5), np.array([0, 2, 1, 0, 2])
    expected = ArraySource("mine", images, labels).fingerprint
    assert len(expected) == 16 and ArraySource("moved", images.copy(), labels.astype(np.int32)).fingerprint == expected
    turned = images.copy()
    turned[3, 0, 0, 0] ^= 1
    others = [(turned, labels), (images[::-1], labels), (images, labels[::-1]), (images.reshape(5, 6, 8, 3), labels)]
    found = {ArraySource("mine", *other).fingerprint for other in others}
    found.add(ArraySource("mine", images, labels, ("0", "1", "2", "3")).fingerprint)
    assert len(found) == 5 and expected not in found
    monkeypatch.setattr(base, "_HASHED_BYTES", images.nbytes // 2)
    few = ArraySource("mine", images, labels).fingerprint
    assert few != ArraySource("mine", images[::-1], labels).fingerprint


@pytest.mark.parametrize(
    ("count", "fraction", "bad"), [(16, 0.001, 1), (16, 0.0, 0), (40, 0.05, 2), (2000, 0.001, 2), (1, 0.5, 0)]
)
def test_how_many_images_may_be_bad(count, fraction, bad):
    """The fraction, and at least one unless it is 0, which is said; never all."""
    source = ArraySource("mine", images_of(1).repeat(count, 0), np.zeros(count, int))
    for number in range(bad):
        source.exclude({number: "why"}, fraction)
    small = f"; data.max_bad_fraction, {fraction:g} of {count}, allows one image at least"
    assert source.allowance == (small if bad > fraction * count else "")
    with pytest.raises(UserError, match=r"image 0 of mine cannot be read as an image \(why\)"):
        source.exclude({bad: "why"}, fraction)


def test_labels_beyond_the_classes():
    with pytest.raises(UserError, match="run from 0 to 3; they must lie in 0 to 1"):
        ArraySource("mine", images_of(2), np.array([0, 3]), ("cat", "dog"))


def test_cache_reads_nothing_twice_and_keeps_to_its_limit():
    """Four of ten bytes each fit into 45; what is empty is asked for again; the order of the examples is kept."""
    asked = []

    def read(examples):
        asked.extend(examples)
        return [b"" if example == 2 else bytes([example]) * 10 for example in examples]

    cache = BytesCache(45)
    for _ in range(2):
        for examples in ([3, 1, 2], [5, 0, 4, 3]):
            found = cache.get(np.array(examples), read)
            assert [len(content) and content[0] for content in found] == [e if e != 2 else 0 for e in examples]
    assert asked == [3, 1, 2, 5, 0, 4, 2, 4] and cache.size == 40
