"""Reads PyTorch files (.pth) without PyTorch, and without running any code that they contain.

A .pth is a pickle, a program that may call anything Python can import. This reader knows dicts, lists, numbers, strings and
tensors. Objects that programs save along with their weights, such as an argparse.Namespace or NumPy's numbers, become empty
placeholders; every other name is refused before anything is called. It reads both formats: the zip archive of PyTorch 1.6 and
later, and the older stream of pickles. Format: torch/serialization.py.
"""

import math
import pickle
import zipfile
from typing import IO, Any, Literal

import ml_dtypes
import numpy as np
from etils import epath

from bt_jax.errors import UserError, first_line
from bt_jax.export.other_files import START, other_kind

_STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older format
_LARGEST_PICKLE = 64 * 2**20  # bytes, without the tensors' data; a ResNet-50's has 30 kB
# The official checkpoint.pth of 2021 refers to this function of its main.py in the optimizer's settings.
_INERT = {("__main__", "exclude_bias_and_norm"), ("__mp_main__", "exclude_bias_and_norm")}


def read_torch(path: epath.Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name: the file's only dict, or its entry `model` or `state_dict`.

    Other tensors, such as an optimizer's, are not read. Arrays have the file's dtypes.

    Raises:
      UserError: the file holds something other than tensors in dicts (which is named), holds no state dict, or is not a
        PyTorch file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(START)
            if (kind := other_kind(start)) is not None:
                raise ValueError(f"it is {kind}")
            if not start.startswith((b"PK\x03\x04", b"\x80")):
                raise ValueError(f"it is {'neither a zip archive nor a pickle' if start else 'empty'}")
            file.seek(0)
            content = _Zip(file) if start[:4] == b"PK\x03\x04" else _Stream(file)
            tensors = _state_dict(content.tree)
            return {name: tensor.read(content) for name, tensor in tensors.items()}
    except _Refused as refused:
        raise UserError(
            f"{path} holds {refused}, but only dicts of tensors can be read, as written by "
            "torch.save(model.state_dict(), …); no code in it was run."
        ) from None
    # A broken or malicious file can make the parsers fail anywhere; bugs of this module show on valid files, in tests.
    except Exception as error:
        raise UserError(f"{path} is not a readable file of PyTorch tensors ({first_line(error)}).") from None


class _Refused(Exception):
    """The file holds something that is not allowed, which the text names."""


class _Storage:
    """Numbers in a file, not read yet."""

    __slots__ = ("dtype", "key", "numel")

    def __init__(self, dtype, key, numel):
        if not (isinstance(key, str) and type(numel) is int and numel >= 0):
            raise ValueError("a storage without a name or size")
        self.dtype, self.key, self.numel = np.dtype(dtype), key, numel


class _Tensor:
    """A view of a storage, not read yet."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage, offset, shape, strides):
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a tensor without a storage or shape")
        if len(shape) != len(strides) or len(shape) > 32:
            raise ValueError(f"a tensor of shape {shape} with strides {strides}")
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        # The product too: a stride of 0 repeats one number as often as the shape claims.
        if math.prod(shape) > storage.numel or (math.prod(shape) and last >= storage.numel):
            raise ValueError(f"a tensor of shape {shape} in a storage of {storage.numel}")
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), tuple(strides)

    def read(self, content: "_Zip | _Stream") -> np.ndarray:
        flat = content.numbers(self.storage)[self.offset :]
        steps = tuple(stride * flat.itemsize for stride in self.strides)
        view = np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)
        return view.astype(view.dtype.newbyteorder("="), order="C")


# What a pickle may call: objects without attributes, so that the pickle cannot change them.


class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage, offset, shape, strides, *_):
        return _Tensor(storage, offset, shape, strides)


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, tensor, *_):
        return tensor


class _Dict(dict):
    """An OrderedDict without its attributes (a state dict's `_metadata`)."""

    __slots__ = ()

    def __setstate__(self, _):
        pass


class _MakeDict:
    __slots__ = ()

    def __call__(self, *items):
        return _Dict(*items)


class _MakeDefaultDict:
    __slots__ = ()

    def __call__(self, _=None, *items):
        return _Dict(*items)


class Placeholder:
    """Stands for an object of any class, and for the class: it accepts everything that a pickle does to it and stores nothing."""

    __slots__ = ()

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *_, **__):
        pass

    def _take(self, *_):
        pass

    __setstate__ = __setitem__ = append = extend = add = _take


class _Name:
    """Stands for a name that is referred to but never used; calling it is an error."""

    __slots__ = ()


_CALLABLE = {
    ("collections", "OrderedDict"): _MakeDict(),
    ("collections", "Counter"): _MakeDict(),
    ("collections", "defaultdict"): _MakeDefaultDict(),
    ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
}


# Objects that programs save along with their weights: the official evaluate.py saves its best accuracies in a Namespace, others
# their settings. None is imported or called.
_PLACEHOLDERS = {
    "argparse": {"Namespace"},
    "builtins": {"bool", "bytearray", "complex", "dict", "float", "frozenset", "int", "list", "set", "slice", "str", "tuple"},
    "_codecs": {"encode"},  # for bytes, such as those of NumPy's numbers
    "datetime": {"date", "datetime", "timedelta"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
    "torch": {"Size", "device"} | {f"{kind}{bits}" for kind in ("int", "float") for bits in (8, 16, 32, 64)} | {"bfloat16"},
    "torch.torch_version": {"TorchVersion"},
    "types": {"SimpleNamespace"},
    "typing": {"Any"},
}  # fmt: skip
_PLACEHOLDERS["__builtin__"] = _PLACEHOLDERS["builtins"]  # their name in Python 2, and in pickle's protocol 2
# Lightning's checkpoints, such as solo-learn's and lightly's, have settings and callbacks from these packages.
_PACKAGES = {"lightning", "lightning_fabric", "omegaconf", "pytorch_lightning"}


class _Unpickler(
    pickle._Unpickler
):  # the one in Python: the one in C reserves as much memory as a pickle's index claims
    """Every name in a pickle goes through `find_class`, every storage through `persistent_load`."""

    def find_class(self, module: str, name: str) -> Any:
        if (found := _CALLABLE.get((module, name))) is not None:
            return found
        if module in ("torch", "torch.cuda") and name in _STORAGES:
            return name
        if (module, name) in _INERT:
            return _Name()
        if name in _PLACEHOLDERS.get(module, ()) or module.partition(".")[0] in _PACKAGES:
            return Placeholder
        raise _Refused(f"{module}.{name}"[:100])

    def get_extension(self, code: int) -> None:
        raise _Refused(f"the registered object {code}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, numel, *view = pid
        if kind != "storage" or storage not in _STORAGES or any(part is not None for part in view):
            raise _Refused(f"a reference to {str(pid)[:60]}")
        return _Storage(_STORAGES[storage], key, numel)


class _Zip:
    """The newer format: NAME/data.pkl and NAME/data/KEY, not compressed."""

    def __init__(self, file: IO[bytes]):
        self._archive = zipfile.ZipFile(file)
        pickles = [info for info in self._archive.infolist() if info.filename.endswith("/data.pkl")]
        if not pickles:
            raise ValueError("it is a zip archive, but without the data.pkl that PyTorch writes")
        if len(pickles) != 1:
            raise ValueError(f"it is a zip archive with {len(pickles)} files data.pkl instead of one")
        self._root = pickles[0].filename.removesuffix("data.pkl")
        order = f"{self._root}byteorder"
        big = order in self._archive.namelist() and self._member(order, 10).strip() == b"big"
        self._order: Literal["<", ">"] = ">" if big else "<"
        with self._open(pickles[0], _LARGEST_PICKLE) as member:
            self.tree = _Unpickler(member, encoding="utf-8").load()

    def numbers(self, storage: _Storage) -> np.ndarray:
        content = self._member(f"{self._root}data/{storage.key}", storage.numel * storage.dtype.itemsize)
        return np.frombuffer(content, storage.dtype.newbyteorder(self._order), storage.numel)

    def _member(self, name: str, most: int) -> bytes:
        with self._open(self._archive.getinfo(name), most) as member:
            return member.read()

    def _open(self, info: zipfile.ZipInfo, most: int) -> IO[bytes]:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
            raise ValueError(f"{info.filename[:80]} is compressed, or has {info.file_size:,} bytes, more than {most:,}")
        return self._archive.open(info)


class _Stream:
    """The older format: a magic number, a version, the machine, the tree, and the storages' keys, sizes and numbers."""

    def __init__(self, file: IO[bytes]):
        if _Unpickler(file).load() != _MAGIC:
            raise ValueError("it lacks PyTorch's magic number")
        _Unpickler(file).load()
        machine = _Unpickler(file).load()
        self._order: Literal["<", ">"] = "<" if machine["little_endian"] else ">"
        seen: dict[str, _Storage] = {}
        unpickler = _Unpickler(file, encoding="utf-8")
        unpickler.persistent_load = lambda pid: seen.setdefault(pid[2], _Unpickler.persistent_load(unpickler, pid))
        self.tree = unpickler.load()
        self._file, self._places = file, {}
        size = None
        for key in _Unpickler(file).load():
            storage = seen[key]
            numel = int.from_bytes(file.read(8), "little" if self._order == "<" else "big")
            if numel != storage.numel:
                raise ValueError(f"a storage of {numel:,} numbers instead of {storage.numel:,}")
            self._places[key] = file.tell()
            file.seek(numel * storage.dtype.itemsize, 1)
            size = size or _size(file)
            if file.tell() > size:
                raise ValueError("its end is missing")

    def numbers(self, storage: _Storage) -> np.ndarray:
        self._file.seek(self._places[storage.key])
        content = self._file.read(storage.numel * storage.dtype.itemsize)
        return np.frombuffer(content, storage.dtype.newbyteorder(self._order), storage.numel)


def _size(file: IO[bytes]) -> int:
    here = file.tell()
    size = file.seek(0, 2)
    file.seek(here)
    return size


def _state_dict(tree: Any) -> dict[str, _Tensor]:
    """The dict of tensors in a file's content."""
    if not isinstance(tree, dict):
        raise _Refused(f"a {type(tree).__name__.lstrip('_')} instead of a dict")
    inner = [name for name in ("model", "state_dict") if isinstance(tree.get(name), dict)]
    if len(inner) == 1 or not any(isinstance(value, _Tensor) for value in tree.values()):
        if len(inner) != 1:
            raise _Refused(
                f"no state dict (its entries: {', '.join(str(name)[:30] for name in list(tree)[:8]) or 'none'})"
            )
        tree = tree[inner[0]]
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise _Refused(f"{str(name)[:80]!r}, a {type(value).__name__.lstrip('_')} instead of a tensor")
    return dict(tree)
