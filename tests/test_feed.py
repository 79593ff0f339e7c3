"""bt_jax/data/feed.py: one interface to batches, a pure function of (seed, step), whoever makes the views."""

import dataclasses
import functools
import subprocess
import sys

import jax
import numpy as np
import pytest
from batches import (
    BATCH,
    CROP_PAIR,
    KINDS,
    WITH_JIGSAW,
    N,
    data_config,
    device_config,
    feed_of,
    flat,
    made,
    mesh_of,
    noise,
    stream,
)
from PIL import Image
from recipes import AS_IN_RUNS

from bt_jax.data.device_feed import CanvasFeed, ResidentFeed
from bt_jax.data.feed import HostFeed, make_feed, ready_batches
from bt_jax.data.order import Order, draw_seed
from bt_jax.data.sources.base import ArraySource
from bt_jax.data.sources.folder import FolderSource
from bt_jax.data.views.device import draw_uniforms, make_views, sample_views
from bt_jax.data.views.host import sample_view
from bt_jax.data.views.spec import VIEW_A, VIEW_B, ViewGroup, ViewParameters, ViewSpec, batch_spec
from bt_jax.errors import UserError
from bt_jax.facts import Facts
from bt_jax.runtime import mesh as mesh_lib

CLASSES = {"host": HostFeed, "canvas": CanvasFeed, "resident": ResidentFeed}


def feed_of_kind(kind, source, devices=8, steps_per_dispatch=1, **settings):
    groups = settings.pop("groups", CROP_PAIR)
    feed = feed_of(source, data_config(image_size=16, **KINDS[kind], **settings), devices, groups=groups)
    assert type(feed) is CLASSES[kind] and (feed.prepare is None) == (feed.words == "") == (kind == "host")
    if steps_per_dispatch > 1:  # on a CPU it would be one
        feed = dataclasses.replace(feed, steps_per_dispatch=steps_per_dispatch)
    return feed


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(map(flat, found), map(flat, expected), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def by_hand():
    """The device's batches of steps 0 to 4: the order's examples, a seed's draws."""
    order, source, batches = Order(3, N, BATCH), noise(), []
    make = jax.jit(
        lambda images, **where: make_views(images, None, WITH_JIGSAW, seed=3, **where), compiler_options=AS_IN_RUNS
    )
    for step in range(5):
        epoch, examples = order.batch(step)
        views = make(source.images[examples], epoch=epoch, examples=examples.astype(np.int32))
        batches.append({"views": views, "label": source.labels[examples], "example": examples})
    return batches


@pytest.mark.parametrize(("kind", "devices", "steps"), [("resident", 8, 2), ("resident", 1, 1), ("canvas", 8, 1)])
def test_device_batches_are_a_function_of_seed_and_step(by_hand, kind, devices, steps, monkeypatch):
    """Three groups of three sizes: from the device's memory, or from the host's; from any step on; on any devices."""
    feed = feed_of_kind(kind, noise(), devices, steps, groups=WITH_JIGSAW)
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=AS_IN_RUNS))
    for start in (0, 3):
        assert_equal(made(feed, start, 5), by_hand[start:])


def test_host_batches_are_a_function_of_seed_and_step():
    """Three groups of three sizes, on eight devices and on one, over the end of an epoch and from within the second."""
    expected = made(feed_of_kind("host", noise(), 8, groups=WITH_JIGSAW), 0, 5)
    order = Order(3, N, BATCH)
    for step, batch in enumerate(expected):
        np.testing.assert_array_equal(batch["example"], order.batch(step)[1])
    assert_equal(made(feed_of_kind("host", noise(), 1, groups=WITH_JIGSAW), 3, 5), expected[3:])
    alone = made(feed_of_kind("host", noise(), 8, groups=WITH_JIGSAW[:1]), 0, 2)
    for found, batch in zip(alone, expected, strict=False):
        np.testing.assert_array_equal(found["views"]["global"], batch["views"]["global"])


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_as_their_spec_says(kind):
    """On the mesh, sharded over the batch; of whole numbers 32 bits."""
    feed = feed_of_kind(kind, noise(), groups=WITH_JIGSAW)
    batch = next(ready_batches(feed, 0, 1))
    over = mesh_lib.over_batch(feed.mesh)

    def same(found, spec):
        assert (found.shape, found.dtype) == (spec.shape, spec.dtype)
        assert found.sharding.is_equivalent_to(over, found.ndim)

    jax.tree.map(same, batch, batch_spec(WITH_JIGSAW, BATCH))


def test_batches_are_those_before_there_were_groups(golden):
    """Views, labels and examples of a step in the second epoch, to the bits on the machine where they were recorded.

    On another a level that lies between two may fall to the other side; another draw would change all of a view.
    """
    recorded = golden("batches")
    source = ArraySource("recorded", recorded["images"], np.arange(11))
    facts, mesh = Facts.of(source, batch_size=5, epochs=2), mesh_of(1)
    groups = (ViewGroup("pair", (VIEW_A, VIEW_B), 16),)
    for kind in ("host", "device"):
        feed = make_feed(source, device_config(views=kind), groups, mesh=mesh, seed=3, facts=facts)
        (batch,) = made(feed, 3, 4)
        np.testing.assert_array_equal(batch["label"], recorded["label"])
        np.testing.assert_array_equal(batch["example"], recorded["label"])
        assert np.mean(batch["views"]["pair"] != recorded[f"{kind}_views"]) < 0.01
    supervised = ViewSpec(jitter=0.0, grayscale=0.0, blur=0.0, interpolation="bilinear")
    feed = make_feed(source, device_config(), (ViewGroup("image", (supervised,), 16),), mesh=mesh, seed=3, facts=facts)
    assert np.mean(made(feed, 3, 4)[0]["views"]["image"] != recorded["device_supervised"]) < 0.01


