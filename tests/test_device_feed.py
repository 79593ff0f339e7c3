"""bt_jax/data/device_feed.py: batches that the device makes, from its memory or from the host."""

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pytest
from batches import BATCH, CROP_PAIR, N, device_config, feed_of, made, noise
from PIL import Image

from bt_jax.data.device_feed import CanvasFeed, ResidentFeed, amount
from bt_jax.data.order import Order
from bt_jax.data.sources.base import ArraySource, StreamSource
from bt_jax.data.sources.folder import FolderSource
from bt_jax.data.sources.make import make_source
from bt_jax.data.views.device import make_views
from bt_jax.data.views.host import on_canvas
from bt_jax.data.views.spec import canvas_side
from bt_jax.errors import UserError


def test_dispatches_end_with_epochs():
    """Five steps per epoch, three at a time: three and two; from a step in the middle, first the rest of its three."""
    feed = dataclasses.replace(feed_of(noise(), device_config(), batch_size=8), steps_per_dispatch=3)
    assert [step for step, _ in feed.batches(0, 10)] == [3, 5, 8, 10]
    assert [step for step, _ in feed.batches(4, 9)] == [5, 8, 9]


def test_nothing_crosses_the_bus_but_numbers():
    """Once the set is resident, a step's delivery is an epoch and the examples."""
    feed = feed_of(noise(), device_config())
    _, delivery = next(feed.batches(0, 1))
    assert delivery["resident"] is feed.resident
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(delivery["items"])) == 4 * (BATCH + 1)
    assert feed.resident["image"].sharding.is_fully_replicated
    assert "from the set in its memory (0.0576 MB)" in feed.words


def test_a_set_is_in_memory_once():
    """However many trainings are made of it, as with several seeds or rates; with the source it goes."""
    config, images, labels = device_config(), noise().images, noise().labels
    source = ArraySource("noise", images, labels)
    feeds = [feed_of(source, config), feed_of(source, config, batch_size=4)]
    assert feeds[0].resident["image"] is feeds[1].resident["image"]
    assert feed_of(ArraySource("noise", images, labels), config).resident["image"] is not feeds[0].resident["image"]
    image = weakref.ref(feeds[0].resident["image"])
    del feeds, source
    gc.collect()
    assert image() is None


