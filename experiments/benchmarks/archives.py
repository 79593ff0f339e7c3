"""Archives and tables against a folder of the same images: images per second, and how long starts take.

    python experiments/benchmarks/archives.py rates FOLDER [--images DIR]
    python experiments/benchmarks/archives.py starts FOLDER

FOLDER is made and must not exist yet. `rates` takes the JPEGs of DIR in turn (by default photographs at 500×375) under new names, as
a folder, as tar archives and WebDataset's shards, and as Parquet where there is pyarrow. The sources take turns in one process, so that
other load on the machine affects all; a ratio is the median of the turns' ratios to the folder. Files are read once before, so that the
disk is not measured, except in `read from disk`, before which they are dropped from the page cache. An image of a training batch is two
views of 224×224; `read` is the source alone. `starts` makes a million tiny
images in 1000 shards and times new processes.
"""

import argparse
import functools
import io
import os
import pathlib
import statistics
import subprocess
import sys
import tarfile
import time

import numpy as np
from PIL import Image

_SHARD = 250  # images


def contents(folder: str | None) -> list[bytes]:
    """JPEGs as they are in a folder, or crops of photographs."""
    if folder:
        return [path.read_bytes() for path in sorted(pathlib.Path(folder).rglob("*.JPEG"))]
    from bt_jax.data.sources.photographs import photograph_crops

    found = []
    for image in photograph_crops("train", size=96, per_class=6)[0]:
        buffer = io.BytesIO()
        Image.fromarray(image).resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=98)
        found.append(buffer.getvalue())
    return found


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_all(folder: pathlib.Path, images: list[bytes], count: int) -> dict[str, dict[str, str]]:
    """The same `count` images in all forms: what to set in `config.data` for each."""
    rows = [(f"c{i % 10}", f"{i:06d}", images[i % len(images)], i % 10) for i in range(count)]
    forms = {name: {"source": "tar", "data_dir": str(folder / name)} for name in ("tar", "shards")}
    forms = {"folder": {"source": "folder", "data_dir": str(folder / "folder")}, **forms}
    for name in forms:
        (folder / name).mkdir(parents=True)
    for name, key, content, _ in rows:
        path = folder / "folder" / "train" / name / f"{key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with tarfile.open(folder / "tar" / "train.tar", "w") as archive:
        for name, key, content, _ in rows:
            add(archive, f"{name}/{key}.jpg", content)
    for first in range(0, count, _SHARD):
        with tarfile.open(folder / "shards" / f"train-{first // _SHARD:04d}.tar", "w") as archive:
            for _, key, content, label in rows[first : first + _SHARD]:
                add(archive, f"{key}.jpg", content)
                add(archive, f"{key}.cls", str(label).encode())
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return forms
    forms["parquet"] = {"source": "parquet", "data_dir": str(folder / "parquet")}
    (folder / "parquet").mkdir()
    half = -(-count // 2)
    for number, first in enumerate(range(0, count, half)):
        part = rows[first : first + half]
        table = pyarrow.table(
            {
                "image": [{"bytes": content, "path": f"{key}.jpg"} for _, key, content, _ in part],
                "label": [label for *_, label in part],
            }
        )
        parquet.write_table(table, folder / "parquet" / f"train-{number:05d}-of-00002.parquet", row_group_size=100)
    return forms


def rates(folder: pathlib.Path, images: str | None, count: int, turns: int) -> None:
    from bt_jax.config import default
    from bt_jax.data import pipeline
    from bt_jax.data.sources.make import make_source
    from bt_jax.data.tensorflow_import import tf
    from bt_jax.data.views.spec import VIEW_A, VIEW_B, ViewGroup

    found = contents(images)
    forms = write_all(folder, found, count)
    sources, starts = {}, {}
    config = default().data
    for name, fields in forms.items():
        config.update(fields)
        start = time.monotonic()
        sources[name] = make_source(config, "train")
        starts[name] = time.monotonic() - start
    print(f"{count} images, {np.mean([len(image) for image in found]) / 1e3:.0f} kB each")
    print("first start: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in starts.items()))
    groups, batch = (ViewGroup("pair", (VIEW_A, VIEW_B), config.image_size),), 64
    before, steps = 8, 32  # batches that were begun while the first was awaited are not counted

    def train(name):
        batches = pipeline.train_batches(sources[name], config, groups, seed=0, batch_size=batch, rows=np.arange(batch))
        for _ in range(before):
            next(batches)
        start = time.monotonic()
        for _ in range(steps):
            next(batches)
        batches.close()
        return steps * batch / (time.monotonic() - start)

    def read(name):
        """The source and what hands its images to TensorFlow's threads."""
        source, order = sources[name], np.random.default_rng(0).permutation(count)
        start = time.monotonic()
        for first in range(0, count, batch):
            items = source.fetch(order[first : first + batch])[0]
            if source.gives_paths:
                for path in items:
                    tf.io.read_file(path)
            else:
                tf.constant(items.tolist())
        return count / (time.monotonic() - start)

    written = [path for path in folder.rglob("*") if path.is_file()]

    def read_from_disk(name):
        os.sync()  # what is not written cannot be dropped
        for path in written:
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
        return read(name)

    for what, one in (("read", read), ("read from disk", read_from_disk), ("training batches", train)):
        for name in sources:
            one(name)
        measured = {name: [] for name in sources}
        for turn in range(turns):
            for name in sorted(sources, key=lambda name: (hash((name, turn)), name)):
                measured[name].append(one(name))
        print(f"{what}; load {os.getloadavg()[0]:.1f}")
        for name, own in measured.items():
            ratios = [a / b for a, b in zip(own, measured["folder"], strict=True)]
            print(
                f"  {name:8s} {statistics.median(own):8.0f} images/s, {statistics.median(ratios):.3f} of the folder "
                f"({min(ratios):.2f} to {max(ratios):.2f}, {turns} turns)"
            )


_START = """
import resource, sys, time
from bt_jax.config import default
from bt_jax.data.sources.make import make_source
config = default().data
config.update(source="tar", data_dir=sys.argv[1])
start = time.monotonic()
source = make_source(config, "train")
made = time.monotonic()
source.fingerprint
print(f"{source.described()}: {made - start:.2f} s, fingerprint {time.monotonic() - made:.2f} s,"
      f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB at most")
"""


def starts(folder: pathlib.Path, shards: int, each: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, "PNG")
    place = folder / "shards"
    place.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(place / f"train-{shard:04d}.tar", "w") as archive:
            for i in range(each):
                add(archive, f"{shard * each + i:08d}.png", buffer.getvalue())
                add(archive, f"{shard * each + i:08d}.cls", str(i).encode())
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    for name in ("first start", "second start", "third start"):
        run = functools.partial(subprocess.run, check=True, env=environment, stdout=subprocess.PIPE, text=True)
        print(f"{name}: {run([sys.executable, '-c', _START, str(place)]).stdout.strip()}", flush=True)
    size = sum(path.stat().st_size for path in (folder / "cache").rglob("*.npz"))
    print(f"the index has {size / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("rates", "starts"))
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--images", help="a folder of JPEGs, *.JPEG at any depth")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--each", type=int, default=1000)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    os.environ["XDG_CACHE_HOME"] = str(arguments.folder / "cache")
    if arguments.task == "rates":
        rates(arguments.folder, arguments.images, arguments.count, arguments.turns)
    else:
        starts(arguments.folder, arguments.shards, arguments.each)


if __name__ == "__main__":
    main()