@pytest.mark.parametrize("kind", ["host", "device"])
def test_draws_are_those_before_there_were_groups(golden, kind):
    """Of the same five images, both views: coins and orders exactly."""
    recorded, examples = golden("batches"), Order(3, 11, 5).batch(3)[1]
    names = [name for name in ViewParameters._fields if name not in ("turns", "dropped")]
    if kind == "device":
        sizes = np.full((5, 2), (24, 30), np.int32)
        drawn = [
            sample_views(draw_uniforms(3, 1, examples.astype(np.int32), 0, view), sizes, spec)
            for view, spec in enumerate((VIEW_A, VIEW_B))
        ]
        found = {name: np.stack([getattr(p, name) for p in drawn], axis=1) for name in names}
    else:

        def draw(example, view, spec):
            seed = np.array(draw_seed(3, np.int64(1), example, view))
            return sample_view(seed, 24, 30, spec)

        drawn = [[draw(example, view, spec) for view, spec in enumerate((VIEW_A, VIEW_B))] for example in examples]
        found = {name: np.array([[getattr(p, name) for p in row] for row in drawn]) for name in names}
    for name, values in found.items():
        expected = recorded[f"{kind}_{name}"]
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)
        elif name == "crop":
            assert np.abs(values - expected).max() <= 1
        else:
            np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_stand_ins_come_under_their_own_numbers(tmp_path, kind):
    """Of the image shown, whoever makes the views; other rows are unchanged."""
    (tmp_path / "train" / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(tmp_path / "train" / "a" / f"{i:02}.png")
    clean = made(feed_of_kind(kind, FolderSource(str(tmp_path), "train")), 0, 3)
    for i in (3, 4, 19):  # the last of all is followed by the first
        (tmp_path / "train" / "a" / f"{i:02}.png").write_bytes(b"no image")
    source = FolderSource(str(tmp_path), "train")
    found = made(feed_of_kind(kind, source, max_bad_fraction=0.2), 0, 3)
    for step, (batch, before) in enumerate(zip(found, clean, strict=True)):
        slots = Order(3, 20, BATCH).batch(step)[1]
        np.testing.assert_array_equal(before["example"], slots)
        np.testing.assert_array_equal(batch["example"], [{3: 5, 4: 5, 19: 0}.get(slot, slot) for slot in slots])
        good = batch["example"] == slots
        np.testing.assert_array_equal(batch["views"]["pair"][good], before["views"]["pair"][good])
    assert set(source.bad) == {3, 4, 19}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_are_no_classes(tfds_dir, kind):
    """Labels in records are checked as they are read; feeds without labels ignore them."""
    source = stream(tfds_dir)
    source.class_names = source.class_names[:30]
    config = data_config(image_size=16, **{**KINDS[kind], "device_bytes": 10**6 if kind == "resident" else 0})
    assert len(made(feed_of(source, config), 0, 2)) == 2
    with pytest.raises(UserError, match="the labels of TFDS numbers_set, train run from .* lie in 0 to 29"):
        made(feed_of(source, config, labelled=True), 0, 2)


def test_a_set_that_is_not_to_reside():
    feed = feed_of(noise(), device_config(), may_reside=False)
    assert isinstance(feed, CanvasFeed)
    assert_equal(made(feed, 2, 3), made(feed_of(noise(), device_config()), 2, 3))


def test_closed_early():
    """As by a run that stops in the middle: nothing hangs."""
    for kind in KINDS:
        batches = feed_of_kind(kind, noise()).batches(0, 100)
        assert next(batches)[0] == 1
        batches.close()
        assert list(batches) == []


@pytest.mark.parametrize("views", ["host", "device"])
def test_groups_that_do_not_go_together(views):
    with pytest.raises(UserError, match="two view groups are called 'pair'"):
        feed_of(noise(), device_config(views=views), groups=CROP_PAIR * 2)


def test_host_views_need_tensorflow(monkeypatch):
    monkeypatch.delitem(sys.modules, "bt_jax.data.tensorflow_import", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match="reading images needs TensorFlow, .* pip install tensorflow"):
        feed_of(noise(), data_config())


def test_tensorflow_is_not_imported():
    """A batch of views of the photographs and one of evaluation, in an interpreter where importing TensorFlow fails."""
    program = """
import sys
sys.modules["tensorflow"] = None
import numpy as np
import bt_jax
from bt_jax.data.eval_batches import eval_batches
from bt_jax.data.feed import make_feed, ready_batches
from bt_jax.data.sources.make import make_source
from bt_jax.data.views.spec import VIEW_A, VIEW_B, ViewGroup
from bt_jax.facts import Facts
from bt_jax.runtime.mesh import make_mesh
from configs.quickstart import get_config
config = get_config()
config.data.views, config.data.photographs.train_per_class = "device", 8
source = make_source(config.data, "train")
facts = Facts.of(source, batch_size=128, epochs=1)
groups = (ViewGroup("pair", (VIEW_A, VIEW_B), 48),)
feed = make_feed(source, config.data, groups, mesh=make_mesh(config.mesh), seed=0, facts=facts)
batch = next(ready_batches(feed, 0, 1))
images = next(eval_batches(source, config.data, batch_size=8, rows=np.arange(8)))["image"]
print(batch["views"]["pair"].shape, images.shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "(128, 2, 48, 48, 3) (8, 48, 48, 3)", done.stderr[-2000:]