@pytest.mark.parametrize("room", [0, 1])
def test_folders_of_mixed_sizes(tmp_path, room):
    """Images on canvases, larger ones reduced; in the device's memory or from the host: the same batches."""
    rng, shapes = np.random.default_rng(0), [(20, 24), (60, 30), (9, 9), (1, 37)]
    for i in range(16):
        name = tmp_path / "train" / "ab"[i % 2] / f"{i:02}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*shapes[i % 4], 3), np.uint8)).save(name)
    (tmp_path / "train" / "a" / "02.png").write_bytes(b"no image")
    config = device_config(device_bytes=room, max_bad_fraction=0.1)
    folder = FolderSource(str(tmp_path), "train")
    feed = feed_of(folder, config)
    assert isinstance(feed, CanvasFeed if room else ResidentFeed)
    assert canvas_side(config) == 36
    batch = made(feed, 0, 1)[0]
    examples = folder.usable(Order(3, 16, BATCH).batch(0)[1])
    np.testing.assert_array_equal(batch["example"], examples)
    np.testing.assert_array_equal(batch["label"], folder.labels[examples])
    images, sizes = [], []
    for path in folder.paths:
        content = np.asarray(Image.open(path)) if "02.png" not in path else None
        content = np.asarray(Image.open(folder.paths[folder.paths.index(path) + 1])) if content is None else content
        image, size = on_canvas(content, 36)
        images.append(image.numpy())
        sizes.append(size.numpy())
    assert sizes[folder.paths.index(str(tmp_path / "train/b/01.png"))].tolist() == [36, 18]
    _, examples = Order(3, 16, BATCH).batch(0)
    by_hand = jax.jit(
        lambda *arrays: make_views(*arrays, CROP_PAIR, seed=3, epoch=0, examples=examples.astype(np.int32))["pair"]
    )(np.stack(images)[examples], np.stack(sizes)[examples])
    np.testing.assert_array_equal(batch["views"]["pair"], by_hand)
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
def test_streams_of_mixed_sizes(record_stream, devices, room):
    """Decoded once onto canvases, which the views are made of, from the host or from the device's memory where
    `device_bytes` says so; over the end of an epoch, and from a step in the middle of the second on.
    """
    data_dir, images = record_stream
    config = device_config(
        source="tfds", name="mixed_set", data_dir=data_dir, in_memory_bytes=0, device_bytes=room, shuffle_buffer=8
    )
    stream = make_source(config, "train")
    assert isinstance(stream, StreamSource)
    feed = feed_of(stream, config, devices)
    assert isinstance(feed, ResidentFeed if room else CanvasFeed)
    canvases, sizes = (np.stack(x) for x in zip(*(on_canvas(image, 36) for image in images), strict=True))
    by_hand = jax.jit(lambda *arrays, **where: make_views(*arrays, CROP_PAIR, seed=3, **where)["pair"])
    batches = made(feed, 0, 4)
    number = feed.resident["label"] if room else None  # of an image, by its place in the set
    for step, batch in enumerate(batches):
        epoch, examples = Order(3, N, BATCH).batch(step)
        if number is None:
            examples = step % 2 * BATCH + np.arange(BATCH)  # an example of a stream is its place in the epoch
        else:
            np.testing.assert_array_equal(batch["label"], number[examples])
        label = batch["label"]
        place = {"epoch": np.int32(epoch), "examples": examples.astype(np.int32)}
        np.testing.assert_array_equal(batch["example"], examples)
        np.testing.assert_array_equal(batch["views"]["pair"], by_hand(canvases[label], sizes[label], **place))
    for epoch in (batches[:2], batches[2:]):
        assert len({*epoch[0]["label"], *epoch[1]["label"]}) == 2 * BATCH
    assert (batches[0]["label"] != batches[2]["label"]).any()
    resumed = made(feed, 3, 4)
    jax.tree.map(np.testing.assert_array_equal, resumed[0], batches[3])


def test_a_set_that_does_not_fit_several_steps():
    """How much it needs, how much there is, and which option to use."""
    source, config = noise(), device_config(device_bytes=1000)
    with pytest.raises(
        UserError,
        match=r"steps_per_dispatch is 4, which .*noise needs 0.0576 MB of the memory of each device "
        r"\(cpu with .*\), of which it may take 0.001 MB; set steps_per_dispatch to 1, or raise data.device_bytes",
    ):
        feed_of(source, config, steps_per_dispatch=4)  # fmt: skip
    assert "images come from the host:\nnoise needs" in feed_of(source, config).words


@pytest.mark.parametrize(("mine", "other", "kind"), [(10**11, 57_599, CanvasFeed), (10**11, 57_600, ResidentFeed)])
def test_processes_with_different_memory(monkeypatch, mine, other, kind):
    """The set stays in it only if it fits in all: they would compile different programs, and wait for each other for ever."""
    from bt_jax.data import device_feed

    def gathered(array):
        return np.stack([array, np.array([other]).view(np.uint32)])

    monkeypatch.setattr(device_feed.jax, "process_count", lambda: 2)
    monkeypatch.setattr(device_feed.multihost_utils, "process_allgather", gathered)
    config = device_config(device_bytes=mine)
    room, _ = device_feed._room(config, jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,)))
    monkeypatch.undo()
    assert room == other
    assert isinstance(feed_of(noise(), device_config(device_bytes=room)), kind)


def test_amounts():
    assert (amount(153.6e6), amount(3.072e9), amount(57600)) == ("154 MB", "3.07 GB", "0.0576 MB")
