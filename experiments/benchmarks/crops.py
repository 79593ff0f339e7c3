"""Images per second of each method's views: two, multi-crop, or an image and patches; made by the host, and on the device.

    python experiments/benchmarks/crops.py [--config quickstart] [--methods swav pirl] [--turns 5]
    python experiments/benchmarks/crops.py --config resnet50_imagenet --folder DIR --host-only

Each method has its views from its recipe in that config file; Barlow Twins' two are the measure of the ratios, which are the
medians of the turns' ratios, with the smallest and largest in brackets. The methods take turns on the same images, those of the
config, or DIR/train/<class>/*.JPEG. "Pixels" are those of all views of an image, relative to Barlow Twins'.
"""

import argparse
import importlib
import pathlib
import statistics
import sys
import time

import jax

from bt_jax.data.feed import make_feed, ready_batches
from bt_jax.data.sources.make import make_source
from bt_jax.facts import Facts
from bt_jax.methods import make_method
from bt_jax.runtime import machine
from bt_jax.runtime import mesh as mesh_lib

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # the configs are not installed


class Views:
    """The batches of a method's views."""

    def __init__(self, name: str, method: str, views: str, folder: str | None, batch_size: int):
        config = importlib.import_module(f"configs.{name}").get_config(method)
        config.data.views = views
        if folder:
            config.data.update(source="folder", data_dir=folder)
        source = make_source(config.data, "train")
        mesh = mesh_lib.make_mesh(config.mesh)
        if method == "pirl":
            config.pirl.negatives = 0  # the set may have fewer images
        facts = Facts.of(source, batch_size=batch_size, epochs=1000)
        groups = make_method(config, facts, mesh).view_groups
        self.pixels = sum(group.num_views * group.size**2 for group in groups)
        feed = make_feed(source, config.data, groups, mesh=mesh, seed=0, facts=facts)
        self.batch_size, self._batches = batch_size, ready_batches(feed, 0, 10**6)

    def rate(self, count: int) -> float:
        """Images per second over `count` batches."""
        begin = time.perf_counter()
        for _ in range(count):
            batch = next(self._batches)
        jax.block_until_ready(batch)
        return count * self.batch_size / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description="Images per second of each method's views.")
    parser.add_argument("--config", default="quickstart", help="a file in configs/ that takes a method")
    parser.add_argument("--methods", nargs="+", default=["swav", "pirl"])
    parser.add_argument("--folder", help="an image folder, in place of the config's data")
    parser.add_argument("--host-only", action="store_true")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=20, help="in a turn")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    if machine.on_cpu():
        jax.config.update("jax_num_cpu_devices", machine.cores())
    names = ("barlow_twins", *arguments.methods)
    for views in ("host",) if arguments.host_only else ("host", "device"):
        sides = {n: Views(arguments.config, n, views, arguments.folder, arguments.batch_size) for n in names}
        rates = {name: [] for name in names}
        for turn in range(arguments.turns + 1):
            for name, side in sides.items():
                found = side.rate(arguments.batches)
                if turn:  # the first does not count
                    rates[name].append(found)
        for name, side in sides.items():
            ratios = [own / base for own, base in zip(rates[name], rates[names[0]], strict=True)]
            print(
                f"{arguments.config}, {views:<6} {name:<13} {statistics.median(rates[name]):8.1f} images/s, "
                f"x{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); "
                f"pixels x{side.pixels / sides[names[0]].pixels:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
