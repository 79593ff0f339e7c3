"""bt_jax/data/sources/tar.py: images in archives are those of a folder, and what is wrong with archives is said."""

import bz2
import gzip
import io
import os
import pathlib
import tarfile

import numpy as np
import pytest
from batches import assert_same, data_config, take
from PIL import Image
from test_sources_base import images_of
from test_sources_folder import write_folder
from test_sources_imagenet import EXPECTED, NAMES, WNIDS, kit

from bt_jax.data import order
from bt_jax.data.sources.folder import FolderSource
from bt_jax.data.sources.make import make_source
from bt_jax.data.sources.make import test_source as source_of_tests
from bt_jax.data.sources.ranges import Ranges
from bt_jax.data.subsets import listed
from bt_jax.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encoded(n=0):
    buffer = io.BytesIO()
    Image.fromarray(images_of(1, 20 + n % 5, 24)[0] // (1 + n % 7)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path, files, *, links=(), **options):
    """An archive of {name: content}, in this order, and (name, target, type) of links."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target, kind in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return path


def shards(folder, count=3, each=8, classes=4):
    """WebDataset's, with labels in .cls and other facts in .json."""
    for shard in range(count):
        files = {}
        for i in range(each):
            n = shard * each + i
            files[f"{n:05d}.jpg"] = encoded(n)
            files[f"{n:05d}.cls"] = f"{n % classes}\n".encode()
            files[f"{n:05d}.json"] = b'{"caption": "x"}'
        write_tar(folder / f"train-{shard:04d}.tar", files)
    return folder


def source_of(place, use="train", **fields):
    return make_source(data_config(source="tar", data_dir=str(place), **fields), use)


def test_an_archive_of_a_folder_gives_its_images(tmp_path):
    """Plain, with ./ in front, in any order, with long names and PAX headers: same order, labels and contents as the folder."""
    write_folder(tmp_path / "set" / "train", {"ant": 5, "bee" * 50: 4, "zébra": 3})
    folder = FolderSource(str(tmp_path / "set"), "train")
    contents = [pathlib.Path(path).read_bytes() for path in folder.paths]
    for name, form in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        archive = tmp_path / name / "train.tar"
        archive.parent.mkdir()
        with tarfile.open(archive, "w", format=form) as opened:
            for path in sorted(folder.paths, reverse=True):
                opened.add(path, "./" + os.path.relpath(path, tmp_path / "set" / "train"))
        source = source_of(archive.parent)
        assert list(source.paths) == list(folder.relative) and source.class_names == folder.class_names
        assert source.labels.tolist() == folder.labels.tolist() and source.labels.dtype == np.int32
        assert source.fetch(np.arange(12))[0].tolist() == contents
        assert source.path(0) == "train.tar/" + folder.relative[0]
    assert source.described() == "12 images, 3 classes by folders"


def test_shards_for_any_threads_processes_and_restarts(tmp_path, light_views):
    """Every image once an epoch, on one process and on two; a run resumes with the same batches."""
    source = source_of(shards(tmp_path / "set"))
    assert len(source) == 24 and source.class_names == ("0", "1", "2", "3")
    assert source.labels.tolist() == [i % 4 for i in range(24)]
    expected = take(source, 5)
    epoch = np.concatenate([batch["example"] for batch in expected[:3]])
    assert sorted(epoch.tolist()) == list(range(24))
    mine, theirs = np.array([0, 1, 2, 6]), np.array([3, 4, 5, 7])
    again = source_of(tmp_path / "set")
    assert again.fingerprint == source.fingerprint
    assert_same(take(again, 5, rows=mine, threads=1), expected, mine)
    assert_same(take(again, 3, rows=theirs, start_step=2, prefetch=1), expected[2:], theirs)


def test_resuming_reads_nothing_before_it(tmp_path, monkeypatch, light_views):
    """In the middle of an epoch: only the images of the batches from there on, each once."""
    source, read = source_of(shards(tmp_path / "set")), []
    inner = Ranges.read
    monkeypatch.setattr(Ranges, "read", lambda self, *ranges: read.extend(ranges[1].tolist()) or inner(self, *ranges))
    take(source, 1, batch_size=4, start_step=4)
    examples = order.Order(3, 24, 4)
    assert read == source._starts[examples.batch(4)[1]].tolist()


def test_the_index_is_kept_and_counts_until_an_archive_changes(tmp_path, monkeypatch):
    place = shards(tmp_path / "set")
    first = source_of(place)
    kept = list((tmp_path / "cache" / "bt_jax" / "archives").glob("*.npz"))
    assert len(kept) == 1
    with monkeypatch.context() as patched:
        patched.setattr("bt_jax.data.sources.tar_index._images_of", lambda file: pytest.fail("read again"))
        second = source_of(place)
    assert second.fingerprint == first.fingerprint and list(second.paths) == list(first.paths)
    write_tar(place / "train-0001.tar", {"x.jpg": encoded(), "x.cls": b"1"})
    with pytest.raises(UserError, match="train-0001.tar has changed since its index was made at the start of this run"):
        first.fetch(np.arange(24))
    changed = source_of(place)
    assert len(changed) == 17 and changed.fingerprint != first.fingerprint
    assert changed.notices == (
        f"1 archive(s) changed since their index was made, which was made again: {place}/train-0001.tar",
    )
    kept[0].write_bytes(kept[0].read_bytes()[:1000])  # a damaged one is none
    assert source_of(place).fingerprint == changed.fingerprint


def test_a_change_during_a_run_ends_it_with_a_sentence(tmp_path, light_views):
    source = source_of(shards(tmp_path / "set"))
    os.utime(tmp_path / "set" / "train-0002.tar")
    with pytest.raises(UserError, match="train-0002.tar has changed since"):
        take(source, 3)
    os.unlink(tmp_path / "set" / "train-0002.tar")
    with pytest.raises(UserError, match="train-0002.tar cannot be read .No such file.*; bring it back"):
        take(source, 3)


def test_no_place_for_the_index(tmp_path, monkeypatch):
    """It is made again at each start."""
    place = shards(tmp_path / "set", count=1)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(source_of(place)) == len(source_of(place)) == 8


def test_imagenet_as_distributed(tmp_path):
    """A tar of tars, and flat validation images with the archive of the development kit; the lists of few labels too."""
    root = kit(tmp_path / "kit")
    place = tmp_path / "set"
    inner = {}
    for wnid in WNIDS:
        write_tar(tmp_path / f"{wnid}.tar", {f"{wnid}_{i}.JPEG": encoded(i) for i in range(3)})
        inner[f"{wnid}.tar"] = (tmp_path / f"{wnid}.tar").read_bytes()
    write_tar(place / "ILSVRC2012_img_train.tar", inner)
    write_tar(place / "ILSVRC2012_img_train_t3.tar", {"n02.tar": inner["n02.tar"]})  # of another task
    write_tar(place / "ILSVRC2012_img_val.tar", {name: encoded(i) for i, name in enumerate(NAMES)})
    with tarfile.open(place / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(root / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    train, val = source_of(place, test_split="val"), source_of(place, "test", test_split="val")
    assert train.class_names == val.class_names == tuple(sorted(WNIDS))
    assert train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 and val.labels.tolist() == EXPECTED
    assert train.paths[4] == "n02/n02_1.JPEG" and train.fetch(np.array([4]))[0].tolist() == [encoded(1)]
    (tmp_path / "list.txt").write_text("n02_1.JPEG\nn01_0.JPEG\n")
    assert listed(train, str(tmp_path / "list.txt")).tolist() == [0, 4]


def test_lists_of_few_labels_for_shards(tmp_path):
    """Shards have .jpg where the lists have .JPEG."""
    write_tar(
        tmp_path / "set" / "train-0.tar",
        {f"n01_{i}.{e}": encoded(i) if e == "jpg" else b"0" for i in range(4) for e in ("jpg", "cls")},
    )
    (tmp_path / "list.txt").write_text("n01_3.JPEG\nn01_1.JPEG\n")
    assert listed(source_of(tmp_path / "set"), str(tmp_path / "list.txt")).tolist() == [1, 3]


def test_lists_of_few_labels_name_one_image_each(tmp_path):
    """A name with its ending before one without; and what names several images is refused."""
    files = {
        "x/1.png": encoded(1),
        "x/1.jpg": encoded(2),
        "y/2.jpg": encoded(3),
        "y/2.png": encoded(4),
        "x/3.jpg": encoded(5),
    }
    write_tar(tmp_path / "set" / "train-0.tar", files)
    source = source_of(tmp_path / "set", labels="none")

    def chosen(text):
        (tmp_path / "list.txt").write_text(text)
        return [source.paths[i] for i in listed(source, str(tmp_path / "list.txt"))]

    assert chosen("x/1.jpg\n2.png\n3.JPEG\n") == ["x/1.jpg", "x/3.jpg", "y/2.png"]
    with pytest.raises(
        UserError,
        match=r"1 of the 1 files that .*list.txt names are each several images of .*: x/1.jpg in .*-0.tar and x/1.png in",
    ):
        chosen("x/1.webp\n")
    write_tar(tmp_path / "set" / "train-1.tar", {"x/3.jpg": encoded(6)})
    source = source_of(tmp_path / "set", labels="none")
    with pytest.raises(UserError, match=r"x/3.jpg in .*train-0.tar and x/3.jpg in .*train-1.tar; name them by all"):
        chosen("x/3.jpg\n")


def test_labels_by_a_file_of_equal_paths_in_several_archives(tmp_path):
    write_tar(tmp_path / "set" / "train-0.tar", {"1.jpg": encoded(1), "2.jpg": encoded(2)})
    write_tar(tmp_path / "set" / "train-1.tar", {"1.jpg": encoded(3), "3.jpg": encoded(4)})
    (tmp_path / "labels.csv").write_text("path,label\n1.jpg,dog\n2.jpg,cat\n3.jpg,dog\n")
    with pytest.raises(
        UserError,
        match=r"1 image.s. have the same path in several archives of .*, such as 1.jpg, and .*labels.csv, which",
    ):
        source_of(tmp_path / "set", labels=str(tmp_path / "labels.csv"))


def test_splits_patterns_and_test_parts(tmp_path):
    place = shards(tmp_path / "set", count=2)
    one = {f"{i}.{e}": encoded(i) if e == "jpg" else b"1" for i in range(3) for e in ("jpg", "cls")}
    write_tar(place / "val-0000.tar", one)
    assert len(source_of(place)) == 16 and len(source_of(place, "test", test_split="val")) == 3
    assert len(source_of(place, train_split=".")) == 19
    assert len(source_of(place / "train-{0000..0001}.tar")) == len(source_of(place / "train-*.tar")) == 16
    assert len(source_of(place, train_split="{train-0001,val-0000}.tar")) == 11
    assert len(source_of(place / "val-0000.tar")) == 3
    parts = [source_of(place / "train-*.tar", use, test_fraction=0.3, test_split="") for use in ("train", "test")]
    assert sorted([*parts[0].paths, *parts[1].paths]) == sorted(source_of(place).paths) and all(map(len, parts))
    assert parts[0].fingerprint != parts[1].fingerprint
    config = data_config(source="tar", data_dir=str(place / "train-*.tar"))
    assert source_of_tests(config, make_source(config, "train")) is None
    for where, fields, sentence in [
        (
            place,
            {"train_split": "tra"},
            "no .tar file of the split 'tra' .it holds train-0000.tar.*set data.train_split to 'train'",
        ),
        (
            place / "train-{0000..0004}.tar",
            {},
            "3 of the files that .* names are missing, the first is .*train-0002.tar",
        ),
        (place / "x-*.tar", {}, "no .tar file is named .*x-"),
        (tmp_path / "nowhere", {}, "there is no .*nowhere; data.data_dir must name a folder"),
    ]:
        with pytest.raises(UserError, match=sentence):
            source_of(where, **fields)


def test_a_folder_whose_name_has_the_letters_of_patterns(tmp_path):
    """Only the split is a pattern: files of other folders, which the folder's name would fit as a pattern, are not read."""
    place = shards(tmp_path / "set[12]{a,b}*?", count=2)
    shards(tmp_path / "set1a", count=3)
    shards(tmp_path / "set2axy", count=3)
    for split in ("train-*.tar", "train-{0000..0001}.tar", "train-000[01].tar"):
        assert source_of(place, train_split=split).fingerprint == source_of(place).fingerprint
        assert source_of(place / split).fingerprint == source_of(place).fingerprint
    with pytest.raises(UserError, match=r"no .tar file is named .*/set\[12\]\{a,b\}\*\?/x-\*"):
        source_of(place, train_split="x-*")


def test_labels_by_a_file_or_none(tmp_path):
    place = shards(tmp_path / "set", count=1, each=3)
    (tmp_path / "labels.csv").write_text("path,label\n00000.jpg,dog\n00001.jpg,cat\n00002.jpg,dog\n")
    source = source_of(place, labels=str(tmp_path / "labels.csv"))
    assert source.class_names == ("cat", "dog") and source.labels.tolist() == [1, 0, 1]
    assert source_of(place, labels="none").described() == "3 images, no labels"
    with pytest.raises(UserError, match="data.labels is 'folder', which is no file"):
        source_of(place, labels="folder")


def test_files_that_are_no_images_are_passed_over_and_counted(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        {"a/x.jpg": encoded(), "b/y.png": encoded(), "b/._y.png": b"", "README": b"", "b/z.txt": b""},
    )
    source = source_of(tmp_path / "a.tar")
    assert source.notices[0].endswith("no images were passed over: 1 .txt, 1 hidden, 1 without an ending")
    assert list(source.paths) == ["a/x.jpg", "b/y.png"]


def test_hidden_folders_and_files_that_were_appended_again(tmp_path):
    """As a folder of what is unpacked: nothing in hidden folders, and of equal names the last."""
    write_tar(tmp_path / "inner.tar", {"2.png": encoded()})
    files = {
        "a/1.png": encoded(1),
        "b/2.png": encoded(2),
        "b/.thumbnails/2.png": encoded(2),
        ".Trash/c/3.png": encoded(3),
        "b/._c.tar": b"no archive, but what macOS keeps of one",
        ".old/d.tar": (tmp_path / "inner.tar").read_bytes(),
    }
    write_tar(tmp_path / "set" / "train.tar", files)
    with tarfile.open(tmp_path / "set" / "train.tar", "a") as archive:
        for name in ("./a/1.png", "b/2.png", "a/1.png"):
            member = tarfile.TarInfo(name)
            member.size = len(encoded(4))
            archive.addfile(member, io.BytesIO(encoded(4)))
    write_tar(tmp_path / "set" / "train2.tar", {"c/1.png": encoded(5)})
    source = source_of(tmp_path / "set", train_split=".")
    assert list(source.paths) == ["a/1.png", "b/2.png", "c/1.png"] and source.class_names == ("a", "b", "c")
    assert source.fetch(np.arange(3))[0].tolist() == [encoded(4), encoded(4), encoded(5)]
    assert [notice.partition(" in ")[0] for notice in source.notices] == ["4 file(s)", "3 image(s)"]
    assert source.notices[0].endswith("that are no images were passed over: 4 hidden")
    assert source.notices[1].endswith("were passed over, as later ones in their archive have the same names")
    again = source_of(tmp_path / "set", train_split=".")
    assert again.notices == source.notices and again.fingerprint == source.fingerprint


def test_damaged_and_hostile_archives(tmp_path):
    """Each one sentence that says what to do."""
    good = {"a/x.jpg": encoded(), "a/x.cls": b"3"}
    whole = write_tar(tmp_path / "whole.tar", good).read_bytes()
    image_end = 512 + len(encoded())
    for name, content in {
        "in_image": whole[: image_end - 5],
        "in_header": whole[: 512 * -(-image_end // 512) + 100],
        "no_end": whole[: 512 * -(-image_end // 512) + 1024],
        "no_tar": b"hello " * 1000,
        "empty": b"",
        "overwritten": whole[: 512 * -(-image_end // 512)] + b"x" * 1024,
    }.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
    (tmp_path / "zipped.tar").write_bytes(gzip.compress(whole))
    (tmp_path / "zipped2.tar").write_bytes(bz2.compress(whole))
    (tmp_path / "gz").mkdir()
    (tmp_path / "gz" / "train-0.tar.gz").write_bytes(gzip.compress(whole))
    for name, files in {
        "word": {"a.jpg": encoded(), "a.cls": b"dog"},
        "negative": {"a.jpg": encoded(), "a.cls": b"-1"},
        "no_image": {"a.jpg": encoded(), "a.cls": b"1", "b.cls": b"1", "c.json": b"{}"},
        "two_images": {"a.jpg": encoded(), "a.png": encoded(), "a.cls": b"1"},
        "twice": {"a.jpg": encoded(), "a.JPG": encoded(), "a.cls": b"1"},
        "some_labels": {"a.jpg": encoded(), "a.cls": b"1", "b.jpg": encoded()},
        "bad_json": {"a.jpg": encoded(), "a.json": b"{", "a.cls": b"1"},
        "only_json": {"a.jpg": encoded(), "a.json": b"{"},
        "up": {"a/../../x.jpg": encoded()},
        "root": {"/etc/x.jpg": encoded()},
        "nothing": {"a.txt": b""},
    }.items():
        write_tar(tmp_path / f"{name}.tar", files)
    write_tar(tmp_path / "soft.tar", good, links=[("b.jpg", "/etc/passwd", tarfile.SYMTYPE)])
    write_tar(tmp_path / "hard.tar", good, links=[("b.jpg", "a/x.jpg", tarfile.LNKTYPE)])
    write_tar(tmp_path / "pipe.tar", good, links=[("b.jpg", "", tarfile.FIFOTYPE)])
    inner = write_tar(tmp_path / "n01.tar", {"x.jpg": encoded()}).read_bytes()[:700]
    write_tar(tmp_path / "nested.tar", {"n01.tar": inner})
    for name, sentence in {
        "in_image": "in_image.tar is truncated: it ends without the empty blocks.*copy or make it again",
        "in_header": "in_header.tar is truncated|in_header.tar is no tar archive, or a damaged one",
        "no_end": "no_end.tar is truncated",
        "no_tar": "no_tar.tar is no tar archive, or a damaged one",
        "empty": "empty.tar is no tar archive, or a damaged one",
        "overwritten": "overwritten.tar is damaged: at byte 1536|overwritten.tar is damaged: at byte",
        "zipped": "zipped.tar is compressed by gzip, .*decompress it, such as by gunzip",
        "zipped2": "zipped2.tar is compressed by bzip2",
        "word": "a.cls in .*word.tar holds 'dog'; a .cls must hold the number of a class, from 0",
        "negative": "a.cls in .*negative.tar holds '-1'",
        "no_image": r"no_image.tar has 2 sample\(s\) without an image: b \(only .cls\), c \(only .json\)",
        "two_images": "two_images.tar has several images of the sample a: a.jpg, a.png",
        "twice": "twice.tar holds a.JPG twice",
        "some_labels": "1 of the 2 images in .*some_labels.tar have no label in a .cls or .json file, such as b.jpg",
        "only_json": "a.json in .*only_json.tar is no JSON",
        "up": "up.tar holds 'a/../../x.jpg', a path that leads out of the archive",
        "root": "root.tar holds '/etc/x.jpg', a path that leads out",
        "nothing": r"nothing.tar hold\(s\) no images .*; 1 .txt was found",
        "soft": "soft.tar holds a link, 'b.jpg' to '/etc/passwd'; make it again .*--dereference",
        "hard": "hard.tar holds a link, 'b.jpg' to 'a/x.jpg'",
        "pipe": "pipe.tar holds a special file, 'b.jpg'",
        "nested": "n01 in .*nested.tar is",
    }.items():
        with pytest.raises(UserError, match=sentence):
            pytest.fail(f"{name} was read: {source_of(tmp_path / f'{name}.tar').described()}")
    with pytest.raises(UserError, match="gz holds no .tar files, but train-0.tar.gz; compressed .* by gunzip"):
        source_of(tmp_path / "gz")


def test_archives_that_claim_more_than_they_hold(tmp_path):
    """Nothing of the size that a header claims is allocated; headers that lead back, or far down, come to an end."""

    def header(name, size, kind=tarfile.REGTYPE):
        member = tarfile.TarInfo(name)
        member.size, member.type = size, kind
        return member.tobuf(tarfile.GNU_FORMAT)

    back = bytearray(write_tar(tmp_path / "a.tar", {"a.jpg": encoded()}).read_bytes())
    back[124:136] = (2**96 - 1024).to_bytes(12, "big")
    back[148:156] = b" " * 8
    back[148:156] = b"%06o\0 " % sum(back[:512])
    deep = encoded()
    for i in range(12):
        deep = write_tar(tmp_path / "inner.tar", {f"n{i}.tar" if i else "a.jpg": deep}).read_bytes()
    for name, content, sentence in (
        ("name", header("a", 2**33, b"L") + bytes(2048), "is damaged: at byte 512 a header claims to have 85899"),
        ("pax", header("a", 2**62, b"x") + bytes(2048), "is damaged: at byte 512 a header claims to have 4611"),
        ("back", bytes(back), "back.tar is no tar archive, or a damaged one"),
        ("chain", header("a", 512, b"L") * 3000, "chain.tar is no tar archive, or a damaged one"),
        ("deep", deep, "deep.tar is an archive within 9 others; unpack some of them"),
    ):
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            pytest.fail(f"{name} was read: {source_of(tmp_path / f'{name}.tar').described()}")
    for name, most in (("a.cls", 2**24), ("a.jpg", 2**30)):
        (tmp_path / "large.tar").write_bytes(header(name, 2**31))
        os.truncate(tmp_path / "large.tar", 2**31 + 4096)  # of zeros, which take no room
        with pytest.raises(UserError, match=f"{name} in .* has 2147483648 bytes, but may have {most} at most"):
            source_of(tmp_path / "large.tar")
    write_tar(tmp_path / "digits.tar", {"a.jpg": encoded(), "a.cls": b"9" * 5000})
    with pytest.raises(UserError, match="a.cls in .* holds '9999.*; a .cls must hold the number of a class"):
        source_of(tmp_path / "digits.tar")


def test_an_index_that_unpacks_to_more_is_made_again(tmp_path):
    expected = source_of(shards(tmp_path / "set")).fingerprint
    (kept,) = (tmp_path / "cache" / "bt_jax" / "archives").glob("*.npz")
    with np.load(kept) as found:
        columns = dict(found)
    np.savez_compressed(kept, **columns)
    compressed = kept.stat().st_size
    assert source_of(tmp_path / "set").fingerprint == expected and kept.stat().st_size > compressed


def test_an_image_that_does_not_decode(tmp_path, light_views):
    """Is named with its archive, and another stands in."""
    files = {f"{i:02d}.jpg": encoded(i) if i != 3 else b"no image" for i in range(12)}
    source = source_of(write_tar(tmp_path / "a.tar", files), max_bad_fraction=0.1)
    batch = take(source, 1, batch_size=12, max_bad_fraction=0.1)[0]
    assert list(source.bad) == [3] and source.place(3).startswith("03.jpg in ") and 3 not in batch["example"]
