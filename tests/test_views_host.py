"""bt_jax/data/views/host.py against Pillow and torchvision: each operation, the sampling, whole views."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageFilter

from bt_jax.data.sources.photographs import load_photograph
from bt_jax.data.views import host as views
from bt_jax.data.views.host import (
    VIEW_A,
    VIEW_B,
    ViewSpec,
    apply_view,
    crop_from_uniforms,
    evaluation_view,
    sample_view,
)

OPERATIONS = {
    "brightness": views.adjust_brightness,
    "contrast": views.adjust_contrast,
    "saturation": views.adjust_saturation,
    "hue": views.adjust_hue,
    "blur": views.gaussian_blur,
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
    run = OPERATIONS.get(operation) or (lambda x, _: getattr(views, operation)(x))
    run = tf.function(run, jit_compile=True, autograph=False) if compiled else run
    seen = 0
    for key, base, value, expected in cases(golden, operation):
        np.testing.assert_array_equal(views.unpacked(run(views.packed(base), value)), expected, err_msg=key)
        seen += 1
    assert seen >= 3


def test_packing_loses_nothing():
    """Every level of every channel comes back, in its place."""
    image = np.random.default_rng(0).permutation(np.repeat(np.arange(256, dtype=np.uint8), 3)).reshape(16, 16, 3)
    np.testing.assert_array_equal(views.unpacked(views.packed(image)), image)


def test_every_colour_keeps_its_hue_or_turns_as_pillow_turns_it():
    """A cube of colours, 33 levels a channel, through Pillow's own HSV: equal."""
    levels = np.linspace(0, 255, 33).astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(33 * 3, -1, 3)
    for shift in (-0.1, -0.004, 0.0, 0.05, 0.1):
        h, s, v = Image.fromarray(cube).convert("HSV").split()
        turned = np.asarray(h) + np.array(int(shift * 255), np.int64).astype(np.uint8)  # as torchvision's uint8 wraps
        expected = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), s, v)).convert("RGB")
        found = views.unpacked(views.adjust_hue(views.packed(cube), tf.constant(shift)))
        np.testing.assert_array_equal(found, np.asarray(expected), err_msg=str(shift))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.99, 1.0, 1.37, 1.8, 2.0, 2.4])
def test_blur_of_any_size_is_pillows(sigma):
    """Noise, the hardest image, and one smaller than the widest blur."""
    rng = np.random.default_rng(0)
    for height, width in ((40, 23), (3, 2), (1, 1)):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        expected = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))
        found = views.unpacked(views.gaussian_blur(views.packed(image), tf.constant(sigma)))
        np.testing.assert_array_equal(found, expected)


def test_crop_is_pillows(golden):
    """Antialiased bicubic to 224: one value in a thousand may be a level off, none more."""
    results = golden("augment")
    for key in [key for key in results if key.endswith("_full")]:
        number = key.split("_")[0]
        found = views.resized_crop(
            tf.constant(results[key]), tf.constant(results[f"{number}_crop_yxhw"], tf.int32), 224
        )
        difference = np.abs(found.numpy().astype(int) - results[f"{number}_resized"])
        assert difference.max() <= 1 and np.mean(difference > 0) <= 1e-3, key


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (500, 3), (37, 61)])
def test_crop_of_odd_shapes_is_pillows(height, width):
    """Enlarged, shrunk, and both at once, from a corner of an image; columns first, as Pillow did when the paper was new."""
    image = np.random.default_rng(height).integers(0, 256, (height + 2, width + 3, 3), np.uint8)
    expected = Image.fromarray(image).crop((3, 2, 3 + width, 2 + height))
    for shape in ((32, height), (32, 32)):
        expected = expected.resize(shape, Image.Resampling.BICUBIC)
    found = views.resized_crop(tf.constant(image), tf.constant([2, 3, height, width]), 32).numpy()
    difference = np.abs(found - np.asarray(expected).astype(int))
    assert difference.max() <= 1 and np.mean(difference > 0) <= 1e-3


