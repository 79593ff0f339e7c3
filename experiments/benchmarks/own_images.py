"""Folders of images as people have them: starts on a large tree, embedding, two processes, and real sets.

    python experiments/benchmarks/own_images.py tree FOLDER [--images 1000000]
    python experiments/benchmarks/own_images.py embed RUN FOLDER
    python experiments/benchmarks/own_images.py processes RUN FOLDER
    python experiments/benchmarks/own_images.py set FOLDER…

FOLDER is a folder of images; RUN is the workdir of a run, or anything that `load_encoder` takes. `tree` makes a tree of hard links in
an empty FOLDER, which it leaves there. Each prints rows of a table.
"""

import argparse
import collections
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

MAIN = pathlib.Path(__file__).parents[2] / "main.py"
_START = """
import resource, sys, time
from bt_jax.data.sources.folder import FolderSource
before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
source = FolderSource(sys.argv[1], "train")
listed = time.perf_counter()
source.fingerprint
print(source.described(), listed - begin, time.perf_counter() - listed, before / 1e3,
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, sep="|")
"""


def tree(folder: str, images: int) -> None:
    """Starts of new processes on a tree of hard links, a thousand in a folder: the first, and the second."""
    root = pathlib.Path(folder)
    if not root.exists() or not any(root.iterdir()):
        rng = np.random.default_rng(0)
        root.mkdir(parents=True, exist_ok=True)
        for number in range(0, images, 50_000):  # file systems limit the links to a file
            Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).save(root.parent / f"{root.name}_{number}.png")
        for number in range(images):
            place = root / f"{number // 1000:04d}"
            if number % 1000 == 0:
                place.mkdir()
            os.link(root.parent / f"{root.name}_{number // 50_000 * 50_000}.png", place / f"{number:07d}.png")
        time.sleep(3)  # a folder that has just changed is not trusted
    with tempfile.TemporaryDirectory() as cache:
        for start in ("first", "second"):
            environment = {**os.environ, "XDG_CACHE_HOME": cache}
            done = subprocess.run(
                [sys.executable, "-c", _START, folder], capture_output=True, text=True, check=True, env=environment
            )
            words, listing, fingerprint, before, after = done.stdout.strip().split("|")
            print(
                f"| {words}: {start} start | listing {float(listing):.2f} s, fingerprint {float(fingerprint):.2f} s | "
                f"{float(after) - float(before):.0f} MB more than {float(before):.0f} MB |"
            )


def _embed(run: str, folder: str, out: str, *more: str) -> list[str]:
    return [
        sys.executable, str(MAIN), f"--config={MAIN.parent / 'configs' / 'embed.py'}", f"--config.init_from={run}",
        f"--config.data.data_dir={folder}", f"--workdir={out}", *more,
    ]  # fmt: skip


