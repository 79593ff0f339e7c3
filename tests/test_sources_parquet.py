"""bt_jax/data/sources/parquet.py: tables as Hugging Face's data sets have them, and what is wrong with tables is said."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
from batches import assert_same, data_config, take
from test_sources_tar import encoded

from bt_jax.data.sources.base import ArraySource
from bt_jax.data.sources.make import make_source
from bt_jax.data.sources.make import test_source as source_of_tests
from bt_jax.data.sources.parquet import _rows_at_once
from bt_jax.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path, columns, *, names=(), **options):
    """A table, with the names of the classes where Hugging Face's data sets have them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    if names:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, **options)
    return path


def images(numbers, path="{:03d}.jpg"):
    return [{"bytes": encoded(i), "path": path.format(i) if path else None} for i in numbers]


def tables(folder):
    """As on the Hub: two files for train, one for test, in a folder data."""
    for number in range(2):
        rows = range(number * 12, number * 12 + 12)
        write(
            folder / "data" / f"train-{number:05d}-of-00002.parquet",
            {"image": images(rows), "label": [i % 3 for i in rows]},
            names=("cat", "dog", "eel"),
            row_group_size=5,
            compression=("snappy", "zstd")[number],
        )
    write(
        folder / "data" / "test-00000-of-00001.parquet",
        {"image": images(range(4)), "label": [0, 1, 2, 0]},
        names=("cat", "dog", "eel"),
    )
    return folder


def source_of(place, use="train", **fields):
    return make_source(data_config(source="parquet", data_dir=str(place), **fields), use)


def test_a_data_set_of_the_hub(tmp_path):
    place = tables(tmp_path / "set")
    source, test = source_of(place), source_of(place, "test")
    assert source.described() == "24 images, 3 classes from the table" and len(test) == 4
    assert source.class_names == ("cat", "dog", "eel") and source.labels.tolist() == [i % 3 for i in range(24)]
    found, labels = source.fetch(np.array([13, 2, 20]))
    assert found.tolist() == [encoded(13), encoded(2), encoded(20)] and labels.tolist() == [1, 2, 2]
    assert source.path(13) == "train-00001-of-00002.parquet/013.jpg" and source.place(13).startswith("013.jpg in ")


def test_for_any_threads_processes_and_restarts(tmp_path, light_views):
    source = source_of(tables(tmp_path / "set"))
    expected = take(source, 5)
    assert sorted(np.concatenate([batch["example"] for batch in expected[:3]]).tolist()) == list(range(24))
    again, mine = source_of(tmp_path / "set"), np.array([0, 1, 2, 6])
    assert again.fingerprint == source.fingerprint
    assert_same(take(again, 3, rows=mine, start_step=2, threads=1), expected[2:], mine)
    assert not isinstance(source, ArraySource)


def test_tables_are_copied_once(tmp_path, monkeypatch):
    """Again only those that changed; a copy that was not completed, or is damaged, is none."""
    place, copied = tables(tmp_path / "set"), []
    from bt_jax.data.sources import parquet as module

    inner = module._copied
    monkeypatch.setattr(module, "_copied", lambda file, *rest: copied.append(file.name) or inner(file, *rest))
    first = source_of(place)
    assert len(copied) == 2 and source_of(place).fingerprint == first.fingerprint and len(copied) == 2
    write(
        place / "data" / "train-00001-of-00002.parquet",
        {"image": images([7]), "label": [1]},
        names=("cat", "dog", "eel"),
    )
    changed = source_of(place)
    assert (
        len(changed) == 13
        and changed.fingerprint != first.fingerprint
        and copied[2:] == ["train-00001-of-00002.parquet"]
    )
    for copy in (tmp_path / "cache" / "bt_jax" / "tables").glob("*.images"):
        copy.write_bytes(copy.read_bytes()[:-1])
    assert source_of(place).fingerprint == changed.fingerprint and len(copied) == 5

    def killed(*rest, **others):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.np, "savez", killed)
    (place / "data" / "train-00000-of-00002.parquet").touch()
    with pytest.raises(KeyboardInterrupt):
        source_of(place)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert source_of(place).fingerprint == changed.fingerprint
    assert not list((tmp_path / "cache").rglob("*.new"))


