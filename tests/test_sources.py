"""bt_jax/data/sources/base.py and photographs.py: what is found, in which order, and what is said of what is wrong."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bt_jax.config.schema import default
from bt_jax.data.sources import photographs
from bt_jax.data.sources.base import ArraySource, BytesCache, FolderSource, make_source
from bt_jax.data.sources.photographs import PHOTOGRAPHS, load_photograph, photograph_crops
from bt_jax.errors import UserError
from bt_jax.evaluation.knn import knn_accuracy


def data_config(**fields):
    config = default().data
    config.update(fields)
    return config


def images_of(n, height=8, width=6):
    return np.random.default_rng(n).integers(0, 256, (n, height, width, 3), np.uint8)


def write_folder(root, classes, ending=".png"):
    """root/<class>/<number><ending>, as many as said; each image is its own."""
    for i, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for j, image in enumerate(images_of(count, 8 + i)):
            Image.fromarray(image).save(root / name / f"{j:03d}{ending}")


# --- photographs


def test_photographs_are_all_there():
    """17 of them, in colour; the largest is reduced."""
    shapes = [load_photograph(name).shape for name in PHOTOGRAPHS]
    assert len(shapes) == 17
    assert all(shape[2] == 3 and 380 <= max(shape) <= 640 for shape in shapes)


def test_photograph_crops_are_the_same_at_every_call():
    first, labels = photograph_crops("test", size=24, per_class=3)
    again, _ = photograph_crops("test", size=24, per_class=3)
    assert first.shape == (51, 24, 24, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(labels, np.repeat(np.arange(17), 3))
    assert labels.dtype == np.int32
    other, _ = photograph_crops("train", size=24, per_class=3)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("shape", [(200, 500), (500, 200)])
def test_train_and_test_crops_share_no_pixel(monkeypatch, shape):
    """A photograph that is white in the middle fifth of its longer side: test crops see only that, train crops none."""
    photograph = np.zeros((*shape, 3), np.uint8)
    middle = slice(200, 300)
    if shape[1] == 500:
        photograph[:, middle] = 255
    else:
        photograph[middle] = 255
    monkeypatch.setattr(photographs, "load_photograph", lambda name: photograph)
    assert photograph_crops("train", size=16, per_class=40)[0].max() == 0
    assert photograph_crops("test", size=16, per_class=40)[0].min() == 255


def test_raw_pixels_leave_something_to_learn():
    """The quickstart's measure: kNN on raw 32×32 pixels knows about two crops in five, chance one in 17."""
    train, train_labels = photograph_crops("train", size=32, per_class=300)
    test, test_labels = photograph_crops("test", size=32, per_class=60)
    flat = [(images.reshape(len(images), -1) / 255.0 - 0.45).astype(np.float32) for images in (train, test)]
    accuracy = knn_accuracy(flat[0], train_labels, flat[1], test_labels, num_classes=17, k=20)
    assert 0.33 < accuracy < 0.46


def test_a_package_that_is_not_there(monkeypatch):
    monkeypatch.setitem(PHOTOGRAPHS, "moon", (("no_such_package", "data", "scikit-image"), "moon.png"))
    with pytest.raises(UserError, match="moon.png comes with scikit-image.*pip install scikit-image"):
        load_photograph("moon")


def test_make_source_of_photographs():
    config = data_config(source="photographs")
    config.photographs.update(size=20, train_per_class=4, test_per_class=2)
    train, test = make_source(config, "train"), make_source(config, "test")
    assert (len(train), len(test)) == (68, 34)
    assert train.images.shape == (68, 20, 20, 3)
    assert train.class_names == test.class_names == tuple(PHOTOGRAPHS)
    assert train.notices == ()


# --- arrays


