"""bt_jax/data/views/device.py against Pillow's results and the host's views: operations, sampling, whole views, sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from test_views_host import torchvision_crop

from bt_jax.data.sources.photographs import load_photograph
from bt_jax.data.views import device as device_views
from bt_jax.data.views import host as views
from bt_jax.data.views.device import apply_views, crops_from_uniforms, make_views, sample_views
from bt_jax.data.views.spec import VIEW_A, VIEW_B, ViewParameters, ViewSpec
from bt_jax.errors import UserError
from bt_jax.runtime import mesh as mesh_lib

OPERATIONS = {
    "brightness": device_views.adjust_brightness,
    "contrast": device_views.adjust_contrast,
    "saturation": device_views.adjust_saturation,
    "hue": device_views.adjust_hue,
    "blur": device_views.gaussian_blur,
    "grayscale": lambda x, _: device_views.grayscale(x),
    "solarize": lambda x, _: device_views.solarize(x),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_are_pillows(golden, operation):
    """All photographs and values in one batch, each with its own factor; only hue and blur leave a level here or there."""
    results, bases, values, expected = golden("augment"), [], [], []
    for key, image in results.items():
        number, name, *value = key.split("_")
        if name == operation:
            bases.append(results[f"{number}_base"])
            values.append(float(value[0]) if value else 0.0)
            expected.append(image)
    run = jax.jit(lambda x, v: device_views.unpacked(OPERATIONS[operation](device_views.packed(x), v)))
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
        found = jax.jit(device_views.resized_crops, static_argnums=3)(canvas, crops, np.full(len(fulls), mirrored), 224)
        expected = np.stack([results[f"{number}_resized"] for number in numbers])[:, :, :: -1 if mirrored else 1]
        difference = np.abs(np.asarray(device_views.unpacked(found)) - expected.astype(int))
        assert difference.max() <= 1 and np.mean(difference > 0) <= 1e-3


def test_supervised_crops_are_bilinear_as_the_hosts():
    """Of one image, enlarged, reduced and mirrored: a level apart at most, where a value lies between two."""
    image = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
    crops = np.array([[0, 0, 40, 52], [3, 5, 11, 7], [20, 1, 17, 30]], np.int32)
    flip = np.array([False, True, False])
    run = jax.jit(device_views.resized_crops, static_argnames=("size", "kernel"))
    found = device_views.unpacked(run(np.stack([image] * 3), crops, flip, size=16, kernel="triangle"))
    for i, crop in enumerate(crops):
        p = ViewParameters(crop, flip[i], False, np.arange(4, dtype=np.int32), *[np.float32(1)] * 3, np.float32(0),
                           False, False, np.float32(1), False)  # fmt: skip
        host = views.apply_views(image, [ViewParameters(*map(tf.constant, p))], 16, "triangle")[0].numpy()
        assert np.abs(np.asarray(found[i]).astype(int) - host).max() <= 1


def test_every_colour_keeps_its_hue_or_turns_as_on_the_host():
    """A cube of colours, 33 levels a channel: three values in a thousand may differ, and those by little."""
    levels = np.linspace(0, 255, 33).astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(33 * 3, -1, 3)
    shifts = np.array([-0.1, -0.004, 0.0, 0.05, 0.1], np.float32)
    turned = jax.jit(device_views.adjust_hue)(device_views.packed(np.stack([cube] * len(shifts))), shifts)
    found = np.asarray(device_views.unpacked(turned)).astype(int)
    for image, shift in zip(found, shifts, strict=True):
        difference = np.abs(image - views.unpacked(views.adjust_hue(views.packed(cube), tf.constant(shift))).numpy())
        assert np.mean(difference > 0) < 3e-3 and difference.max() <= 8, shift


@pytest.mark.parametrize(("name", "size", "spec"), [("rocket", 96, VIEW_A), ("astronaut", 32, VIEW_B)])
def test_whole_views_are_the_hosts_on_the_same_parameters(name, size, spec):
    """Asked: 2 levels of mean absolute difference. Here of 48 draws, of each and of the worst."""
    n = 48
    photograph = load_photograph(name)[:200, :300]
    drawn = jax.jit(
        lambda: sample_views(5, jnp.int32(2), jnp.arange(n), 0, jnp.full((n, 2), jnp.array(photograph.shape[:2])), spec)
    )()
    found = jax.jit(apply_views, static_argnums=(2, 3))(np.stack([photograph] * n), drawn, size, spec)
    image, host = tf.constant(photograph), []
    for i in range(n):
        host.append(views.apply_view(image, ViewParameters(*(tf.constant(np.asarray(v[i])) for v in drawn)), size))
    each = np.abs(np.asarray(found).astype(int) - np.stack(host)).mean((1, 2, 3))
    assert each.mean() < 0.05 and each.max() < 0.5


def test_parameters_of_the_hosts_draws_give_its_views():
    """The other way round: the host draws, the device applies; and every operation's turn comes in the drawn order."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 24, 24, 3), np.uint8)
    plain = {"crop": [0, 0, 24, 24], "flip": False, "jitter": True, "brightness": 1.3, "contrast": 0.7, "saturation": 1.2,
             "hue": 0.05, "grayscale": False, "blur": False, "sigma": 1.0, "solarize": False}  # fmt: skip
    orders = np.stack(np.meshgrid(*[range(4)] * 4), -1).reshape(-1, 4)
    orders = np.array([order for order in orders if len(set(order)) == 4], np.int32)
    batch = ViewParameters(**{name: np.stack([value] * 24) for name, value in plain.items()}, order=orders)
    batch = jax.tree.map(lambda v: v.astype({"f": np.float32, "i": np.int32, "b": bool}[v.dtype.kind]), batch)
    found = np.asarray(jax.jit(apply_views, static_argnums=2)(images, batch, 24)).astype(int)
    for i in range(24):
        one = ViewParameters(*(tf.constant(v[i]) for v in batch))
        host = views.apply_view(tf.constant(images[i]), one, 24).numpy()
        assert np.abs(found[i] - host).mean() < 0.05, orders[i]


