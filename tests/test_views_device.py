"""bt_jax/data/views/device.py against the host's views: sampling, whole views, groups of them, a jigsaw, sharding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from recipes import AS_IN_RUNS
from test_views_host import torchvision_crop

from bt_jax.data.sources.photographs import load_photograph
from bt_jax.data.views import host, host_operations
from bt_jax.data.views.device import (
    apply_jigsaws,
    apply_views,
    crops_from_uniforms,
    draw_uniforms,
    make_views,
    sample_jigsaws,
    sample_views,
)
from bt_jax.data.views.device_operations import resized_crops, unpacked
from bt_jax.data.views.spec import VIEW_A, VIEW_B, Jigsaw, JigsawParameters, ViewGroup, ViewParameters, ViewSpec
from bt_jax.errors import UserError
from bt_jax.runtime import mesh as mesh_lib


@pytest.mark.parametrize(("name", "size", "spec"), [("rocket", 96, VIEW_A), ("astronaut", 32, VIEW_B)])
def test_whole_views_are_the_hosts_on_the_same_parameters(name, size, spec):
    """The mean absolute difference may be 2 levels. Here for 48 draws: of each, and of the worst."""
    n = 48
    photograph = load_photograph(name)[:200, :300]
    sizes = jnp.full((n, 2), jnp.array(photograph.shape[:2]))
    drawn = jax.jit(lambda: sample_views(draw_uniforms(5, 2, jnp.arange(n), 0, 0), sizes, spec))()
    found = jax.jit(apply_views, static_argnums=(2, 3))(np.stack([photograph] * n), drawn, size, spec)
    image, expected = tf.constant(photograph), []
    for i in range(n):
        one = ViewParameters(*(tf.constant(np.asarray(v[i])) for v in drawn if v is not None))
        expected.append(host.apply_views(image, [spec], [one], size)[0])
    each = np.abs(np.asarray(found).astype(int) - np.stack(expected)).mean((1, 2, 3))
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
    found = np.asarray(jax.jit(apply_views, static_argnums=(2, 3))(images, batch, 24, VIEW_A)).astype(int)
    for i in range(24):
        one = ViewParameters(*(tf.constant(v[i]) for v in batch if v is not None))
        expected = host.apply_views(tf.constant(images[i]), [VIEW_A], [one], 24)[0].numpy()
        assert np.abs(found[i] - expected).mean() < 0.05, orders[i]


def test_no_hue():
    """Then nothing is rounded to HSV and back, and a change of brightness is no other; whichever place in the order hue has."""
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
    spec = ViewSpec(jitter=1.0, contrast=0.0, saturation=0.0, hue=0.0, grayscale=0.0, blur=0.0)
    no, one = np.zeros(2, bool), np.ones(2, np.float32)
    drawn = ViewParameters(
        crop=np.array([[0, 0, 24, 24]] * 2, np.int32), flip=no, jitter=~no, brightness=np.float32(1.3) * one, contrast=one,
        saturation=one, hue=0 * one, grayscale=no, blur=no, sigma=one, solarize=no,
        order=np.array([[0, 1, 2, 3], [3, 1, 0, 2]], np.int32),
    )  # fmt: skip
    found = jax.jit(apply_views, static_argnums=(2, 3))(images, drawn, 24, spec)
    for image, view in zip(images, found, strict=True):
        bright = host_operations.adjust_brightness(host_operations.packed(image), 1.3)
        np.testing.assert_array_equal(view, host_operations.unpacked(bright))


@pytest.fixture(scope="module")
def many_draws():
    """400 of each official view of one photograph, at 224, as floats normalised by ImageNet's numbers.

    The photograph is halved: three times quicker, and the moments hardly move.
    """
    photograph = np.asarray(Image.fromarray(load_photograph("rocket")).reduce(2))
    block = np.stack([photograph] * 50)
    groups = (ViewGroup("pair", (VIEW_A, VIEW_B), 224),)
    options = {"xla_backend_optimization_level": 1}  # this runs for longer than it compiles: see conftest.py

    @functools.partial(jax.jit, compiler_options=options)
    def draw(examples):
        return make_views(block, None, groups, seed=7, epoch=0, examples=examples)["pair"]

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
    sizes = jnp.full((n, 2), 32)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def draw(epoch, view, group=0):
        return sample_views(draw_uniforms(3, epoch, jnp.arange(n), group, view), sizes, spec)

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
    # Independent of each other, of the epoch, of the other view and group: no two coins agree more often than chance.
    coins = [drawn.flip, drawn.jitter, drawn.grayscale, drawn.blur, drawn.solarize]
    coins += [draw(1, 0).flip, draw(0, 1).flip, draw(0, 0, 1).flip]
    assert np.abs(np.corrcoef(np.stack(coins).astype(float)) - np.eye(8)).max() < 4.5 / np.sqrt(n)


CROPS = ViewSpec(jitter=0.0, grayscale=0.0, blur=0.0)  # quick to compile
GLOBAL, LOCAL = ViewGroup("global", (VIEW_A, CROPS), 16), ViewGroup("local", (CROPS,) * 3, 12)
PATCHES = ViewGroup("patches", Jigsaw(CROPS, cell=11), 8)


@functools.lru_cache
def made_by(*groups):
    return jax.jit(
        lambda images, examples: make_views(images, None, groups, seed=1, epoch=jnp.int32(4), examples=examples),
        compiler_options=AS_IN_RUNS,
    )


def test_views_do_not_depend_on_devices_or_company():
    """On eight devices, on one, and among the same images in another order: an image's views are the same bits."""
    images = np.random.default_rng(0).integers(0, 256, (16, 20, 24, 3), np.uint8)
    examples = np.arange(16, dtype=np.int32) * 7
    run = made_by(GLOBAL, LOCAL, PATCHES)
    over = mesh_lib.over_batch(jax.make_mesh((8,), (mesh_lib.DATA_AXIS,), (jax.sharding.AxisType.Auto,)))
    expected = jax.device_get(run(images, examples))
    sharded = run(*jax.device_put((images, examples), over))
    reversed_ = run(images[::-1], examples[::-1])
    shapes = {"global": (16, 2, 16, 16, 3), "local": (16, 3, 12, 12, 3), "patches": (16, 9, 8, 8, 3)}
    assert {name: views.shape for name, views in expected.items()} == shapes
    for name, views in expected.items():
        assert sharded[name].sharding.is_equivalent_to(over, 5)
        np.testing.assert_array_equal(sharded[name], views)
        np.testing.assert_array_equal(reversed_[name], views[::-1])


