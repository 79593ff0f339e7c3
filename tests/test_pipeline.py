"""bt_jax/data/pipeline.py: batches are a pure function of (seed, step), whoever makes them."""

import subprocess
import sys

import numpy as np
import pytest
from batches import PAIR, SIZE, WITH_JIGSAW, array_source, assert_same, data_config, evaluate, masked, stream, take
from PIL import Image

from bt_jax.data import pipeline
from bt_jax.data.order import draw_seed, permutation
from bt_jax.data.sources.base import ArraySource, EncodedSource
from bt_jax.data.sources.folder import FolderSource
from bt_jax.data.sources.make import make_source
from bt_jax.data.tensorflow_import import tf
from bt_jax.data.views import host
from bt_jax.data.views.spec import VIEW_A, VIEW_B
from bt_jax.errors import UserError


def pair_by_hand(image, epoch, example):
    """The two views of an image in the first group."""
    views, where = [], (3, np.int64(epoch), np.int64(example))
    for view, spec in enumerate((VIEW_A, VIEW_B)):
        seed = tf.constant(draw_seed(*where, view), tf.int64)
        parameters = host.sample_view(seed, *image.shape[:2], spec)
        views.append(host.apply_views(tf.constant(image), [spec], [parameters], SIZE)[0])
    return np.stack(views)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of 10 images of several sizes and kinds."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in "abc":
            (root / split / name).mkdir(parents=True)
            for i in range(10):
                height, width = rng.integers(14, 40, 2)
                pixels = np.kron(rng.integers(0, 256, (10, 10, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
                image = Image.fromarray(pixels[:height, :width])
                ending = (".png", ".JPEG", ".jpg")[i % 3]
                image = image.convert("L") if i == 7 else image
                image.save(root / split / name / f"{i}{ending}", quality=90)
    return root


def test_batches_are_the_views_of_the_order_and_the_seeds():
    """The whole way of one image, put together by hand: permutation, seeds, parameters, view."""
    source = array_source(11)
    batch = take(source, 1, batch_size=5, start_step=3)[0]  # the second epoch's second batch
    assert batch.keys() == {"views", "label", "example"} and batch["views"].keys() == {"pair"}
    views = batch["views"]["pair"]
    assert views.shape == (5, 2, SIZE, SIZE, 3) and views.dtype == np.uint8
    assert batch["label"].dtype == np.int32 and batch["example"].dtype == np.int64
    examples = permutation(3, 1, 11)[5:10]
    np.testing.assert_array_equal(batch["example"], examples)
    np.testing.assert_array_equal(batch["label"], source.labels[examples])
    for row, example in enumerate(examples):
        np.testing.assert_array_equal(views[row], pair_by_hand(source.images[example], 1, example))


def test_same_batches_for_any_threads_processes_and_restarts(folder):
    """With real views of files: across the end of an epoch of three batches."""
    source = FolderSource(str(folder), "train")
    expected = take(source, 5)
    mine, theirs = np.array([0, 1, 2, 6]), np.array([3, 4, 5, 7])
    assert_same(take(source, 5, rows=mine, threads=1), expected, mine)
    assert_same(take(source, 3, rows=theirs, start_step=2, prefetch=1), expected[2:], theirs)


def test_steps_0_1_and_1000(folder, light_views):
    """Of a run that went through all steps, and of runs resumed there; with 1 and 2 threads; on 1 process and on 2."""
    source = FolderSource(str(folder), "train")
    whole = take(source, 1001)
    for step in (0, 1, 1000):
        for threads in (1, 2):
            for rows in (slice(None), np.arange(4), np.arange(4, 8)):
                mine = np.arange(8)[rows]
                found = take(source, 1, start_step=step, threads=threads, rows=mine)
                assert_same(found, [whole[step]], rows)


def test_any_image_makes_views(tmp_path):
    """Of one pixel, long and narrow, grey, with alpha, and of every format, side by side in a folder."""
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8))
    for name in ("a.jpg", "b.png", "c.bmp", "d.gif", "e.webp", "f.tiff"):
        image.save(folder / name)
    image.crop((0, 0, 1, 1)).save(folder / "g.png")
    image.resize((10000, 50)).save(folder / "h.jpg")
    image.convert("LA").save(folder / "i.png")
    image.convert("CMYK").save(folder / "j.jpg")
    source = FolderSource(str(tmp_path), "train")
    assert len(source) == 10
    batch = take(source, 1, batch_size=10)[0]
    assert batch["views"]["pair"].shape == (10, 2, SIZE, SIZE, 3) and not source.bad
    assert masked(evaluate(source))["image"].shape == (10, SIZE, SIZE, 3)


def test_steps_epochs_and_views_differ(light_views):
    """No two views of a run are equal, be it of one image in two epochs, or A and B."""
    source = ArraySource("one image", np.zeros((6, 20, 20, 3), np.uint8), np.zeros(6, int))
    views = np.concatenate([batch["views"]["pair"] for batch in take(source, 12, batch_size=3)])
    different = np.unique(views.reshape(72, -1), axis=0)
    assert len(different) > 55  # there are 256 light views, of which 72 draws meet some twice


def test_groups_of_views_for_any_threads_processes_and_restarts(folder):
    """Two groups of different sizes and a jigsaw; the pair alone has the same views as together with the others."""
    source = FolderSource(str(folder), "train")
    expected = take(source, 4, groups=WITH_JIGSAW)
    shapes = {"global": (8, 2, 32, 32, 3), "local": (8, 3, 16, 16, 3), "patches": (8, 9, 8, 8, 3)}
    assert {name: views.shape for name, views in expected[0]["views"].items()} == shapes
    for rows in (np.array([0, 1, 2, 6]), np.array([3, 4, 5, 7])):
        assert_same(take(source, 3, groups=WITH_JIGSAW, rows=rows, start_step=1, threads=1), expected[1:], rows)
    for found, batch in zip(take(source, 4, groups=WITH_JIGSAW[:1]), expected, strict=True):
        np.testing.assert_array_equal(found["views"]["global"], batch["views"]["global"])
        np.testing.assert_array_equal(found["example"], batch["example"])


def test_canvases_are_of_the_same_images_in_the_same_slots(folder):
    """And are read anywhere, by any process."""
    source = FolderSource(str(folder), "train")
    settings = {"seed": 3, "batch_size": 8}
    batches = list(pipeline.canvas_batches(source, data_config(), **settings, rows=np.arange(8), num_steps=4))
    for batch, views in zip(batches, take(source, 4, groups=WITH_JIGSAW[:1]), strict=True):
        side = SIZE * 16 // 7
        assert batch["image"].shape == (8, side, side, 3) and batch["size"].max() <= side
        np.testing.assert_array_equal(batch["slot"], batch["example"])
        for name in ("label", "example"):
            np.testing.assert_array_equal(batch[name], views[name])
    assert [set(batch["epoch"]) for batch in batches] == [{0}, {0}, {0}, {1}]
    rows = np.array([1, 5, 6])
    found = pipeline.canvas_batches(source, data_config(), **settings, rows=rows, start_step=2, num_steps=2)
    assert_same(list(found), batches[2:], rows)


def test_without_end_and_closed_early(light_views):
    """num_steps=None continues; closing the iterator in the middle leaves nothing hanging."""
    batches = pipeline.train_batches(array_source(9), data_config(), PAIR, seed=0, batch_size=4, rows=np.arange(4))
    for _ in range(20):
        next(batches)
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


def test_far_steps_are_as_near_as_the_first(light_views):
    """Step 10⁸ is made without the steps before it."""
    far = take(array_source(9), 2, start_step=10**8)
    assert_same(far[1:], take(array_source(9), 1, start_step=10**8 + 1))


def test_folder_and_arrays_of_the_same_pixels_give_the_same_batches(tmp_path, light_views):
    source = array_source(6)
    (tmp_path / "train" / "a").mkdir(parents=True)
    for i, image in enumerate(source.images):
        Image.fromarray(image).save(tmp_path / "train" / "a" / f"{i}.png")
    for a, b in zip(
        take(FolderSource(str(tmp_path), "train"), 3, batch_size=4), take(source, 3, batch_size=4), strict=True
    ):
        np.testing.assert_array_equal(a["views"]["pair"], b["views"]["pair"])


def test_fewer_images_than_a_batch():
    with pytest.raises(UserError, match="arrays has 5 images, fewer than a batch of 8; set batch_size to at most 5"):
        take(array_source(5), 1)


def test_groups_that_do_not_go_together():
    with pytest.raises(UserError, match="two view groups are called 'pair'"):
        take(array_source(9), 1, groups=PAIR * 2)


@pytest.mark.parametrize("rows", [[], [0, 8], [1, 0], [2, 2], [-1, 0]])
def test_rows_that_are_none(rows):
    with pytest.raises(ValueError, match="must be increasing and lie in 0 to 7"):
        take(array_source(9), 1, rows=np.array(rows, int))


# --- records


@pytest.mark.parametrize("cache_bytes", [0, 300, 10**6])
def test_records_are_the_same_for_any_threads_processes_and_restarts(tfds_dir, light_views, cache_bytes):
    """Nothing, something or all of it kept in memory; the batches are those of arrays of the same pixels."""
    config = data_config(source="tfds", name="record_set", data_dir=str(tfds_dir))
    arrays = make_source(config, "train")
    config.update(in_memory_bytes=0, cache_bytes=cache_bytes)
    records = make_source(config, "train")
    assert isinstance(records, EncodedSource) and isinstance(arrays, ArraySource)
    expected = take(arrays, 9)
    assert_same(take(records, 9), expected)
    assert_same(take(records, 9, threads=1), expected)
    assert_same(take(records, 4, start_step=5), expected[5:])
    for rows in (np.array([0, 1, 2, 6]), np.array([3, 4, 5, 7])):
        assert_same(take(records, 9, rows=rows), expected, rows)
    np.testing.assert_array_equal(masked(evaluate(records))["label"], arrays.labels)


# --- streams of large TFDS sets


@pytest.mark.parametrize("name", ["numbers_set", "one_file_set"])
def test_stream_gives_each_example_at_most_once_an_epoch(tfds_dir, name, light_views):
    """37 examples, 4 batches of 8 per epoch; the order changes from epoch to epoch and from seed to seed."""
    source = stream(tfds_dir, name)
    labels = np.array([batch["label"] for batch in take(source, 8, shuffle_buffer=10)]).reshape(2, 32)
    assert len(set(labels[0])) == len(set(labels[1])) == 32
    assert not np.array_equal(labels[0], labels[1])
    assert np.abs(np.diff(labels[0].astype(int))).mean() > 4  # in a random order of 37 it is 12.7
    other = take(source, 1, shuffle_buffer=10, seed=4)
    assert not np.array_equal(other[0]["label"], labels[0][:8])


def test_stream_is_the_same_for_any_threads_processes_and_restarts(tfds_dir, light_views):
    """Resumed in the middle of an epoch, at its end, and further on."""
    source = stream(tfds_dir)
    expected = take(source, 9, shuffle_buffer=10)
    assert len(expected) == 9
    assert_same(take(source, 9, shuffle_buffer=10, threads=1), expected)
    for start in (2, 4, 7):
        assert_same(take(source, 9 - start, shuffle_buffer=10, start_step=start), expected[start:])
    mine, theirs = np.array([0, 1, 2, 6]), np.array([3, 4, 5, 7])
    for rows in (mine, theirs):
        assert_same(take(source, 9, shuffle_buffer=10, rows=rows), expected, rows)


def test_stream_draws_its_views_by_place_in_the_epoch(tfds_dir, light_views):
    """Put together by hand: step 5 is the second epoch's second batch."""
    batch = take(stream(tfds_dir), 1, start_step=5)[0]
    np.testing.assert_array_equal(batch["example"], np.arange(8, 16))
    for row, place in enumerate(range(8, 16)):
        image = np.full((14, 14, 3), batch["label"][row], np.uint8)
        np.testing.assert_array_equal(batch["views"]["pair"][row], pair_by_hand(image, 1, place))


def test_a_program_can_end_in_the_middle():
    """An interrupted run prints its own last line, and no complaint about iterators that outlived TensorFlow."""
    program = """
import numpy as np
from bt_jax.config import default
from bt_jax.data.eval_batches import eval_batches
from bt_jax.data.sources.base import ArraySource
source = ArraySource("a", np.zeros((64, 8, 8, 3), np.uint8), np.zeros(64, int))
config = default().data
config.update(image_size=8, eval_resize=0)
batches = eval_batches(source, config, batch_size=4, rows=np.arange(4))
next(batches)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Exception" not in done.stderr and "Traceback" not in done.stderr, done.stderr
