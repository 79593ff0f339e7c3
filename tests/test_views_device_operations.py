"""bt_jax/data/views/device_operations.py against Pillow's results and the host's operations."""

import jax
import numpy as np
import pytest
import tensorflow as tf

from bt_jax.data.views import device_operations as operations
from bt_jax.data.views import host_operations as host

OPERATIONS = {
    "brightness": operations.adjust_brightness,
    "contrast": operations.adjust_contrast,
    "saturation": operations.adjust_saturation,
    "hue": operations.adjust_hue,
    "blur": operations.gaussian_blur,
    "grayscale": lambda x, _: operations.grayscale(x),
    "solarize": lambda x, _: operations.solarize(x),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_are_pillows(golden, operation):
    """All photographs and values in one batch, each with its own factor; only hue and blur differ by a level in a few pixels."""
    results, bases, values, expected = golden("augment"), [], [], []
    for key, image in results.items():
        number, name, *value = key.split("_")
        if name == operation:
            bases.append(results[f"{number}_base"])
            values.append(float(value[0]) if value else 0.0)
            expected.append(image)
    run = jax.jit(lambda x, v: operations.unpacked(OPERATIONS[operation](operations.packed(x), v)))
    found = np.asarray(run(np.stack(bases), np.array(values, np.float32)))
    difference = np.abs(found - np.stack(expected).astype(int))
    assert len(bases) >= 3
    if operation in ("hue", "blur"):
        assert difference.mean() < 0.01 and difference.max() <= 4
    else:
        np.testing.assert_array_equal(found, expected)


def test_crop_is_pillows(golden):
    """Antialiased bicubic to 224 of crops of larger photographs, in one array with room to spare."""
    results = golden("augment")
    numbers = [key.split("_")[0] for key in results if key.endswith("_full")]
    fulls = [results[f"{number}_full"] for number in numbers]
    height, width = (max(full.shape[axis] for full in fulls) for axis in (0, 1))
    canvas = np.full((len(fulls), height, width, 3), 99, np.uint8)
    for place, full in zip(canvas, fulls, strict=True):
        place[: full.shape[0], : full.shape[1]] = full
    crops = np.array([results[f"{number}_crop_yxhw"] for number in numbers], np.int32)
    for mirrored in (False, True):
        found = jax.jit(operations.resized_crops, static_argnums=3)(canvas, crops, np.full(len(fulls), mirrored), 224)
        expected = np.stack([results[f"{number}_resized"] for number in numbers])[:, :, :: -1 if mirrored else 1]
        difference = np.abs(np.asarray(operations.unpacked(found)) - expected.astype(int))
        assert difference.max() <= 1 and np.mean(difference > 0) <= 1e-3


def test_bilinear_crops_are_the_hosts():
    """Of one image, enlarged, reduced and mirrored: a level apart at most, where a value lies between two."""
    image = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
    crops = np.array([[0, 0, 40, 52], [3, 5, 11, 7], [20, 1, 17, 30]], np.int32)
    flip = np.array([False, True, False])
    run = jax.jit(operations.resized_crops, static_argnames=("size", "interpolation"))
    found = operations.unpacked(run(np.stack([image] * 3), crops, flip, size=16, interpolation="bilinear"))
    for i, crop in enumerate(crops):
        x = host.levels(host.resized(tf.constant(image), tf.constant(crop), 16, 16, "bilinear")).numpy()
        assert np.abs(np.asarray(found[i]).astype(int) - (x[:, ::-1] if flip[i] else x)).max() <= 1


def test_every_colour_keeps_its_hue_or_turns_as_on_the_host():
    """A cube of colours, 33 levels per channel: three values in a thousand may differ, and those by little."""
    levels = np.linspace(0, 255, 33).astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(33 * 3, -1, 3)
    shifts = np.array([-0.1, -0.004, 0.0, 0.05, 0.1], np.float32)
    turned = jax.jit(operations.adjust_hue)(operations.packed(np.stack([cube] * len(shifts))), shifts)
    found = np.asarray(operations.unpacked(turned)).astype(int)
    for image, shift in zip(found, shifts, strict=True):
        difference = np.abs(image - host.unpacked(host.adjust_hue(host.packed(cube), tf.constant(shift))).numpy())
        assert np.mean(difference > 0) < 3e-3 and difference.max() <= 8, shift