@pytest.mark.parametrize(("view", "spec"), [("a", VIEW_A), ("b", VIEW_B)])
def test_statistics_of_many_draws_are_the_official_ones(golden, view, spec):
    """Channel means and deviations, and the quantiles of a view's mean, over 400 draws: within four standard errors."""
    results = golden("view_statistics")
    image = tf.constant(load_photograph("rocket"))
    height, width = image.shape[:2]
    seeds = tf.stack([tf.fill([400], tf.constant(7, tf.int64)), tf.range(400, dtype=tf.int64)], axis=1)
    drawn = tf.data.Dataset.from_tensor_slices(seeds).map(
        tf.autograph.experimental.do_not_convert(lambda s: apply_view(image, sample_view(s, height, width, spec), 224)),
        num_parallel_calls=2,
    )
    x = np.stack(list(drawn.as_numpy_iterator())) / 255
    x = (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    means = x.mean((1, 2))  # (400, 3)
    error = np.sqrt(2 / 400)  # of a mean over 400 draws against another such mean, in units of one draw's deviation
    assert (np.abs(means.mean(0) - results[f"view_{view}_mean"]) < 4 * error * means.std(0)).all()
    squares = np.square(x - x.mean((0, 1, 2))).mean((1, 2))
    deviation = np.sqrt(squares.mean(0))
    assert (np.abs(deviation - results[f"view_{view}_std"]) < 4 * error * squares.std(0) / (2 * deviation)).all()
    overall = x.mean((1, 2, 3))
    for p, expected in zip((0.1, 0.25, 0.5, 0.75, 0.9), results[f"view_{view}_mean_quantiles"], strict=True):
        # A quantile's standard error is √(p(1-p)/n) over the density, here that between the quantiles beside it.
        near = np.quantile(overall, [p - 0.05, p + 0.05])
        assert abs(np.quantile(overall, p) - expected) < 4 * error * np.sqrt(p * (1 - p)) * (near[1] - near[0]) / 0.1, p


def torchvision_crop(area, ratio, top, left, height, width, scale=(0.08, 1.0), ratios=(3 / 4, 4 / 3)):
    """RandomResizedCrop.get_params with its random numbers given, in numpy."""
    for a, r in zip(area, ratio, strict=True):
        target = height * width * (scale[0] + a * (scale[1] - scale[0]))
        aspect = np.exp(np.log(ratios[0]) + r * (np.log(ratios[1]) - np.log(ratios[0])))
        w, h = int(round(np.sqrt(target * aspect))), int(round(np.sqrt(target / aspect)))
        if 0 < w <= width and 0 < h <= height:
            return [int(top * (height - h + 1)), int(left * (width - w + 1)), h, w]
    if width / height < ratios[0]:
        w, h = width, int(round(width / ratios[0]))
    elif width / height > ratios[1]:
        w, h = int(round(height * ratios[1])), height
    else:
        w, h = width, height
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize(("height", "width"), [(427, 640), (32, 32), (20, 300), (300, 20), (1, 1), (7, 5)])
def test_crop_sampling_is_torchvisions(height, width):
    """Ten tries, log-uniform ratio, and the centre when none fits; always inside the image."""
    rng = np.random.default_rng(height)
    crop = tf.function(lambda a, r, y, x: crop_from_uniforms(a, r, y, x, height, width, VIEW_A), autograph=False)
    for _ in range(100):
        area, ratio = rng.random(10, np.float32), rng.random(10, np.float32)
        top, left = rng.random(2, np.float32)
        found = crop(area, ratio, top, left).numpy().tolist()
        assert found == torchvision_crop(*(np.float64(v) for v in (area, ratio, top, left)), height, width)
        assert found[0] >= 0 and found[1] >= 0 and found[0] + found[2] <= height and found[1] + found[3] <= width


def test_draws_have_their_distribution():
    """Probabilities, ranges and means of 4000 draws of a spec unlike the default; orders are all there are."""
    spec = ViewSpec(flip=0.3, jitter=0.6, brightness=0.5, contrast=0.2, saturation=0.1, hue=0.05, grayscale=0.1, blur=0.25,
                    blur_sigma=(0.5, 1.0), solarize=0.4)  # fmt: skip
    n = 4000
    seeds = tf.stack([tf.zeros([n], tf.int64), tf.range(n, dtype=tf.int64)], axis=1)
    sample = tf.autograph.experimental.do_not_convert(lambda s: tuple(sample_view(s, 32, 32, spec)))
    drawn = next(tf.data.Dataset.from_tensor_slices(seeds).map(sample).batch(n).as_numpy_iterator())
    drawn = views.ViewParameters(*drawn)
    for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
        p = getattr(spec, name)
        assert getattr(drawn, name).mean() == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n)), name
    for name, low, high in (("brightness", 0.5, 1.5), ("contrast", 0.8, 1.2), ("saturation", 0.9, 1.1), ("hue", -0.05, 0.05),
                            ("sigma", 0.5, 1.0)):  # fmt: skip
        values = getattr(drawn, name)
        assert low <= values.min() and values.max() <= high, name
        assert values.mean() == pytest.approx((low + high) / 2, abs=4 * (high - low) / np.sqrt(12 * n)), name
    assert len(np.unique(drawn.order, axis=0)) == 24
    # Independent of each other: no two of the coins agree more often than chance.
    coins = np.stack([drawn.flip, drawn.jitter, drawn.grayscale, drawn.blur, drawn.solarize]).astype(float)
    assert np.abs(np.corrcoef(coins) - np.eye(5)).max() < 4 / np.sqrt(n)


