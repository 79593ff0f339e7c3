"""bt_jax/export/torch_files.py: PyTorch's files are read to the bit, and nothing in them is ever run."""

import argparse
import collections
import gzip
import io
import os
import pathlib
import pickle
import tarfile
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from recipes import recipe

from bt_jax.errors import UserError
from bt_jax.export.safetensors_files import read_safetensors
from bt_jax.export.torch_files import read_torch

GOLDEN = epath.Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("name", "count"), [("torch_2_13", 120), ("torch_1_13_stream", 120), ("torch_1_13_checkpoint", 130)]
)
def test_files_of_pytorch(name, count):
    """Of 2.13, of 1.13 in the older format, and a whole checkpoint of the official program: every tensor, bit for bit."""
    found = read_torch(GOLDEN / f"{name}.pth")
    assert len(found) == count
    for torch_name, value in found.items():
        if torch_name.endswith("num_batches_tracked"):
            assert value.shape == () and value.dtype == np.int64 and value == 7
        else:
            np.testing.assert_array_equal(value, recipe(torch_name, value.shape, 0))
            assert value.dtype == np.float32


def test_kinds_of_tensors():
    """Transposed, parts of others, parameters, empty, and every dtype."""
    found = read_torch(GOLDEN / "torch_kinds.pth")
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    expected = {
        "transposed": base.T, "part": base[1:3, ::2], "parameter": base[0], "empty": base[:0], "long": np.int64(5),
        "half": base.astype(np.float16), "bfloat16": base.astype(ml_dtypes.bfloat16), "double": base.astype(np.float64),
        "flags": base > 3, "bytes": base.astype(np.uint8),
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_what_torch_itself_saves(tmp_path):
    """If PyTorch is installed: both formats, of random tensors."""
    torch = pytest.importorskip("torch")
    state = {"a": torch.randn(3, 4, 5).transpose(0, 2), "b": torch.randint(9, (7,)), "c": torch.randn(6, 2).bfloat16()}
    for new in (True, False):
        torch.save({"model": state, "epoch": 3}, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
        found = read_torch(epath.Path(tmp_path / "x.pth"))
        for name, tensor in state.items():
            np.testing.assert_array_equal(found[name].astype(np.float32), tensor.float().numpy())


class Call:
    """Pickles as a call of `function` when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Global(str):
    """Represents MODULE.NAME in a pickle, which need not exist here."""


class Storage:
    def __init__(self, numel, kind="FloatStorage", key="0"):
        self.numel, self.kind, self.key = numel, kind, key


class Pickler(pickle._Pickler):
    """Writes names of PyTorch without PyTorch."""

    def persistent_id(self, value):
        return (
            ("storage", Global(f"torch {value.kind}"), value.key, "cpu", value.numel)
            if isinstance(value, Storage)
            else None
        )

    def save(self, value, *arguments, **settings):
        if isinstance(value, Global):
            self.write(b"c%s\n%s\n" % tuple(value.encode().split(b" ")))
        else:
            super().save(value, *arguments, **settings)


class Tensor:
    """Pickles as PyTorch's call that rebuilds a tensor."""

    def __init__(self, storage, offset, shape, strides):
        self.arguments = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return Rebuild(), self.arguments


class Rebuild(Global):
    def __new__(cls):
        return super().__new__(cls, "torch._utils _rebuild_tensor_v2")

    def __call__(self):
        raise AssertionError("only its name is pickled")


def pickled(tree):
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(tree)
    return buffer.getvalue()


def archive(path, tree, numbers=4, compression=zipfile.ZIP_STORED, raw=None):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", raw or pickled(tree))
        file.writestr("archive/data/0", np.arange(numbers, dtype=np.float32).tobytes())
    return epath.Path(path)


_KINDS = {"f2": "HalfStorage", "f4": "FloatStorage", "i8": "LongStorage"}


def save(path, tree):
    """As torch.save, for a tree of dicts and lists with numpy arrays as tensors, each in a storage of its own."""
    contents = []

    def tensor(value):
        if isinstance(value, dict):
            new = type(value)((name, tensor(part)) for name, part in value.items())
            if isinstance(value, collections.OrderedDict):  # as state_dict() has it
                new._metadata = collections.OrderedDict({"": {"version": 1}, "bn1": {"version": 2}})
            return new
        if isinstance(value, list):
            return [tensor(part) for part in value]
        if not isinstance(value, np.ndarray):
            return value
        contents.append(value.tobytes())
        storage = Storage(value.size, _KINDS[value.dtype.str[1:]], str(len(contents) - 1))
        return Tensor(storage, 0, value.shape, tuple(stride // value.itemsize for stride in value.strides))

    content = pickled(tensor(tree))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
        for key, numbers in enumerate(contents):
            file.writestr(f"archive/data/{key}", numbers)
        file.writestr("archive/version", "3\n")
    return epath.Path(path)


def test_the_writer_of_these_tests(tmp_path):
    """A valid file written by it is read: the following ones are refused for their contents."""
    path = archive(tmp_path / "x.pth", {"w": Tensor(Storage(4), 1, (3,), (1,))})
    np.testing.assert_array_equal(read_torch(path)["w"], [1, 2, 3])


def commands(marker):
    """Ways of running something."""
    command = f"touch {marker}"
    return {
        "system": (Call(os.system, command), f"{os.system.__module__}.system"),
        "eval": (Call(eval, f"open({str(marker)!r}, 'w')"), "(builtins|__builtin__).eval"),
        "getattr": (Call(getattr, "x", "upper"), "(builtins|__builtin__).getattr"),
        "method": (Call(pathlib.Path.touch, marker), "(__builtin__.getattr|pathlib.Path.touch)"),
        "unpickler": (Call(pickle.loads, pickle.dumps(Call(os.system, command))), "_?pickle.loads"),
    }


@pytest.mark.parametrize("name", ["system", "eval", "getattr", "method", "unpickler"])
def test_code_is_refused_by_name_and_not_run(tmp_path, name):
    """In a zip archive, in the older format, and in a bare pickle; together with valid tensors, too."""
    marker = tmp_path / "was_here"
    bad, sentence = commands(marker)[name]
    tree = {"model": {"w": Tensor(Storage(4), 0, (4,), (1,))}, "optimizer": bad}
    head = pickled(0x1950A86A20F9469CFC6C) + pickled(1001) + pickled({"little_endian": True})
    (tmp_path / "stream.pth").write_bytes(head + pickled(tree))
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(bad))
    for path in (archive(tmp_path / "zip.pth", tree), tmp_path / "stream.pth", tmp_path / "bare.pth"):
        with pytest.raises(UserError, match=f"{path} holds {sentence}, but only dicts of tensors can be read"):
            read_torch(epath.Path(path))
    assert not marker.exists()


def test_the_reader_cannot_be_changed_from_within(tmp_path):
    """Setting attributes of what a pickle may call, calling what it may not, and objects of a registry."""
    dict_maker, storage = b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n"
    exclude = b"c__main__\nexclude_bias_and_norm\n"
    state = pickle.dumps({"__call__": 1}, 2)[2:-1]
    for raw in (
        b"\x80\x02" + dict_maker + state + b"b.",  # BUILD on a callable
        b"\x80\x02" + dict_maker + b"N" + state + b"\x86b.",  # with slots
        b"\x80\x02" + exclude + b")R.",  # calling the inert name
        b"\x80\x02" + storage + b")R.",
        b"\x80\x02" + dict_maker + b")\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"(ios\nsystem\n.",  # INST
    ):
        with pytest.raises(
            UserError, match="only dicts of tensors can be read|is not a readable file of PyTorch tensors"
        ):
            read_torch(archive(tmp_path / "x.pth", None, raw=raw))
    assert read_torch(archive(tmp_path / "x.pth", {"w": Tensor(Storage(4), 0, (4,), (1,))}))["w"].shape == (4,)


@pytest.mark.parametrize(
    ("tensor", "numbers"),
    [
        (Tensor(Storage(4), 0, (5,), (1,)), 4),  # more than there are
        (Tensor(Storage(4), 2, (3,), (1,)), 4),
        (Tensor(Storage(4), 0, (2, 2), (3, 3)), 4),
        (Tensor(Storage(4), 0, (10**9, 10**9), (0, 0)), 4),  # one number as often as it likes
        (Tensor(Storage(4), 0, (-1,), (1,)), 4),
        (Tensor(Storage(4), 0, (2,), (-1,)), 4),
        (Tensor(Storage(4), True, (2,), (1,)), 4),
        (Tensor(Storage(2**40), 0, (4,), (1,)), 4),  # a storage of another size than its file
        (Tensor(Storage(4), 0, (4,), (1,)), 3),
        (Tensor("storage", 0, (4,), (1,)), 4),
    ],
)
def test_shapes_that_lie(tmp_path, tensor, numbers):
    with pytest.raises(UserError, match="is not a readable file of PyTorch tensors"):
        read_torch(archive(tmp_path / "x.pth", {"w": tensor}, numbers))


def test_a_training_checkpoint(tmp_path):
    """As PyTorch's ImageNet example saves it: the weights one level down, and a single tensor with them."""
    tensor = Tensor(Storage(4), 0, (4,), (1,))
    tree = {
        "epoch": 90,
        "arch": "resnet50",
        "state_dict": {"w": tensor},
        "best_acc1": Tensor(Storage(4), 0, (1,), (1,)),
    }
    found = read_torch(archive(tmp_path / "x.pth", tree))
    assert list(found) == ["w"] and found["w"].shape == (4,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_beside_the_weights(tmp_path, protocol):
    """As the official evaluate.py keeps its best accuracies, and other cases: skipped, without making any such object."""
    best = argparse.Namespace(top1=np.float64(71.3), top5=0.0)
    counts = collections.defaultdict(list, {"a": [1]})
    tree = {
        "epoch": 100,
        "best_acc": best,
        "model": collections.OrderedDict(w=Tensor(Storage(4), 0, (4,), (1,))),
        "scalars": [np.float32(1.5), np.int64(3), np.arange(3), np.dtype("f4")],
        "scheduler": {
            "milestones": collections.Counter([60, 80]),
            "state": counts,
            "kinds": {1, 2},
            "none": complex(1, 2),
        },
        "settings": [types.SimpleNamespace(a=1), pathlib.PurePosixPath("x"), b"bytes", bytearray(b"x"), slice(1, 2)],
        "hyper_parameters": Global("omegaconf.dictconfig DictConfig"),
        "callbacks": {Global("pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint"): {"best": 1}},
    }
    buffer = io.BytesIO()
    Pickler(buffer, protocol=protocol).dump(tree)
    found = read_torch(archive(tmp_path / "x.pth", None, raw=buffer.getvalue()))
    assert list(found) == ["w"] and found["w"].tolist() == [0, 1, 2, 3]


def test_a_default_dict_of_tensors(tmp_path):
    tree = collections.defaultdict(None, w=Tensor(Storage(4), 0, (4,), (1,)))
    assert read_torch(archive(tmp_path / "x.pth", tree))["w"].shape == (4,)


def test_placeholders_keep_nothing(tmp_path):
    """An object's own way to restore itself is never used, for any file."""
    marker = tmp_path / "was_here"
    namespace = b"cargparse\nNamespace\n"
    good = pickled({"w": Tensor(Storage(4), 0, (4,), (1,))})[2:-1]
    state = pickled({"__class__": 1, "_take": 2, "append": 3})[2:-1]
    for action in (
        namespace + b")\x81" + state + b"b",  # an object with a state
        namespace + state + b"b",  # a state for the class
        namespace + b")R(K\x01K\x02e",  # items appended
        namespace + b")R(K\x01K\x02u",  # and set
        b"(" + namespace + b"o",
        b"(iargparse\nNamespace\n",
    ):
        found = read_torch(archive(tmp_path / "x.pth", None, raw=b"\x80\x02" + action + b"0" + good + b"."))
        assert found["w"].shape == (4,), action
    bad = argparse.Namespace(x=Call(os.system, f"touch {marker}"))
    with pytest.raises(UserError, match="holds (posix|nt).system, but only dicts of tensors"):
        read_torch(archive(tmp_path / "x.pth", {"best_acc": bad, "model": {"w": Tensor(Storage(4), 0, (4,), (1,))}}))
    with pytest.raises(UserError, match="'note', a Placeholder instead of a tensor"):
        read_torch(archive(tmp_path / "x.pth", {"w": Tensor(Storage(4), 0, (4,), (1,)), "note": np.float32(1)}))
    assert not marker.exists()


def test_files_of_another_kind(tmp_path):
    """Are recognised by their contents, under any name."""
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as file:
        file.addfile(tarfile.TarInfo("x"))
    for content, sentence in (
        (
            b"<!DOCTYPE html><html></html>",
            r"\(it is a web page \(HTML or XML\) instead of the file; download",
        ),
        (b"\n <html>", "it is a web page"),
        (b"<?xml version='1.0'?><Error>", "it is a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
            "it is a pointer of git-lfs, not the file itself",
        ),
        (gzip.compress(b"x"), "it is compressed by gzip; unpack it first"),
        (tarred.getvalue(), "it is a tar archive; unpack it first"),
        (b"\x89HDF\r\n", "it is an HDF5 file"),
        (b"", "(it is empty|its header claims 0 bytes)"),
        (b'{"weights": []}', "(it is neither a zip archive nor a pickle|its header claims)"),
    ):
        for name, read in (("x.pth", read_torch), ("x.safetensors", read_safetensors)):
            path = epath.Path(tmp_path / name)
            path.write_bytes(content)
            with pytest.raises(UserError, match=sentence):
                read(path)


def test_no_tensors(tmp_path):
    """The error for a file without a valid state dict says what it holds."""
    good = Tensor(Storage(4), 0, (4,), (1,))
    for tree, sentence in (
        ([good], "a list instead of a dict"),
        ({"epoch": 3, "net": {"w": good}}, "no state dict (its entries: epoch, net)"),
        ({"model": {"w": good}, "state_dict": {"w": good}}, "no state dict (its entries: model, state_dict)"),
        ({"w": good, "note": "hello"}, "'note', a str instead of a tensor"),
        ({}, "no state dict (its entries: none)"),
        ({"model": Global("torchvision.models.resnet ResNet")}, "torchvision.models.resnet.ResNet"),
        ({"w": good, "f": Global("__main__ exclude_bias_and_norm")}, "'f', a Name instead of a tensor"),
    ):
        with pytest.raises(UserError) as error:
            read_torch(archive(tmp_path / "x.pth", tree))
        assert sentence in str(error.value)


def test_broken_files(tmp_path):
    """Cut off at any place, compressed, or another kind of file: an error."""
    tree = {"w": Tensor(Storage(4), 0, (4,), (1,))}
    whole = archive(tmp_path / "whole.pth", tree).read_bytes()
    stream = (GOLDEN / "torch_1_13_stream.pth").read_bytes()
    cut = epath.Path(tmp_path / "cut.pth")
    pieces = [whole[:n] for n in range(0, len(whole) - 1, 40)] + [
        stream[:n] for n in (1, 20, 100, 3000, len(stream) - 1)
    ]
    for content in [*pieces, b"hello", b"\x80\x02N.", (b"\x8b" + b"\xff" * 4) * 3]:
        cut.write_bytes(content)
        with pytest.raises(UserError, match="cut.pth (is not a readable file of PyTorch tensors|holds)"):
            read_torch(cut)
    with pytest.raises(UserError, match="is compressed"):
        read_torch(archive(tmp_path / "x.pth", tree, compression=zipfile.ZIP_DEFLATED))
