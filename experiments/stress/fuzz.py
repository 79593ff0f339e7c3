"""Feeds damaged and hostile files to everything that reads a file from elsewhere: does each end in a sentence?

    python experiments/stress/fuzz.py DIR [--inputs 10000] [--only NAME …] [--seed 0]

For each reader a good file is made and mutated at random: bits flipped, bytes overwritten with extreme numbers, parts cut out, doubled,
moved or inserted, the end cut off; and hostile files are added: pickles that call functions, archives that unpack to gigabytes, numbers
and nesting without end. A reader may read an input, or refuse it with a UserError (images: with the error of the decoder). Anything
else is wrong, and printed with the input's file, which is kept: another exception, more than 10 s, more than 2 GB, code that was run.

Each reader has a process of its own, whose address space is limited to 2 GB above what it has at every hundredth input.
"""

import argparse
import collections
import contextlib
import gzip
import io
import json
import multiprocessing
import os
import pathlib
import pickle
import random
import resource
import shutil
import sys
import tarfile
import time
import traceback
import zipfile
from collections.abc import Callable

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))
ROOT = pathlib.Path(__file__).parents[2]
SECONDS, MEMORY = 10, 2 * 2**30
EXTREME = [
    b"\xff" * 4,
    b"\xff" * 8,
    b"\x00" * 8,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"999999999999",
    b"-1",
    b"1e999",
    b"NaN",
    b"{" * 64,
]


class Canary:
    """Pickled, it makes a file when it is loaded without care."""

    def __init__(self, path: pathlib.Path):
        self._path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self._path}",)


def mutated(draw: random.Random, data: bytes) -> bytes:
    """One to three random changes of some bytes."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if not data:
            return data
        a = draw.randrange(len(data))
        length = min(draw.choice((1, 2, 4, 8, 64, 1024)), len(data) - a)
        kind = draw.randrange(7)
        if kind == 0:
            bit = 1 << draw.randrange(8)
            data = data[:a] + bytes([data[a] ^ bit]) + data[a + 1 :]
        elif kind == 1:
            what = draw.choice(EXTREME)
            data = data[:a] + what + data[a + len(what) :]
        elif kind == 2:
            data = data[:a] + data[a + length :]
        elif kind == 3:
            data = data[:a] + data[a : a + length] * draw.choice((2, 3, 50)) + data[a + length :]
        elif kind == 4:
            data = data[:a] + draw.randbytes(length) + data[a:]
        elif kind == 5:
            b = draw.randrange(len(data))
            data = data[:a] + data[b : b + length] + data[a + length :]
        else:
            data = data[:a]
    return data


class Reader:
    """A kind of file.

    Attributes:
      samples: good files.
      hostile: files made to do harm, or what writes one to a path.
      name: of the file, with its suffix.
      read: takes its path.
    """

    def __init__(self, name: str, samples: list[bytes], hostile: list, read: Callable[[pathlib.Path], object]):
        self.name, self.samples, self.hostile, self.read = name, samples, hostile, read


def bomb(name: str, of: int = 6 * 2**30) -> bytes:
    """A zip archive with a member that unpacks to gigabytes of zeros."""
    made = io.BytesIO()
    with (
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w", force_zip64=True) as member,
    ):
        if name.endswith(".npy"):
            np.lib.format.write_array_header_1_0(
                member, {"descr": "|u1", "fortran_order": False, "shape": (of // 3072, 32, 32, 3)}
            )
        for _ in range(of // 2**24):
            member.write(bytes(2**24))
    return made.getvalue()


def torch_files(folder: pathlib.Path, canary: pathlib.Path) -> Reader:
    from bt_jax.export.encoder import read_weights

    samples = [path.read_bytes() for path in sorted((ROOT / "tests" / "golden").rglob("*.pth"))]
    hostile = [pickle.dumps(Canary(canary), protocol) for protocol in (0, 2, 4)]
    for code in list(hostile):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr("archive/data.pkl", code)
        hostile.append(made.getvalue())
    hostile += [bomb("archive/data.pkl"), b"\x80\x02" + b"(" * 10**6, b"\x80\x02" + b"]" + b"\x8a\xff" * 1000]
    return Reader("weights.pth", samples, hostile, lambda path: read_weights(str(path)))


def arrays(folder: pathlib.Path, canary: pathlib.Path) -> Reader:
    from bt_jax.data.sources.arrays import array_source

    rng, made = np.random.default_rng(0), io.BytesIO()
    x, y = rng.integers(0, 256, (6, 8, 8, 3), np.uint8), np.arange(6)
    np.savez(made, x_train=x, y_train=y)
    packed = io.BytesIO()
    np.savez_compressed(packed, x_train=x, y_train=y)
    code = io.BytesIO()
    np.savez(code, x_train=np.array([Canary(canary)], object), y_train=y)
    samples = [made.getvalue(), packed.getvalue()]
    return Reader("set.npz", samples, [code.getvalue(), bomb("x_train.npy")], lambda p: array_source(str(p), "train"))


def _run(folder: pathlib.Path):
    """A small run, made once, beside the readers' folders."""
    from small_runs import config_of, prepare

    from bt_jax.tasks.pretrain import pretrain

    folder = folder.parent / "good"
    if not (folder / "run" / "pretrain.json").exists():
        prepare(folder)
        pretrain(config_of(folder, epochs=2), str(folder / "run"))
    return folder / "run"


