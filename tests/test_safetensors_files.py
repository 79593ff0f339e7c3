"""bt_jax/export/safetensors_files.py: arrays come back bit for bit, and every header is checked."""

import json

import ml_dtypes
import numpy as np
import pytest
from etils import epath

from bt_jax.errors import UserError
from bt_jax.export.safetensors_files import read_safetensors, write_safetensors

DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int8, np.uint8, np.bool_)


def arrays():
    rng = np.random.default_rng(0)
    found = {f"a.{np.dtype(dtype).name}": rng.integers(0, 2, (3, 2)).astype(dtype) for dtype in DTYPES}
    return {**found, "scalar": np.array(3, np.float32), "empty": np.zeros((0, 4), np.float32)}


def test_round_trip(tmp_path):
    path = epath.Path(tmp_path / "x.safetensors")
    write_safetensors(path, arrays(), {"format": "pt"})
    found, metadata = read_safetensors(path)
    assert metadata == {"format": "pt"} and found.keys() == arrays().keys()
    for name, value in arrays().items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)


def test_the_package_agrees(tmp_path):
    """Where the package of that name is installed: it reads what is written here, and the other way round."""
    package = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "x.safetensors"
    known = {name: value for name, value in arrays().items() if "bfloat16" not in name}
    write_safetensors(epath.Path(path), known, {"format": "pt"})
    for name, value in package.load_file(path).items():
        np.testing.assert_array_equal(value, known[name])
    package.save_file(known, path)
    for name, value in read_safetensors(epath.Path(path))[0].items():
        np.testing.assert_array_equal(value, known[name])


def file_of(header, data=b"\0" * 16, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file has 0"),
        (file_of({}, length=2**63), "its header claims 9,223,372,036,854,775,808 bytes"),
        (file_of({"w": entry()}, length=200_000_000), "its header claims 200,000,000 bytes"),
        (file_of(b"[1, 2]"), "not a JSON object"),
        (file_of(b'{"w"'), "delimiter"),
        (file_of(b'{"w": 1, "w": 2}'), "a duplicate name"),
        (file_of(b"[" * 100_000), "recursion"),
        (file_of({"w": 3}), "the entry of 'w' is not a JSON object"),
        (file_of({"w": entry("F31")}), "dtype 'F31'"),
        (file_of({"w": entry(shape=(10**30,))}), "not lists of natural numbers"),
        (file_of({"w": entry(shape=(2**40, 2**40))}), "but has 16 bytes"),
        (file_of({"w": entry(shape=(-4, -1))}), "not lists of natural numbers"),
        (file_of({"w": entry(shape=(1.0, 4))}), "not lists of natural numbers"),
        (file_of({"w": entry(offsets=(0, 15))}), "but has 15 bytes"),
        (file_of({"w": entry(offsets=(16, 32))}), "begins at byte 16, but the previous tensor ends at 0"),
        (file_of({"w": entry(), "v": entry(offsets=(8, 24))}), "begins at byte 8, but the previous tensor ends at 16"),
        (
            file_of({"w": entry(shape=(2**38,), offsets=(0, 2**40))}),
            "its tensors take 1,099,511,627,776 bytes, but the file has 16",
        ),
        (file_of({"w": entry(shape=(2,), offsets=(0, 8))}), "its tensors take 8 bytes, but the file has 16"),
    ],
)
def test_headers_that_lie(tmp_path, content, sentence):
    path = epath.Path(tmp_path / "x.safetensors")
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"x.safetensors is not a readable safetensors file .*{sentence}"):
        read_safetensors(path)
