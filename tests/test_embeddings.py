"""bt_jax/export/embeddings.py: pieces, and files of features that NumPy and Arrow read."""

import numpy as np
import pytest
from etils import epath

from bt_jax.errors import UserError
from bt_jax.export.embeddings import Pieces, write_npz, write_parquet

NAMES = ["a/é.png", "\udcff.png", "b/long name of a file.png", "c.png", "d.png"]


def pieces_of(path, size=2):
    rng = np.random.default_rng(0)
    pieces, written = Pieces(epath.Path(path), size, 5), []
    pieces.claim({"images": 5}, write=True)
    for number in range(pieces.count):
        examples = np.arange(number * size, min((number + 1) * size, 5))
        examples = examples[examples != 3]  # it did not decode
        features = rng.standard_normal((len(examples), 4)).astype(np.float32)
        piece = {"features": features, "labels": (examples % 2).astype(np.int32), "examples": examples}
        assert pieces.done() == number
        pieces.write(number, piece)
        written.append(piece)
    assert pieces.done() == pieces.count == 3
    return pieces, {name: np.concatenate([piece[name] for piece in written]) for name in written[0]}


@pytest.mark.parametrize("class_names", [(), ("no", "yes")])
def test_npz(tmp_path, class_names):
    pieces, expected = pieces_of(tmp_path)
    assert write_npz(epath.Path(tmp_path / "all.npz"), pieces.read, NAMES.__getitem__, class_names) == (4, 4)
    with np.load(tmp_path / "all.npz", allow_pickle=False) as found:
        assert set(found.files) == {"features", "paths"} | ({"labels", "class_names"} if class_names else set())
        np.testing.assert_array_equal(found["features"], expected["features"])
        assert found["features"].dtype == np.float32 and found["features"].flags.c_contiguous
        assert found["paths"].tolist() == [NAMES[i] for i in (0, 1, 2, 4)]
        if class_names:
            np.testing.assert_array_equal(found["labels"], expected["labels"])
            assert found["labels"].dtype == np.int32 and found["class_names"].tolist() == ["no", "yes"]
    assert not (tmp_path / "all.npz.new").exists()
    pieces.remove()
    assert not (tmp_path / "pieces").exists()


@pytest.mark.parametrize("class_names", [(), ("no", "yes")])
def test_parquet(tmp_path, class_names):
    parquet = pytest.importorskip("pyarrow.parquet")
    pieces, expected = pieces_of(tmp_path)
    write_parquet(epath.Path(tmp_path / "all.parquet"), pieces.read, NAMES.__getitem__, class_names)
    table = parquet.read_table(tmp_path / "all.parquet")
    assert table.column("path").to_pylist() == ["a/é.png", "\\udcff.png", NAMES[2], NAMES[4]]
    np.testing.assert_array_equal(np.array(table.column("features").to_pylist(), np.float32), expected["features"])
    assert table.column_names == ["path", "features", *(["label", "class_name"] if class_names else [])]
    if class_names:
        assert table.column("label").to_pylist() == expected["labels"].tolist()
        assert table.column("class_name").to_pylist() == [class_names[i] for i in expected["labels"]]


def test_parquet_of_labels_that_are_no_class(tmp_path):
    """As in test splits whose labels are kept back: they have no name, nor do they end the writing."""
    parquet = pytest.importorskip("pyarrow.parquet")
    labels = [[-1, -1], [1, 2], [-1, 0]]
    pieces = [
        {"features": np.zeros((2, 4), np.float32), "labels": np.array(two, np.int32), "examples": np.arange(2)}
        for two in labels
    ]
    write_parquet(epath.Path(tmp_path / "all.parquet"), lambda: iter(pieces), NAMES.__getitem__, ("no", "yes"))
    table = parquet.read_table(tmp_path / "all.parquet")
    assert table.column("label").to_pylist() == np.ravel(labels).tolist()
    assert table.column("class_name").to_pylist() == [None, None, "yes", None, None, "no"]


def test_a_damaged_piece_is_made_again(tmp_path):
    pieces, _ = pieces_of(tmp_path)
    file = tmp_path / "pieces" / "000001.npz"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match="000001.npz was damaged .* has been removed; the same command makes it again"):
        list(pieces.read())
    assert pieces.done() == 1


def test_pieces_of_other_images(tmp_path):
    pieces, _ = pieces_of(tmp_path)
    pieces.claim({"images": 5}, write=True)
    with pytest.raises(UserError, match=r"holds embeddings of other images \(images was 5 and is now 6\)"):
        pieces.claim({"images": 6}, write=True)
    (tmp_path / "pieces" / "about.json").write_text("[]")
    with pytest.raises(UserError, match=r"about.json cannot be read \(it holds a list"):
        pieces.claim({"images": 5}, write=True)


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    pieces, _ = pieces_of(tmp_path)
    monkeypatch.setattr(
        np.lib.format, "write_array_header_1_0", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(OSError, match="No space left"):
        write_npz(epath.Path(tmp_path / "all.npz"), pieces.read, NAMES.__getitem__)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pieces"]
