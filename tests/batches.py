"""What the tests of pipelines and feeds share: small sources, and batches from them."""

import functools

import jax
import numpy as np
import PIL.Image

from bt_jax.config import default
from bt_jax.data import eval_pipeline, pipeline
from bt_jax.data.feed import make_feed, ready_batches
from bt_jax.data.sources.base import ArraySource, StreamSource
from bt_jax.data.sources.make import make_source
from bt_jax.data.views.spec import VIEW_A, VIEW_B, Jigsaw, ViewGroup, ViewSpec
from bt_jax.facts import Facts
from bt_jax.runtime import mesh as mesh_lib

SIZE = 12
PAIR = (ViewGroup("pair", (VIEW_A, VIEW_B), SIZE),)
CROPS = ViewSpec(jitter=0.0, grayscale=0.0, blur=0.0)  # quick to compile
TWO_SIZES = (ViewGroup("global", (CROPS,) * 2, 32), ViewGroup("local", (CROPS,) * 3, 16))
WITH_JIGSAW = (*TWO_SIZES, ViewGroup("patches", Jigsaw(CROPS, cell=11), 8))


def data_config(**fields):
    config = default().data
    config.update({"image_size": SIZE, "eval_resize": 0, "threads": 2, **fields})
    return config


def array_source(n, size=20):
    images = np.random.default_rng(n).integers(0, 256, (n, size, size + 3, 3), np.uint8)
    return ArraySource("arrays", images, np.arange(n) % 1000)  # a label tells which image it was


def stream(tfds_dir, name="numbers_set"):
    config = data_config(source="tfds", name=name, data_dir=str(tfds_dir), in_memory_bytes=0)
    source = make_source(config, "train")
    assert isinstance(source, StreamSource)
    return source


def take(source, steps, *, groups=PAIR, batch_size=8, rows=None, start_step=0, seed=3, **fields):
    """Training batches of the host's pipeline."""
    rows = np.arange(batch_size) if rows is None else rows
    where = {"rows": rows, "start_step": start_step, "num_steps": steps}
    return list(
        pipeline.train_batches(source, data_config(**fields), groups, seed=seed, batch_size=batch_size, **where)
    )


def flat(batch):
    """Its arrays by name, views by their groups' names."""
    views = batch.get("views", {})
    return {**{f"views of {name}": v for name, v in views.items()}, **{k: v for k, v in batch.items() if k != "views"}}


def assert_same(found, expected, rows=slice(None)):
    assert len(found) == len(expected)
    for a, b in zip(map(flat, found), map(flat, expected), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name][rows], err_msg=name)


def evaluate(source, *, batch_size=8, rows=None, limit=None, first=0, **fields):
    rows = np.arange(batch_size) if rows is None else rows
    return list(
        eval_pipeline.eval_batches(
            source, data_config(**fields), batch_size=batch_size, rows=rows, limit=limit, first=first
        )
    )


def masked(batches):
    return {name: np.concatenate([b[name][b["mask"]] for b in batches]) for name in ("image", "label")}


# --- feeds

N, BATCH = 40, 16  # two batches an epoch
CROP_PAIR = (ViewGroup("pair", (CROPS, ViewSpec(jitter=0.0, grayscale=0.0, blur=0.0, solarize=0.2)), 16),)


@functools.cache
def noise():
    images = np.random.default_rng(0).integers(0, 256, (N, 20, 24, 3), np.uint8)
    return ArraySource("noise", images, np.arange(N) % 5)


def device_config(**fields):
    return data_config(**{"views": "device", "image_size": 16, **fields})


def mesh_of(count):
    return jax.make_mesh((count,), (mesh_lib.DATA_AXIS,), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:count])


# How a feed comes about: where views are made, and bytes of a device's memory for the set.
KINDS = {
    "host": {"views": "host"},
    "canvas": {"views": "device", "device_bytes": 1},
    "resident": {"views": "device"},
}


def feed_of(source, config, devices=8, *, groups=CROP_PAIR, batch_size=BATCH, mesh=None, **how):
    facts = Facts.of(source, batch_size=batch_size, epochs=10)
    return make_feed(source, config, groups, mesh=mesh or mesh_of(devices), seed=3, facts=facts, **how)


def made(feed, start, total):
    """The batches of these steps, on the host."""
    return [jax.device_get(batch) for batch in ready_batches(feed, start, total)]


def rows_of_each_kind(mesh):
    """This process's rows of step 1 by each kind of feed, views of two sizes, flattened by name."""
    rows = {}
    for kind, fields in KINDS.items():
        feed = feed_of(noise(), data_config(image_size=16, **fields), groups=TWO_SIZES, mesh=mesh)
        batch = mesh_lib.local_rows(next(ready_batches(feed, 1, 2)))
        rows |= {f"{kind} {name}": array for name, array in flat(batch).items()}
    return rows


def write_files(folder):
    """A folder of N images without labels, in two folders that mean nothing."""
    for i, image in enumerate(noise().fetch(np.arange(N))[0]):
        path = folder / f"{i % 2}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(path)


def epoch_of_files(folder, mesh):
    """This process's rows of the five batches of 8 of an epoch of such a folder, with the images' numbers."""
    fields = {"source": "folder", "data_dir": str(folder), "labels": "none"}
    config = data_config(**fields, image_size=16)
    feed = feed_of(make_source(config, "train"), config, groups=CROP_PAIR, batch_size=8, mesh=mesh)
    batches = [flat(mesh_lib.local_rows(batch)) for batch in ready_batches(feed, 0, 5)]
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
