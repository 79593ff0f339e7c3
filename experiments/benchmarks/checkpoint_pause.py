"""How long a checkpoint of ResNet-50 with its optimizer state pauses training, asynchronous and synchronous.

    python experiments/benchmarks/checkpoint_pause.py [--projector 8192,8192,8192] [--turns 5] [--folder DIR]

The state has the shapes of configs/resnet50_imagenet.py and random numbers. A run saves asynchronously: `save` returns when the
arrays are copied, and the next step may overwrite them. A synchronous save waits until they are on disk. Both take turns.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import numpy as np
from etils import epath

from bt_jax.data.views.spec import batch_spec
from bt_jax.engine.checkpoint import Checkpoints, fingerprints
from bt_jax.engine.state import abstract_state
from bt_jax.facts import Facts
from bt_jax.methods import make_method
from bt_jax.optim import make_optimizer
from bt_jax.runtime import mesh as mesh_lib

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # the configs are not installed

from configs import resnet50_imagenet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--projector", default="8192,8192,8192")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", default=None)
    arguments = parser.parse_args()
    config = resnet50_imagenet.get_config()
    config.barlow_twins.projector = tuple(map(int, arguments.projector.split(",")))
    mesh = mesh_lib.make_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, Facts(625 * 2048, 1000, batch_size=2048, epochs=1000))
    rng = np.random.default_rng(0)

    def drawn(leaf):
        value = rng.random(leaf.shape, np.float32) if leaf.dtype == np.float32 else np.zeros(leaf.shape, leaf.dtype)
        return jax.device_put(value, leaf.sharding)

    method = make_method(config, Facts(625 * 2048, 0, 2048, 1000), mesh)
    state = jax.tree.map(drawn, abstract_state(method, optimizer, batch_spec(method.view_groups, 2048), mesh))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**30
    print(f"{jax.device_count()} × {jax.devices()[0].device_kind}; state of {size:.2f} GiB", flush=True)
    begin = time.perf_counter()
    fingerprints(state)
    print(f"fingerprints, the first time (compiling) {time.perf_counter() - begin:.2f} s", flush=True)
    seconds = {"fingerprints": [], "asynchronous": [], "synchronous": []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        checkpoints = Checkpoints(epath.Path(pathlib.Path(folder)), keep=1)
        step = 0
        for turn in range(arguments.turns + 1):
            for kind in ("asynchronous", "synchronous"):
                step += 1
                begin = time.perf_counter()
                checkpoints.save(step, state)
                held = time.perf_counter() - begin
                checkpoints.wait()
                total = time.perf_counter() - begin
                if turn:  # the first includes one-time work
                    seconds[kind].append(held if kind == "asynchronous" else total)
            begin = time.perf_counter()
            fingerprints(state)
            if turn:
                seconds["fingerprints"].append(time.perf_counter() - begin)
        checkpoints.close()
    for kind, taken in seconds.items():
        print(f"{kind:13} {statistics.median(taken):.3f} s ({min(taken):.3f} to {max(taken):.3f})")
    ratios = [a / s for a, s in zip(seconds["asynchronous"], seconds["synchronous"], strict=True)]
    print(
        f"the pause is {statistics.median(ratios):.3f} of a synchronous save ({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
