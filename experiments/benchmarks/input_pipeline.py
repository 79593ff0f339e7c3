"""Images per second of the input pipeline by stage, and of the official transform; an image is two views of 224×224.

    python experiments/benchmarks/input_pipeline.py DIR
    python experiments/benchmarks/input_pipeline.py DIR --peer torchvision --peer-python /usr/bin/python3

DIR is an image folder, DIR/train/<class>/*.JPEG. All stages use as many threads as there are cores; the peer as many
worker processes. Ours and the peer take turns, so that other load on the machine affects both; the ratio is the median
of the turns' ratios. The peer runs in a separate Python, which has torchvision and need not have TensorFlow. Files are
read once before, so that the disk is not measured.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np

from bt_jax.config import default
from bt_jax.data import datasets, pipeline
from bt_jax.data.decode import decode
from bt_jax.data.sources.folder import FolderSource
from bt_jax.data.tensorflow_import import tf
from bt_jax.data.views.host import make_views
from bt_jax.data.views.spec import VIEW_A, VIEW_B, ViewGroup

# Images a second that a chip takes in training ResNet-50 at 224 with two views an image: estimates from published
# rates of supervised ResNet-50 training (one view), halved.
CHIPS = {"TPU v5e": 1000, "H200": 1700}


def stages(config) -> dict:
    """What is done to a file up to and including each stage."""
    off = {"flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "solarize": 0.0}
    spec_of = {
        "crop": lambda spec: dataclasses.replace(spec, **off),
        "colour": lambda spec: dataclasses.replace(spec, blur=0.0),
        "blur": lambda spec: spec,
    }

    def two_views(path, example, stage):
        image = decode(tf.io.read_file(path))
        groups = (ViewGroup("pair", tuple(map(spec_of[stage], (VIEW_A, VIEW_B))), config.image_size),)
        return make_views(image, groups, seed=0, epoch=tf.constant(0, tf.int64), example=example)

    return {
        "read": lambda path, seed: tf.io.read_file(path),
        "decode": lambda path, seed: decode(tf.io.read_file(path)),
        **{name: lambda path, seed, name=name: two_views(path, seed, name) for name in spec_of},
    }


def rate_of_stage(source: FolderSource, function, config, count: int) -> float:
    """Images per second over `count` images, after 16 that do not count."""
    paths = tf.data.Dataset.from_tensor_slices(list(source.paths)).repeat().enumerate()
    dataset = datasets.in_parallel(paths, lambda i, path: function(path, i), config)
    options = tf.data.Options()
    options.threading.private_threadpool_size = datasets.threads(config)
    options.threading.max_intra_op_parallelism = 1
    items = iter(dataset.with_options(options))
    for _ in range(16):
        next(items)
    start = time.perf_counter()
    for _ in range(count):
        next(items)
    return count / (time.perf_counter() - start)


class Ours:
    """The whole pipeline, as training uses it."""

    def __init__(self, source: FolderSource, config, batch_size: int):
        self.batch_size = batch_size
        groups = (ViewGroup("pair", (VIEW_A, VIEW_B), config.image_size),)
        settings = {"seed": 0, "batch_size": batch_size, "rows": np.arange(batch_size)}
        self.batches = pipeline.train_batches(source, config, groups, **settings)
        next(self.batches)

    def turn(self, count: int) -> float:
        for _ in range(4):  # what was made while the peer had its turn
            next(self.batches)
        steps = max(1, count // self.batch_size)
        start = time.perf_counter()
        for _ in range(steps):
            next(self.batches)
        return steps * self.batch_size / (time.perf_counter() - start)


class Peer:
    """The official transform in a separate process, which works on request."""

    def __init__(self, python: str, folder: str, batch_size: int, workers: int):
        script = pathlib.Path(__file__).parent / "input_pipeline_torchvision.py"
        command = [python, str(script), folder, str(batch_size), str(workers)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = self.process.stdout.readline().strip()
        if not self.name:
            sys.exit(f"error: {python} could not run the peer; it needs torch and torchvision.")

    def turn(self, count: int) -> float:
        print(count, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--peer", choices=("torchvision",))
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--images", type=int, default=384, help="a turn")
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    config = default().data
    config.data_dir = arguments.folder
    source = FolderSource(arguments.folder, "train")
    cores = datasets.threads(config)
    for path in source.paths:
        pathlib.Path(path).read_bytes()
    print(f"{len(source)} files, {cores} cores, two views of {config.image_size}×{config.image_size} an image")

    for name, function in stages(config).items():
        rates = [rate_of_stage(source, function, config, arguments.images) for _ in range(3)]
        print(f"  up to {name:8s} {statistics.median(rates):8.0f} images/s")

    peer = None
    if arguments.peer:
        peer = Peer(arguments.peer_python, os.path.join(arguments.folder, "train"), arguments.batch_size, cores)
    ours = Ours(source, config, arguments.batch_size)
    mine, theirs = [], []
    for _ in range(arguments.turns):
        time.sleep(2)  # until the other has filled its buffers
        mine.append(ours.turn(arguments.images))
        if peer:
            time.sleep(2)
            theirs.append(peer.turn(arguments.images))
    rate = statistics.median(mine)
    print(f"  whole          {rate:8.0f} images/s ({min(mine):.0f} to {max(mine):.0f}), {rate / cores:.0f} a core")
    if peer:
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        print(f"  {peer.name}: {statistics.median(theirs):.0f} images/s")
        print(
            f"  ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), median of {len(ratios)} turns"
        )
    for chip, wanted in CHIPS.items():
        print(f"  to feed one {chip} at about {wanted} images/s: {wanted / (rate / cores):.0f} such cores")


if __name__ == "__main__":
    main()
