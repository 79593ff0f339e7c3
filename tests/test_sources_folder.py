"""bt_jax/data/sources/folder.py: what is found, in which order, and the errors for what is wrong."""

import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from test_sources_base import images_of

from bt_jax.data.sources.folder import FolderSource
from bt_jax.errors import UserError


def write_folder(root, classes, ending=".png"):
    """root/<class>/<number><ending>, in the given numbers; all images differ."""
    for i, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for j, image in enumerate(images_of(count, 8 + i)):
            Image.fromarray(image).save(root / name / f"{j:03d}{ending}")


def test_folder_is_read_in_the_order_of_names(tmp_path):
    """In any order on the disk; endings in upper or lower case."""
    write_folder(tmp_path / "train", {"zebra": 2, "ant": 3, "Bee": 1})
    os.rename(tmp_path / "train" / "ant" / "001.png", tmp_path / "train" / "ant" / "000.JPEG")
    source = FolderSource(str(tmp_path), "train")
    assert source.class_names == ("Bee", "ant", "zebra")
    assert source.labels.tolist() == [0, 1, 1, 1, 2, 2] and source.labels.dtype == np.int32
    names = ["Bee/000.png", "ant/000.JPEG", "ant/000.png", "ant/002.png", "zebra/000.png", "zebra/001.png"]
    assert [os.path.relpath(path, tmp_path / "train") for path in source.paths] == names
    assert len(source) == 6 and source.notices == ()


def test_a_fingerprint_tells_other_files(tmp_path):
    """By a name, a size or a class; not by where the folder is."""

    def fingerprint(folder):
        return FolderSource(str(folder), "train").fingerprint

    write_folder(tmp_path / "a" / "train", {"cat": 3, "dog": 2})
    expected = fingerprint(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    file = tmp_path / "b" / "train" / "cat" / "001.png"
    assert fingerprint(tmp_path / "b") == expected
    file.write_bytes(file.read_bytes() + b"x")
    other_size = fingerprint(tmp_path / "b")
    file.write_bytes(file.read_bytes()[:-1])
    assert fingerprint(tmp_path / "b") == expected != other_size
    file.rename(file.parent / "\udcff.png")
    other_name = fingerprint(tmp_path / "b")
    assert other_name not in (expected, other_size)
    (tmp_path / "b" / "train" / "dog").rename(tmp_path / "b" / "train" / "bird")
    assert fingerprint(tmp_path / "b") not in (expected, other_size, other_name)


def test_hidden_files_are_passed_over_and_counted(tmp_path):
    write_folder(tmp_path / "train", {"a": 1, "b": 1})
    for name in (".DS_Store", "a/.DS_Store", "a/._000.png", "b/Thumbs.db"):
        (tmp_path / "train" / name).write_text("")
    source = FolderSource(str(tmp_path), "train")
    assert len(source) == 2
    assert source.notices == (f"4 hidden file(s) in {tmp_path}/train were skipped",)


def test_files_that_are_no_images_are_passed_over_and_counted(tmp_path):
    """By kind, in one line; the images are what they are without them."""
    write_folder(tmp_path / "train", {"a": 2, "b": 1})
    clean = FolderSource(str(tmp_path), "train")
    for name in ("readme.txt", "a/list.csv", "b/c.heic", "b/d.TXT", "b/LICENSE"):
        (tmp_path / "train" / name).write_text("")
    source = FolderSource(str(tmp_path), "train")
    assert source.notices == (
        f"5 file(s) in {tmp_path}/train that are no images were passed over: 1 .csv, 1 .heic, 2 .txt, 1 without an ending",
    )
    assert source.fingerprint == clean.fingerprint and list(source.paths) == list(clean.paths)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="not on this system")
def test_what_would_never_end_when_read(tmp_path):
    """A pipe or a device, or a link to one, is not an image; a link that leads nowhere is an image that cannot be read."""
    write_folder(tmp_path / "train", {"a": 2, "b": 1})
    os.mkfifo(tmp_path / "train" / "a" / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "train" / "b" / "zeros.jpg")
    os.symlink("/nowhere", tmp_path / "train" / "b" / "lost.jpg")
    source = FolderSource(str(tmp_path), "train")
    assert "passed over: 2 special (such as a pipe)" in source.notices[0]
    assert [os.path.relpath(path, tmp_path / "train") for path in source.paths] == [
        "a/000.png", "a/001.png", "b/000.png", "b/lost.jpg"
    ]  # fmt: skip


def test_folders_inside_a_class_belong_to_it(tmp_path):
    """At any depth; files and folders in the order of their names; a class without images is none."""
    write_folder(tmp_path / "train" / "a", {"000": 2, "001.pn": 1, "002": 1})
    write_folder(tmp_path / "train", {"b": 2})
    Image.fromarray(images_of(1)[0]).save(tmp_path / "train" / "a" / "001.png")
    (tmp_path / "train" / "c" / "d").mkdir(parents=True)
    source = FolderSource(str(tmp_path), "train")
    assert source.class_names == ("a", "b") and source.labels.tolist() == [0] * 5 + [1] * 2
    names = [
        "a/000/000.png",
        "a/000/001.png",
        "a/001.pn/000.png",
        "a/001.png",
        "a/002/000.png",
        "b/000.png",
        "b/001.png",
    ]
    assert list(source.relative) == names
    assert [os.path.relpath(path, tmp_path / "train") for path in source.paths] == names
    assert source.notices == (f"1 folder(s) in {tmp_path}/train hold no images: c",)


