"""bt_jax/data/sources/declared.py: images that are not as a run declares them, found before it begins."""

import numpy as np
import pytest
from batches import data_config
from PIL import Image

from bt_jax.data.sources.make import images_as_stored, make_source
from bt_jax.errors import UserError

RNG = np.random.default_rng(0)


def arrays(tmp_path, values, **fields):
    np.savez(tmp_path / "set.npz", x_train=values, y_train=np.arange(len(values)) % 2)
    values = {"mean": (0.5,) * fields.get("channels", 3), "std": (0.2,) * fields.get("channels", 3), **fields}
    return data_config(source="arrays", data_dir=str(tmp_path / "set.npz"), **values)


def folder(tmp_path, images, **fields):
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{i:02}.png")
    fields = {"mean": (0.5,), "std": (0.2,), "channels": 1, **fields}
    return data_config(source="folder", data_dir=str(tmp_path / "images"), **fields)


def test_levels_of_arrays(tmp_path):
    """Any type and number of channels, and none for one."""
    values = RNG.uniform(-1, 1, (5, 8, 9, 4)).astype(np.float32)
    source = make_source(arrays(tmp_path, values, channels=4, range=(-1, 1)), "train")
    assert source.images.dtype == np.uint16 and source.notices == ()
    assert np.abs(source.images / 65535 * 2 - 1 - values).max() < 1e-4
    grey = make_source(arrays(tmp_path, values[..., 0], channels=1, range=(-1, 1)), "train")
    np.testing.assert_array_equal(grey.images, source.images[..., :1])
    eight = RNG.integers(0, 256, (5, 8, 9), np.uint8)
    np.testing.assert_array_equal(make_source(arrays(tmp_path, eight, channels=1), "train").images[..., 0], eight)


@pytest.mark.parametrize(
    ("change", "fields", "expected"),
    [
        (lambda x: x, {"channels": 3, "range": (0, 100)}, r"holds float64 \(5, 8, 9, 4\): it has 4 channels, but data.channels is 3"),
        (lambda x: x, {"channels": 4, "range": (0, 50)}, r"train: of the values of 5 images, \d+\.\d+% lie outside data.range; they "
         r"reach from 0\.\d+ to \d+\.\d+: --config.task=statistics"),
        (lambda x: np.where(x < 0.5, np.nan, x), {"channels": 4, "range": (0, 100)}, "of its 1440 values are NaN or infinite; replace"),
        (lambda x: x, {"channels": 4}, "its values are float64, but without data.range images have 8 bits"),
        (lambda x: x[..., :3], {}, "the images are float64 .*; they must be uint8 .*; or declare data.channels and data.range"),
        (lambda x: x.astype(np.uint16)[..., :3], {}, "the images are uint16 .* or declare data.channels and data.range"),
    ],
)  # fmt: skip
def test_arrays_that_are_not_as_declared(tmp_path, change, fields, expected):
    values = RNG.uniform(0, 100, (5, 8, 9, 4))
    values[0, 0, 0] = 0.25
    with pytest.raises(UserError, match=expected):
        make_source(arrays(tmp_path, change(values), **fields), "train")


def test_what_is_only_noted(tmp_path):
    """A few values outside, which count as the ends; and a channel with a single value."""
    values = RNG.uniform(0, 100, (5, 8, 9, 2))
    values[0, 0, 0, 0], values[..., 1] = 200, 7
    source = make_source(arrays(tmp_path, values, channels=2, range=(0, 100)), "train")
    assert source.images.max() == 65535
    outside, constant = source.notices
    assert "of the values of 5 images, 0.14% lie outside data.range, and count as its ends; they reach from" in outside
    assert constant.endswith("channel 1 has a single value in all of 5 images")


def test_files_that_are_not_as_declared(tmp_path):
    """Some are looked at before a run; of several images one that is not is bad only when it is met."""
    deep = RNG.integers(0, 4096, (3, 8, 9), np.uint16)
    config = folder(tmp_path, [*deep, np.zeros((8, 9, 3), np.uint8)], range=(0, 4095))
    source = make_source(config, "train")
    assert source.notices == () and source.pixels.range == (0.0, 4095.0)
    config.range = (0, 1000)
    with pytest.raises(
        UserError, match=r"of the values of 3 images that were looked at, .* they reach from \d+ to \d+"
    ):
        make_source(config, "train")
    config.range = ()
    (tmp_path / "images" / "03.png").unlink()
    with pytest.raises(
        UserError, match=r"none of 3 images .*; the first is .*00.png: its values are (uint16|int32), but without"
    ):
        make_source(config, "train")


def test_images_as_stored(tmp_path):
    """Whatever the config says of them."""
    deep = RNG.integers(0, 4096, (3, 8, 9), np.uint16)
    config = folder(tmp_path, deep, channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    (tmp_path / "images" / "03.png").write_bytes(b"none")
    name, count, images = images_as_stored(config, "train", 10)
    found = list(images)
    assert count == 4 and str(tmp_path / "images") in name
    for (place, values), expected in zip(found, deep, strict=False):
        np.testing.assert_array_equal(values[..., 0], expected)
        assert place.endswith(".png")
    assert found[3][1].startswith("no known image format")
    name, count, images = images_as_stored(arrays(tmp_path, deep), "train", 1)
    assert count == 3 and [values.shape for _, values in images] == [(8, 9, 1)] * 3