def test_order_of_operations():
    """Nothing drawn leaves the crop alone; jitters come in the drawn order, then grey, blur, solarise."""
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    plain = {"crop": [0, 0, 24, 24], "flip": False, "jitter": False, "order": [0, 1, 2, 3], "brightness": 1.3, "contrast": 0.7,
             "saturation": 1.2, "hue": 0.05, "grayscale": False, "blur": False, "sigma": 1.0, "solarize": False}  # fmt: skip

    def view(**changes):
        values = {**plain, **changes}
        kinds = {bool: tf.bool, float: tf.float32, list: tf.int32}
        parameters = {name: tf.constant(value, kinds[type(value)]) for name, value in values.items()}
        return apply_view(tf.constant(image), views.ViewParameters(**parameters), 24)

    np.testing.assert_array_equal(view(), image)
    np.testing.assert_array_equal(view(flip=True), image[:, ::-1])
    x = views.packed(image)
    by_hand = {0: lambda x: views.adjust_brightness(x, 1.3), 1: lambda x: views.adjust_contrast(x, 0.7),
               2: lambda x: views.adjust_saturation(x, 1.2), 3: lambda x: views.adjust_hue(x, tf.constant(0.05))}  # fmt: skip
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        expected = x
        for place in order:
            expected = by_hand[place](expected)
        np.testing.assert_array_equal(view(jitter=True, order=order), views.unpacked(expected))
    expected = views.solarize(views.gaussian_blur(views.grayscale(x), tf.constant(1.0)))
    found = view(grayscale=True, blur=True, solarize=True)
    np.testing.assert_array_equal(found, views.unpacked(expected))


@pytest.mark.parametrize(("height", "width"), [(300, 400), (401, 300), (256, 256), (50, 499), (7, 5)])
def test_evaluation_view_is_torchvisions(height, width):
    """The shorter side to 256 by Pillow, width before height, and the centre of 224; one value in a hundred a level off."""
    image = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    found = evaluation_view(tf.constant(image), 256, 224).numpy()
    new_height, new_width = (256 * n // min(height, width) for n in (height, width))
    expected = Image.fromarray(image)
    for shape in ((new_width, height), (new_width, new_height)):
        expected = expected.resize(shape, Image.Resampling.BILINEAR)
    top, left = round((new_height - 224) / 2), round((new_width - 224) / 2)
    expected = np.asarray(expected.crop((left, top, left + 224, top + 224))).astype(int)
    difference = np.abs(found - expected)
    assert difference.max() <= 1 and np.mean(difference > 0) <= 1e-2


def test_small_evaluation_view():
    """Images of the right size pass untouched, others are resized whole."""
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(evaluation_view(tf.constant(image), 0, 32), image)
    expected = np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(evaluation_view(tf.constant(image), 0, 24) - expected).max() <= 1