def test_arrays_in_memory():
    source = ArraySource("mine", images_of(5), np.array([0, 2, 1, 0, 2]))
    assert len(source) == 5 and source.num_classes == 3 and source.class_names == ("0", "1", "2")
    assert source.labels.dtype == np.int32


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (images_of(4).astype(np.float32), np.zeros(4, int), r"mine: the images are float32 \(4, 8, 6, 3\)"),
        (images_of(4)[..., 0], np.zeros(4, int), r"must be uint8 \(N, H, W, 3\)"),
        (images_of(4)[..., :1], np.zeros(4, int), r"must be uint8 \(N, H, W, 3\)"),
        (images_of(4), np.zeros(3, int), r"the labels are int64 \(3,\)"),
        (images_of(4), np.zeros((4, 1), int), r"they must be integers \(4,\)"),
        (images_of(4), np.zeros(4), "float64"),
        (images_of(4), np.array([0, 1, -1, 2]), "run from -1 to 2"),
        (images_of(4)[:0], np.zeros(0, int), "at least one"),
    ],
)
def test_wrong_arrays(images, labels, sentence):
    with pytest.raises(UserError, match=sentence):
        ArraySource("mine", images, labels)


def test_labels_beyond_the_classes():
    with pytest.raises(UserError, match="run from 0 to 3; they must lie in 0 to 1"):
        ArraySource("mine", images_of(2), np.array([0, 3]), ("cat", "dog"))