@pytest.mark.parametrize(
    ("folder", "classes", "fingerprint"),
    [("train", {"Bee": 2, "ant": 3, "zébra": 2}, "b5dcece87d82036d"), ("one", {"all": 3}, "5b427c924d84741b")],
)
def test_a_folder_as_it_was(tmp_path, folder, classes, fingerprint):
    """The fingerprints of runs that began before other layouts were taken."""
    for name, count in classes.items():
        (tmp_path / folder / name).mkdir(parents=True)
        for i in range(count):
            ending, size = ("jpg", 7 * i) if folder == "one" else ("JPEG" if i % 2 else "png", 10 * i + len(name))
            (tmp_path / folder / name / f"{i}.{ending}").write_bytes(bytes(size))
    source = FolderSource(str(tmp_path), folder)
    assert source.fingerprint == fingerprint and source.class_names == tuple(sorted(classes))
    assert source.labels.tolist() == [i for i, name in enumerate(sorted(classes)) for _ in range(classes[name])]
    assert source.described() == f"{len(source)} images, {len(classes)} classes"


def test_missing_and_empty_folders(tmp_path):
    write_folder(tmp_path / "full" / "train", {"a": 2})
    (tmp_path / "full" / "val").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "hollow" / "train" / "a").mkdir(parents=True)
    (tmp_path / "notes" / "train").mkdir(parents=True)
    for name in ("a.txt", "b.txt", ".c", "d.csv"):
        (tmp_path / "notes" / "train" / name).write_text("")
    for root, split, sentence in [
        ("nowhere", "train", "no image folder .*nowhere/train .*nowhere does not exist"),
        (
            "full",
            "test",
            r"no image folder .*full/test \(.*full holds train, val\).* each class, .*or set data.test_split to 'val'",
        ),
        ("file", "test", r"no image folder .*file/test \(.*file is a file\)"),
        ("full", "val", "val is empty; it must hold a folder of images for each class"),
        ("full", "valid", r"no image folder .*full/valid \(.*full holds train, val\)"),
        ("hollow", "train", r"train holds 1 folder\(s\), but no images \(.jpg, .*"),
        ("notes", "train", r"train holds 1 .csv, 2 .txt, 1 hidden file\(s\), but no images \(.jpg, .*"),
    ]:
        with pytest.raises(UserError, match=sentence):
            FolderSource(str(tmp_path / root), split, use=split if split == "test" else "train")
    with pytest.raises(UserError, match="data.data_dir is empty"):
        FolderSource("", "train")


def test_names_in_results(tmp_path):
    """Relative to data.data_dir, with the split."""
    write_folder(tmp_path / "train", {"a": 1, "b": 1})
    source = FolderSource(str(tmp_path) + "/", "train")
    assert [source.path(i) for i in range(2)] == ["train/a/000.png", "train/b/000.png"]


def test_a_folder_that_is_gone(tmp_path):
    """Reported once, and not as images that do not decode."""
    write_folder(tmp_path / "train", {"a": 3})
    source = FolderSource(str(tmp_path), "train")
    os.rename(tmp_path / "train", tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match="the image folder .*train is gone; bring it back, and the same command resumes"
    ):
        source.exclude({0: "No such file"}, 1.0)
    os.rename(tmp_path / "elsewhere", tmp_path / "train")
    source.exclude({0: "truncated"}, 0.5)
    assert source.bad == {0: "truncated"}


def test_folder_with_a_cache_gives_what_is_in_the_files(tmp_path):
    """Also once the files are gone; a file that was gone before gives nothing."""
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


def test_what_cannot_be_read(tmp_path, monkeypatch):
    """On a disk a bad image; in a store only a file that is gone, as other errors say that the store does not answer."""
    from etils.epath.gpath import PosixGPath

    from bt_jax.data.sources.folder import _content

    def fail(error):
        monkeypatch.setattr(PosixGPath, "read_bytes", lambda path: (_ for _ in ()).throw(error))

    for error in (OSError(5, "Input/output error"), FileNotFoundError("gone")):
        fail(error)
        assert _content(f"{tmp_path}/1.png") == b""
    assert _content("gs://bucket/1.png") == b""
    for error, words in (
        (OSError("503"), "503"),
        (PermissionError("denied"), "denied"),
        (TimeoutError(), "TimeoutError"),
    ):
        fail(error)
        with pytest.raises(
            UserError, match=rf"gs://bucket/1.png cannot be reached \({words}\), .* the same command resumes"
        ):
            _content("gs://bucket/1.png")


def test_a_local_list_of_files_in_a_store(tmp_path, monkeypatch):
    """They are read here, as TensorFlow does not know every store."""
    monkeypatch.setattr("bt_jax.data.sources.lists._missing", lambda files: [])
    (tmp_path / "list.csv").write_text("path\ns3://bucket/1.jpg\ns3://bucket/2.jpg\n")
    (tmp_path / "here.csv").write_text("path\n1.jpg\n")
    assert not FolderSource(str(tmp_path / "list.csv"), "train").gives_paths
    assert FolderSource(str(tmp_path / "here.csv"), "train").gives_paths
