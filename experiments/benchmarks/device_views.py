"""Images per second of views made on the device, and by the host if TensorFlow is installed; an image is two views.

    python experiments/benchmarks/device_views.py                              32×32 (CIFAR-10's), batch 512
    python experiments/benchmarks/device_views.py --size 224 --batch-size 128 --stored 512

Both take turns on the same images in memory and the same distributions, so that other load on the machine affects both;
the ratio is the median of the turns' ratios. With `--blur` the views have the paper's blur, which the CIFAR-10 recipe leaves
out. On an accelerator the host's rate is that of its cores alone, without the transfer to the device. train_step.py measures
what views cost in a training step.
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np

from bt_jax import config as config_lib
from bt_jax.data.feed import make_feed, ready_batches
from bt_jax.data.sources.base import ArraySource
from bt_jax.data.views.spec import ViewGroup, ViewSpec
from bt_jax.facts import Facts
from bt_jax.runtime import mesh as mesh_lib


def groups_of(config) -> tuple[ViewGroup, ...]:
    """The two views of Barlow Twins."""
    specs = (ViewSpec(**config.barlow_twins.view_a), ViewSpec(**config.barlow_twins.view_b))
    return (ViewGroup("pair", specs, config.data.image_size),)


def facts_of(config, source) -> Facts:
    return Facts.of(source, batch_size=config.batch_size, epochs=config.epochs)


class Device:
    """Views of a set in the device's memory."""

    def __init__(self, config, source):
        mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
        feed = make_feed(source, config.data, groups_of(config), mesh=mesh, seed=0, facts=facts_of(config, source))
        self.batches = ready_batches(feed, 0, 10**9)

    def turn(self, batches: int) -> None:
        for _ in range(batches):
            made = next(self.batches)
        jax.block_until_ready(made)


class Host:
    """Views by the host pipeline, as training uses it."""

    def __init__(self, config, source):
        from bt_jax.data.pipeline import train_batches

        config = config.copy_and_resolve_references()
        config.data.views = "host"
        settings = {"seed": 0, "batch_size": config.batch_size, "rows": np.arange(config.batch_size)}
        self.batches = train_batches(source, config.data, groups_of(config), **settings)

    def turn(self, batches: int) -> None:
        for _ in range(batches):
            next(self.batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="side of a view")
    parser.add_argument("--stored", type=int, help="side of the images; by default that of a view")
    parser.add_argument("--images", type=int, default=4096, help="in the set")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--batches", type=int, default=8, help="a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--blur", action="store_true")
    parser.add_argument("--out", help="a file for the numbers, as JSON")
    arguments = parser.parse_args()
    config = config_lib.default()
    config.batch_size, config.data.views, config.data.image_size = arguments.batch_size, "device", arguments.size
    if not arguments.blur:
        config.barlow_twins.view_a.blur = config.barlow_twins.view_b.blur = 0.0
    side = arguments.stored or arguments.size
    images = np.random.default_rng(0).integers(
        0, 256, (max(arguments.images, arguments.batch_size), side, side, 3), np.uint8
    )
    source = ArraySource("noise", images, np.zeros(len(images), np.int32))
    sides = {"device": Device(config, source)}
    try:
        sides["host"] = Host(config, source)
    except ImportError:
        print("TensorFlow cannot be imported: no host pipeline.")
    rates = {name: [] for name in sides}
    for turn in range(arguments.turns + 1):
        for name, views in sides.items():
            if name == "host":
                views.turn(3)  # what was made while the other had its turn
            begin = time.perf_counter()
            views.turn(arguments.batches)
            if turn:
                rates[name].append(arguments.batches * arguments.batch_size / (time.perf_counter() - begin))
            time.sleep(1)  # until the host's buffers are full again, and out of the other's way
    kind = jax.devices()[0].device_kind
    print(f"two views of {arguments.size}×{arguments.size} of images of {side}×{side}, batch {arguments.batch_size}, "
          f"{'with' if arguments.blur else 'without'} blur, on {kind}")  # fmt: skip
    for name, found in rates.items():
        print(f"  {name:7s} {statistics.median(found):9.0f} images/s ({min(found):.0f} to {max(found):.0f})")
    result = {"device": kind, **vars(arguments), "rates": rates}
    if "host" in rates:
        ratios = [a / b for a, b in zip(rates["device"], rates["host"], strict=True)]
        print(
            f"  ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), median of {len(ratios)} turns"
        )
        result["ratios"] = ratios
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
