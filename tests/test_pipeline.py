"""bt_jax/data/pipeline.py: batches are a pure function of (seed, step), and evaluations see every image once."""

import io
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bt_jax.config import default
from bt_jax.data import pipeline
from bt_jax.data.order import permutation, view_seeds
from bt_jax.data.sources.base import ArraySource, EncodedSource, StreamSource
from bt_jax.data.sources.folder import FolderSource
from bt_jax.data.sources.make import make_source
from bt_jax.data.views.host import apply_view, sample_view
from bt_jax.data.views.spec import VIEW_A, VIEW_B
from bt_jax.errors import UserError

SIZE = 12


def data_config(**fields):
    config = default().data
    config.update({"image_size": SIZE, "eval_resize": 0, "threads": 2, **fields})
    return config


def array_source(n, size=20):
    images = np.random.default_rng(n).integers(0, 256, (n, size, size + 3, 3), np.uint8)
    return ArraySource("arrays", images, np.arange(n) % 1000)  # a label tells which image it was


def take(source, steps, *, batch_size=8, rows=None, start_step=0, seed=3, **fields):
    rows = np.arange(batch_size) if rows is None else rows
    batches = pipeline.train_batches(
        source,
        data_config(**fields),
        seed=seed,
        batch_size=batch_size,
        rows=rows,
        start_step=start_step,
        num_steps=steps,
    )
    return list(batches)


def assert_same(found, expected, rows=slice(None)):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name][rows])


@pytest.fixture
def light_views(monkeypatch):
    """Views that only show which image was drawn and with which parameters: quick to build, and different enough."""
    tf = pipeline.tf

    def light(image, parameters, size, _):
        drawn = [
            tf.cast(tf.reduce_sum(p.crop * [1, 3, 7, 11]), tf.uint8) + tf.cast(p.hue * 1e6, tf.uint8)
            for p in parameters
        ]
        return tf.stack([tf.bitwise.bitwise_xor(image[:size, :size], d) for d in drawn])

    monkeypatch.setattr(pipeline, "apply_views", light)


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


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """37 images in four files, and again in one; each image is of one colour that is its number, as the label is."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("tensorflow_datasets")
    for name, files, stored in (("numbers_set", 4, None), ("one_file_set", 1, None), ("record_set", 4, "array_record")):
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(14, 14, 3)), "label": tfds.features.ClassLabel(num_classes=37)}
            ),
            split_datasets={
                "train": [(i, {"image": np.full((14, 14, 3), i, np.uint8), "label": i}) for i in range(37)]
            },
            data_dir=root,
            description="for tests",
            download_config=tfds.download.DownloadConfig(num_shards=files),
            file_format=stored,
        )
    return root


def stream(tfds_dir, name="numbers_set"):
    config = data_config(source="tfds", name=name, data_dir=str(tfds_dir), in_memory_bytes=0)
    source = make_source(config, "train")
    assert isinstance(source, StreamSource)
    return source


# --- training batches


def test_batches_are_the_views_of_the_order_and_the_seeds():
    """The whole road of one image, put together by hand: permutation, seeds, parameters, view."""
    source = array_source(11)
    batch = take(source, 1, batch_size=5, start_step=3)[0]  # the second epoch's second batch
    assert batch["views"].shape == (5, 2, SIZE, SIZE, 3) and batch["views"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    examples = permutation(3, 1, 11)[5:10]
    np.testing.assert_array_equal(batch["label"], source.labels[examples])
    for row, seeds in enumerate(view_seeds(3, 1, examples)):
        image = source.images[examples[row]]
        for view, spec in enumerate((VIEW_A, VIEW_B)):
            parameters = sample_view(seeds[view], 20, 23, spec)
            expected = apply_view(pipeline.tf.constant(image), parameters, SIZE)
            np.testing.assert_array_equal(batch["views"][row, view], expected)


def test_same_batches_for_any_threads_processes_and_restarts(folder):
    """Invariant 2, with the true views on files: over the end of an epoch of three batches."""
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
    assert batch["views"].shape == (10, 2, SIZE, SIZE, 3) and not source.bad
    assert masked(evaluate(source))["image"].shape == (10, SIZE, SIZE, 3)


def test_steps_epochs_and_views_differ(light_views):
    """No two views of a run are equal, be it of one image in two epochs, or A and B."""
    source = ArraySource("one image", np.zeros((6, 20, 20, 3), np.uint8), np.zeros(6, int))
    views = np.concatenate([batch["views"] for batch in take(source, 12, batch_size=3)])
    different = np.unique(views.reshape(72, -1), axis=0)
    assert len(different) > 55  # there are 256 light views, of which 72 draws meet some twice


def test_without_end_and_closed_early(light_views):
    """num_steps=None goes on; closing the iterator in the middle leaves nothing hanging."""
    batches = pipeline.train_batches(array_source(9), data_config(), seed=0, batch_size=4, rows=np.arange(4))
    for _ in range(20):
        next(batches)
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


def test_far_steps_are_as_near_as_the_first(light_views):
    """Step 10⁸ is asked for without the steps before it."""
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
        np.testing.assert_array_equal(a["views"], b["views"])


def test_fewer_images_than_a_batch():
    with pytest.raises(UserError, match="arrays has 5 images, fewer than a batch of 8; set batch_size to at most 5"):
        take(array_source(5), 1)


@pytest.mark.parametrize("rows", [[], [0, 8], [1, 0], [2, 2], [-1, 0]])
def test_rows_that_are_none(rows):
    with pytest.raises(ValueError, match="must be rising and lie in 0 to 7"):
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
    """37 examples, 4 batches of 8 an epoch; the order changes from epoch to epoch and from seed to seed."""
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
    """As `order.view_seeds` says, put together by hand: step 5 is the second epoch's second batch."""
    batch = take(stream(tfds_dir), 1, start_step=5)[0]
    for row, seeds in enumerate(view_seeds(3, 1, np.arange(8, 16))):
        image = pipeline.tf.fill((14, 14, 3), batch["label"][row].astype(np.uint8))
        for view, spec in enumerate((VIEW_A, VIEW_B)):
            parameters = sample_view(seeds[view], 14, 14, spec)
            expected = pipeline.apply_views(image, [parameters], SIZE, "keyscubic")[0]
            np.testing.assert_array_equal(batch["views"][row, view], expected)


