"""bt_jax/data/feed.py: batches that the device makes, from its memory or from the host; evaluation without TensorFlow."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from bt_jax import config as config_lib
from bt_jax.data import feed as resident
from bt_jax.data import pipeline
from bt_jax.data.feed import DeviceFeed, amount, eval_batches, evaluation_views
from bt_jax.data.order import Order
from bt_jax.data.sources.base import ArraySource, StreamSource
from bt_jax.data.sources.folder import FolderSource
from bt_jax.data.sources.make import make_source
from bt_jax.data.views.device import make_views
from bt_jax.data.views.host import on_canvas
from bt_jax.data.views.spec import ViewSpec, canvas_side
from bt_jax.errors import UserError
from bt_jax.runtime import mesh as mesh_lib

N, BATCH = 40, 16  # two batches an epoch
OFF = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0}  # quicker to compile; tests/test_views_device.py has all of it


@pytest.fixture(scope="module")
def source():
    images = np.random.default_rng(0).integers(0, 256, (N, 20, 24, 3), np.uint8)
    return ArraySource("noise", images, np.arange(N) % 5)


@pytest.fixture
def config():
    config = config_lib.default()
    config.seed, config.batch_size = 3, BATCH
    config.data.update(views="device", image_size=16, threads=2, eval_resize=0)
    for view in (config.barlow_twins.view_a, config.barlow_twins.view_b):
        view.update(OFF)
    return config


def mesh_of(count):
    return jax.make_mesh((count,), (mesh_lib.DATA_AXIS,), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:count])


def made(feed, start, total):
    """The batches of these steps, on the host."""

    def batches(delivery):
        if "items" not in delivery:
            return [prepare(None, delivery)]
        items = delivery["items"]
        return [prepare(delivery["held"], jax.tree.map(lambda x, i=i: x[i], items)) for i in range(len(items["epoch"]))]

    prepare = jax.jit(feed.prepare)
    return [jax.device_get(batch) for _, delivery in feed.batches(start, total) for batch in batches(delivery)]


@pytest.fixture(scope="module")
def expected(source):
    """The views of steps 0 to 4, made by hand: the order's examples, a seed's draws."""
    order = Order(3, N, BATCH)
    specs = [ViewSpec(**{**config_lib.default().barlow_twins[name], **OFF}) for name in ("view_a", "view_b")]
    make = jax.jit(
        lambda images, epoch, examples: make_views(
            images, None, seed=3, epoch=epoch, examples=examples, specs=specs, size=16
        )
    )
    batches = []
    for step in range(5):
        epoch, examples = order.batch(step)
        views = make(source.images[examples], epoch, examples.astype(np.int32))
        batches.append({"views": np.asarray(views), "label": source.labels[examples]})
    return batches


@pytest.mark.parametrize(("devices", "room", "together"), [(8, 0, 2), (1, 0, 1), (8, 1, 1)])
def test_batches_are_a_function_of_seed_and_step(source, config, expected, devices, room, together):
    """From the device's memory, one step or two at a time, or from the host's; from any step on; on any devices."""
    config.data.device_bytes = room
    feed = DeviceFeed(config, source, mesh_of(devices))
    feed.together = together
    assert (feed.held is None) == (room == 1)
    for start in (0, 3):
        for found, batch in zip(made(feed, start, 5), expected[start:], strict=True):
            for name in ("views", "label"):
                np.testing.assert_array_equal(found[name], batch[name])


def test_dispatches_end_with_epochs(source, config):
    """Three steps an epoch, two at a time: two and one; from a step in the middle, the rest of its two first."""
    config.batch_size = 8  # five an epoch
    feed = DeviceFeed(config, source, mesh_of(8))
    feed.together = 3
    assert [step for step, _ in feed.batches(0, 10)] == [3, 5, 8, 10]
    assert [step for step, _ in feed.batches(4, 9)] == [5, 8, 9]


def test_nothing_crosses_the_bus_but_numbers(source, config):
    """After the set is there, a step's delivery is an epoch and the examples."""
    feed = DeviceFeed(config, source, mesh_of(8))
    _, delivery = next(feed.batches(0, 1))
    assert delivery["held"] is feed.held
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(delivery["items"])) == 4 * (BATCH + 1)
    assert feed.held["image"].sharding.is_fully_replicated
    assert "from the set in its memory (0.0576 MB)" in feed.words


