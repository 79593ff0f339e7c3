"""bt_jax/data/subsets.py: which labels may be used, from a seed or a list."""

import pathlib
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from bt_jax import config as config_lib
from bt_jax.data.eval_batches import eval_batches
from bt_jax.data.order import permutation
from bt_jax.data.sources.base import ArraySource, EncodedSource, StreamSource
from bt_jax.data.sources.folder import FolderSource
from bt_jax.data.sources.make import make_source
from bt_jax.data.subsets import check_apart, check_labels, fingerprint, labels_of, listed, stratified, take
from bt_jax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of 4, 6 and 2 images, each of one colour, with ImageNet's kind of names."""
    root = tmp_path_factory.mktemp("images")
    for label, (name, count) in enumerate((("n01", 4), ("n02", 6), ("n03", 2))):
        (root / "train" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (100 * label, i, 0)).save(root / "train" / name / f"{name}_{i}.png")
    return FolderSource(str(root), "train")


class Stream(StreamSource):
    """A folder's files in a row."""

    def __init__(self, folder):
        super().__init__("stream", len(folder), folder.class_names)
        self._folder = folder

    def records(self, seed, epoch):
        from bt_jax.data.tensorflow_import import tf

        contents = [pathlib.Path(path).read_bytes() for path in self._folder.paths]
        return tf.data.Dataset.from_tensor_slices((contents, self._folder.labels))


def pixels(source):
    config = config_lib.default().data
    config.image_size, config.eval_resize = 8, 0
    batches = list(eval_batches(source, config, batch_size=4, rows=np.arange(4)))
    images, labels, masks = (np.concatenate([b[name] for b in batches]) for name in ("image", "label", "mask"))
    return images[masks], labels[masks]


@pytest.mark.parametrize("kind", ["folder", "array", "stream"])
def test_a_part_is_a_source(folder, kind):
    """The right images with the right labels, of any kind of source."""
    images, labels = pixels(folder)
    whole = {
        "folder": folder,
        "array": ArraySource("array", images, labels, folder.class_names),
        "stream": Stream(folder),
    }
    whole = whole[kind]
    np.testing.assert_array_equal(labels_of(whole), folder.labels)
    part = take(whole, np.array([1, 5, 11]), "three of them")
    assert (part.name, len(part), part.class_names) == ("three of them", 3, folder.class_names)
    assert part.fingerprint != take(whole, np.array([1, 4, 11]), "three others").fingerprint != whole.fingerprint
    assert part.fingerprint == take(whole, np.array([1, 5, 11]), "by another name").fingerprint
    np.testing.assert_array_equal(labels_of(part), [0, 1, 2])
    found, found_labels = pixels(part)
    np.testing.assert_array_equal(found, images[[1, 5, 11]])
    np.testing.assert_array_equal(found_labels, [0, 1, 2])
    assert ("n02_1.png" in part.place(1)) == (kind == "folder")