def _exported(folder: pathlib.Path) -> pathlib.Path:
    from bt_jax import config as config_lib
    from bt_jax.tasks.export import export

    run = _run(folder)
    exported = run.with_name("exported")
    if not (exported / "encoder.json").exists():
        config = config_lib.default("export")
        config.init_from = str(run)
        export(config, str(exported))
    return exported


def safetensors(folder: pathlib.Path, canary: pathlib.Path) -> Reader:
    from bt_jax.export.encoder import read_weights

    good = (_exported(folder) / "encoder.safetensors").read_bytes()
    claims = json.dumps({"conv1.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    hostile = [len(claims).to_bytes(8, "little") + claims, (2**63).to_bytes(8, "little") + b"{}", bytes(8)]
    deep = b'{"a":' * 10**5
    hostile.append(len(deep).to_bytes(8, "little") + deep)
    return Reader("encoder.safetensors", [good], hostile, lambda path: read_weights(str(path)))


def descriptions(folder: pathlib.Path, canary: pathlib.Path) -> Reader:
    """encoder.json of an export folder."""
    from bt_jax.export.encoder import read_weights

    exported = _exported(folder)
    own = folder / "descriptions"
    shutil.copytree(exported, own, dirs_exist_ok=True)
    good = (exported / "encoder.json").read_bytes()
    out = json.loads(good)
    outside = json.dumps(out | {"files": {**out["files"], "encoder": "../../../etc"}}).encode()
    hostile = [outside, b"[" * 10**5, b'{"format": ' + b"9" * 10**5 + b"}"]

    def read(path):
        shutil.copy(path, own / "encoder.json")
        return read_weights(str(own))

    return Reader("encoder.json", [good], hostile, read)


def configs(folder: pathlib.Path, canary: pathlib.Path) -> Reader:
    """config.json of a run, which names the architecture to build."""
    from bt_jax.export.encoder import read_weights

    run = _run(folder)
    own = folder / "configs"
    shutil.copytree(run, own, dirs_exist_ok=True)
    good = (run / "config.json").read_bytes()
    hostile = [
        b"[" * 10**5,
        good.replace(b'"resnet18"', b'"os:system"'),
        good.replace(b'"width": 4', b'"width": 10000000'),
    ]

    def read(path):
        shutil.copy(path, own / "config.json")
        return read_weights(str(own))

    return Reader("config.json", [good], hostile, read)


def checkpoints(folder: pathlib.Path, canary: pathlib.Path) -> Reader:
    """Any file of a checkpoint, chosen by the input's first byte."""
    from bt_jax.export.encoder import read_weights

    run = _run(folder)
    own = folder / "checkpoint"
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name) if path.name.isdigit() else -1)
    files = sorted(path.relative_to(run) for path in newest.rglob("*") if path.is_file())
    good = [bytes([number % 256]) + (run / file).read_bytes() for number, file in enumerate(files)]

    def read(path):
        data = path.read_bytes()
        if not data:
            return None
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(newest, own / "checkpoints" / newest.name)
        shutil.copy(run / "config.json", own / "config.json")
        (own / files[data[0] % len(files)]).write_bytes(data[1:])
        return read_weights(str(own))

    return Reader("checkpoint", good, [], read)


