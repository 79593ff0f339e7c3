"""bt_jax/data/views/value_operations.py and the views made of it: other channels and depths, on the host and on the device."""

import colorsys
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from recipes import one_program

from bt_jax.data.eval_batches import evaluation_views
from bt_jax.data.views import device, device_operations, host, host_operations, value_operations
from bt_jax.data.views.spec import VIEW_B, Jigsaw, ViewGroup, ViewParameters, ViewSpec
from bt_jax.pixels import PHOTOGRAPHS, Pixels

LIBRARIES = {"tensorflow": (host_operations.VALUES, tf.constant), "jax": (device_operations.VALUES, jnp.asarray)}
ALL = ViewSpec(
    crop_scale=(0.3, 1.0), flip=0.5, jitter=0.9, brightness=0.4, contrast=0.4, saturation=0.0, hue=0.0, grayscale=0.0,
    blur=0.5, solarize=0.3, quarter_turns=0.75, drop_bands=0.3,
)  # fmt: skip
BANDS = Pixels(7, (0.0, 1.0))
apply_views = one_program(device.apply_views, "size", "spec", "pixels")
make_views = one_program(device.make_views, "groups")
draw_uniforms = one_program(device.draw_uniforms, "count", "more")


def colours(height=9, width=7):
    """Red, green and blue of 8 bits, greys and equal channels among them."""
    x = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    x[0, :, 1] = x[0, :, 0]
    x[1] = x[1, :, :1]
    return x


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("name", "parameter", "pillow"),
    [
        ("adjust_brightness", 1.3, lambda x: ImageEnhance.Brightness(x).enhance(1.3)),
        ("adjust_contrast", 0.6, lambda x: ImageEnhance.Contrast(x).enhance(0.6)),
        ("adjust_contrast", 1.4, lambda x: ImageEnhance.Contrast(x).enhance(1.4)),
        ("adjust_saturation", 1.2, lambda x: ImageEnhance.Color(x).enhance(1.2)),
        ("grayscale", None, lambda x: x.convert("L").convert("RGB")),
        ("solarize", None, lambda x: ImageOps.solarize(x, 128)),
    ],
)
def test_operations_are_pillows_without_its_rounding(library, name, parameter, pillow):
    """Within the level and a half that Pillow's roundings of the mean, the grey and the result can make."""
    lib, array = LIBRARIES[library]
    x, given = colours(), () if parameter is None else (parameter,)
    found = np.asarray(getattr(value_operations, name)(lib, array(x.astype(np.float32) / 255), *given)) * 255
    assert np.abs(found - np.asarray(pillow(Image.fromarray(x)), np.float32)).max() <= 1.5


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("shift", [0.0, 0.07, -0.3])
def test_hue_is_that_of_python(library, shift):
    """Of colorsys, in float64."""
    lib, array = LIBRARIES[library]
    x = colours() / 255
    expected = np.array([
        [colorsys.hsv_to_rgb((h + shift) % 1, s, v) for h, s, v in (colorsys.rgb_to_hsv(*pixel) for pixel in row)]
        for row in x
    ])  # fmt: skip
    found = value_operations.adjust_hue(lib, array(x.astype(np.float32)), shift)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.5, 2.0])
def test_blur_is_pillows_without_its_rounding(library, sigma):
    """Three boxes along each axis in float64; Pillow's own result is near wherever it is not rounded away."""
    lib, array = LIBRARIES[library]
    inside, near, far = host.box_weights(tf.constant(sigma)).numpy() / (1 << 24)
    x = colours(24, 20)
    expected = x.astype(np.float64)
    for axis in (1, 0):
        for _ in range(3):
            wide = np.pad(expected, [(2, 2) if a == axis else (0, 0) for a in range(3)], mode="edge")
            taps = [np.take(wide, range(k, k + x.shape[axis]), axis) for k in range(5)]
            expected = inside * taps[2] + near * (taps[1] + taps[3]) + far * (taps[0] + taps[4])
    found = value_operations.gaussian_blur(
        lib, array(x.astype(np.float32)), tuple(map(np.float32, (inside, near, far)))
    )
    np.testing.assert_allclose(found, expected, atol=2e-4)
    if sigma > 0.5:
        pillow = np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(sigma)), np.float32)
        assert np.abs(expected - pillow).max() <= 2 and np.abs(expected - pillow).mean() < 0.7


