"""Time of a step and its memory for each method, compared with Barlow Twins, in the same run.

    python experiments/benchmarks/methods.py [--config quickstart] [--methods simclr byol swav] [--steps 4] [--turns 5]

Each method has its recipe in that config file. All train on the same random images, which are on the device already; they take
turns, so that other load on the machine affects all of them. A ratio is the median of the turns' ratios, with the smallest and
largest in brackets; above 1 the method is slower than Barlow Twins. Memory is that of the compiled program: state, batch and
temporaries, of all devices.
"""

import argparse
import importlib
import pathlib
import statistics
import sys
import time

import jax
import numpy as np

from bt_jax.data.views.spec import batch_spec
from bt_jax.engine.state import count_parameters, init_state
from bt_jax.engine.step import jit_step, make_train_step
from bt_jax.facts import Facts
from bt_jax.methods import make_method
from bt_jax.optim import make_optimizer
from bt_jax.runtime import machine
from bt_jax.runtime import mesh as mesh_lib

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # the configs are not installed
CLASSES = 10


class Training:
    """A method's step by its recipe, on one random batch."""

    def __init__(self, name: str, method: str):
        config = importlib.import_module(f"configs.{name}").get_config(method)
        mesh = mesh_lib.make_mesh(config.mesh)
        self.batch_size = config.batch_size
        facts = Facts(100 * config.batch_size, CLASSES, config.batch_size, config.epochs)
        built, optimizer = make_method(config, facts, mesh), make_optimizer(config.optimizer, facts)
        spec, rng = batch_spec(built.view_groups, config.batch_size), np.random.default_rng(0)
        batch = jax.tree.map(lambda x: rng.integers(0, CLASSES, x.shape).astype(x.dtype), spec)
        batch["views"] = jax.tree.map(lambda x: rng.integers(0, 256, x.shape, np.uint8), spec["views"])
        batch["example"] = np.arange(config.batch_size, dtype=np.int32)  # an image occurs once in a batch
        self.batch = mesh_lib.put_batch(mesh, config.batch_size, batch)
        self.state = init_state(built, optimizer, 0, spec, mesh)
        self.parameters = count_parameters(self.state.params)
        self.extra = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state.method_state))
        step = jit_step(make_train_step(built, optimizer, 0), self.state, mesh)
        self.program = step.lower(self.state, self.batch).compile()
        found = self.program.memory_analysis()
        kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
        self.memory = mesh.size * (kept + found.temp_size_in_bytes)

    def seconds(self, steps: int) -> float:
        """Of one step, the mean of so many."""
        begin = time.perf_counter()
        for _ in range(steps):
            self.state, _ = self.program(self.state, self.batch)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - begin) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of a step of each method, in the same run.")
    parser.add_argument("--config", default="quickstart", help="a file in configs/ that takes a method")
    parser.add_argument("--methods", nargs="+", default=["simclr", "byol", "swav", "pirl", "vicreg", "supervised"])
    parser.add_argument("--steps", type=int, default=4, help="steps in a turn")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    if machine.on_cpu():
        jax.config.update("jax_num_cpu_devices", machine.cores())
    trainings = {name: Training(arguments.config, name) for name in ("barlow_twins", *arguments.methods)}
    seconds = {name: [] for name in trainings}
    for turn in range(arguments.turns + 1):
        for name, training in trainings.items():
            found = training.seconds(arguments.steps)
            if turn:  # the first does not count
                seconds[name].append(found)
    print(f"{arguments.config}: {len(jax.devices())} × {jax.devices()[0].device_kind}, JAX {jax.__version__}")
    for name, training in trainings.items():
        ratios = [own / base for own, base in zip(seconds[name], seconds["barlow_twins"], strict=True)]
        median = statistics.median(seconds[name])
        print(
            f"{name:<13} batch {training.batch_size:<5} {1e3 * median:8.1f} ms a step, {training.batch_size / median:7.1f} images/s, "
            f"x{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); {training.memory / 2**20:7.0f} MiB, "
            f"{training.parameters / 1e6:.2f} M parameters, {training.extra / 2**20:.1f} MiB of extra state"
        )


if __name__ == "__main__":
    main()