def lists(folder: pathlib.Path, canary: pathlib.Path) -> Reader:
    from etils import epath

    from bt_jax.data.sources.lists import listed_images

    for name in ("a/1.png", "a/2.png", "b, c/3.png"):
        (folder / "input" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "input" / name).touch()
    good = b'path,label\na/1.png,cat\na/2.png,dog\n"b, c/3.png",cat\n'
    hostile = [b"path,label\n" + b'"' * 10**6, b"path,label\n" + b"a" * 10**7, b"path\n../../../etc/passwd\n"]
    return Reader("list.csv", [good], hostile, lambda path: listed_images(epath.Path(path)))


def images(folder: pathlib.Path, canary: pathlib.Path) -> Reader:
    import tensorflow as tf
    from PIL import Image

    from bt_jax.data.decode import decode

    rng, samples = np.random.default_rng(0), []
    image = Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8))
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
        made = io.BytesIO()
        image.save(made, kind)
        samples.append(made.getvalue())
    wide = io.BytesIO()
    Image.new("L", (30000, 30000)).save(wide, "PNG")  # 109 kB that unpack to 900 MB, as RGB to 2.7 GB
    program = tf.function(decode, input_signature=[tf.TensorSpec((), tf.string)])

    def read(path):
        try:
            return program(path.read_bytes()).shape
        except (tf.errors.OpError, ValueError) as error:
            from bt_jax.errors import UserError

            raise UserError(str(error)[:80]) from None

    return Reader("image", samples, [wide.getvalue()], read)


def results(folder: pathlib.Path, canary: pathlib.Path) -> Reader:
    from bt_jax.evaluation.results import read_results

    good = json.dumps({
        "task": "linear", "protocol": "p", "bt_jax": "0", "data": {}, "checkpoint": None, "seeds": [0],
        "runs": [{"seed": 0, "final": {"top1": 0.5}}], "mean": {"final.top1": 0.5}, "spread": {"final.top1": None}, "config": {},
    }).encode()  # fmt: skip

    def read(path):
        (folder / "results").mkdir(exist_ok=True)
        shutil.copy(path, folder / "results" / "linear.json")
        return read_results(str(folder / "results"))

    return Reader("linear.json", [good], [b"[" * 10**5], read)


def _images(count: int) -> list[bytes]:
    from PIL import Image

    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        made = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 6, 3), np.uint8)).save(made, "JPEG")
        found.append(made.getvalue())
    return found


