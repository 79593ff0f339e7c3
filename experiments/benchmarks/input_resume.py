"""What resuming costs the input pipeline, and what a long run of it holds in memory.

    python experiments/benchmarks/input_resume.py DIR
    python experiments/benchmarks/input_resume.py DIR --images 200000 --resume-at 100000 --batches 2000

DIR is an image folder, DIR/train/<class>/*.JPEG; a larger folder is made of links to its files. The time to a first batch
is that of a new pipeline over a source already listed, at step 0 and at a later step in turns. Memory is the process's
resident set, read every hundred batches.
"""

import argparse
import itertools
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np

from bt_jax.config import default
from bt_jax.data.pipeline import train_batches
from bt_jax.data.sources.folder import FolderSource
from bt_jax.data.views.spec import VIEW_A, VIEW_B, ViewGroup

PAIR = (ViewGroup("pair", (VIEW_A, VIEW_B), 224),)


def folder_of_links(root: str, folder: str, count: int) -> None:
    """Makes FOLDER/train of `count` links to the files of ROOT/train, class by class."""
    files = sorted(path for path in pathlib.Path(root, "train").glob("*/*") if path.is_file())
    for name in {path.parent.name for path in files}:
        pathlib.Path(folder, "train", name).mkdir(parents=True)
    for number, path in zip(range(count), itertools.cycle(files)):
        os.symlink(path.resolve(), pathlib.Path(folder, "train", path.parent.name, f"{number:08d}{path.suffix}"))


def first_batch(source: FolderSource, config, batch_size: int, step: int) -> float:
    """Seconds from nothing to the batch of `step`."""
    start = time.perf_counter()
    batches = train_batches(
        source, config, PAIR, seed=0, batch_size=batch_size, rows=np.arange(batch_size), start_step=step, num_steps=1
    )
    next(batches)
    return time.perf_counter() - start


def resident() -> float:
    """MB of this process in memory (Linux)."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=200_000, help="in the folder of links")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--resume-at", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--batches", type=int, default=2000)
    arguments = parser.parse_args()
    config = default().data
    with tempfile.TemporaryDirectory() as folder:
        folder_of_links(arguments.folder, folder, arguments.images)
        source = FolderSource(folder, "train")
        steps = (0, arguments.resume_at)
        for step in steps:  # TensorFlow's first use, and the first reading of these files
            first_batch(source, config, arguments.batch_size, step)
        seconds = {step: [] for step in steps}
        for turn in range(arguments.turns):
            for step in steps if turn % 2 == 0 else reversed(steps):
                seconds[step].append(first_batch(source, config, arguments.batch_size, step))
        print(
            f"{len(source)} files, batches of {arguments.batch_size}: seconds to the first batch, median (least to most)"
        )
        for step in steps:
            taken = seconds[step]
            print(f"  from step {step:7d}  {statistics.median(taken):.3f} ({min(taken):.3f} to {max(taken):.3f})")
        print(f"  ratio {statistics.median(seconds[steps[1]]) / statistics.median(seconds[0]):.3f}")

        batches = train_batches(
            source, config, PAIR, seed=0, batch_size=arguments.batch_size, rows=np.arange(arguments.batch_size)
        )
        print(f"{arguments.batches} batches: resident memory")
        for number, _ in zip(range(1, arguments.batches + 1), batches, strict=False):
            if number in (1, 50, 100) or number % 200 == 0:
                print(f"  after {number:6d}  {resident():6.0f} MB", flush=True)
        batches.close()  # before the files it reads ahead go


if __name__ == "__main__":
    main()
