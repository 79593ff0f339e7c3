"""bt_jax/data/sources/listing.py: every image below a folder once, in order; a listing is kept while no folder changes."""

import os
import pathlib
import random

import numpy as np
import pytest
from etils import epath

from bt_jax.data.sources import listing
from bt_jax.data.sources.listing import Paths, images_below
from bt_jax.errors import UserError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def below(root):
    return list(images_below(epath.Path(root)).images)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Listings of any size are kept here, and folders count as settled at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "_KEPT_FROM", 1)
    monkeypatch.setattr(listing, "_COARSE", -(10**18))
    return tmp_path / "cache" / "bt_jax" / "listings"


def test_paths_are_a_list_of_texts():
    """Of any characters, also of none that is UTF-8; parts by number, slice, mask and iteration."""
    rng = random.Random(0)
    files = [(rng.choice(["", "a", "a/b", "ü\udcff"]), "".join(rng.choices("abü \n\udcfe€😀", k=9))) for _ in range(50)]
    expected = [f"{folder}/{name}" if folder else name for folder, name in files]
    paths = Paths.of(files)
    assert len(paths) == 50 and list(paths) == expected and [paths[i] for i in range(50)] == expected
    assert paths[3:7] == expected[3:7] and paths[-1] == expected[-1]
    mask = np.array([len(path) % 2 == 0 for path in expected])
    assert list(paths.select(mask)) == [path for path in expected if len(path) % 2 == 0]
    assert list(paths.select(np.array([5, 2]))) == [expected[5], expected[2]]
    assert list(paths.within([f"/x/{folder}" for folder in paths.folders])) == [f"/x/{f}/{n}" for f, n in files]
    assert list(Paths.of([])) == []


def test_a_walk_finds_what_pathlib_finds(tmp_path):
    """In the order of the parts of the paths, whatever the order on the disk."""
    rng = random.Random(1)
    names = {"/".join(rng.choices("abc1Z.-", k=rng.randint(1, 4))) + rng.choice([".png", ".JPG", ".txt", ".Jp2", ".jfif"])
             for _ in range(80)}  # fmt: skip
    touch(tmp_path, *sorted(names, key=hash))
    found = [str(path.relative_to(tmp_path)) for path in pathlib.Path(tmp_path).rglob("*") if path.is_file()]
    hidden = [path for path in found if any(part.startswith(".") for part in path.split("/"))]
    images = [path for path in found if not path.endswith(".txt") and path not in hidden]
    result = images_below(epath.Path(tmp_path))
    assert list(result.images) == sorted(images, key=lambda path: path.split("/"))
    assert result.passed == {".txt": len([p for p in found if p.endswith(".txt") and p not in hidden])}


def test_links(tmp_path):
    """Files and folders behind links count; a folder may be reached twice; broken links are files."""
    touch(tmp_path / "far", "1.png", "2.png")
    touch(tmp_path / "here", "0.png")
    os.symlink(tmp_path / "far", tmp_path / "here" / "a")
    os.symlink(tmp_path / "far", tmp_path / "here" / "b")
    os.symlink(tmp_path / "far" / "1.png", tmp_path / "here" / "link.png")
    os.symlink("self.png", tmp_path / "here" / "self.png")
    os.symlink("self", tmp_path / "here" / "self")
    assert below(tmp_path / "here") == ["0.png", "a/1.png", "a/2.png", "b/1.png", "b/2.png", "link.png", "self.png"]


def test_a_loop_of_links(tmp_path):
    touch(tmp_path, "a/b/1.png")
    os.symlink(tmp_path / "a", tmp_path / "a" / "b" / "again")
    with pytest.raises(UserError, match="a/b/again leads back to .*/a, a folder above it; remove this link"):
        below(tmp_path)


def test_a_folder_without_permission(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.png", "shut/2.png")
    scan = os.scandir

    def scandir(folder):  # root may read everything
        if str(folder).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"the folder .*/shut cannot be listed \(Permission denied\); make it readable"):
        below(tmp_path)


def test_a_listing_is_kept_until_a_folder_changes(tmp_path, kept, monkeypatch):
    """Files that come, go or are renamed at any depth change it; what the first walk counted is kept too."""
    root = tmp_path / "images"
    touch(root, "a/1.png", "a/b/2.png", "c/3.png", "notes.txt", ".hidden", "empty/x/y.txt")
    first = images_below(epath.Path(root))
    assert len(list(kept.iterdir())) == 1
    walks = []
    monkeypatch.setattr(listing, "_Walk", lambda top, walk=listing._Walk: walks.append(top) or walk(top))
    again = images_below(epath.Path(root))
    assert not walks and list(again.images) == list(first.images) == ["a/1.png", "a/b/2.png", "c/3.png"]
    assert vars(again) | {"images": 0} == vars(first) | {"images": 0} and again.empty == ("empty",)
    for number, change in enumerate([
        lambda: touch(root, "a/b/4.png"),
        lambda: os.rename(root / "c/3.png", root / "c/5.png"),
        lambda: os.unlink(root / "a/1.png"),
        lambda: os.mkdir(root / "a/b/d"),
        lambda: os.rename(root / "c", root / "e"),
    ], 1):  # fmt: skip
        change()
        expected = sorted(str(path.relative_to(root)) for path in pathlib.Path(root).rglob("*.png"))
        assert below(root) == expected and len(walks) == number
        assert below(root) == expected and len(walks) == number


def test_a_folder_that_has_just_changed_is_walked_again(tmp_path, kept, monkeypatch):
    """It may change once more within the clock's tick, which its time would not tell."""
    monkeypatch.setattr(listing, "_COARSE", 2_000_000_000)
    touch(tmp_path / "images", "1.png")
    images_below(epath.Path(tmp_path / "images"))
    assert listing._kept(listing._cache_file(str(tmp_path / "images")), str(tmp_path / "images")) is None
    past = os.stat(tmp_path / "images").st_mtime - 60
    os.utime(tmp_path / "images", (past, past))
    images_below(epath.Path(tmp_path / "images"))
    assert listing._kept(listing._cache_file(str(tmp_path / "images")), str(tmp_path / "images")) is not None


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", None])
def test_a_listing_that_cannot_be_used(tmp_path, kept, damage, monkeypatch):
    """Damaged, cut off, or by other rules: the folder is walked again."""
    touch(tmp_path / "images", "1.png", "2.png")
    assert below(tmp_path / "images") == ["1.png", "2.png"]
    (file,) = kept.iterdir()
    if damage is None:
        monkeypatch.setattr(listing, "IMAGE_ENDINGS", ("2.png",))
    else:
        file.write_bytes(damage)
    assert below(tmp_path / "images") == ["1.png", "2.png"][damage is None :]


def test_nowhere_to_keep_it(tmp_path, kept, monkeypatch):
    """As for a user without a home, or with a full disk."""
    touch(tmp_path, "file", "images/1.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert below(tmp_path / "images") == ["1.png"]


def test_few_listings_are_kept(tmp_path, kept, monkeypatch):
    monkeypatch.setattr(listing, "_KEPT", 2)
    for name in "abcd":
        touch(tmp_path / name, "1.png")
        below(tmp_path / name)
    assert len(list(kept.iterdir())) == 2