def _tar(files: dict[str, bytes], *, links: tuple[tuple[str, str, bytes], ...] = (), **options) -> bytes:
    """An archive with these files, and (name, target, type) of links."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", **options) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target, kind in links:
            member = tarfile.TarInfo(name)
            member.linkname, member.type = target, kind
            archive.addfile(member)
    return made.getvalue()


def _tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE, pax: dict[str, str] | None = None) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.pax_headers = size, kind, pax or {}
    return member.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


def _sparse_file(begin: bytes, size: int) -> Callable[[pathlib.Path], None]:
    """Writes a file that begins so and goes on with zeros, which take no room on the disk."""

    def write(path):
        path.write_bytes(begin)
        os.truncate(path, size)

    return write


def _negative(image: bytes) -> bytes:
    """An archive whose first file has -1024 bytes, which leads back to itself."""
    data = bytearray(_tar({"a.jpg": image}))
    data[124:136] = (2**96 - 1024).to_bytes(12, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def _hostile_archives() -> list[bytes | Callable[[pathlib.Path], None]]:
    image, end = _images(1)[0], bytes(1024)
    nested = _tar({"a.jpg": image})
    for depth in range(400):
        nested = _tar({f"{depth}.tar": nested})
    chained = b"".join(_tar_header("a", 512, b"L") + bytes(512) for _ in range(3000))
    return [
        *(_tar({name: image}) for name in ("../../a.jpg", "/etc/a.jpg", "a/../../b.jpg", "a.jpg\\..", "./..")),
        *(
            _tar({"b/a.jpg": image}, links=[("b/l.jpg", target, kind)])
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)
            for target in ("/etc/passwd", "../../../etc/passwd", "b/a.jpg", "b/l.jpg")
        ),
        *(_tar({"a.jpg": image}, links=[("b.jpg", "", kind)]) for kind in (tarfile.CHRTYPE, tarfile.FIFOTYPE, b"S", b"V")),
        *(_tar_header("a.jpg", size) + image + end for size in (2**33, 2**62, 2**80)),
        *(_tar_header("a" * 50, size, kind) + end for size in (2**20, 2**33, 2**62) for kind in (b"L", b"K", b"x", b"g")),
        *(
            _sparse_file(_tar_header("a", size, kind), size + 2048)
            for size in (3 * 2**30,)
            for kind in (b"L", b"x")
        ),
        *(_sparse_file(_tar_header(f"a{e}", 3 * 2**30), 4 * 2**30) for e in (".cls", ".json", ".jpg", ".tar")),
        _tar_header("a.jpg", 3, pax={"size": "-1"}) + end,
        _tar_header("a.jpg", 3, pax={"size": "9" * 5000}) + end,
        _tar_header("a.jpg", 3, pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 30}) + end,
        _tar_header("a.jpg", 3, pax={"GNU.sparse.map": "0," * 10**5 + "1"}) + end,
        _tar_header("a.jpg", 512, pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}) + b"9" * 512 + end,
        _tar({"a.jpg": image}, pax_headers={"hdrcharset": "BINARY", "a" * 10**6: "b"}, format=tarfile.PAX_FORMAT),
        gzip.compress(_tar({"a.jpg": image})),
        _sparse_file(b"", 3 * 2**30),
        nested,
        chained + _tar({"a.jpg": image}),
        _negative(image),
    ]  # fmt: skip


def _archive_reader(folder: pathlib.Path, name: str, samples: list[bytes], hostile: list) -> Reader:
    return Reader(name, samples, hostile, lambda path: _all_of(folder, "tar", path))


def _all_of(folder: pathlib.Path, kind: str, path: pathlib.Path):
    """The images of a source of one file, whose index is made anew."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return _fetched(folder, kind, path)


def _fetched(folder: pathlib.Path, kind: str, path: pathlib.Path):
    from bt_jax.config import default
    from bt_jax.data.sources.make import make_source

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    config = default().data
    config.update(source=kind, data_dir=str(path))
    source = make_source(config, "train")
    return source.fetch(np.arange(min(len(source), 64)))[0].tolist()


def archives(folder: pathlib.Path, canary: pathlib.Path) -> Reader:
    """Plain tar archives, and one of archives."""
    images = _images(6)
    plain = {f"c{i % 2}/{i}.jpg": image for i, image in enumerate(images)}
    long = {f"{'long' * 40}/{i}.jpg": image for i, image in enumerate(images)}
    inner = {f"n{i}.tar": _tar({f"n{i}_{j}.jpg": images[j] for j in range(3)}) for i in range(2)}
    samples = [
        _tar(plain),
        _tar(long, format=tarfile.GNU_FORMAT),
        _tar(long, format=tarfile.PAX_FORMAT),
        _tar(inner),
    ]
    return _archive_reader(folder, "train.tar", samples, _hostile_archives())


def shards(folder: pathlib.Path, canary: pathlib.Path) -> Reader:
    """WebDataset's."""
    images = _images(6)

    def shard(**beside: bytes) -> bytes:
        """With a .cls and .json of each image, or these instead for all."""
        own = [beside or {"cls": str(i).encode(), "json": b'{"label": %d}' % i} for i in range(6)]
        return _tar({f"{i:03d}.{e}": c for i, image in enumerate(images) for e, c in {"jpg": image, **own[i]}.items()})

    hostile = [
        *(shard(cls=text) for text in (b"9" * 10**4, b"9" * 10**6, b"-1", b"1e9", "²".encode(), "٣".encode(), b"\xff" * 99)),
        *(
            shard(json=text)
            for text in (
                b"[" * 10**5, b'{"a":' * 10**5, b'{"label": %s}' % (b"9" * 10**5), b'{"label": 1e999}', b"\xff\xfe", b"NaN"
            )
        ),
    ]  # fmt: skip
    samples = [shard(), shard(cls=b"1"), shard(json=b'{"label": 2, "caption": "a"}')]
    return _archive_reader(folder, "train.tar", samples, hostile + _hostile_archives())


