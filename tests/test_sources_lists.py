"""bt_jax/data/sources/lists.py: lists of images and files of labels, as people write them, and what is wrong with some."""

import pytest
from etils import epath
from test_sources_listing import touch

from bt_jax.data.sources.lists import labels_for, listed_images, numbered, read_table
from bt_jax.errors import UserError


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return epath.Path(path)


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("a.txt", "x/1.png\n\n./x/my cat.JPG\r\n", [("x/1.png", ""), ("./x/my cat.JPG", "")]),
        ("a.txt", "x/1.png 3\nmy cat.jpg\tcat one\nb.jpeg  7\n", [("x/1.png", "3"), ("my cat.jpg", "cat one"), ("b.jpeg", "7")]),
        ("a.txt", "\ufeffx.png\n", [("x.png", "")]),
        ("a.csv", "x.png,cat\ny.png,dog\n", [("x.png", "cat"), ("y.png", "dog")]),
        ("a.csv", "path,label\nx.png,cat\n", [("x.png", "cat")]),
        ("a.CSV", "label,size,Filename\ncat,3,x.png\n", [("x.png", "cat")]),
        ("a.csv", 'path,label\n"a, b.png","c ""d"""\n', [("a, b.png", 'c "d"')]),
        ("a.csv", "path,width,height\nx.png,3,4\n", [("x.png", "")]),
        ("a.csv", "path\nx.png\n", [("x.png", "")]),
        ("a.csv", "ImageId,PredictionString\nILSVRC2012_val_00000001,n03 1 2 3 4 n03 5 6 7 8\n", [("ILSVRC2012_val_00000001", "n03")]),
    ],
)  # fmt: skip
def test_how_tables_are_written(tmp_path, name, text, rows):
    assert read_table(write(tmp_path / name, text), "data.labels") == rows


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty; a list has an image file in each line"),
        (b"\xff\xfe\x00bad", "cannot be read as text"),
        (b"path,label\n,cat\nx.png,dog\n,cat\n", r"has 2 line\(s\) without a path: 1, 3"),
    ],
)
def test_tables_that_are_none(tmp_path, content, sentence):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=f"{tmp_path}/a.csv, which data.data_dir names, .*{sentence}"):
        read_table(epath.Path(tmp_path / "a.csv"), "data.data_dir")


def test_a_list_of_images(tmp_path):
    """In its order, relative to its folder or absolute, with labels or without."""
    touch(tmp_path, "far/2.png", "near/1.png", "near/0.png")
    text = f"near/1.png b\n{tmp_path}/far/2.png a\n./near//0.png b\n"
    paths, relative, labels = listed_images(write(tmp_path / "list.txt", text))
    assert list(relative) == ["near/1.png", f"{tmp_path}/far/2.png", "near/0.png"] and labels == ["b", "a", "b"]
    assert list(paths) == [f"{tmp_path}/{name}" for name in ("near/1.png", "far/2.png", "near/0.png")]
    assert listed_images(write(tmp_path / "list.txt", "near/0.png\n"))[2] is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a/1.png\na\0/2.png\n", r"1 of the 2 files that .*list.txt names are missing, the first is .*a\0/2.png"),
        (
            "a/1.png\na/2.png\nb/3.png\n",
            r"2 of the 3 files that .*list.txt names are missing, the first is .*/a/2.png; paths are",
        ),
        ("a/1.png\n./a/1.png\n", r"names 1 file\(s\) more than once: .*/a/1.png"),
        ("a/1.png\nnotes.md\n", r"names 1 file\(s\) that are no images, the first is notes.md; a list has"),
        ("a/1.png x\na/4.png\n", "1 of the 2 lines of .*list.txt have no label, the first is a/4.png"),
    ],
)
def test_lists_that_are_wrong(tmp_path, text, sentence):
    touch(tmp_path, "a/1.png", "a/4.png", "notes.md")
    with pytest.raises(UserError, match=sentence):
        listed_images(write(tmp_path / "list.txt", text))


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        (["10", "9", "2"], ("2", "9", "10"), [2, 1, 0]),
        (["10", "9", "x"], ("10", "9", "x"), [0, 1, 2]),
    ],
)
def test_labels_as_numbers(labels, names, numbers):
    found, classes = numbered(labels)
    assert classes == names and found.tolist() == numbers
    assert numbered(labels[:1], [*labels, "z"])[1] == (*sorted(names), "z")


@pytest.mark.parametrize("way", ["a/{}.png", "train/a/{}.png", "{}.png", "{}"])
def test_ways_to_name_an_image(tmp_path, way):
    """By its path, with the split or without, or by the name of its file; rows of other images do not matter."""
    rows = "".join(f"{way.format(i)},{'xyz'[i]}\n" for i in range(3)) + "other/9.png,w\n"
    path = write(tmp_path / "labels.csv", "path,label\n" + rows)
    images = [f"a/{i}.png" for i in (2, 0, 1)]
    assert labels_for(images, ["train/"], path) == (["z", "x", "y"], ["x", "y", "z", "w"])
    assert labels_for(["b/7.png"], ["train/"], path) == (None, ["x", "y", "z", "w"])


@pytest.mark.parametrize("ending", ["", ".png"])
def test_titles_that_are_not_known(tmp_path, ending):
    """They would be a class. A first line is one of an image if it names one, here or elsewhere, or has another's label."""
    images = [f"a/{i}f.png" for i in range(4)]
    rows = "".join(f"{i}f{ending},{i % 2}\n" for i in range(4))
    path = write(tmp_path / "labels.csv", "id_code,diagnosis\n" + rows)
    with pytest.raises(
        UserError,
        match="labels.csv, which .* begins with the line 'id_code', 'diagnosis', which .*; call these path and label",
    ):
        labels_for(images, [], path)
    for first in (f"9f{ending},2\n", "nine.jpg,2\n", "nine,1\n", "path,label\nnine,2\n"):
        assert labels_for(images, [], write(tmp_path / "labels.csv", first + rows))[0] == ["0", "1", "0", "1"]
    path = write(tmp_path / "labels.csv", "id_code,diagnosis\n" + rows)
    assert labels_for(["id_code.png"], [], path)[0] == ["diagnosis"]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("a/1.png,x\n", r"has no label of 2 of the 3 images, the first is a/2.png; add them"),
        ("a/1.png,x\na/1.png,y\n", "has several labels of a/1.png"),
        ("a/1.png,x\na/2.png,\n", r"1 line\(s\) of .*, have no label, the first is that of a/2.png"),
        ("1.png,x\n2.png,y\n", "several images are called 1.png; write their paths"),
    ],
)
def test_labels_that_are_wrong(tmp_path, rows, sentence):
    path = write(tmp_path / "labels.csv", "path,label\n" + rows)
    with pytest.raises(UserError, match=sentence):
        labels_for(["a/1.png", "a/2.png", "b/1.png"], [], path)
