"""bt_jax/data/views/host.py against Pillow and torchvision: the sampling, whole views, groups of them, a jigsaw."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from bt_jax.data.order import draw_seed
from bt_jax.data.sources.photographs import load_photograph
from bt_jax.data.views import host
from bt_jax.data.views import host_operations as operations
from bt_jax.data.views.host import (
    apply_jigsaw,
    apply_views,
    crop_from_uniforms,
    evaluation_view,
    make_views,
    sample_jigsaw,
    sample_view,
)
from bt_jax.data.views.spec import VIEW_A, VIEW_B, Jigsaw, ViewGroup, ViewParameters, ViewSpec, draw_number
from bt_jax.pixels import PHOTOGRAPHS, Pixels


@pytest.mark.parametrize(("view", "spec"), [("a", VIEW_A), ("b", VIEW_B)])
def test_statistics_of_many_draws_are_the_official_ones(golden, view, spec):
    """Channel means and deviations, and the quantiles of a view's mean, over 400 draws: within four standard errors."""
    results = golden("view_statistics")
    image = tf.constant(load_photograph("rocket"))
    height, width = image.shape[:2]
    seeds = tf.stack([tf.fill([400], tf.constant(7, tf.int64)), tf.range(400, dtype=tf.int64)], axis=1)
    drawn = tf.data.Dataset.from_tensor_slices(seeds).map(
        tf.autograph.experimental.do_not_convert(
            lambda s: apply_views(image, [spec], [sample_view(s, height, width, spec)], 224)[0]
        ),
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
    drawn = ViewParameters(*drawn)
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
        return apply_views(tf.constant(image), [ViewSpec(solarize=0.5)], [ViewParameters(**parameters)], 24)[0]

    np.testing.assert_array_equal(view(), image)
    np.testing.assert_array_equal(view(flip=True), image[:, ::-1])
    x = operations.packed(image)
    by_hand = {0: lambda x: operations.adjust_brightness(x, 1.3), 1: lambda x: operations.adjust_contrast(x, 0.7),
               2: lambda x: operations.adjust_saturation(x, 1.2), 3: lambda x: operations.adjust_hue(x, tf.constant(0.05))}  # fmt: skip
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        expected = x
        for place in order:
            expected = by_hand[place](expected)
        np.testing.assert_array_equal(view(jitter=True, order=order), operations.unpacked(expected))
    expected = operations.solarize(operations.gaussian_blur(operations.grayscale(x), tf.constant(1.0)))
    found = view(grayscale=True, blur=True, solarize=True)
    np.testing.assert_array_equal(found, operations.unpacked(expected))


def test_no_hue():
    """Then nothing is rounded to HSV and back, and a change of brightness is no other; whichever place in the order hue has."""
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    spec = ViewSpec(jitter=1.0, contrast=0.0, saturation=0.0, hue=0.0, grayscale=0.0, blur=0.0)
    expected = operations.unpacked(operations.adjust_brightness(operations.packed(image), 1.3))
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        drawn = ViewParameters(
            crop=tf.constant([0, 0, 24, 24]), flip=tf.constant(False), jitter=tf.constant(True), order=tf.constant(order),
            brightness=tf.constant(1.3), contrast=tf.constant(1.0), saturation=tf.constant(1.0), hue=tf.constant(0.0),
            grayscale=tf.constant(False), blur=tf.constant(False), sigma=tf.constant(1.0), solarize=tf.constant(False),
        )  # fmt: skip
        np.testing.assert_array_equal(apply_views(tf.constant(image), [spec], [drawn], 24)[0], expected)


CROPS = ViewSpec(jitter=0.0, grayscale=0.0, blur=0.0)  # nothing to compile


def seeds(epoch, example, group, view):
    return tf.stack(
        draw_seed(3, tf.constant(epoch, tf.int64), tf.constant(example, tf.int64), draw_number(group, view))
    )


def made(image, *groups, epoch=2, example=7):
    where = {"epoch": tf.constant(epoch, tf.int64), "example": tf.constant(example, tf.int64)}
    return {name: views.numpy() for name, views in make_views(tf.constant(image), groups, seed=3, **where).items()}


def test_groups_of_views():
    """Two groups of different sizes and a jigsaw, put together by hand; each view is resized as its own spec says."""
    image = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
    bilinear, jigsaw = ViewSpec(blur=0.0, interpolation="bilinear"), Jigsaw(VIEW_B, cell=11, grid=2)
    groups = (
        ViewGroup("global", (VIEW_A, bilinear), 16),
        ViewGroup("local", (VIEW_B, CROPS, CROPS), 12),
        ViewGroup("patches", jigsaw, 8),
    )
    views = made(image, *groups)
    assert {name: v.shape for name, v in views.items()} == {group.name: group.shape for group in groups}
    for number, group in enumerate(groups[:2]):
        for view, spec in enumerate(group.draws):
            parameters = sample_view(seeds(2, 7, number, view), 40, 52, spec)
            expected = apply_views(tf.constant(image), [spec], [parameters], group.size)[0]
            np.testing.assert_array_equal(views[group.name][view], expected)
    drawn = sample_jigsaw(lambda patch: seeds(2, 7, 2, patch), 40, 52, jigsaw, 8)
    np.testing.assert_array_equal(views["patches"], apply_jigsaw(tf.constant(image), jigsaw, drawn, 8))


def test_interpolation_is_the_views_own():
    """The same draw, bicubic and bilinear, in one group."""
    image = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
    specs = [ViewSpec(jitter=0.0, grayscale=0.0, blur=0.0, flip=0.0, interpolation=i) for i in ("bicubic", "bilinear")]
    parameters = sample_view(seeds(0, 0, 0, 0), 40, 52, specs[0])
    found = apply_views(tf.constant(image), specs, [parameters, parameters], 12)
    for view, spec in zip(found, specs, strict=True):
        resized = operations.resized(tf.constant(image), parameters.crop, 12, 12, spec.interpolation)
        np.testing.assert_array_equal(view, operations.levels(resized))
    assert (found[0].numpy() != found[1].numpy()).mean() > 0.5


def test_further_views_and_groups_leave_the_others_as_they_were():
    """And are separate draws: no two views of an image are equal."""
    image = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
    alone = made(image, ViewGroup("global", (CROPS, CROPS), 12))
    local, patches = ViewGroup("local", (CROPS,) * 6, 12), ViewGroup("patches", Jigsaw(CROPS, cell=13), 12)
    together = made(image, ViewGroup("global", (CROPS,) * 5, 12), local, patches)
    np.testing.assert_array_equal(together["global"][:2], alone["global"])
    every = np.concatenate(list(together.values()))
    assert len(np.unique(every.reshape(20, -1), axis=0)) == 20


def test_jigsaw_draws():
    """Each cell once, in an order that differs from image to image; windows anywhere in their cells, each with its own flip."""
    jigsaw, n = Jigsaw(ViewSpec(crop_scale=(0.6, 1.0), flip=0.3), cell=11), 200

    @tf.autograph.experimental.do_not_convert
    def sample(example):
        def seed_of(patch):
            return tf.stack(draw_seed(3, tf.constant(0, tf.int64), example, draw_number(1, patch)))

        crop, patches = sample_jigsaw(seed_of, 40, 52, jigsaw, 8)
        return crop, tf.stack([p.crop for p in patches]), tf.stack([p.flip for p in patches])

    crop, windows, flips = next(tf.data.Dataset.range(n).map(sample).batch(n).as_numpy_iterator())
    area = crop[:, 2] * crop[:, 3] / (40 * 52)
    assert area.min() > 0.55 and area.max() <= 1 and len(np.unique(crop, axis=0)) > 190
    assert (windows[..., 2:] == 8).all()
    cells, offsets = np.divmod(windows[..., :2], 11)
    order = cells[..., 0] * 3 + cells[..., 1]
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(9), (n, 1)))
    assert len(np.unique(order, axis=0)) == n
    assert set(offsets.ravel()) == {0, 1, 2}, "of a room of 3, as in vissl"
    assert flips.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / (9 * n)))