def indexes(folder: pathlib.Path, canary: pathlib.Path) -> Reader:
    """The kept index of an archive, in its place: a damaged one is made again, and never gives other images."""
    archive = folder / "whole" / "train.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(_tar({f"c{i % 2}/{i}.jpg": image for i, image in enumerate(_images(6))}))
    expected = _all_of(folder, "tar", archive)
    (kept,) = (folder / "cache").rglob("*.npz")
    good = kept.read_bytes()
    with np.load(kept) as found:
        columns = dict(found)
    hostile = []
    for name in columns:
        swapped = io.BytesIO()
        np.savez(swapped, **{**columns, name: np.array([Canary(canary)], object)})
        hostile.append(swapped.getvalue())
    large = io.BytesIO(bomb("starts.npy", 5 * 2**29))
    with zipfile.ZipFile(large, "a") as into, zipfile.ZipFile(io.BytesIO(good)) as of:
        for other in set(columns) - {"starts"}:
            into.writestr(f"{other}.npy", of.read(f"{other}.npy"))
    hostile.append(large.getvalue())

    def read(path):
        shutil.copy(path, kept)
        found = _fetched(folder, "tar", archive)
        assert found == expected, "another index gives other images"

    return Reader("index.npz", [good], hostile, read)


def tables(folder: pathlib.Path, canary: pathlib.Path) -> Reader:
    """Parquet files."""
    import pyarrow
    from pyarrow import parquet

    def table(images: list[bytes], labels: list, kind: str = "zstd", **options) -> bytes:
        made = io.BytesIO()
        rows = pyarrow.table(
            {"image": [{"bytes": b, "path": f"{i}.jpg"} for i, b in enumerate(images)], "label": labels}
        )
        about = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
        rows = rows.replace_schema_metadata({"huggingface": json.dumps(about)})
        parquet.write_table(rows, made, compression=kind, **options)
        return made.getvalue()

    images = _images(6)
    samples = [table(images, [0, 1] * 3, kind) for kind in ("none", "snappy", "zstd", "gzip")]
    samples += [table(images, ["x", "y"] * 3, row_group_size=2, use_dictionary=False)]
    hostile = [
        table([bytes(2**25)] * 64, [0] * 64, "snappy", use_dictionary=False),
        table(images * 50, ["x" * 2**20] * 300),
        table(images, ["x" * 2**25] * 6, use_dictionary=False),
        table(images, [2**62, -(2**62)] * 3),
        _many_rows(images[0]),
        b"PAR1" + bytes(100) + (2**31 - 1).to_bytes(4, "little") + b"PAR1",
    ]
    return Reader("train.parquet", samples, hostile, lambda path: _all_of(folder, "parquet", path))


def _many_rows(image: bytes) -> bytes:
    """The same image and label 20 million times, in fewer bytes."""
    import pyarrow
    from pyarrow import parquet

    made, rows = io.BytesIO(), 10**6
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(rows, np.int32)), pyarrow.array([image]))
    table = pyarrow.table({"image": column, "label": np.zeros(rows, np.int64)})
    with parquet.ParquetWriter(made, table.schema, compression="zstd") as writer:
        for _ in range(20):
            writer.write_table(table)
    return made.getvalue()


READERS = {
    make.__name__: make
    for make in (
        torch_files, safetensors, arrays, descriptions, configs, checkpoints, lists, images, results, archives, shards, indexes,
        tables,
    )
}  # fmt: skip


