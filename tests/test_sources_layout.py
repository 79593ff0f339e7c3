"""bt_jax/data/sources/layout.py: every layout that people have, where labels come from, and the test part."""

import random

import numpy as np
import pytest
from test_sources_listing import touch

from bt_jax.data.sources.folder import FolderSource
from bt_jax.data.sources.layout import find_images, has_split, in_test_part, is_whole, roots_of
from bt_jax.errors import UserError

LAYOUTS = {
    "splits": (["train/a/1.png", "train/b/2.png", "test/a/3.png"], ["a/1.png", "b/2.png"], ("a", "b")),
    "one class": (["train/all/1.png", "train/all/x/2.png"], ["all/1.png", "all/x/2.png"], ("all",)),
    "a flat split": (["train/1.png", "train/2.png"], ["1.png", "2.png"], ()),
    "classes": (["a/1.png", "b/x/2.png"], ["a/1.png", "b/x/2.png"], ("a", "b")),
    "one folder": (["photos/1.png", "photos/2019/2.png"], ["photos/1.png", "photos/2019/2.png"], ()),
    "flat": (["1.png", "2.png"], ["1.png", "2.png"], ()),
    "mixed": (["1.png", "a/2.png", "b/3.png"], ["1.png", "a/2.png", "b/3.png"], ()),
    "a list": (["images/1.png", "images/2.png"], ["images/2.png"], ()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    files, expected, classes = LAYOUTS[layout]
    touch(tmp_path, *files)
    (tmp_path / "list.txt").write_text("images/2.png\n")
    root = tmp_path / "list.txt" if layout == "a list" else tmp_path
    found = find_images(str(root), "train", other="test")
    assert list(found.relative) == expected and found.class_names == classes
    within = tmp_path / "train" if files[0].startswith("train") else tmp_path
    assert list(found.paths) == [f"{within}/{name}" for name in expected]
    numbers = [classes.index(name.split("/")[0]) if classes else -1 for name in expected]
    assert found.labels.dtype == np.int32 and found.labels.tolist() == numbers
    beside = [notice for notice in found.notices if "lie beside 2 folder(s) of images, which are no classes" in notice]
    assert len(beside) == (layout == "mixed")
    assert set(find_images(str(root), "train", labels="none").labels) == {-1}


def test_the_start_says_what_was_understood(tmp_path):
    for i in range(12):
        touch(tmp_path, f"a/{i}.png", f"b/{i}.png")
    (tmp_path / "labels.csv").write_text("".join(f"{name}/{i}.png,{i % 3}\n" for name in "ab" for i in range(12)))
    words = {
        "auto": "24 images, 2 classes by folders",
        "none": "24 images, no labels",
        "folders": "24 images, 2 classes by folders",
        f"{tmp_path}/labels.csv": f"24 images, 3 classes from {tmp_path}/labels.csv",
    }
    for labels, expected in words.items():
        assert FolderSource(str(tmp_path), "train", labels=labels).described() == expected
    source = FolderSource(str(tmp_path), "train", labels="none")
    source._length = 48213
    assert source.described() == "48 213 images, no labels"


def test_all_of_a_folder_with_splits(tmp_path):
    touch(tmp_path, "train/a/1.png", "test/a/2.png", "val/b/3.png")
    found = find_images(str(tmp_path), ".")
    assert list(found.relative) == ["test/a/2.png", "train/a/1.png", "val/b/3.png"] and found.class_names == ()
    assert found.name == str(tmp_path)


def test_a_split_may_be_a_list(tmp_path):
    touch(tmp_path, "images/1.png", "images/2.png", "images/3.png")
    (tmp_path / "train.csv").write_text("path,label\nimages/1.png,x\nimages/3.png,y\n")
    (tmp_path / "val.txt").write_text("images/2.png x\n")
    train = find_images(str(tmp_path), "train.csv", other="val.txt")
    assert list(train.relative) == ["images/1.png", "images/3.png"] and train.class_names == ("x", "y")
    assert list(find_images(str(tmp_path), "val.txt", other="train.csv", use="test").relative) == ["images/2.png"]
    assert find_images(str(tmp_path), "train.csv", labels="none").class_names == ()
    assert find_images(str(tmp_path), "train.csv", labels="folders").class_names == ("images",)


def test_several_roots(tmp_path):
    """Their images in one order, whichever comes first; labels are those of all; a name with a comma is one folder."""
    touch(
        tmp_path,
        "x/train/b/1.png",
        "x/train/a/2.png",
        "y/train/a/3.png",
        "y/train/c/4.png",
        "y/test/a/5.png",
        "p,q/1.png",
    )
    both = [find_images(f"{tmp_path}/{one},{tmp_path}/{two}", "train", other="test") for one, two in ("xy", "yx")]
    for found in both:
        assert list(found.relative) == ["a/2.png", "a/3.png", "b/1.png", "c/4.png"]
        assert found.labels.tolist() == [0, 0, 1, 2] and found.class_names == ("a", "b", "c")
        assert list(found.paths)[1] == f"{tmp_path}/y/train/a/3.png"
    test = find_images(f"{tmp_path}/x,{tmp_path}/y", "test", other="train", use="test")
    assert list(test.relative) == ["a/5.png"]
    assert [str(root) for root in roots_of(f"{tmp_path}/p,q")] == [f"{tmp_path}/p,q"]
    source = FolderSource(f"{tmp_path}/x,{tmp_path}/y", "train")
    assert source.path(0) == "train/a/2.png"
    with pytest.raises(UserError, match="there is no image folder .*/z/train"):
        find_images(f"{tmp_path}/x,{tmp_path}/z", "train")


def test_the_same_path_in_two_roots(tmp_path):
    touch(tmp_path, "x/a/1.png", "x/b/2.png", "y/a/1.png", "y/b/2.png")
    with pytest.raises(
        UserError, match=r"2 image\(s\) have the same path in several folders .*x/a/1.png and .*y/a/1.png; name"
    ):
        find_images(f"{tmp_path}/x,{tmp_path}/y", "train")


@pytest.mark.parametrize("within", ["", "train/"])
def test_a_test_part(tmp_path, within):
    """Train and test images share none and lack none; which it is depends on nothing but an image's path."""
    names = [f"{c}/{i}.png" for c in "ab" for i in range(300)]
    touch(tmp_path, *(within + name for name in names))
    parts = [
        find_images(str(tmp_path), *splits, use=use, test_fraction=0.2)
        for use, *splits in (("train", "train"), ("test", "test"))
    ] if not within else [
        find_images(str(tmp_path), "train", other="test", test_fraction=0.2),
        find_images(str(tmp_path), "test", other="train", use="test", test_fraction=0.2),
    ]  # fmt: skip
    train, test = (list(part.relative) for part in parts)
    assert sorted(train + test) == sorted(names) and not set(train) & set(test)
    assert 80 < len(test) < 160 and parts[0].class_names == parts[1].class_names == ("a", "b")
    assert parts[1].name.endswith(", test part")
    assert f"{len(test)} more images are set aside for tests, by data.test_fraction 0.2" in parts[0].notices
    touch(tmp_path, *(f"{within}c/{i}.png" for i in range(9)))
    again = find_images(str(tmp_path), "test", other="train", use="test", test_fraction=0.2)
    assert [name for name in again.relative if not name.startswith("c")] == test
    touch(tmp_path, "test/a/0.png")  # now there is a split
    if within:
        assert len(find_images(str(tmp_path), "train", other="test", test_fraction=0.2).relative) == 609


@pytest.mark.parametrize("order", ["xy", "yx"])
@pytest.mark.parametrize("within", ["", "train/"])
def test_a_test_part_of_one_of_two_roots(tmp_path, order, within):
    """The other one has test images: all of these are tested, and none of its train images is set aside."""
    touch(tmp_path, *(f"x/train/a/{i}.png" for i in range(60)), *(f"x/test/b/{i}.png" for i in range(60)))
    touch(tmp_path, *(f"y/{within}{c}/y{i}.png" for c in "ab" for i in range(60)))
    roots = ",".join(f"{tmp_path}/{name}" for name in order)
    train = find_images(roots, "train", other="test", test_fraction=0.3)
    test = find_images(roots, "test", other="train", use="test", test_fraction=0.3)
    assert not set(train.paths) & set(test.paths) and len(train.paths) + len(test.paths) == 240
    of_x = [sorted(path for path in part.paths if path.startswith(f"{tmp_path}/x/")) for part in (train, test)]
    assert of_x == [sorted(f"{tmp_path}/x/{part}/{i}.png" for i in range(60)) for part in ("train/a", "test/b")]
    assert 10 < len(test.paths) - 60 < 70
    for part in (train, test):
        assert [path.rsplit("/", 2)[1] for path in part.paths] == ["ab"[label] for label in part.labels]


def test_the_hash_is_the_same_on_every_machine():
    """The numbers are frozen: with others, images would change sides. A larger part has all of a smaller one."""
    rng = random.Random(0)
    names = ["".join(rng.choices("abc/é\udcff", k=12)) for _ in range(2000)]
    assert [in_test_part(f"a/{i}.png", 0.25) for i in range(8)] == [
        False,
        False,
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    for fraction in (0.05, 0.3):
        inside = [in_test_part(name, fraction) for name in names]
        assert abs(np.mean(inside) - fraction) < 0.03
        assert not any(small and not in_test_part(name, 0.5) for small, name in zip(inside, names, strict=True))
    assert not any(in_test_part(name, 0.0) for name in names)


def test_labels_of_a_file(tmp_path):
    """Of all classes in it, so that both splits have the same; a split that it does not name has its folders' labels."""
    touch(tmp_path, "train/n1/1.png", "train/n2/2.png", "val/x.png", "val/y.png")
    (tmp_path / "val.csv").write_text("image,label\nx,n2\ny,n1\n")
    val = find_images(str(tmp_path), "val", labels=f"{tmp_path}/val.csv", use="test", other="train")
    train = find_images(str(tmp_path), "train", labels=f"{tmp_path}/val.csv", other="val")
    assert val.class_names == train.class_names == ("n1", "n2") and val.labels.tolist() == [1, 0]
    for number in range(11):
        touch(tmp_path, f"numbers/train/{number}/1.png", f"numbers/val/x{number}.png")
    (tmp_path / "numbers.csv").write_text("image,label\n" + "".join(f"x{i},{i}\n" for i in range(11)))
    val = find_images(f"{tmp_path}/numbers", "val", labels=f"{tmp_path}/numbers.csv", use="test", other="train")
    train = find_images(f"{tmp_path}/numbers", "train", labels=f"{tmp_path}/numbers.csv", other="val")
    assert val.class_names == train.class_names == tuple(map(str, range(11)))  # in the order of numbers
    assert [train.class_names[label] for label in train.labels] == [path.split("/")[0] for path in train.relative]
    (tmp_path / "all.csv").write_text("path,label\ntrain/n1/1.png,0\ntrain/n2/2.png,1\nval/x.png,2\nval/y.png,0\n")
    for split, labels in (("train", [0, 1]), ("val", [2, 0])):
        found = find_images(str(tmp_path), split, labels=f"{tmp_path}/all.csv")
        assert found.class_names == ("0", "1", "2") and found.labels.tolist() == labels


@pytest.mark.parametrize(
    ("files", "split", "more", "sentence"),
    [
        (["1.png"], "train", {"labels": "folders"}, "1 of the 1 images in .* lie in no folder, but data.labels is 'folders'"),
        (["a/1.png"], "train", {"labels": "label.csv"}, "data.labels is 'label.csv', which is no file; it must be 'auto', 'none', 'f"),
        (["1.png"], "train", {"labels": "{}/labels.csv"}, "has no label of any of the 1 images of .*, such as 1.png"),
        (["a/1.png"], "test", {"use": "test"}, r"no image folder .*/test \(.* holds a\) for the test images.* set data.test_fraction"),
        (["1.png"], "train", {"test_fraction": 0.999}, "data.test_fraction is 0.999, which leaves .* with 1 images no train part"),
        (["train/1.png", "car/2.png"], "train", {}, "holds images beside car, which do so too, .* set data.train_split to '.'"),
        (["test/a/1.png", "b/2.png"], "train", {}, r"set data.train_split to '.' to train on all images of .*[^y]\.$"),
        (["test/a/1.png", "b/2.png"], "train", {"other": "test"}, "train on all images of .*, those of test too, with data.test_split empty"),
        (["training/a/1.png"], "train", {}, "or set data.train_split to 'training'"),
    ],
)  # fmt: skip
def test_what_is_wrong(tmp_path, files, split, more, sentence):
    touch(tmp_path, *files)
    (tmp_path / "labels.csv").write_text("path,label\nother.png,x\n")
    more = {name: value.format(tmp_path) if isinstance(value, str) else value for name, value in more.items()}
    with pytest.raises(UserError, match=sentence):
        find_images(str(tmp_path), split, **more)


def test_a_list_without_a_test_part(tmp_path):
    touch(tmp_path, "1.png")
    (tmp_path / "list.txt").write_text("1.png\n")
    with pytest.raises(UserError, match="is a list without splits.*set data.test_fraction"):
        find_images(f"{tmp_path}/list.txt", "test", use="test")


def test_which_folders_have_splits(tmp_path):
    touch(tmp_path, "x/train/a/1.png", "y/a/1.png", "list.txt")
    for root, there in (("x", True), ("y", False), ("list.txt", False)):
        assert has_split(f"{tmp_path}/{root}", "train") == there != is_whole(f"{tmp_path}/{root}", "train")
    assert not has_split(f"{tmp_path}/x", "")
    assert is_whole(f"{tmp_path}/x", ".") and is_whole(f"{tmp_path}/y", ".")


def test_labels_and_files_tell_fingerprints(tmp_path):
    touch(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(3)))
    for name, of in (("one", lambda i: i % 2), ("two", lambda i: i % 3)):
        (tmp_path / f"{name}.csv").write_text("".join(f"{c}/{i}.png,{of(i)}\n" for c in "ab" for i in range(3)))
    kinds = ["auto", "none", f"{tmp_path}/one.csv", f"{tmp_path}/two.csv"]
    found = [FolderSource(str(tmp_path), "train", labels=kind).fingerprint for kind in kinds]
    assert len(set(found)) == 4
    assert FolderSource(str(tmp_path), "train", labels="folders").fingerprint == found[0]
