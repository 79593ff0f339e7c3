"""bt_jax/data/bad_images.py: images that do not decode are found and replaced, and a batch stays a function of (seed, step)."""

import io
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from batches import PAIR, assert_same, data_config, evaluate, masked, stream, take
from PIL import Image

from bt_jax.data import eval_pipeline, pipeline
from bt_jax.data.bad_images import delivered_batches
from bt_jax.data.order import permutation
from bt_jax.data.sources.base import ArraySource
from bt_jax.data.sources.folder import FolderSource
from bt_jax.data.tensorflow_import import tf
from bt_jax.errors import UserError


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
    batches = pipeline.train_batches(source, config, PAIR, seed=3, batch_size=4, rows=np.arange(4), num_steps=8)
    for step, batch in enumerate(batches):
        examples = order[step // 4][step % 4 * 4 :][:4]
        for row, example in enumerate(examples):
            if example not in bad:
                np.testing.assert_array_equal(batch["views"]["pair"][row], expected[step]["views"]["pair"][row])
            stands = example
            while stands in bad:
                stands = (stands + 1) % 16
            assert batch["label"][row] == clean.labels[stands]
            assert batch["example"][row] == stands
    assert step == 7 and set(source.bad) == bad
    fresh = FolderSource(str(tmp_path), "train")
    seen = list(eval_pipeline.eval_batches(fresh, config, batch_size=6, rows=np.arange(6)))
    assert sum(batch["mask"].sum() for batch in seen) == 13 and set(fresh.bad) == bad
    np.testing.assert_array_equal(
        np.concatenate([batch["label"][batch["mask"]] for batch in seen]),
        [clean.labels[i] for i in range(16) if i not in bad],
    )


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "gone"])
def test_a_file_that_is_not_an_image(tmp_path, kind, light_views):
    """The batches before it are delivered; then a message names it alone, if none may be bad; else another stands in."""
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
    none = data_config(max_bad_fraction=0.0)
    batches = pipeline.train_batches(source, none, PAIR, seed=3, batch_size=4, rows=np.arange(4))
    assert len(next(batches)["label"]) == len(next(batches)["label"]) == 4
    with pytest.raises(
        UserError, match=rf"{bad} cannot be read as an image \(.+\); repair or remove it, or raise"
    ) as raised:
        next(batches)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=str(bad)):
        evaluate(source, batch_size=4, max_bad_fraction=0.0)
    assert len(take(source, 4, batch_size=4)) == 4 and source.place(next(iter(source.bad))) == str(bad)
    others = folder / f"{permutation(3, 0, 16)[2]:02d}.jpg"
    others.write_bytes(b"neither")
    with pytest.raises(UserError, match=r"and so cannot .*, which is 0.001 of 16, and one image at least"):
        take(source, 4, batch_size=4)


def test_an_image_that_an_evaluation_finds_first():
    """The monitor looks at the same source while batches that were chosen before are under way: they are chosen again."""
    source, begun = ArraySource("mine", np.zeros((8, 4, 4, 3), np.uint8), np.zeros(8, int)), []

    def from_batch(number):
        begun.append(number)
        bad_is_known = bool(source.bad)

        def load(batch):
            if batch == 2 and not bad_is_known:
                raise ValueError("cannot be read")
            return batch

        return tf.data.Dataset.range(number, 4).map(lambda batch: tf.numpy_function(load, [batch], tf.int64))

    batches = delivered_batches(from_batch, source, lambda _: {}, 0.5)
    assert [next(batches), next(batches)] == [0, 1]
    source.exclude({5: "cannot be read"}, 0.5)
    assert list(batches) == [2, 3] and begun == [0, 2]
    source.bad.clear()
    with pytest.raises(tf.errors.OpError, match="cannot be read"):
        list(delivered_batches(from_batch, source, lambda _: {}, 0.5))


def test_a_store_that_answers_the_second_time(tmp_path, monkeypatch, light_views):
    """What the first reading said ends the run, in one line; no image is bad."""
    (tmp_path / "train" / "a").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "train" / "a" / f"{i}.png")
    source = FolderSource(str(tmp_path), "train", cache_bytes=10**6)
    inner, asked = source._read, []

    def read(examples):
        asked.append(examples)
        if len(asked) == 1:
            raise UserError("gs://bucket/1.png cannot be reached (503), although it was asked for several times.")
        return inner(examples)

    monkeypatch.setattr(source, "_read", read)
    with pytest.raises(UserError) as raised:
        take(source, 1, batch_size=4)
    assert str(raised.value) == "gs://bucket/1.png cannot be reached (503), although it was asked for several times."
    assert len(asked) == 2 and not source.bad