def test_arrays_in_a_file(tmp_path):
    """Both splits have the same classes, though the test labels lack the last."""
    file = tmp_path / "set.npz"
    x, y = images_of(6), np.array([0, 1, 2, 0, 1, 3])
    np.savez(file, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    config = data_config(source="arrays", data_dir=str(file))
    train, test = make_source(config, "train"), make_source(config, "test")
    np.testing.assert_array_equal(train.images, x)
    np.testing.assert_array_equal(train.labels, y)
    assert len(test) == 2 and train.class_names == test.class_names == ("0", "1", "2", "3")


def test_wrong_array_files(tmp_path):
    def read(data_dir):
        return make_source(data_config(source="arrays", data_dir=str(data_dir)), "train")

    np.savez(tmp_path / "half.npz", x_train=images_of(2), other=np.zeros(1))
    np.save(tmp_path / "one.npy", images_of(2))
    (tmp_path / "text.npz").write_text("not a zip")
    whole = (tmp_path / "half.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name, sentence in {
        "none.npz": "there is no file '.*none.npz'; data.data_dir must name an .npz file",
        "half.npz": "half.npz holds x_train, other; it must hold x_train and y_train",
        "one.npy": "one.npy cannot be read as an .npz file of arrays",
        "text.npz": "text.npz cannot be read as an .npz file of arrays",
        "cut.npz": "cut.npz cannot be read as an .npz file of arrays",
    }.items():
        with pytest.raises(UserError, match=sentence):
            read(tmp_path / name)


# --- folders


def test_folder_is_read_in_the_order_of_names(tmp_path):
    """Whatever order the disk lists them in; endings in any case."""
    write_folder(tmp_path / "train", {"zebra": 2, "ant": 3, "Bee": 1})
    os.rename(tmp_path / "train" / "ant" / "001.png", tmp_path / "train" / "ant" / "000.JPEG")
    source = FolderSource(str(tmp_path), "train")
    assert source.class_names == ("Bee", "ant", "zebra")
    assert source.labels.tolist() == [0, 1, 1, 1, 2, 2] and source.labels.dtype == np.int32
    names = ["Bee/000.png", "ant/000.JPEG", "ant/000.png", "ant/002.png", "zebra/000.png", "zebra/001.png"]
    assert [os.path.relpath(path, tmp_path / "train") for path in source.paths] == names
    assert len(source) == 6 and source.notices == ()


def test_hidden_files_are_passed_over_and_counted(tmp_path):
    write_folder(tmp_path / "train", {"a": 1, "b": 1})
    for name in (".DS_Store", "a/.DS_Store", "a/._000.png", "b/Thumbs.db"):
        (tmp_path / "train" / name).write_text("")
    source = make_source(data_config(source="folder", data_dir=str(tmp_path)), "train")
    assert len(source) == 2
    assert source.notices == (f"4 hidden file(s) in {tmp_path}/train were passed over",)


def test_stray_files(tmp_path):
    """Named with their number, so that one sentence is enough to mend a folder."""
    write_folder(tmp_path / "train", {"a": 2, "b": 1})
    for name in ("readme.txt", "a/list.csv", "b/c.heic", "b/d.zip", "000.png"):
        (tmp_path / "train" / name).write_text("")
    with pytest.raises(UserError, match=r"5 stray file\(s\).*000.png, a/list.csv, b/c.heic and 2 more; move them"):
        FolderSource(str(tmp_path), "train")


def test_a_folder_inside_a_class_is_stray(tmp_path):
    """As in root/train/train/<class>: its images would otherwise be left out without a word."""
    write_folder(tmp_path / "train" / "train", {"a": 2})
    with pytest.raises(UserError, match=r"1 stray file\(s\) or folder\(s\) stand there: train/a"):
        FolderSource(str(tmp_path), "train")


def test_missing_and_empty_folders(tmp_path):
    write_folder(tmp_path / "full" / "train", {"a": 2})
    (tmp_path / "full" / "val").mkdir()
    (tmp_path / "hollow" / "train" / "a").mkdir(parents=True)
    for root, split, sentence in [
        ("nowhere", "train", "no image folder .*nowhere/train .*nowhere does not exist"),
        ("full", "test", r"no image folder .*full/test \(.*full holds train, val\)"),
        ("full", "val", "val is empty; it must hold a folder of images for each class"),
        ("hollow", "train", r"1 class folder\(s\) in .* hold no images: a"),
    ]:
        with pytest.raises(UserError, match=sentence):
            FolderSource(str(tmp_path / root), split)
    with pytest.raises(UserError, match="data.data_dir is empty"):
        FolderSource("", "train")


def test_no_test_split():
    with pytest.raises(UserError, match="data.test_split is empty.*monitor.every_epochs"):
        make_source(data_config(source="folder", data_dir="anywhere", test_split=""), "test")


def test_unknown_kind_of_source():
    with pytest.raises(UserError, match="data.source is 'foto'; it must be photographs, tfds, folder or arrays"):
        make_source(data_config(source="foto"), "train")


def test_sources_without_tensorflow(tmp_path):
    """`import bt_jax` and images in memory must work where TensorFlow is absent."""
    write_folder(tmp_path / "train", {"a": 1, "b": 1})
    program = f"""
import sys
sys.modules["tensorflow"] = None  # an import of it fails
from bt_jax.config.schema import default
from bt_jax.data.sources.base import make_source
from bt_jax.errors import UserError
config = default().data
config.update(source="folder", data_dir={str(tmp_path)!r})
assert len(make_source(config, "train")) == 2
config.source = "photographs"
config.photographs.train_per_class = 1
assert len(make_source(config, "train")) == 17
config.update(source="tfds", name="cifar10")
try:
    make_source(config, "train")
except UserError as error:
    assert "pip install tensorflow" in str(error), error
else:
    raise AssertionError("no error")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# --- the cache


def test_cache_reads_nothing_twice_and_keeps_to_its_limit():
    """Four of ten bytes each fit into 45; what is empty is asked for again; the order of the examples is kept."""
    asked = []

    def read(examples):
        asked.extend(examples)
        return [b"" if example == 2 else bytes([example]) * 10 for example in examples]

    cache = BytesCache(45)
    for _ in range(2):
        for examples in ([3, 1, 2], [5, 0, 4, 3]):
            found = cache.get(np.array(examples), read)
            assert [len(content) and content[0] for content in found] == [e if e != 2 else 0 for e in examples]
    assert asked == [3, 1, 2, 5, 0, 4, 2, 4] and cache.size == 40


def test_folder_with_a_cache_gives_what_is_in_the_files(tmp_path):
    """Also once the files are gone; of a file that was gone before, nothing."""
    write_folder(tmp_path / "train", {"a": 3})
    source = FolderSource(str(tmp_path), "train", cache_bytes=10**6)
    contents = [pathlib.Path(path).read_bytes() for path in source.paths]
    os.unlink(source.paths[2])
    for _ in range(2):
        items, labels = source.fetch(np.array([1, 0, 2]))
        assert items.tolist() == [contents[1], contents[0], b""] and labels.tolist() == [0, 0, 0]
        for path in source.paths[:2]:
            if os.path.exists(path):
                os.unlink(path)