@pytest.mark.parametrize("room", [0, 1])
def test_folders_of_mixed_sizes(tmp_path, config, room):
    """Images on canvases, larger ones reduced; in the device's memory or from the host: the same batches."""
    rng, shapes = np.random.default_rng(0), [(20, 24), (60, 30), (9, 9), (1, 37)]
    for i in range(16):
        name = tmp_path / "train" / "ab"[i % 2] / f"{i:02}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*shapes[i % 4], 3), np.uint8)).save(name)
    (tmp_path / "train" / "a" / "02.png").write_bytes(b"no image")
    config.data.update(device_bytes=room, max_bad_fraction=0.1)
    folder = FolderSource(str(tmp_path), "train")
    feed = DeviceFeed(config, folder, mesh_of(8))
    assert canvas_side(config.data) == 36
    batch = made(feed, 0, 1)[0]
    np.testing.assert_array_equal(batch["label"], folder.labels[folder.usable(Order(3, 16, BATCH).batch(0)[1])])
    images, sizes = [], []
    for path in folder.paths:
        content = np.asarray(Image.open(path)) if "02.png" not in path else None
        content = np.asarray(Image.open(folder.paths[folder.paths.index(path) + 1])) if content is None else content
        image, size = on_canvas(content, 36)
        images.append(image.numpy())
        sizes.append(size.numpy())
    assert sizes[folder.paths.index(str(tmp_path / "train/b/01.png"))].tolist() == [36, 18]
    _, examples = Order(3, 16, BATCH).batch(0)
    specs = [ViewSpec(**config.barlow_twins[name]) for name in ("view_a", "view_b")]
    by_hand = jax.jit(
        lambda *arrays: make_views(*arrays, seed=3, epoch=0, examples=examples.astype(np.int32), specs=specs, size=16)
    )(np.stack(images)[examples], np.stack(sizes)[examples])
    np.testing.assert_array_equal(batch["views"], by_hand)
    assert len(folder.bad) == 1


@pytest.fixture(scope="module")
def record_stream(tmp_path_factory):
    """A TFDS directory of TFRecord files: N images of mixed sizes; a label is an image's number."""
    import tensorflow_datasets as tfds

    rng, shapes = np.random.default_rng(0), [(20, 24), (60, 30), (9, 9)]
    images = [rng.integers(0, 256, (*shapes[i % 3], 3), np.uint8) for i in range(N)]
    root = tmp_path_factory.mktemp("tensorflow_datasets")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="mixed_set",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=N)}
        ),
        split_datasets={"train": [(i, {"image": image, "label": i}) for i, image in enumerate(images)]},
        data_dir=root,
        description="for tests",
        download_config=tfds.download.DownloadConfig(num_shards=3),
    )
    return str(root), images


@pytest.mark.parametrize(("devices", "room"), [(8, 0), (1, 0), (8, 10**6)])
def test_streams_of_mixed_sizes(record_stream, config, devices, room):
    """Decoded once onto canvases, which the views are made of, from the host or from the device's memory where
    `device_bytes` says so; over the end of an epoch, and from a step in the middle of the second on.
    """
    data_dir, images = record_stream
    config.data.update(
        source="tfds", name="mixed_set", data_dir=data_dir, in_memory_bytes=0, device_bytes=room, shuffle_buffer=8
    )
    stream = make_source(config.data, "train")
    assert isinstance(stream, StreamSource)
    feed = DeviceFeed(config, stream, mesh_of(devices))
    assert (feed.held is None) == (room == 0)
    canvases, sizes = (np.stack(x) for x in zip(*(on_canvas(image, 36) for image in images), strict=True))
    specs = [ViewSpec(**config.barlow_twins[name]) for name in ("view_a", "view_b")]
    by_hand = jax.jit(lambda *arrays, **place: make_views(*arrays, seed=3, specs=specs, size=16, **place))
    batches = made(feed, 0, 4)
    number = feed.held["label"] if feed.held else None  # of an image, by its place in the set
    for step, batch in enumerate(batches):
        epoch, examples = Order(3, N, BATCH).batch(step)
        if number is None:
            examples = step % 2 * BATCH + np.arange(BATCH)  # an example of a stream is its place in the epoch
        else:
            np.testing.assert_array_equal(batch["label"], number[examples])
        label = batch["label"]
        place = {"epoch": np.int32(epoch), "examples": examples.astype(np.int32)}
        np.testing.assert_array_equal(batch["views"], by_hand(canvases[label], sizes[label], **place))
    for epoch in (batches[:2], batches[2:]):
        assert len({*epoch[0]["label"], *epoch[1]["label"]}) == 2 * BATCH
    assert (batches[0]["label"] != batches[2]["label"]).any()
    resumed = made(feed, 3, 4)
    for name in ("views", "label"):
        np.testing.assert_array_equal(resumed[0][name], batches[3][name])