def test_further_views_and_groups_leave_the_others_as_they_were():
    """And are separate draws: no two views of an image are equal."""
    images = np.random.default_rng(0).integers(0, 256, (4, 20, 24, 3), np.uint8)
    examples = np.arange(4, dtype=np.int32)
    alone = made_by(ViewGroup("global", (CROPS, CROPS), 12))(images, examples)["global"]
    groups = (ViewGroup("global", (CROPS,) * 5, 12), LOCAL, PATCHES)
    together = made_by(*groups)(images, examples)
    np.testing.assert_array_equal(together["global"][:, :2], alone)
    of_one_size = np.concatenate([together["global"], together["local"]], axis=1)
    for views in (*of_one_size, *together["patches"]):
        assert len(np.unique(views.reshape(len(views), -1), axis=0)) == len(views)


def drawn_jigsaws(jigsaw, size, n=200):
    """Parameters for n images of 40 × 52 pixels."""
    sizes = jnp.full((n, 2), jnp.array([40, 52]))
    uniforms = functools.partial(draw_uniforms, 3, 0, jnp.arange(n), 0)
    return jax.device_get(jax.jit(lambda: sample_jigsaws(uniforms, sizes, jigsaw, size))())


def test_jigsaw_draws():
    """Each cell once, in an order that differs from image to image; windows anywhere in their cells, each with its own flip."""
    jigsaw = Jigsaw(ViewSpec(crop_scale=(0.6, 1.0), flip=0.3), cell=11)
    crop, patches = drawn_jigsaws(jigsaw, 8)
    area = crop[:, 2] * crop[:, 3] / (40 * 52)
    assert area.min() > 0.55 and area.max() <= 1 and len(np.unique(crop, axis=0)) > 190
    assert (patches.crop[..., 2:] == 8).all()
    cells, offsets = np.divmod(patches.crop[..., :2], 11)
    order = cells[..., 0] * 3 + cells[..., 1]
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(9), (200, 1)))
    assert len(np.unique(order, axis=0)) == 200
    assert set(offsets.ravel()) == {0, 1, 2}, "of a room of 3, as in vissl"
    assert patches.flip.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / 1800))
    assert np.abs(np.corrcoef(patches.flip.T.astype(float)) - np.eye(9)).max() < 4.5 / np.sqrt(200)