def work(make: Callable, folder: pathlib.Path, inputs: int, seed: int, queue) -> None:
    """Reads all inputs of a reader in this process, telling the number of each before it is begun."""
    devices = "--xla_force_host_platform_device_count=1"
    os.environ.setdefault("XLA_FLAGS", devices)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from bt_jax.errors import UserError
    from bt_jax.models import resnet

    # Two blocks in place of eight: the time of reading a checkpoint grows with the number of its arrays.
    resnet.BLOCKS["resnet18"] = (1, 1)
    canary = folder / "canary"
    reader = make(folder, canary)
    place = folder / "input" / reader.name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(reader.samples[0])
    for _ in range(3):
        reader.read(place)  # libraries take their memory
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the most memory is counted from here on
    before = _memory("VmRSS")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    draw, done = random.Random(seed), collections.Counter()
    for number in range(inputs):
        if number % 100 == 0:  # TensorStore keeps about a megabyte of each checkpoint that it describes
            size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
        data = reader.hostile[number] if number < len(reader.hostile) else mutated(draw, draw.choice(reader.samples))
        if callable(data):
            data(place)
        else:
            place.write_bytes(data)
        queue.put(("begun", number))
        began, wrong = time.monotonic(), ""
        try:
            reader.read(place)
            done["read"] += 1
        except UserError:
            done["refused"] += 1
        except BaseException:
            wrong = traceback.format_exc(limit=-3)
        took = time.monotonic() - began
        if took > SECONDS and not wrong:  # twice: once may be the machine, busy with other work
            began = time.monotonic()
            with contextlib.suppress(UserError):
                reader.read(place)
            took = min(took, time.monotonic() - began)
            wrong = f"it took {took:.1f} s" if took > SECONDS else ""
        if canary.exists():
            canary.unlink()
            wrong = "its code was run"
        done["slowest"] = max(done["slowest"], took)
        if wrong:
            kept = _keep(place, folder / f"wrong_{make.__name__}_{number}_{reader.name}")
            queue.put(("wrong", f"{kept}: {wrong}"))
    done["memory"] = _memory("VmHWM") - before
    queue.put(("done", dict(done)))


def _keep(input_: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    """Copies an input; of a sparse one, which would fill the disk, only its beginning."""
    with open(input_, "rb") as read:
        place.write_bytes(read.read(2**24))
    return place


def _memory(kind: str) -> int:
    """Of this process, in bytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) * 1024


def tried(make: Callable, folder: pathlib.Path, inputs: int, seed: int) -> bool:
    """Runs a reader's process; prints a row. Whether all was right."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=work, args=(make, folder, inputs, seed, queue))
    process.start()
    began = time.monotonic()
    wrong, number, found, heard = [], -1, None, time.monotonic()
    while found is None:
        try:
            kind, told = queue.get(timeout=1)
            heard = time.monotonic()
        except Exception:  # nothing was told
            if process.is_alive() and time.monotonic() - heard < (1800 if number < 0 else 6 * SECONDS):
                continue
            if number < 0:
                wrong.append("its good file could not be read")
                break
            kept = _keep(
                next(p for p in (folder / "input").iterdir() if p.is_file()), folder / f"ended_{make.__name__}_{number}"
            )
            what = "hung" if process.is_alive() else f"ended the process with status {process.exitcode}"
            wrong.append(f"{kept}: input {number} {what}")
            break
        if kind == "begun":
            number = told
        elif kind == "wrong":
            wrong.append(told)
        else:
            found = told
    process.kill()
    process.join()
    found = found or {}
    print(
        f"| {make.__name__} | {number + 1} | {found.get('read', 0)} | {found.get('refused', 0)} | {len(wrong)} "
        f"| {found.get('slowest', 0):.2f} | {time.monotonic() - began:.0f} | {found.get('memory', 0) / 1e6:.0f} |",
        flush=True,
    )
    for text in wrong[:5]:
        print(f"\nWRONG {text}\n", flush=True)
    return not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--only", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(
        "| reader | inputs | read | refused with a sentence | wrong | slowest, s | in all, s | memory, MB |\n"
        + "|---" * 8
        + "|"
    )
    right = [
        tried(READERS[name], arguments.folder.resolve() / name, arguments.inputs, arguments.seed)
        for name in arguments.only
    ]
    sys.exit(not all(right))


if __name__ == "__main__":
    main()