def test_a_set_that_does_not_fit_several_steps(source, config):
    """How much it needs, how much there is, and which option to use."""
    config.steps_per_dispatch, config.data.device_bytes = 4, 1000
    with pytest.raises(
        UserError,
        match=r"steps_per_dispatch is 4, which .*noise needs 0.0576 MB of the memory of each device "
        r"\(cpu with .*\), of which 0.001 MB are for it; set steps_per_dispatch to 1, or raise data.device_bytes",
    ):
        DeviceFeed(config, source, mesh_of(8))  # fmt: skip
    config.steps_per_dispatch = 1
    assert "images come from the host:\nnoise needs" in DeviceFeed(config, source, mesh_of(8)).words


@pytest.mark.parametrize(("resize", "size"), [(0, 24), (32, 28)])
def test_evaluation_is_as_with_tensorflow(source, config, resize, size):
    """The same images to a level in three values of a hundred, labels and masks, with and without a limit."""
    config.data.update(image_size=size, eval_resize=resize)
    for limit in (None, 19):
        batches = [
            list(make(source, config.data, batch_size=8, rows=np.array([0, 1, 5]), limit=limit))
            for make in (eval_batches, pipeline.eval_batches)
        ]
        assert len(batches[0]) == len(batches[1])
        for found, batch in zip(*batches, strict=True):
            np.testing.assert_array_equal(found["mask"], batch["mask"])
            np.testing.assert_array_equal(found["label"][found["mask"]], batch["label"][batch["mask"]])
            difference = np.abs(found["image"].astype(int) - batch["image"])[batch["mask"]]
            assert difference.max(initial=0) <= 1 and np.mean(difference > 0) <= 3e-2


def test_images_of_the_right_size_pass_untouched():
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    assert evaluation_views(images, 0, 16).base is images or evaluation_views(images, 0, 16) is images


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (np.linspace(-2, 3, 384, dtype=np.float32).reshape(2, 8, 8, 3), r"float32 \(2, 8, 8, 3\) from -2 to 3; they must be"),
        (np.array([np.zeros((8, 8, 3)), np.zeros((9, 8, 3))], object), "images of mixed sizes make no array"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_images(tmp_path, config, images, sentence):
    np.savez(tmp_path / "set.npz", x_train=images, y_train=np.arange(2))
    config.data.update(source="arrays", data_dir=str(tmp_path / "set.npz"))
    with pytest.raises(UserError, match=sentence):
        make_source(config.data, "train")


def test_amounts():
    assert (amount(153.6e6), amount(3.072e9), amount(57600)) == ("154 MB", "3.07 GB", "0.0576 MB")


def test_tensorflow_is_not_imported():
    """A batch of views of the photographs and one of evaluation, in an interpreter where importing TensorFlow fails."""
    program = """
import sys
sys.modules["tensorflow"] = None
import jax, numpy as np
import bt_jax
from bt_jax.data.feed import DeviceFeed, eval_batches
from bt_jax.data.sources.make import make_source
from bt_jax.runtime.mesh import make_mesh
from configs.quickstart import get_config
config = get_config()
config.data.views, config.data.photographs.train_per_class = "device", 8
source = make_source(config.data, "train")
feed = DeviceFeed(config, source, make_mesh(config.mesh))
_, delivery = next(feed.batches(0, 1))
batch = feed.prepare(delivery["held"], jax.tree.map(lambda x: x[0], delivery["items"]))
print(batch["views"].shape, next(eval_batches(source, config.data, batch_size=8, rows=np.arange(8)))["image"].shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "(128, 2, 48, 48, 3) (8, 48, 48, 3)", done.stderr[-2000:]


def test_views_for_evaluations_are_those_of_training(config, source, expected, monkeypatch):
    """The pair as a run draws it, for any rows and from any step on, without TensorFlow; and single views with labels."""
    monkeypatch.setattr(pipeline, "train_batches", None)
    specs = tuple(ViewSpec(**config.barlow_twins[name]) for name in ("view_a", "view_b"))
    settings = {"seed": 3, "batch_size": BATCH, "specs": specs}
    rows = np.arange(BATCH)
    found = list(resident.train_batches(source, config.data, **settings, rows=rows, num_steps=5))
    for batch, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(batch["views"], other["views"])
        np.testing.assert_array_equal(batch["label"], other["label"])
    (part,) = resident.train_batches(source, config.data, **settings, rows=rows[1::2], start_step=3, num_steps=1)
    np.testing.assert_array_equal(part["views"], expected[3]["views"][1::2])
    settings["specs"] = (ViewSpec(**config.judge.view),)
    single = next(resident.train_batches(source, config.data, **settings, rows=rows))
    assert single["views"].shape == (BATCH, 1, 16, 16, 3)
    np.testing.assert_array_equal(single["label"], expected[0]["label"])