def test_labels(tmp_path):
    columns = {"img": images(range(3), None), "label": [0, 2, 1], "kind": ["b", "a", "b"], "hidden": [-1, -1, -1]}
    place = write(tmp_path / "a.parquet", columns)
    assert source_of(place).class_names == ("0", "1", "2") and source_of(place).paths[1] == "00000001"
    by_text = source_of(place, labels="kind")
    assert by_text.class_names == ("a", "b") and by_text.labels.tolist() == [1, 0, 1]
    assert (
        source_of(place, labels="none").described()
        == source_of(place, labels="hidden").described()
        == "3 images, no labels"
    )
    with pytest.raises(
        UserError, match="data.labels is 'size', but must be 'auto', 'none' or a column .*: label, kind, hidden"
    ):
        source_of(place, labels="size")


@pytest.mark.parametrize("kinds", [["eel", "cat", "eel"], [7, 3, 7]])
def test_categorical_labels(tmp_path, kinds):
    """As pandas writes a column of categories."""
    label = pyarrow.array(kinds).dictionary_encode()
    source = source_of(write(tmp_path / "a.parquet", {"img": images(range(3), None), "label": label}))
    assert [source.class_names[i] for i in source.labels] == [str(kind) for kind in kinds]


def test_test_parts(tmp_path):
    place = write(tmp_path / "a.parquet", {"image": images(range(20))})
    parts = [source_of(place, use, test_fraction=0.4, test_split="") for use in ("train", "test")]
    assert sorted([*parts[0].paths, *parts[1].paths]) == [f"{i:03d}.jpg" for i in range(20)] and all(map(len, parts))
    config = data_config(source="parquet", data_dir=str(place))
    assert source_of_tests(config, make_source(config, "train")) is None