@pytest.fixture(scope="module")
def many_draws():
    """400 of each official view of one photograph, at 224, as floats normalised by ImageNet's numbers.

    The photograph is halved: three times quicker, and the moments hardly move.
    """
    photograph = np.asarray(Image.fromarray(load_photograph("rocket")).reduce(2))
    block = np.stack([photograph] * 50)
    draw = jax.jit(
        lambda examples: make_views(
            block, None, seed=7, epoch=jnp.int32(0), examples=examples, specs=(VIEW_A, VIEW_B), size=224
        )
    )
    x = np.concatenate([draw(np.arange(50, dtype=np.int32) + start) for start in range(0, 400, 50)])
    return (x.astype(np.float32) / 255 - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])


@pytest.mark.parametrize(("view", "number"), [("a", 0), ("b", 1)])
def test_statistics_of_many_draws_are_the_official_ones(golden, many_draws, view, number):
    """Channel means and deviations, and the quantiles of a view's mean, over 400 draws: within four standard errors."""
    results, x = golden("view_statistics"), many_draws[:, number]
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


def test_crop_sampling_is_torchvisions():
    """Ten tries, log-uniform ratio, and the centre when none fits; always inside. Sizes mixed in one batch."""
    sizes = np.array([(427, 640), (32, 32), (20, 300), (300, 20), (1, 1), (7, 5)] * 100, np.int32)
    rng, n = np.random.default_rng(0), len(sizes)
    area, ratio = rng.random((n, 10), np.float32), rng.random((n, 10), np.float32)
    top, left = rng.random((2, n), np.float32)
    found = np.asarray(crops_from_uniforms(area, ratio, top, left, sizes, VIEW_A))
    expected = [
        torchvision_crop(*(np.float64(v) for v in (area[i], ratio[i], top[i], left[i])), *sizes[i].tolist())
        for i in range(n)
    ]
    # In float32 a side that lies half-way between two whole numbers may be rounded to the other one.
    assert np.mean((found != expected).any(axis=1)) < 0.01 and np.abs(found - expected).max() <= 1
    assert (found[:, :2] >= 0).all() and (found[:, :2] + found[:, 2:] <= sizes).all() and (found[:, 2:] > 0).all()