def deep(n, pixels, height=20, width=26):
    """Smooth images that fill the middle of the range, with noise: levels (N, H, W, C)."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:height, :width]
    phase = rng.uniform(0, 6, (n, 1, 1, pixels.channels))
    values = (
        0.4 + 0.2 * np.sin(0.3 * x[..., None] + 0.2 * y[..., None] + phase) + rng.normal(0, 0.02, (n, height, width, 1))
    )
    low, high = pixels.ends
    kind = np.float32 if pixels.range else np.uint8
    return pixels.levels((low + (high - low) * np.clip(values, 0, 1)).astype(kind))


@functools.cache
def many_draws(n=600):
    """Parameters of n draws on the device, as numpy arrays."""
    numbers = jnp.arange(n)
    uniforms = draw_uniforms(3, 0, numbers, 0, 0)
    more = draw_uniforms(3, 0, numbers, 0, 0, 2 + BANDS.channels, more=True)
    drawn = one_program(device.sample_views, "spec")(uniforms, jnp.full((n, 2), jnp.array([20, 26])), ALL, more)
    return jax.tree.map(np.asarray, drawn)


def test_draws_of_turns_and_bands():
    """Turns: as often as said, and one, two and three equally often. Bands: each as often as said, and one always stays."""
    drawn, n = many_draws(), 600
    counts = np.bincount(drawn.turns, minlength=4) / n
    np.testing.assert_allclose(counts, [0.25] * 4, atol=4 * np.sqrt(0.25 * 0.75 / n))
    np.testing.assert_allclose(drawn.dropped.mean(0), 0.3, atol=4 * np.sqrt(0.3 * 0.7 / n))
    spec = dataclasses.replace(ALL, drop_bands=1.0, quarter_turns=0.0)
    more = draw_uniforms(3, 0, jnp.arange(50), 0, 0, 2 + BANDS.channels, more=True)
    stays = ~np.asarray(device._drawn_more(more, spec)["dropped"])
    assert (stays.sum(1) == 1).all() and len(set(stays.argmax(1))) == BANDS.channels
    seed = tf.constant([1, 2], tf.int64)
    on_host = host.sample_view(seed, 20, 26, spec, more=seed, channels=5)
    assert (~on_host.dropped.numpy()).sum() == 1 and int(on_host.turns) == 0


def test_other_draws_stay():
    """A view that is turned, or loses bands, has the crop and the colours that it had before."""
    plain = dataclasses.replace(ALL, quarter_turns=0.0, drop_bands=0.0)
    seed = tf.constant([1, 2], tf.int64)
    a = host.sample_view(seed, 20, 26, plain)
    b = host.sample_view(seed, 20, 26, ALL, more=tf.constant([3, 4], tf.int64), channels=7)
    for name in ViewParameters._fields[:-2]:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert a.turns is None and b.turns is not None


def test_device_and_host_make_the_same_views():
    """For the same parameters, to a few of 65535 levels: the crop's weights are computed differently."""
    n = 8
    images, drawn = deep(n, BANDS), jax.tree.map(lambda leaf: leaf[:n], many_draws())
    on_device = np.asarray(apply_views(images, drawn, 16, ALL, BANDS))
    assert on_device.dtype == np.uint16 and on_device.shape == (n, 16, 16, 7)
    for i in range(n):
        one = ViewParameters(*(tf.constant(leaf[i]) for leaf in drawn))
        on_host = host.apply_views(tf.constant(images[i]), (ALL,), [one], 16, BANDS)[0].numpy()
        assert np.abs(on_host.astype(int) - on_device[i]).max() <= 40
        assert (on_host[..., drawn.dropped[i]] == 0).all() and on_host[..., ~drawn.dropped[i]].any()


def test_turned_views_are_numpys():
    """On the host and the device, of photographs and of others."""
    for pixels in (PHOTOGRAPHS, BANDS):
        image = deep(1, pixels, 16, 16)[0]
        spec = ViewSpec(jitter=0.0, grayscale=0.0, blur=0.0, flip=0.5, quarter_turns=0.5)
        for turns in range(4):
            values = {"crop": [0, 0, 16, 16], "flip": True, "jitter": False, "order": [0, 1, 2, 3], "brightness": 1.0,
                      "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "grayscale": False, "blur": False, "sigma": 1.0,
                      "solarize": False, "turns": turns, "dropped": [False] * pixels.channels}  # fmt: skip
            expected = np.rot90(image[:, ::-1], turns)
            one = ViewParameters(**{name: tf.constant(v) for name, v in values.items()})
            np.testing.assert_array_equal(host.apply_views(tf.constant(image), (spec,), [one], 16, pixels)[0], expected)
            batch = ViewParameters(**{name: jnp.asarray(v)[None] for name, v in values.items()})
            found = apply_views(image[None], batch, 16, spec, pixels)[0]
            assert np.abs(np.asarray(found, int) - expected).max() <= (0 if pixels.are_photographs else 1)