def test_what_is_wrong_with_tables(tmp_path, monkeypatch):
    """Each one sentence."""
    whole = write(tmp_path / "whole.parquet", {"image": images(range(3))}).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    (tmp_path / "no_table.parquet").write_bytes(b"hello " * 100)
    write(tmp_path / "numbers.parquet", {"image": [1, 2], "label": [0, 1]})
    write(tmp_path / "no_image.parquet", {"image": [{"bytes": b"a text", "path": "x"}] * 2})
    write(tmp_path / "plain.parquet", {"data": [b"a text", b"two"]})
    write(
        tmp_path / "paths.parquet",
        {
            "image": pyarrow.array(
                [{"bytes": None, "path": "a.jpg"}],
                pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]),
            )
        },
    )
    write(tmp_path / "null.parquet", {"image": [*images(range(2)), None]})
    write(tmp_path / "two.parquet", {"left": images([1]), "right": images([2])})
    write(tmp_path / "no_label.parquet", {"image": images([1, 2]), "label": [1, None]})
    write(tmp_path / "below.parquet", {"image": images([1, 2]), "label": [1, -1]})
    write(tmp_path / "above.parquet", {"image": images([1, 2]), "label": [1, 5]}, names=("a", "b"))
    write(tmp_path / "empty.parquet", {"image": images([1])[:0] or pyarrow.array([], pyarrow.binary())})
    for name, sentence in {
        "cut": "cut.parquet cannot be read as a Parquet file",
        "no_table": "no_table.parquet cannot be read as a Parquet file",
        "numbers": r"numbers.parquet has no column of images.*its columns are image \(int64\), label \(int64\)",
        "no_image": "the column 'image' of .*no_image.parquet holds no images: none of its first 2 values is one",
        "plain": "the column 'data' of .*plain.parquet holds no images",
        "paths": "the column 'image' of .*paths.parquet has paths, such as a.jpg, but no bytes",
        "null": "1 of the 3 rows of .*null.parquet have no image in the column 'image', the first is row 2",
        "two": "two.parquet has several columns of images: left, right",
        "no_label": "row 1 of .*no_label.parquet has no label in the column 'label'",
        "below": "1 of the 2 labels in .*below.parquet are below 0",
        "above": "a label in .*above.parquet is 5, but its table has 2 classes",
        "empty": "empty.parquet has no rows",
    }.items():
        with pytest.raises(UserError, match=sentence):
            pytest.fail(f"{name} was read: {source_of(tmp_path / f'{name}.parquet').described()}")
    assert not list((tmp_path / "cache").rglob("*.new"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(
        UserError, match="whole.parquet have up to .* MB, but .*tables, into which they are copied once, has 0 MB left"
    ):
        source_of(tmp_path / "whole.parquet")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cut.parquet"))
    with pytest.raises(UserError, match="cannot be copied into .*; set the environment variable XDG_CACHE_HOME"):
        source_of(tmp_path / "whole.parquet")


def test_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        UserError, match="data.source 'parquet' needs pyarrow, which cannot be imported .*; pip install pyarrow"
    ):
        source_of(tmp_path)


def test_tables_that_unpack_to_more_than_they_can_hold(tmp_path, monkeypatch):
    """Refused by what the file says of itself, before anything of that size is in memory."""
    image = images([0])[0]["bytes"]
    one = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(10**4, np.int32)), pyarrow.array([image]))
    many = write(tmp_path / "a" / "train.parquet", {"image": one, "label": np.zeros(10**4, int)}, compression="zstd")
    with pytest.raises(UserError, match=r"rows, more than it has bytes"):
        source_of(many)
    monkeypatch.setattr("bt_jax.data.sources.parquet._BYTES", 2**20)
    zeros = write(
        tmp_path / "b" / "train.parquet", {"image": [bytes(2**20)] * 3}, compression="zstd", use_dictionary=False
    )
    with pytest.raises(UserError, match=r"bytes that unpack to 31\d+ in one group of rows, which are no images"):
        source_of(zeros)
    words = write(tmp_path / "c" / "train.parquet", {"image": images(range(3)), "label": ["x" * 10**5] * 3})
    with pytest.raises(UserError, match="the labels in the column 'label' of .* bytes on average"):
        source_of(words)
    assert len(source_of(words, labels="none")) == 3


def test_paths_that_are_no_text(tmp_path):
    """Bytes are as good as none; text that is not UTF-8 is a damaged table."""
    rows = [{"bytes": encoded(i), "path": b"a.jpg"} for i in range(3)]
    assert source_of(write(tmp_path / "a" / "train.parquet", {"image": rows})).path(2) == "train.parquet/00000002"
    lengths, text = np.arange(4, dtype=np.int32).tobytes(), bytes([0xFF] * 3)
    paths = pyarrow.StringArray.from_buffers(3, pyarrow.py_buffer(lengths), pyarrow.py_buffer(text))
    column = pyarrow.StructArray.from_arrays([pyarrow.array([encoded(i) for i in range(3)]), paths], ["bytes", "path"])
    with pytest.raises(UserError, match="train.parquet cannot be read as a Parquet file .*'utf-8' codec"):
        source_of(write(tmp_path / "b" / "train.parquet", {"image": column}))


def test_any_byte_of_the_footer_may_be_damaged(tmp_path):
    """It ends in a sentence, or is read; and the process lives, which pyarrow ends when it is asked for a damaged column."""
    path = write(tmp_path / "train.parquet", {"image": [{"bytes": encoded(0), "path": "a"}], "label": [0]})
    whole = path.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    refused = 0
    for place in range(len(whole) - 8 - length, len(whole)):
        damaged = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        known = contextlib.suppress(pyarrow.ArrowException, OSError, UnicodeDecodeError, UserError)
        with known, parquet.ParquetFile(io.BytesIO(damaged)) as table:
            _rows_at_once(path, table, len(whole))
        if place % 16 == 0:
            path.write_bytes(damaged)
            try:
                source_of(path)
            except UserError:
                refused += 1
    assert refused > length // 16 // 10