def test_draws_have_their_distribution():
    """Probabilities, ranges and means of 4000 draws of a spec unlike the default; orders are all there are."""
    spec = ViewSpec(flip=0.3, jitter=0.6, brightness=0.5, contrast=0.2, saturation=0.1, hue=0.05, grayscale=0.1, blur=0.25,
                    blur_sigma=(0.5, 1.0), solarize=0.4)  # fmt: skip
    n = 4000
    draw = jax.jit(lambda epoch, view: sample_views(3, epoch, jnp.arange(n), view, jnp.full((n, 2), 32), spec))
    drawn = jax.device_get(draw(0, 0))
    for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
        p = getattr(spec, name)
        assert getattr(drawn, name).mean() == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n)), name
    for name, low, high in (("brightness", 0.5, 1.5), ("contrast", 0.8, 1.2), ("saturation", 0.9, 1.1), ("hue", -0.05, 0.05),
                            ("sigma", 0.5, 1.0)):  # fmt: skip
        values = getattr(drawn, name)
        assert low <= values.min() and values.max() <= high, name
        assert values.mean() == pytest.approx((low + high) / 2, abs=4 * (high - low) / np.sqrt(12 * n)), name
    assert len(np.unique(drawn.order, axis=0)) == 24
    # Independent of each other, of the epoch and of the other view: no two coins agree more often than chance.
    coins = [drawn.flip, drawn.jitter, drawn.grayscale, drawn.blur, drawn.solarize, draw(1, 0).flip, draw(0, 1).flip]
    assert np.abs(np.corrcoef(np.stack(coins).astype(float)) - np.eye(7)).max() < 4.5 / np.sqrt(n)


def test_views_do_not_depend_on_devices_or_company():
    """On eight devices, on one, and among the same images in another order: an image's views are the same bits."""
    images = np.random.default_rng(0).integers(0, 256, (16, 20, 24, 3), np.uint8)
    examples = np.arange(16, dtype=np.int32) * 7
    run = jax.jit(
        lambda images, examples: make_views(
            images, None, seed=1, epoch=jnp.int32(4), examples=examples, specs=(VIEW_A,), size=16
        )
    )
    over = mesh_lib.over_batch(jax.make_mesh((8,), (mesh_lib.DATA_AXIS,), (jax.sharding.AxisType.Auto,)))
    expected = np.asarray(run(images, examples))
    sharded = run(*jax.device_put((images, examples), over))
    assert sharded.sharding.is_equivalent_to(over, 5)
    np.testing.assert_array_equal(sharded, expected)
    np.testing.assert_array_equal(run(images[::-1], examples[::-1]), expected[::-1])


def test_what_lies_beside_an_image_in_its_array_is_never_seen():
    """Images of mixed sizes in one array: the same views as with the array's rest black."""
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, (6, 30, 40, 3), np.uint8)
    sizes = np.array([(30, 40), (12, 40), (30, 9), (1, 1), (20, 20), (7, 33)], np.int32)
    black = noisy.copy()
    for image, (height, width) in zip(black, sizes, strict=True):
        image[height:], image[:, width:] = 0, 0
    run = jax.jit(
        lambda images: make_views(
            images, sizes, seed=0, epoch=jnp.int32(0), examples=jnp.arange(6), specs=(VIEW_A,), size=16
        )
    )
    np.testing.assert_array_equal(run(noisy), run(black))


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (np.linspace(-2, 300, 48, dtype=np.float32).reshape(1, 4, 4, 3), "images are float32 from -2 to 300; they must be uint8"),
        (np.zeros((4, 4, 3), np.uint8), r"images are \(4, 4, 3\); they must be \(N, H, W, 3\)"),
        (np.zeros((2, 4, 4, 1), np.uint8), "they must be"),
        (np.zeros((0, 4, 4, 3), np.uint8), "none of these 0"),
    ],
)  # fmt: skip
def test_bad_images(images, sentence):
    with pytest.raises(UserError, match=sentence):
        make_views(images, None, seed=0, epoch=0, examples=np.zeros(len(images), np.int32), specs=(VIEW_A,), size=8)