def _embeddings(out: str) -> dict[str, np.ndarray]:
    with np.load(pathlib.Path(out, "embeddings.npz"), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def embed(run: str, folder: str) -> None:
    """Images a second of the task against the encoder alone, and features against those of images that Pillow opens."""
    import bt_jax
    from bt_jax.config import default
    from bt_jax.data.eval_batches import eval_batches
    from bt_jax.data.sources.folder import FolderSource
    from bt_jax.tasks.embed import data_for

    with tempfile.TemporaryDirectory() as out:
        begin = time.perf_counter()
        subprocess.run(_embed(run, folder, out), check=True, capture_output=True)
        whole = time.perf_counter() - begin
        result = json.loads(pathlib.Path(out, "embed.json").read_text())
        found = _embeddings(out)
    encoder = bt_jax.load_encoder(run)
    config = data_for(default("embed").data, encoder)
    images = np.stack([_by_pillow(pathlib.Path(folder, path), config) for path in found["paths"]])
    encoder.features(images[:256])
    begin = time.perf_counter()
    expected = encoder.features(images)
    alone = len(images) / (time.perf_counter() - begin)
    rate = len(images) / result["seconds_of_last_start"]
    difference = np.abs(found["features"] - expected)
    (batch,) = eval_batches(
        FolderSource(folder, ".", labels="none"), config, batch_size=len(images), rows=np.arange(len(images))
    )
    levels = np.abs(batch["image"].astype(int) - images)
    on_its_own = np.abs(found["features"] - encoder.features(batch["image"])).max()
    print(f"| images embedded | {len(images)}, all once: {len(set(found['paths'].tolist())) == len(images)} |")
    print(f"| task | {rate:.0f} images/s; {whole:.0f} s from the command to its end |")
    print(f"| encoder alone, images in memory | {alone:.0f} images/s: the task has {rate / alone:.0%} of it |")
    top = np.abs(expected).max()
    print(
        f"| largest difference from `load_encoder` on the task's own pixels | {on_its_own:.2g}; features go up to {top:.3g} |"
    )
    print(
        f"| on images opened and resized by Pillow | {difference.max():.2g}, as {np.mean(levels > 0):.2%} of the pixel values "
        f"differ, by {levels.max()} of 255 at most |"
    )


def _by_pillow(path: pathlib.Path, config) -> np.ndarray:
    image, size = Image.open(path).convert("RGB"), config.image_size
    width, height = (config.eval_resize * side // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def processes(run: str, folder: str) -> None:
    """Two processes of the task against one; and the batches of two halves against those of one, for an epoch."""
    from bt_jax.config import default
    from bt_jax.data.pipeline import train_batches
    from bt_jax.data.sources.folder import FolderSource
    from bt_jax.data.views.spec import ViewGroup, ViewSpec

    with tempfile.TemporaryDirectory() as out:
        one, two = f"{out}/one", f"{out}/two"
        subprocess.run(_embed(run, folder, one), check=True, capture_output=True)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        mesh = [f"--config.mesh.coordinator=localhost:{port}", "--config.mesh.processes=2"]
        started = [
            subprocess.Popen(
                _embed(run, folder, two, *mesh, f"--config.mesh.process_index={i}"), stdout=subprocess.DEVNULL
            )
            for i in range(2)
        ]
        assert [process.wait() for process in started] == [0, 0]
        a, b = _embeddings(one), _embeddings(two)
    same = (a["paths"] == b["paths"]).all()
    print(
        f"| embedding by two processes | paths as by one: {same}; largest difference {np.abs(a['features'] - b['features']).max():.2g} |"
    )
    config = default().data
    config.update(image_size=32, eval_resize=0)
    source, size = FolderSource(folder, ".", labels="none"), 64
    pair = (ViewGroup("pair", (ViewSpec(),) * 2, 32),)
    steps = len(source) // size

    def batches(rows):
        return train_batches(source, config, pair, seed=0, batch_size=size, rows=rows, num_steps=steps)

    halves = [batches(np.arange(size // 2)), batches(np.arange(size // 2, size))]
    seen, equal = collections.Counter(), True
    for whole, *parts in zip(batches(np.arange(size)), *halves, strict=True):
        together = np.concatenate([part["views"]["pair"] for part in parts])
        equal &= bool((together == whole["views"]["pair"]).all())
        seen.update(np.concatenate([part["example"] for part in parts]).tolist())
    print(
        f"| training batches of two processes | {steps} of {size}, bit-equal to one process's: {equal}; {len(seen)} different images "
        f"of {len(source)}, each once: {set(seen.values()) == {1}} |"
    )


def sets(folders: list[str]) -> None:
    """What is understood of folders, and two epochs of the quickstart on each, without labels."""
    for folder in folders:
        with tempfile.TemporaryDirectory() as out:
            command = [
                sys.executable, str(MAIN), "--config.data.source=folder", f"--config.data.data_dir={folder}", f"--workdir={out}",
                "--config.data.train_split=.", "--config.epochs=2", "--config.batch_size=16", "--config.monitor.batch_size=16",
                "--config.monitor.test_examples=1000", "--config.log.tensorboard=False", "--config.data.max_bad_fraction=0.05",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = [
                line for line in done.stdout.splitlines() if line.startswith(("data", "note", "RankMe", "neighbours"))
            ]
            lines += [line for line in done.stdout.splitlines() if "left out" in line]
            print(f"\n{folder}: status {done.returncode}{done.stderr and ', ' + done.stderr.strip()}")
            print("\n".join(f"    {line}" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, arguments in (("tree", ["folder"]), ("embed", ["run", "folder"]), ("processes", ["run", "folder"])):
        command = commands.add_parser(name)
        for argument in arguments:
            command.add_argument(argument)
        if name == "tree":
            command.add_argument("--images", type=int, default=1_000_000)
    commands.add_parser("set").add_argument("folders", nargs="+")
    wanted = vars(parser.parse_args())
    {"tree": tree, "embed": embed, "processes": processes, "set": sets}[wanted.pop("command")](**wanted)


if __name__ == "__main__":
    main()