@pytest.mark.parametrize("cell", [8, 11])
def test_patches_put_back_in_order_are_the_crop(cell):
    """If windows fill their cells, the whole crop; else each patch is the crop at its window, mirrored if so drawn."""
    jigsaw, n = Jigsaw(CROPS, cell=cell), 5
    images = np.random.default_rng(0).integers(0, 256, (n, 40, 52, 3), np.uint8)
    drawn = drawn_jigsaws(jigsaw, 8, n)
    found = np.asarray(jax.jit(lambda: apply_jigsaws(images, drawn, 8, jigsaw))())
    whole = np.asarray(unpacked(resized_crops(images, drawn.crop, np.zeros(n, bool), 3 * cell)))
    filled = np.zeros_like(whole)
    for i in range(n):
        for patch, flip, (top, left, _, _) in zip(found[i], drawn.patches.flip[i], drawn.patches.crop[i], strict=True):
            filled[i, top : top + 8, left : left + 8] = patch[:, ::-1] if flip else patch
    covered = filled.any(axis=-1)
    assert covered.mean() == pytest.approx((8 / cell) ** 2, abs=0.01)
    difference = np.abs(filled[covered].astype(int) - whole[covered])  # a value between two levels may fall to either
    assert difference.max() <= 1 and np.mean(difference > 0) <= 1e-3


def test_jigsaws_are_the_hosts_on_the_same_parameters():
    """Each patch has its own colours."""
    jigsaw, n = Jigsaw(VIEW_B, cell=11, grid=2), 12
    photograph = load_photograph("rocket")[:40, :52]
    drawn = drawn_jigsaws(jigsaw, 8, n)
    found = np.asarray(jax.jit(lambda: apply_jigsaws(np.stack([photograph] * n), drawn, 8, jigsaw))())
    for i in range(n):
        patches = [ViewParameters(*(tf.constant(v[i, k]) for v in drawn.patches if v is not None)) for k in range(4)]
        one = JigsawParameters(tf.constant(drawn.crop[i]), patches)
        expected = host.apply_jigsaw(tf.constant(photograph), jigsaw, one, 8).numpy()
        assert np.abs(found[i].astype(int) - expected).mean() < 0.1


def test_what_lies_beside_an_image_in_its_array_is_never_seen():
    """Images of mixed sizes in one array: the same views as with the array's rest black."""
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, (6, 30, 40, 3), np.uint8)
    sizes = np.array([(30, 40), (12, 40), (30, 9), (1, 1), (20, 20), (7, 33)], np.int32)
    black = noisy.copy()
    for image, (height, width) in zip(black, sizes, strict=True):
        image[height:], image[:, width:] = 0, 0
    groups = (ViewGroup("image", (VIEW_A,), 16), PATCHES)
    run = jax.jit(lambda images: make_views(images, sizes, groups, seed=0, epoch=jnp.int32(0), examples=jnp.arange(6)))
    jax.tree.map(np.testing.assert_array_equal, run(noisy), run(black))


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
        make_views(images, None, (GLOBAL,), seed=0, epoch=0, examples=np.zeros(len(images), np.int32))