@pytest.mark.parametrize("cell", [8, 11])
def test_patches_put_back_in_order_are_the_crop(cell):
    """If windows fill their cells, the whole crop; else each patch is the crop at its window, mirrored if so drawn."""
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8))
    jigsaw = Jigsaw(CROPS, cell=cell)
    drawn = sample_jigsaw(lambda patch: seeds(0, 5, 0, patch), 40, 52, jigsaw, 8)
    found = apply_jigsaw(image, jigsaw, drawn, 8).numpy()
    whole = operations.levels(operations.resized(image, drawn.crop, 3 * cell, 3 * cell)).numpy()
    filled = np.zeros_like(whole)
    for patch, parameters in zip(found, drawn.patches, strict=True):
        top, left = parameters.crop.numpy()[:2]
        filled[top : top + 8, left : left + 8] = patch[:, ::-1] if parameters.flip else patch
    covered = filled.any(axis=-1)
    assert covered.mean() == pytest.approx((8 / cell) ** 2, abs=0.01)
    np.testing.assert_array_equal(filled[covered], whole[covered])


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


@pytest.mark.parametrize(
    ("height", "width"), [(300, 400), (401, 300), (50, 499), (7, 5), (1, 16), (900, 60), (256, 256)]
)
@pytest.mark.parametrize("pixels", [PHOTOGRAPHS, Pixels(3, (0.0, 65535.0))], ids=["photographs", "values"])
def test_the_centre_alone_is_that_of_the_whole(monkeypatch, height, width, pixels):
    """What is resized for the centre of a very long image gives the same: five values in a thousand a level of 255 off."""
    image = np.random.default_rng(width).integers(0, pixels.top + 1, (height, width, 3)).astype(pixels.dtype)
    whole = evaluation_view(tf.constant(image), 256, 224, pixels).numpy().astype(int)
    monkeypatch.setattr(host, "_LONG", 0)
    alone = evaluation_view(tf.constant(image), 256, 224, pixels).numpy().astype(int)
    difference = np.abs(alone - whole) * 255 / pixels.top
    assert difference.max() <= 1 and np.mean(difference > 0.1) <= 5e-3