def test_photographs_in_floats_are_nearly_pillows():
    """The same draws of the same image, once as a photograph and once with a declared range: a level or two apart."""
    image = np.asarray(Image.fromarray(deep(1, PHOTOGRAPHS, 40, 50)[0]).resize((50, 40)))
    declared = Pixels(3, (0.0, 255.0))
    group = functools.partial(ViewGroup, "pair", (VIEW_B, ViewSpec(blur=0.5)), 24)
    args = {"seed": 4, "epoch": tf.constant(0, tf.int64)}
    apart = []
    for example in range(6):
        number = tf.constant(example, tf.int64)
        photograph = host.make_views(tf.constant(image), (group(),), example=number, **args)["pair"].numpy()
        values = host.make_views(tf.constant(declared.levels(image)), (group(declared),), example=number, **args)[
            "pair"
        ]
        apart.append(np.abs(photograph / 255 - values.numpy() / 65535) * 255)
    # Hue has 256 steps in Pillow, and solarising doubles what is near the middle: a few pixels are further apart.
    assert np.mean(apart) < 1.5 and np.quantile(apart, 0.99) < 6


def test_at_most_a_hundredth_of_the_values_is_clipped():
    """Reflectances as of a satellite, a tenth of the range on average: views keep them, where standardising before would lose half."""
    rng = np.random.default_rng(2)
    values = np.exp(rng.normal(7, 0.4, (40, 24, 24, 7)))  # a median of 1100, 99.9 % below 3800
    pixels = Pixels(7, (0.0, 10000.0))
    spec = dataclasses.replace(ALL, solarize=0.0, drop_bands=0.0, quarter_turns=0.0, blur=0.0)
    group = (ViewGroup("pair", (spec,), 16, pixels),)
    levels = jnp.asarray(pixels.levels(values.astype(np.float32)))
    views = np.asarray(make_views(levels, None, group, seed=0, epoch=0, examples=jnp.arange(40))["pair"])
    assert np.mean((views == 0) | (views == 65535)) < 0.01
    assert np.mean(views) / 65535 == pytest.approx(np.mean(values) / 10000, rel=0.1)


def test_jigsaw_of_bands():
    """Windows of the resized crop, in floats, on host and device."""
    plain = ViewSpec(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0, jitter=0, grayscale=0, blur=0)
    image, jigsaw = deep(1, BANDS, 21, 21)[0], Jigsaw(plain, cell=7)
    group = (ViewGroup("patches", jigsaw, 5, BANDS),)
    on_host = host.make_views(
        tf.constant(image), group, seed=0, epoch=tf.constant(0, tf.int64), example=tf.constant(1, tf.int64)
    )
    on_device = make_views(jnp.asarray(image)[None], None, group, seed=0, epoch=0, examples=jnp.array([1]))
    windows = {image[y : y + 5, x : x + 5].tobytes() for y in range(17) for x in range(17)}
    for views in (on_host["patches"].numpy(), np.asarray(on_device["patches"])[0]):
        assert views.shape == (9, 5, 5, 7)
        near = [
            min(np.abs(np.frombuffer(w, np.uint16).reshape(5, 5, 7).astype(int) - v).max() for w in windows)
            for v in views
        ]
        assert max(near) <= 1


@pytest.mark.parametrize("pixels", [BANDS, Pixels(1), Pixels(3, (0.0, 4095.0))])
def test_evaluation_views(pixels):
    """The host's are those of Pillow in floats, to a level; without resizing, the image itself."""
    image = deep(1, pixels, 30, 40)[0]
    for resize, size in ((20, 16), (0, 24)):
        found = host.evaluation_view(tf.constant(image), resize, size, pixels).numpy()
        expected = evaluation_views(image[None], resize, size, pixels)[0]
        assert found.dtype == expected.dtype == pixels.dtype and found.shape == (size, size, pixels.channels)
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1 + pixels.top // 20000
    np.testing.assert_array_equal(host.evaluation_view(tf.constant(image[:, :30]), 0, 30, pixels), image[:, :30])


def test_canvases():
    image = deep(1, BANDS, 10, 14)[0]
    found, size = host.on_canvas(tf.constant(image), 16, BANDS)
    np.testing.assert_array_equal(found[:10, :14], image)
    assert size.numpy().tolist() == [10, 14] and not np.any(found[10:]) and found.dtype == tf.uint16
    reduced, size = host.on_canvas(tf.constant(image), 7, BANDS)
    assert size.numpy().tolist() == [5, 7] and abs(reduced[:5].numpy().mean() / image.mean() - 1) < 0.02
