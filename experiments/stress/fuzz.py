"""Feeds damaged and hostile files to everything that reads a file from elsewhere: does each end in a sentence?

    python experiments/stress/fuzz.py DIR [--inputs 10000] [--only NAME …] [--seed 0]

For each reader a good file is made and mutated at random: bits flipped, bytes overwritten with extreme numbers, parts cut out, doubled,
moved or inserted, the end cut off; and hostile files are added: pickles that call functions, archives that unpack to gigabytes, numbers
and nesting without end. A reader may read an input, or refuse it with a UserError (images: with the error of the decoder). Anything
else is wrong, and printed with the input's file, which is kept: another exception, more than 10 s, more than 2 GB, code that was run.

Each reader has a process of its own, whose address space is limited to 2 GB above what it begins with.
"""

import argparse
import collections
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
      hostile: files made to do harm.
      name: of the file, with its suffix.
      read: takes its path.
    """

    def __init__(self, name: str, samples: list[bytes], hostile: list[bytes], read: Callable[[pathlib.Path], object]):
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


READERS = {
    make.__name__: make
    for make in (torch_files, safetensors, arrays, descriptions, configs, checkpoints, lists, images, results)
}


def work(make: Callable, folder: pathlib.Path, inputs: int, seed: int, queue) -> None:
    """Reads all inputs of a reader in this process, telling the number of each before it is begun."""
    devices = "--xla_force_host_platform_device_count=1"
    os.environ.setdefault("XLA_FLAGS", devices)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from bt_jax.errors import UserError

    canary = folder / "canary"
    reader = make(folder, canary)
    place = folder / "input" / reader.name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(reader.samples[0])
    for _ in range(3):
        reader.read(place)  # libraries take their memory
    limit = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    draw, done = random.Random(seed), collections.Counter()
    for number in range(inputs):
        data = reader.hostile[number] if number < len(reader.hostile) else mutated(draw, draw.choice(reader.samples))
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
        if took > SECONDS:
            wrong = wrong or f"it took {took:.1f} s"
        if canary.exists():
            canary.unlink()
            wrong = "its code was run"
        done["slowest"] = max(done["slowest"], took)
        if wrong:
            kept = folder / f"wrong_{make.__name__}_{number}_{reader.name}"
            shutil.copy(place, kept)
            queue.put(("wrong", f"{kept}: {wrong}"))
    queue.put(("done", dict(done)))


def tried(make: Callable, folder: pathlib.Path, inputs: int, seed: int) -> bool:
    """Runs a reader's process; prints a row. Whether all was right."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=work, args=(make, folder, inputs, seed, queue))
    process.start()
    wrong, number, found, heard = [], -1, None, time.monotonic()
    while found is None:
        try:
            kind, told = queue.get(timeout=1)
            heard = time.monotonic()
        except Exception:  # nothing was told
            if process.is_alive() and time.monotonic() - heard < (600 if number < 0 else 6 * SECONDS):
                continue
            if number < 0:
                wrong.append("its good file could not be read")
                break
            kept = shutil.copy(
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
    found = found or {}
    print(
        f"| {make.__name__} | {number + 1} | {found.get('read', 0)} | {found.get('refused', 0)} | {len(wrong)} "
        f"| {found.get('slowest', 0):.2f} |",
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
    print("| reader | inputs | read | refused with a sentence | wrong | slowest, s |\n|---|---|---|---|---|---|")
    right = [
        tried(READERS[name], arguments.folder.resolve() / name, arguments.inputs, arguments.seed)
        for name in arguments.only
    ]
    sys.exit(not all(right))


if __name__ == "__main__":
    main()