def test_stratified():
    """The share of each class, at least one; a function of the seed; a smaller share lies within a larger one."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [1000, 200, 3]))
    one, ten = (stratified(labels, 3, seed=4, percent=percent) for percent in (1, 10))
    assert np.bincount(labels[one]).tolist() == [10, 2, 1] and np.bincount(labels[ten]).tolist() == [100, 20, 1]
    assert np.isin(one, ten).all() and (np.diff(one) > 0).all()
    np.testing.assert_array_equal(one, stratified(labels, 3, seed=4, percent=1))
    other = stratified(labels, 3, seed=5, percent=1)
    assert fingerprint(one) != fingerprint(other) and len(fingerprint(one)) == 16
    assert np.bincount(labels[stratified(labels, 3, seed=0, per_class=3)]).tolist() == [3, 3, 3]
    with pytest.raises(UserError, match="class 2 has only 3 images; lower finetune.per_class, which is 4"):
        stratified(labels, 3, seed=0, per_class=4)


def test_stratified_is_the_plain_formula():
    """Class by class, the first of its images in a random order; of many classes, some of them empty."""
    labels = np.random.default_rng(1).integers(0, 300, 5000).astype(np.uint16)
    labels[labels == 7] = 8
    order = permutation(5, 0, len(labels))
    own = [order[labels[order] == label] for label in range(301)]
    expected = np.sort(np.concatenate([part[: max(1, int(len(part) * 0.1 + 0.5))] for part in own]))
    np.testing.assert_array_equal(stratified(labels, 301, seed=5, percent=10), expected)
    few = labels[labels < 7]
    order = permutation(6, 0, len(few))
    expected = np.sort(np.concatenate([order[few[order] == label][:2] for label in range(7)]))
    np.testing.assert_array_equal(stratified(few, 7, seed=6, per_class=2), expected)


class Records(EncodedSource):
    """Ten thousand records, which note how many are read at once."""

    def __init__(self):
        super().__init__("records", 10_000, ("a", "b", "c"))
        self.read = []

    def fetch(self, examples):
        self.read.append(len(examples))
        return np.full(len(examples), b"", object), (examples % 3).astype(np.int32)


def test_labels_in_records_are_read_in_blocks_and_once():
    source = Records()
    part = take(source, np.arange(0, 10_000, 2), "a half")
    np.testing.assert_array_equal(part.labels, np.arange(0, 10_000, 2) % 3)
    assert source.read == [4096, 904]
    before = source.fingerprint
    np.testing.assert_array_equal(labels_of(source), np.arange(10_000) % 3)
    assert sum(source.read) == 15_000 and max(source.read) == 4096
    assert labels_of(source) is labels_of(source)
    np.testing.assert_array_equal(take(source, np.array([4, 9]), "two").labels, [1, 0])
    assert sum(source.read) == 15_000
    del source.fingerprint  # which what was read does not change
    assert source.fingerprint == before


def test_a_list_as_other_systems_write_it(folder, tmp_path):
    """With a byte order mark, backslashes and their ends of lines."""
    (tmp_path / "list.txt").write_bytes("\ufeffn01\\n01_1.png\r\n.\\n02\\n02_3.png\r\n".encode())
    assert [folder.relative[i] for i in listed(folder, str(tmp_path / "list.txt"))] == [
        "n01/n01_1.png",
        "n02/n02_3.png",
    ]


def test_listed(folder, tmp_path):
    """By name, in any order; the error counts the missing ones."""
    path = tmp_path / "1percent.txt"
    path.write_text("n02_3.png\nn01_0.png\nn03_1.png\n")
    np.testing.assert_array_equal(listed(folder, str(path)), [0, 7, 11])
    path.write_text("n02_3.png\nn02_9.png\nn09_1.png\n")
    with pytest.raises(
        UserError, match=r"2 of the 3 files that .*1percent.txt names are missing in .*: n02_9.png, n09_1.png"
    ):
        listed(folder, str(path))
    path.write_text("n02_3.png\nn02/n02_3.png\n")
    with pytest.raises(UserError, match="names 1 file.* more than once: n02/n02_3.png"):
        listed(folder, str(path))
    path.write_text("")
    with pytest.raises(UserError, match="is empty"):
        listed(folder, str(path))
    with pytest.raises(UserError, match="cannot be read"):
        listed(folder, str(tmp_path / "nowhere.txt"))
    with pytest.raises(UserError, match="is not an image folder.*imagenet2012_subset/1pct"):
        listed(Stream(folder), str(path))


def test_listed_in_classes_with_folders(tmp_path):
    """As much of the path as it takes: the class and the name are not enough if classes have folders of the same names."""
    for i, place in enumerate(["cat/a/0", "cat/b/0", "dog/a/0", "dog/a/1", "0"]):
        path = tmp_path / "set" / "train" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(path)
    source = FolderSource(str(tmp_path / "set"), "train", labels="none")
    chosen = tmp_path / "list.txt"

    def names_of(*lines):
        chosen.write_text("\n".join(lines))
        return [source.relative[i] for i in listed(source, str(chosen))]

    assert names_of("dog/a/0.png", "cat/b/0.png", "1.png") == ["cat/b/0.png", "dog/a/0.png", "dog/a/1.png"]
    assert names_of("b/0.png", "0.png") == ["0.png", "cat/b/0.png"], "all of a path comes before the end of others"
    with pytest.raises(
        UserError, match=r"1 of the 2 files .* in more than one folder of .*: cat/a/0.png and dog/a/0.png; name"
    ):
        names_of("a/0.png", "1.png")
    with pytest.raises(UserError, match=r"more than once: dog/a/1.png"):
        names_of("1.png", "a/1.png")


@pytest.mark.parametrize(
    ("files", "settings", "count"),
    [
        (["test/0", "a/1", "b/2"], {"train_split": ".", "labels": "none"}, "all"),
        (["0", "1", "holdout/2", "holdout/3"], {"test_split": "holdout", "labels": "none"}, "all"),
        (["train/a/0", "train/b/1"], {"test_split": "train"}, "all"),
        (["train/a/0", "train/b/1", "test/a/0", "test/b/1"], {}, ""),
        (["a/0", "a/1", "a/2", "b/3", "b/4", "b/5"], {"test_fraction": 0.5}, ""),
        (["test/a/0", "test/b/1", "x/2"], {"train_split": "list.csv", "labels": "none"}, "1 of the 2"),
    ],
)
def test_test_images_among_train_images(tmp_path, files, settings, count):
    """Where one split lies within the other; the parts of one folder have no image in common."""
    for i, place in enumerate(files):
        path = tmp_path / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(path)
    (tmp_path / "list.csv").write_text("path\nx/2.png\ntest/a/0.png\n")
    data = config_lib.default().data
    data.update(source="folder", data_dir=str(tmp_path), **settings)
    train, test = make_source(data, "train"), make_source(data, "test")
    if not count:
        check_apart(train, test)
        return
    with pytest.raises(
        UserError, match=f"^{count} test images .* are also train images .*; name splits without common"
    ):
        check_apart(train, test)


@pytest.mark.parametrize("way", ["folder", "spelling", "files", "list", "copy", "other"])
def test_test_images_that_are_train_images_by_another_path(tmp_path, way):
    """By links to folders or files, by another spelling in a list, or as copies; not images that only have such names and sizes."""
    rng = np.random.default_rng(0)
    for i in range(4):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    test, settings = tmp_path / "test", {}
    if way == "folder":
        test.symlink_to("train")
    elif way == "spelling":
        (tmp_path / "link").symlink_to(".")
        settings = {"test_split": "link/train"}
    elif way == "files":
        for name in "ab":
            (test / name).mkdir(parents=True)
            for path in (tmp_path / "train" / name).iterdir():
                (test / name / f"other{path.name}").symlink_to(path)
    elif way == "list":
        (tmp_path / "link").symlink_to("train")
        (tmp_path / "test.csv").write_text(
            "path,label\n" + "".join(f"link/{'ab'[i % 2]}/{i}.bmp,{'ab'[i % 2]}\n" for i in range(4))
        )
        settings = {"test_split": "test.csv"}
    else:
        shutil.copytree(tmp_path / "train", test)
    if way == "other":
        for path in test.rglob("*.bmp"):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    data = config_lib.default().data
    data.update({"source": "folder", "data_dir": str(tmp_path)} | settings)
    train, test = make_source(data, "train"), make_source(data, "test")
    if way == "other":
        check_apart(train, test)
        return
    with pytest.raises(UserError, match="^all test images .* are also train images"):
        check_apart(train, test)


def test_test_images_among_train_images_elsewhere(tmp_path):
    """Arrays that are the same; images that archives of both splits hold, by their places in them."""
    images, labels = np.arange(4 * 48, dtype=np.uint8).reshape(4, 4, 4, 3), np.array([0, 1, 0, 1])
    one, same = (ArraySource(name, images, labels) for name in ("one", "the same"))
    check_apart(one, ArraySource("another", images + 1, labels))
    with pytest.raises(UserError, match=r"all test images \(the same\) are also train images \(one\)"):
        check_apart(one, same)
    for name, numbers in (("a", (0, 1)), ("b", (2, 3))):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for number in numbers:
                Image.fromarray(images[number]).save(tmp_path / f"{number}.png")
                archive.add(tmp_path / f"{number}.png", f"{number}.png")
    data = config_lib.default().data
    found = {}
    for name, pattern in (("all", "{a,b}.tar"), ("a", "a.tar"), ("b", "b.tar")):
        data.update(source="tar", data_dir=str(tmp_path / pattern), train_split=".", test_split="")
        found[name] = make_source(data, "train")
    check_apart(found["a"], found["b"])
    with pytest.raises(UserError, match="all test images"):
        check_apart(found["all"], found["b"])
    with pytest.raises(UserError, match="2 of the 4 test images"):
        check_apart(found["b"], found["all"])


def test_listed_names_that_stand_in_two_classes(tmp_path):
    """Refused, with both named; with their classes they are distinct. Names may contain spaces."""
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for file in ("1.png", f"my {name}.png"):
            Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / file)
    source, path = FolderSource(str(tmp_path), "train"), tmp_path / "list.txt"
    path.write_text("1.png\nmy dog.png\n")
    with pytest.raises(
        UserError, match="1 of the 2 files .* more than one folder of .*: cat/1.png and dog/1.png; name them as"
    ):
        listed(source, str(path))
    path.write_text("dog/1.png\n./cat/1.png\nmy dog.png\n")
    np.testing.assert_array_equal(listed(source, str(path)), [0, 2, 3])
    path.write_text("bird/1.png\n")
    with pytest.raises(UserError, match="1 of the 1 files .* missing in .*: bird/1.png"):
        listed(source, str(path))


def test_labels_of_any_integer_type():
    """As they come from files: numpy 2's unsigned numbers have no place for -1."""
    for dtype in (np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int64):
        labels = np.array([2, 0, 1, 1], dtype)
        source = ArraySource("set", np.zeros((4, 4, 4, 3), np.uint8), labels)
        assert source.labels.dtype == np.int32 and source.labels.tolist() == [2, 0, 1, 1] and source.num_classes == 3
        check_labels(labels, source)
        assert stratified(labels, 3, seed=0, per_class=1).shape == (3,)
        with pytest.raises(UserError, match="run from 0 to 3"):
            check_labels(np.array([0, 3], dtype), source)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, 1, 1, 0], r"1 of the 3 classes have no image in set: dog"),
        ([0, 1, 3], r"run from 0 to 3; they must lie in 0 to 2"),
        ([0, -1, 2], r"run from -1 to 2"),
        ([-1, -1], r"set has no labels \(all are -1\)"),
    ],
)
def test_bad_labels(labels, sentence):
    source = ArraySource("set", np.zeros((3, 4, 4, 3), np.uint8), np.arange(3), ("bee", "cat", "dog"))
    with pytest.raises(UserError, match=sentence):
        check_labels(np.array(labels), source)
    check_labels(np.array([0, 0]), source, all_classes=False)


def test_arrays_without_labels():
    with pytest.raises(UserError, match="set has no labels"):
        ArraySource("set", np.zeros((3, 4, 4, 3), np.uint8), np.full(3, -1), ("bee", "cat", "dog"))