@pytest.mark.parametrize("works_after", [1, 3, 4])
def test_a_file_that_cannot_be_read_for_a_while(tmp_path, works_after):
    """As one on a network: its batch is tried three times more, and the others come once each."""
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "b").unlink()
    (tmp_path / "b").mkdir()  # which no reading gets through
    looked = []

    def look(delivered):
        looked.append(delivered)
        if len(looked) == works_after:
            (tmp_path / "b").rmdir()
            (tmp_path / "b").write_bytes(b"b")
        return {}

    def from_batch(first):
        paths = [str(tmp_path / name) for name in "abc"][first:]
        return tf.data.Dataset.from_tensor_slices(paths).map(lambda path: {"content": tf.io.read_file(path)})

    source = ArraySource("a set", np.zeros((3, 4, 4, 3), np.uint8), np.zeros(3, np.int32))
    batches = delivered_batches(from_batch, source, look, 0.0)
    if works_after < 4:
        assert [batch["content"] for batch in batches] == [b"a", b"b", b"c"] and looked == [1] * works_after
        return
    with pytest.raises(
        UserError, match=rf"^{tmp_path}/b cannot be reached \(Is a directory\), although it was asked for several"
    ):
        list(batches)
    assert looked == [1] * 4


def test_no_traceback_is_shown_for_a_bad_image(tmp_path):
    """TensorFlow would print one for each on standard error, with Python's too for an image that Pillow decodes, and the JPEG
    library's lines for one that is cut off. What JAX and programs that are started hear of the environment stays.
    """
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for i in range(4):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "1.png").write_bytes(b"no image")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(folder / "2.jpg")
    (folder / "2.jpg").write_bytes((folder / "2.jpg").read_bytes()[:1500])
    program = f"""
import os
import numpy as np
from bt_jax.config import default
from bt_jax.data.eval_batches import eval_batches
from bt_jax.data.sources.folder import FolderSource
config = default().data
config.update(image_size=8, eval_resize=0, max_bad_fraction=0.5)
(batch,) = eval_batches(FolderSource({str(tmp_path)!r}, "train"), config, batch_size=8, rows=np.arange(8))
print(batch["mask"].sum(), os.environ.get("TF_CPP_MIN_LOG_LEVEL", "none"))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)
    assert (done.stdout.strip(), done.stderr) == ("3 1", "")  # which JAX has set


def store_with_bad_images(root, bad, files=2):
    """24 images whose colour is their number; some of them are not images."""
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
    """The one before it in the epoch, whichever process or start finds it; evaluations leave it out."""
    store_with_bad_images(tmp_path, bad=(5, 6))
    settings = {"shuffle_buffer": 6, "max_bad_fraction": 0.1}
    source = stream(tmp_path, "bad_set")
    expected = take(source, 3, **settings)
    assert len(source.bad) == 2
    labels = np.concatenate([batch["label"] for batch in expected])
    assert set(labels) == set(range(24)) - {5, 6}
    for batch in expected:  # all three of an epoch
        np.testing.assert_array_equal(batch["example"] % 8, np.arange(8))
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


def test_canvases_of_stand_ins(tmp_path):
    """Drawn in the slot of the image that does not decode, under the stand-in's own number."""
    (tmp_path / "train" / "a").mkdir(parents=True)
    for i in range(8):
        Image.fromarray(np.full((20, 20, 3), i, np.uint8)).save(tmp_path / "train" / "a" / f"{i}.png")
    (tmp_path / "train" / "a" / "3.png").write_bytes(b"no image")
    source, config = FolderSource(str(tmp_path), "train"), data_config(max_bad_fraction=0.2)
    (batch,) = pipeline.canvas_batches(source, config, seed=3, batch_size=8, rows=np.arange(8), num_steps=1)
    np.testing.assert_array_equal(batch["slot"], permutation(3, 0, 8))
    np.testing.assert_array_equal(batch["example"], np.where(batch["slot"] == 3, 4, batch["slot"]))
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["example"])


def test_too_many_bad_records_of_a_stream(tmp_path, light_views):
    store_with_bad_images(tmp_path, bad=(5, 6))
    sentence = (
        r"record of TFDS bad_set, train with fingerprint [0-9a-f]{16} cannot be read as an image \(.+\).* or raise"
    )
    with pytest.raises(UserError, match=sentence):
        take(stream(tmp_path, "bad_set"), 3, max_bad_fraction=0.05)


def test_a_broken_file_of_a_stream(tfds_dir, tmp_path):
    """Its records cannot be distinguished, so none stands in; the message names the set."""
    shutil.copytree(tfds_dir / "numbers_set", tmp_path / "numbers_set")
    source = stream(tmp_path)
    for file in (tmp_path / "numbers_set" / "1.0.0").glob("*tfrecord*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 255
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"TFDS numbers_set, train cannot be read \(corrupted record.+\)"):
        evaluate(source)
