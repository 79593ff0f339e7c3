"""bt_jax/pixels.py: levels of any values, the share outside a range, and something to look at."""

import numpy as np
import pytest

from bt_jax.pixels import PHOTOGRAPHS, Pixels


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_levels_are_linear_in_the_range(kind):
    """To half a level; what lies outside is an end of the range."""
    values = np.random.default_rng(0).integers(0, 120, (5, 6, 2)).astype(kind)
    pixels = Pixels(2, (10.0, 100.0))
    expected = (np.clip(values.astype(np.float64), 10, 100) - 10) / 90 * 65535
    found = pixels.levels(values)
    assert found.dtype == pixels.dtype == np.uint16 and pixels.top == 65535
    assert np.abs(found - expected).max() <= 0.51
    assert pixels.outside(values) == pytest.approx(np.mean((values < 10) | (values > 100)))


def test_a_range_for_each_channel():
    pixels = Pixels(3, (-1.0, 1.0, 0.0, 10.0, -1000.0, 1000.0))
    values = np.array([[0.0, 5.0, 0.0], [1.0, 10.0, 1000.0], [-1.0, 0.0, -1000.0]])
    np.testing.assert_array_equal(pixels.levels(values), [[32768] * 3, [65535] * 3, [0] * 3])
    assert pixels.outside(values) == 0 and pixels.outside(values + 0.01) == pytest.approx(3 / 9)


def test_levels_that_are_there_already():
    """8 bits without a range, and all of 16 bits, stay as they are."""
    values = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert PHOTOGRAPHS.levels(values) is values and PHOTOGRAPHS.are_photographs
    deep = np.arange(0, 65536, 7, dtype=np.uint16).reshape(-1, 1)
    np.testing.assert_array_equal(Pixels(1, (0.0, 65535.0)).levels(deep), deep)
    np.testing.assert_array_equal(Pixels(1, (0.0, 65535.0)).levels(deep.astype(np.int32)), deep)
    assert not Pixels(1).are_photographs and Pixels(1).dtype == np.uint8


@pytest.mark.parametrize(
    ("pixels", "values", "expected"),
    [
        (Pixels(13, (0.0, 1.0)), np.zeros((4, 4, 12)), "it has 12 channels, but data.channels is 13"),
        (Pixels(13, (0.0, 1.0)), np.zeros((4, 4, 1)), "it has 1 channel, but"),
        (Pixels(2, (0.0, 1.0)), np.full((3, 2), np.nan), "6 of its 6 values are NaN or infinite; replace them"),
        (Pixels(2, (0.0, 1.0)), np.array([[1, np.inf]]), "1 of its 2 values are NaN or infinite"),
        (Pixels(2, (0.0, 1.0)), np.zeros((3, 2), complex), "its values are complex128; they must be real numbers"),
        (Pixels(1), np.zeros((3, 1), np.uint16), "its values are uint16, but without data.range images have 8 bits"),
    ],
)  # fmt: skip
def test_what_has_no_levels(pixels, values, expected):
    with pytest.raises(ValueError, match=expected):
        pixels.levels(values)


def test_pictures():
    """Photographs as they are; one channel grey; of several the first three, from 2.5 deviations below the mean to 2.5 above."""
    levels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert PHOTOGRAPHS.picture(levels, (0.5,) * 3, (0.2,) * 3) is levels and PHOTOGRAPHS.pictured == ""
    assert Pixels(1).pictured == "The channel is shown as grey."
    assert Pixels(13, (0.0, 1.0)).pictured == (
        "Of 13 channels the first three are shown as red, green and blue, from 2.5 standard deviations below the mean to as many above."
    )
    grey = Pixels(1).picture(levels[..., :1], (0.5,), (0.2,))
    np.testing.assert_array_equal(grey, np.repeat(levels[..., :1], 3, axis=-1))
    mean, std = (0.1, 0.2, 0.3, 0.4), (0.01, 0.02, 0.03, 0.04)
    low, middle, high = (np.array(mean) + k * np.array(std) for k in (-2.5, 0.0, 2.5))
    found = Pixels(4, (0.0, 1.0)).picture(np.round(65535 * np.array([low, middle, high])).astype(np.uint16), mean, std)
    assert found.shape == (3, 3) and found.dtype == np.uint8
    np.testing.assert_allclose(found, [[0] * 3, [128] * 3, [255] * 3], atol=1)
    assert Pixels(2, (0.0, 1.0)).picture(np.zeros((5, 2), np.uint16), (0.5, 0.5), (0.1, 0.1)).shape == (5, 3)