@pytest.mark.parametrize(("height", "width"), [(1, 300), (65000, 1), (2, 65000)])
def test_very_long_images_take_little_memory(monkeypatch, height, width):
    """Of a strip only what the centre shows is resized, and it is Pillow's: from levels of float64."""
    made, resize = [], tf.raw_ops.ScaleAndTranslate
    monkeypatch.setattr(tf.raw_ops, "ScaleAndTranslate", lambda **fields: made.append(resize(**fields)) or made[-1])
    image = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    found = evaluation_view(tf.constant(image), 256, 224).numpy().astype(int)
    assert max(tf.size(x).numpy() for x in made) <= 256 * 256 * 3
    short, long = min(height, width), max(height, width)
    expected = np.moveaxis(image if width >= height else image.transpose(1, 0, 2), 2, 0).astype(np.float64)
    for axis, size in ((2, long), (1, short)):
        first = round((256 * size // short - 224) / 2)
        places = (first + np.arange(224) + 0.5) * size / (256 * size // short) - 0.5
        low = np.floor(places).astype(int)
        part = places - low
        expected = np.take(expected, np.clip(low, 0, size - 1), axis) * (
            1 - part.reshape([-1, 1] if axis == 1 else [-1])
        ) + np.take(expected, np.clip(low + 1, 0, size - 1), axis) * part.reshape([-1, 1] if axis == 1 else [-1])
    expected = np.moveaxis(expected, 0, 2)
    assert np.abs(found - (expected if width >= height else expected.transpose(1, 0, 2))).max() <= 1.01


def test_small_evaluation_view():
    """Images of the right size pass untouched, others are resized whole."""
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(evaluation_view(tf.constant(image), 0, 32), image)
    expected = np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(evaluation_view(tf.constant(image), 0, 24) - expected).max() <= 1
