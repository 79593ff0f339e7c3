"""bt_jax/data/views/host_operations.py against Pillow: each operation, level by level."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageFilter

from bt_jax.data.views import host_operations as operations

OPERATIONS = {
    "brightness": operations.adjust_brightness,
    "contrast": operations.adjust_contrast,
    "saturation": operations.adjust_saturation,
    "hue": operations.adjust_hue,
    "blur": operations.gaussian_blur,
}


def cases(golden, operation):
    """(what, base image, value, expected image) of each photograph."""
    results = golden("augment")
    for key, expected in results.items():
        number, name, *value = key.split("_")
        if name == operation:
            yield key, results[f"{number}_base"], tf.constant(float(value[0]) if value else 0.0), expected


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("operation", ["brightness", "contrast", "saturation", "hue", "blur", "grayscale", "solarize"])
def test_operations_are_pillows(golden, operation, compiled):
    """To the level in every pixel, whether TensorFlow runs them one by one or XLA makes one program of them."""
    run = OPERATIONS.get(operation) or (lambda x, _: getattr(operations, operation)(x))
    run = tf.function(run, jit_compile=True, autograph=False) if compiled else run
    seen = 0
    for key, base, value, expected in cases(golden, operation):
        np.testing.assert_array_equal(operations.unpacked(run(operations.packed(base), value)), expected, err_msg=key)
        seen += 1
    assert seen >= 3


def test_packing_loses_nothing():
    """Every level of every channel comes back unchanged."""
    image = np.random.default_rng(0).permutation(np.repeat(np.arange(256, dtype=np.uint8), 3)).reshape(16, 16, 3)
    np.testing.assert_array_equal(operations.unpacked(operations.packed(image)), image)


def test_every_colour_keeps_its_hue_or_turns_as_pillow_turns_it():
    """A cube of colours, 33 levels per channel, through Pillow's own HSV: equal."""
    levels = np.linspace(0, 255, 33).astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(33 * 3, -1, 3)
    for shift in (-0.1, -0.004, 0.0, 0.05, 0.1):
        h, s, v = Image.fromarray(cube).convert("HSV").split()
        turned = np.asarray(h) + np.array(int(shift * 255), np.int64).astype(np.uint8)  # as torchvision's uint8 wraps
        expected = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), s, v)).convert("RGB")
        found = operations.unpacked(operations.adjust_hue(operations.packed(cube), tf.constant(shift)))
        np.testing.assert_array_equal(found, np.asarray(expected), err_msg=str(shift))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.99, 1.0, 1.37, 1.8, 2.0, 2.4])
def test_blur_of_any_size_is_pillows(sigma):
    """Noise, the hardest image, and one smaller than the widest blur."""
    rng = np.random.default_rng(0)
    for height, width in ((40, 23), (3, 2), (1, 1)):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        expected = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))
        found = operations.unpacked(operations.gaussian_blur(operations.packed(image), tf.constant(sigma)))
        np.testing.assert_array_equal(found, expected)


def cropped(image, crop, size):
    """A crop resized to a square, in whole levels."""
    x = operations.resized(tf.constant(image), tf.constant(crop, tf.int32), size, size, "bicubic")
    return operations.levels(x).numpy()


def test_crop_is_pillows(golden):
    """Antialiased bicubic to 224: one value in a thousand may be a level off, none more."""
    results = golden("augment")
    for key in [key for key in results if key.endswith("_full")]:
        number = key.split("_")[0]
        found = cropped(results[key], results[f"{number}_crop_yxhw"], 224)
        difference = np.abs(found.astype(int) - results[f"{number}_resized"])
        assert difference.max() <= 1 and np.mean(difference > 0) <= 1e-3, key


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (500, 3), (37, 61)])
def test_crop_of_odd_shapes_is_pillows(height, width):
    """Enlarged, shrunk, and both at once, from a corner of an image; columns first, as Pillow did when the paper was new."""
    image = np.random.default_rng(height).integers(0, 256, (height + 2, width + 3, 3), np.uint8)
    expected = Image.fromarray(image).crop((3, 2, 3 + width, 2 + height))
    for shape in ((32, height), (32, 32)):
        expected = expected.resize(shape, Image.Resampling.BICUBIC)
    found = cropped(image, [2, 3, height, width], 32)
    difference = np.abs(found - np.asarray(expected).astype(int))
    assert difference.max() <= 1 and np.mean(difference > 0) <= 1e-3
