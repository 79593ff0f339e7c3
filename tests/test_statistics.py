"""bt_jax/data/statistics.py: ranges, means and deviations of images, and what is wrong with them."""

import numpy as np
import pytest
from PIL import Image

from bt_jax.config import default
from bt_jax.data.decode import decode
from bt_jax.data.sources.make import images_as_stored
from bt_jax.data.statistics import notices, statistics_of
from bt_jax.errors import UserError
from bt_jax.pixels import PHOTOGRAPHS, Pixels

RNG = np.random.default_rng(0)


def named(images):
    return [(f"image {i}", image) for i, image in enumerate(images)]


def of(images, declared=PHOTOGRAPHS):
    return statistics_of(named(images), len(images), declared)


def test_means_and_deviations_are_those_of_the_levels():
    """In the range that is found, of channels with different means; and no value is outside."""
    images = RNG.normal((1000, 1500, 2500), (100, 200, 300), (20, 16, 16, 3)).clip(0).astype(np.uint16)
    found = of(images)
    assert found.kinds == ("uint16",) and found.channels == 3 and found.sizes == ((16, 16),) and found.images == 20
    low, high = found.range
    assert low == 0 and images.max() <= high <= 1.2 * images.max() and found.outside == 0
    levels = Pixels(3, found.range).levels(images) / 65535
    np.testing.assert_allclose(found.mean, levels.mean((0, 1, 2)), atol=2e-5)
    np.testing.assert_allclose(found.std, levels.std((0, 1, 2)), rtol=1e-3)
    np.testing.assert_array_equal(found.lowest, images.min((0, 1, 2)))
    np.testing.assert_array_equal(found.highest, images.max((0, 1, 2)))
    assert notices(found) == []


def test_photographs_need_no_range():
    images = RNG.integers(0, 256, (4, 8, 9, 3), np.uint8)
    found = of(images)
    assert found.range == () and found.kinds == ("uint8",)
    np.testing.assert_allclose(found.mean, images.mean((0, 1, 2)) / 255, atol=1e-6)


@pytest.mark.parametrize("kind", [np.float32, np.int16])
def test_a_few_outliers_do_not_take_the_range(kind):
    """A thousandth of the values lies far away: the range holds the rest, and says what it leaves out."""
    values = RNG.normal(0, 100, 40_000)
    values[::1001] = 30_000
    found = of(values.reshape(10, 20, 200, 1).astype(kind))
    low, high = found.range
    assert -700 < low < -300 and 300 < high < 700
    assert 0 < found.outside <= 0.003
    (sentence,) = notices(found)
    assert sentence.endswith("of the values lie outside the range, and count as its ends")


def test_channels_of_very_different_widths_have_ranges_of_their_own():
    """Such as heights in metres beside reflectances from 0 to 1."""
    images = RNG.uniform((0, 0), (1, 3000), (10, 8, 8, 2)).astype(np.float32)
    found = of(images)
    assert len(found.range) == 4 and found.range[:2] == pytest.approx((0, 1), abs=0.1) and found.range[3] >= 2900
    np.testing.assert_allclose(found.mean, 0.5, atol=0.05)
    assert len(of(images[..., :1]).range) == 2


def test_a_declared_range_is_taken():
    images = RNG.uniform(0, 100, (10, 8, 8, 1)).astype(np.float32)
    found = of(images, Pixels(1, (0.0, 50.0)))
    assert found.range == (0.0, 50.0) and found.outside == pytest.approx(0.5, abs=0.05)
    assert found.mean[0] == pytest.approx(0.75, abs=0.05)


def test_what_is_wrong_is_named():
    """Constant channels, NaN, other channels, and what cannot be read; the statistics are those of the rest."""
    images = list(RNG.uniform(0, 1, (6, 8, 8, 3)).astype(np.float32))
    for image in images:
        image[..., 1] = 0.25
    images[2] = images[2].copy()
    images[2][0, 0, :2] = np.nan
    images[3] = images[3][..., :2]
    images[4] = "it is cut off"
    found = of(images)
    assert found.images == 3 and found.constant == (1,) and found.not_finite == {"image 2": 2}
    assert found.others == ("image 3",) and found.unusable == {"image 4": "it is cut off"}
    first, second, third, fourth = notices(found)
    assert first == "1 images do not have 3 channels, and cannot be used with the others: image 3"
    assert second == "1 images cannot be read, such as image 4 (it is cut off)"
    assert third == "2 values are NaN or infinite, in 1 images, which cannot be used: image 2"
    assert fourth == "channel 1 has a single value in all images; leave it out"


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([], "none of the images can be used; the first is the set: it is empty"),
        (["it is no image"], "the first is image 0: it is no image"),
        ([np.full((2, 2, 1), np.nan)], "the first is image 0: 4 of its values are NaN or infinite"),
    ],
)
def test_no_image_can_be_used(images, expected):
    with pytest.raises(UserError, match=expected):
        of(images)


def test_photographs_of_other_channels_count_as_training_takes_them(tmp_path):
    """Grey ones, and those with alpha or in inks, among coloured ones: the statistics are those of the decoded images."""
    for i, mode in enumerate(("RGB", "RGB", "RGB", "RGB", "RGB", "L", "RGBA", "CMYK", "LA", "P")):
        image = Image.fromarray(RNG.integers(0, 256, (8, 9, 3), np.uint8)).convert(mode)
        image.save(tmp_path / f"{i}.{'jpg' if mode == 'CMYK' else 'png'}")
    config = default().data
    config.update(source="folder", data_dir=str(tmp_path), train_split=".", labels="none")
    _, count, images = images_as_stored(config, "train", 100)
    found = statistics_of(images, count, Pixels())
    decoded = [decode(path.read_bytes()).numpy().reshape(-1, 3) for path in sorted(tmp_path.iterdir())]
    assert found.images == 10 and found.others == () and found.range == () and found.taken_as_rgb == 3
    np.testing.assert_allclose(found.mean, np.concatenate(decoded).mean(axis=0) / 255, atol=1e-6)
    np.testing.assert_allclose(found.std, np.concatenate(decoded).std(axis=0) / 255, atol=1e-6)
    assert notices(found) == [
        "3 images are grey or have alpha; they count as red, green and blue, as which training takes them"
    ]
    grey = [
        ("a", np.zeros((2, 2, 1), np.uint8)),
        ("b", np.ones((2, 2, 1), np.uint8)),
        ("c", np.ones((2, 2, 3), np.uint8)),
    ]
    assert statistics_of(grey, 3, Pixels()).others == ("c",)