# --- evaluation batches


def evaluate(source, *, batch_size=8, rows=None, limit=None, **fields):
    rows = np.arange(batch_size) if rows is None else rows
    return list(pipeline.eval_batches(source, data_config(**fields), batch_size=batch_size, rows=rows, limit=limit))


def masked(batches):
    return {name: np.concatenate([b[name][b["mask"]] for b in batches]) for name in ("image", "label")}


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize(("n", "limit"), [(16, None), (19, None), (23, 17), (3, 5)])
def test_every_image_is_seen_once(n, limit, processes):
    """Also where the last batch leaves some processes with nothing: all make as many batches, of one shape."""
    source = array_source(n)
    shares = [evaluate(source, rows=rows, limit=limit) for rows in np.split(np.arange(8), processes)]
    expected = np.arange(n) if limit is None or limit >= n else np.arange(limit) * n // limit
    assert {len(share) for share in shares} == {-(-len(expected) // 8)}
    for share in shares:
        for batch in share:
            assert batch["image"].shape == (8 // processes, SIZE, SIZE, 3) and batch["image"].dtype == np.uint8
            assert batch["label"].dtype == np.int32 and batch["mask"].dtype == bool
    together = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert masked(together)["label"].tolist() == expected.tolist()


def test_evaluation_does_not_touch_images_of_the_right_size():
    source = array_source(5, size=SIZE)
    source = ArraySource("square", np.ascontiguousarray(source.images[:, :, :SIZE]), source.labels)
    np.testing.assert_array_equal(masked(evaluate(source))["image"], source.images)


def test_stream_evaluates_what_memory_does(tfds_dir):
    """The same images with the same labels, though the files are read in another order."""
    config = data_config(source="tfds", name="numbers_set", data_dir=str(tfds_dir))
    in_memory = masked(evaluate(make_source(config, "train")))
    shares = [evaluate(stream(tfds_dir), rows=rows) for rows in (np.arange(4), np.arange(4, 8))]
    assert [len(share) for share in shares] == [5, 5]
    streamed = masked([*shares[0], *shares[1]])
    assert sorted(in_memory["label"]) == sorted(streamed["label"]) == list(range(37))
    np.testing.assert_array_equal(streamed["image"][:, 5, 5, 0], streamed["label"])
    assert sum(batch["mask"].sum() for batch in evaluate(stream(tfds_dir), limit=11)) == 11


# --- what is not an image


def test_others_stand_in_for_bad_images(tmp_path, light_views):
    """The next good one each time, label and all; rows, seeds and later batches as before; evaluation leaves them out."""
    for name, shade in (("a", 0), ("b", 200)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(np.full((20, 20, 3), shade + i, np.uint8)).save(tmp_path / "train" / name / f"{i}.png")
    config = data_config()
    config.max_bad_fraction = 0.2
    clean = FolderSource(str(tmp_path), "train")
    expected = take(clean, 8, batch_size=4)
    order = [permutation(3, epoch, 16) for epoch in range(2)]
    bad = {int(order[0][9]), 7, 15}  # the last of all is followed by the first
    source = FolderSource(str(tmp_path), "train")
    for example in bad:
        pathlib.Path(source.paths[example]).write_bytes(b"no image")
    batches = pipeline.train_batches(source, config, seed=3, batch_size=4, rows=np.arange(4), num_steps=8)
    for step, batch in enumerate(batches):
        examples = order[step // 4][step % 4 * 4 :][:4]
        for row, example in enumerate(examples):
            if example not in bad:
                np.testing.assert_array_equal(batch["views"][row], expected[step]["views"][row])
            stands = example
            while stands in bad:
                stands = (stands + 1) % 16
            assert batch["label"][row] == clean.labels[stands]
    assert step == 7 and set(source.bad) == bad
    fresh = FolderSource(str(tmp_path), "train")
    seen = list(pipeline.eval_batches(fresh, config, batch_size=6, rows=np.arange(6)))
    assert sum(batch["mask"].sum() for batch in seen) == 13 and set(fresh.bad) == bad
    np.testing.assert_array_equal(
        np.concatenate([batch["label"][batch["mask"]] for batch in seen]),
        [clean.labels[i] for i in range(16) if i not in bad],
    )


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "gone"])
def test_a_file_that_is_not_an_image(tmp_path, kind, light_views):
    """The batches before it are delivered; then, as it is more than a thousandth of all, a sentence names it alone."""
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    for i in range(16):
        Image.fromarray(pixels).save(folder / f"{i:02d}.jpg")
    source = FolderSource(str(tmp_path), "train")
    bad = folder / f"{permutation(3, 0, 16)[9]:02d}.jpg"  # in the third batch of four
    whole = bad.read_bytes()
    if kind == "gone":
        bad.unlink()
    else:
        bad.write_bytes({"text": b"not an image at all", "empty": b"", "cut": whole[: len(whole) // 2]}[kind])
    batches = pipeline.train_batches(source, data_config(), seed=3, batch_size=4, rows=np.arange(4))
    assert len(next(batches)["label"]) == len(next(batches)["label"]) == 4
    with pytest.raises(
        UserError, match=rf"{bad} cannot be read as an image \(.+\); mend or remove it, or raise"
    ) as raised:
        next(batches)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=str(bad)):
        evaluate(source, batch_size=4)


def store_with_bad_images(root, bad, files=2):
    """24 images of one colour that is their number, but for some that are no images."""
    import tensorflow_datasets as tfds

    def image(i):
        return io.BytesIO(b"\xff\xd8\xff" + bytes([i])) if i in bad else np.full((14, 14, 3), i, np.uint8)

    tfds.dataset_builders.store_as_tfds_dataset(
        name="bad_set",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=24)}
        ),
        split_datasets={"train": [(i, {"image": image(i), "label": i}) for i in range(24)]},
        data_dir=root,
        description="for tests",
        download_config=tfds.download.DownloadConfig(num_shards=files),
    )


def test_others_stand_in_for_bad_records_of_a_stream(tmp_path, light_views):
    """The one before in the epoch, whichever process and start met it; evaluations leave it out."""
    store_with_bad_images(tmp_path, bad=(5, 6))
    settings = {"shuffle_buffer": 6, "max_bad_fraction": 0.1}
    source = stream(tmp_path, "bad_set")
    expected = take(source, 3, **settings)
    assert len(source.bad) == 2
    labels = np.concatenate([batch["label"] for batch in expected])
    assert set(labels) == set(range(24)) - {5, 6}
    repeated = [place for place in range(1, 24) if labels[place] == labels[place - 1]]
    assert len(repeated) == 2, "each has the record of the place before it"
    assert_same(take(stream(tmp_path, "bad_set"), 2, start_step=1, **settings), expected[1:])
    for rows in (np.array([0, 1, 2, 6]), np.array([3, 4, 5, 7])):
        assert_same(take(stream(tmp_path, "bad_set"), 3, rows=rows, **settings), expected, rows)

    source = stream(tmp_path, "bad_set")
    for _ in range(2):  # the second time they are known
        seen = masked(evaluate(source, max_bad_fraction=0.1))
        assert sorted(seen["label"]) == sorted(set(range(24)) - {5, 6})
        np.testing.assert_array_equal(seen["image"][:, 5, 5, 0], seen["label"])


def test_too_many_bad_records_of_a_stream(tmp_path, light_views):
    store_with_bad_images(tmp_path, bad=(5, 6))
    sentence = (
        r"record of TFDS bad_set, train with fingerprint [0-9a-f]{16} cannot be read as an image \(.+\).* or raise"
    )
    with pytest.raises(UserError, match=sentence):
        take(stream(tmp_path, "bad_set"), 3, max_bad_fraction=0.05)


def test_a_broken_file_of_a_stream(tfds_dir, tmp_path):
    """No record of it can be told from another, so none stands in; the set is named."""
    shutil.copytree(tfds_dir / "numbers_set", tmp_path / "numbers_set")
    source = stream(tmp_path)
    for file in (tmp_path / "numbers_set" / "1.0.0").glob("*tfrecord*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 255
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"TFDS numbers_set, train cannot be read \(corrupted record.+\)"):
        evaluate(source)


def test_a_program_can_end_in_the_middle():
    """An interrupted run prints its own last words, and no complaint of iterators that outlived TensorFlow."""
    program = """
import numpy as np
from bt_jax.config import default
from bt_jax.data.pipeline import eval_batches
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
