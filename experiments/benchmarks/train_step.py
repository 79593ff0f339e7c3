"""Images per second of the whole training step (two views, forward, backward, LARS), compared with PyTorch in the same run.

    python experiments/benchmarks/train_step.py                              ResNet-18 at 32 and ResNet-50 at 224
    python experiments/benchmarks/train_step.py --peer torch                 ... and their ratio to PyTorch
    python experiments/benchmarks/train_step.py --cases resnet18@32:256 --dtypes float32 bfloat16 --check-steps 50
    python experiments/benchmarks/train_step.py --cases resnet18@32:128 resnet18@48:128/16 --peer torch --no-compile --steps 2

The last is for CPUs. A case is ARCH@SIZE:BATCH, or ARCH@SIZE:BATCH/WIDTH for the quickstart's kind of network: WIDTH channels in
the first stage, the 7×7 stem, a projector of 512 three times. Both sides train on the same synthetic batches, which are on the
device already as uint8, and take turns, so that other load on the machine affects both; a ratio is the median of the turns'
ratios. PyTorch runs channels last, compiled, with autocast for bfloat16. The fraction of peak compares the model's FLOPs
(counted by XLA before optimising) with the device's data sheet. Memory is the total of the compiled program for bt_jax, and the
peak allocation for PyTorch, which does not report it on a CPU.

The row "forward" is the loss without gradients, with batch statistics as in training; "with views" makes the two views in the
step, from images on the device; "in eights" runs eight steps per dispatch. On a CPU both sides have all cores, bt_jax by a
device per core as in runs, unless --devices says otherwise. Freed memory is kept for both (bt_jax/runtime/machine.py), which
helps PyTorch too; --free-memory leaves it as it would be by default. With --check-steps the losses of that many steps are
compared between types, on the same batches from the same start.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves memory to PyTorch

import jax
import numpy as np

from bt_jax import config as config_lib
from bt_jax.data.feed import make_feed
from bt_jax.data.sources.base import ArraySource
from bt_jax.data.views.spec import batch_spec
from bt_jax.engine.dispatch import make_program
from bt_jax.engine.state import init_state
from bt_jax.engine.step import make_train_step
from bt_jax.facts import Facts
from bt_jax.methods import make_method
from bt_jax.optim import make_optimizer
from bt_jax.reporting.profile import flops_of, peak_flops
from bt_jax.runtime import machine
from bt_jax.runtime import mesh as mesh_lib

DEFAULT = ("resnet18@32:512", "resnet18@32:2048", "resnet50@224:128", "resnet50@224:256")
BATCHES = 4  # that take turns
RATES = (0.2, 0.0048)
TOGETHER = 8


class Ours:
    """bt_jax's step for a case, with its batches."""

    def __init__(self, case: "Case", dtype: str, batches: list[np.ndarray], *, views: bool = False, together: int = 1):
        config = case.config(dtype)
        mesh = mesh_lib.make_mesh(config.mesh, jax.devices() if jax.default_backend() == "cpu" else jax.devices()[:1])
        facts = Facts(1000 * case.batch, 0, case.batch, 100)
        method, optimizer = make_method(config, facts, mesh), make_optimizer(config.optimizer, facts)
        spec = batch_spec(method.view_groups, case.batch)
        self.state = init_state(method, optimizer, 0, spec, mesh)
        step = make_train_step(method, optimizer, 0)
        prepare = None
        if views:
            images = np.concatenate([batch[:, 0] for batch in batches])
            source = ArraySource("noise", images, np.zeros(len(images), np.int32))
            lengths = Facts.of(source, batch_size=case.batch, epochs=100)
            feed = make_feed(source, config.data, method.view_groups, mesh=mesh, seed=config.seed, facts=lengths)
            feed, prepare = dataclasses.replace(feed, steps_per_dispatch=together), feed.prepare  # also on a CPU
            self.deliveries = [delivery for _, delivery in feed.batches(0, max(together, BATCHES))]
        else:
            self.deliveries = [mesh_lib.put_batch(mesh, case.batch, {"views": {"pair": batch}}) for batch in batches]
        self.method = method
        program = jax.jit(make_program(step, prepare), donate_argnums=0)
        self.steps_of_one = max(1, together)
        self.program = program.lower(self.state, self.deliveries[0]).compile()
        self.flops = flops_of(step, self.state, spec)
        self.made, self.losses = 0, []

    def turn(self, steps: int, keep: bool = False) -> None:
        """Runs `steps` steps to their end."""
        for _ in range(-(-steps // self.steps_of_one)):
            self.state, metrics = self.program(self.state, self.deliveries[self.made % len(self.deliveries)])
            self.made += 1
            if keep:
                self.losses.append(metrics["loss"])
        jax.block_until_ready(self.state)

    def memory(self) -> int:
        """Bytes of the compiled program: state, batch, temporaries."""
        found = self.program.memory_analysis()
        kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
        return kept + found.temp_size_in_bytes


class Forward:
    """The loss without gradients, of the state and the batches of `Ours`."""

    def __init__(self, ours: Ours):
        def loss(state, batch):
            rng = jax.random.key(0)
            return ours.method.loss(state.params, state.model_state, state.method_state, batch, state.step, rng)[0]

        self._ours, self._loss = ours, jax.jit(loss).lower(ours.state, ours.deliveries[0]).compile()

    def turn(self, steps: int) -> None:
        for n in range(steps):
            loss = self._loss(self._ours.state, self._ours.deliveries[n % len(self._ours.deliveries)])
        jax.block_until_ready(loss)

    def memory(self) -> None:
        """Not counted."""


class PeerForward:
    """The same of the peer."""

    def __init__(self, peer):
        self._peer = peer

    def turn(self, steps: int) -> None:
        self._peer.forward_only(steps)

    def memory(self) -> None:
        """Not counted."""


class Case:
    """ARCH@SIZE:BATCH, or ARCH@SIZE:BATCH/WIDTH."""

    def __init__(self, text: str, projector: tuple[int, ...] | None):
        try:
            self.arch, _, rest = text.partition("@")
            rest, narrow, width = rest.partition("/")
            self.size, self.batch = map(int, rest.split(":"))
            self.width = int(width) if narrow else 64
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a case; write ARCH@SIZE:BATCH or ARCH@SIZE:BATCH/WIDTH, for example resnet50@224:256"
            ) from None
        self.text, self.small = text, self.size <= 64 and not narrow
        sizes = 512 if narrow else 2048 if self.small else 8192
        self.projector = projector or (sizes, sizes, sizes)

    def config(self, dtype: str):
        config = config_lib.default()
        config.batch_size, config.dtype, config.data.views, config.data.image_size = (
            self.batch,
            dtype,
            "device",
            self.size,
        )
        config.data.device_bytes = 2**40  # the batches are on the device already
        config.model.update(arch=self.arch, small_images=self.small, width=self.width)
        config.barlow_twins.projector = self.projector
        if self.size <= 64:
            config.barlow_twins.view_a.blur = config.barlow_twins.view_b.blur = 0.0  # as in configs/resnet18_cifar10.py
        return config

    def batches(self) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        return [rng.integers(0, 256, (self.batch, 2, self.size, self.size, 3), np.uint8) for _ in range(BATCHES)]


def seconds_of(turns: dict, steps: int, repeats: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """(seconds per step of each, by name: `repeats` rounds of turns, after one round that does not count; why some failed)."""
    seconds, failed = {name: [] for name in turns}, {}
    for repeat in range(repeats + 1):
        for name, side in turns.items():
            if name in failed:
                continue
            rounded = -(-steps // getattr(side, "steps_of_one", 1)) * getattr(side, "steps_of_one", 1)
            begin = time.perf_counter()
            try:
                side.turn(rounded)
            except (
                Exception
            ) as error:  # what does not compile, or fit the device, must not cost the numbers of the others
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                continue
            if repeat:
                seconds[name].append((time.perf_counter() - begin) / rounded)
    return seconds, failed


def measure(case: Case, dtype: str, arguments: argparse.Namespace) -> dict:
    """Prints a line for each side of a case, and returns its numbers."""
    batches = case.batches()
    turns = {
        "step": Ours(case, dtype, batches),
        "with views": Ours(case, dtype, batches, views=True),
    }
    turns["forward"] = Forward(turns["step"])
    if jax.default_backend() != "cpu":  # XLA's loops are slow on a CPU
        turns["in eights"] = Ours(case, dtype, batches * (TOGETHER // BATCHES), views=True, together=TOGETHER)
    if arguments.peer:
        from train_step_torch import Peer

        rates = [r * case.batch / 256 for r in RATES]
        try:
            turns["torch"] = Peer(
                case.arch, case.small, case.width, case.projector, batches, rates=rates, dtype=dtype, compile=not arguments.no_compile,
            )  # fmt: skip
            turns["torch fwd"] = PeerForward(turns["torch"])
        except Exception as error:  # no room on the device
            print(f"{case.text:<20} {dtype:<9} torch       failed: {type(error).__name__}: {error}", flush=True)
    seconds, failed = seconds_of(turns, arguments.steps, arguments.turns)
    kind = jax.devices()[0].device_kind
    peak = peak_flops(kind, dtype)
    found = {"case": case.text, "dtype": dtype, "device": kind, "failed": failed}
    for name, why in failed.items():
        print(f"{case.text:<20} {dtype:<9} {name:<11} failed: {why}", flush=True)
    for name, side in turns.items():
        if name in failed:
            continue
        each = statistics.median(seconds[name])
        memory = side.memory()
        row = {"images_per_second": case.batch / each, "milliseconds": 1e3 * each}
        line = f"{case.text:<20} {dtype:<9} {name:<11} {case.batch / each:9.4g} images/s {1e3 * each:9.4g} ms"
        line += "           " if memory is None else f" {memory / 2**30:7.2f} GiB"
        row |= {} if memory is None else {"gib": memory / 2**30}
        if name in ("step", "with views", "in eights"):
            rate = turns["step"].flops / each
            row["tflops"] = rate / 1e12
            line += f" {rate / 1e12:7.4g} TFLOP/s" + (f" {rate / peak:6.1%} of peak" if peak else ", peak not known")
            row |= {"of_peak": rate / peak} if peak else {}
        if name == "with views":
            share = [v / s - 1 for v, s in zip(seconds[name], seconds["step"], strict=True)]
            row["cost_of_views"] = statistics.median(share)
            line += f"; views cost {statistics.median(share):+.1%} of the step"
        if name in ("torch", "torch fwd"):
            ours = seconds["step" if name == "torch" else "forward"]
            if not ours:  # which failed
                print(line, flush=True)
                continue
            ratios = [theirs / mine for theirs, mine in zip(seconds[name], ours, strict=True)]
            row |= {"ratio": statistics.median(ratios), "ratios": ratios, "version": turns["torch"].name}
            least = min(seconds[name]) / min(ours)  # what other work on the machine disturbs least
            row["ratio_of_least"] = least
            line += f" {turns['torch'].name}; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
            line += f"{least:.2f} of the least times"
        found[name] = row
        print(line, flush=True)
    return found


def check_types(case: Case, steps: int) -> dict:
    """The losses of `steps` steps in bfloat16 and in float32, from the same start on the same batches."""
    batches, losses = case.batches(), {}
    for dtype in ("float32", "bfloat16"):
        side = Ours(case, dtype, batches)
        side.turn(steps, keep=True)
        losses[dtype] = [float(loss) for loss in side.losses]
        del side
    apart = np.abs(np.array(losses["bfloat16"]) / np.array(losses["float32"]) - 1)
    print(
        f"{case.text:<20} bfloat16 against float32 over {steps} steps: losses from {losses['float32'][0]:.5g} to "
        f"{losses['float32'][-1]:.5g} and {losses['bfloat16'][-1]:.5g}, apart by {np.median(apart):.2%} in the median, "
        f"{apart.max():.2%} at most",
        flush=True,
    )
    return {
        "case": case.text,
        "losses": losses,
        "median_apart": float(np.median(apart)),
        "most_apart": float(apart.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=DEFAULT, metavar="ARCH@SIZE:BATCH")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--projector", nargs="+", type=int, help="sizes; by default 2048 three times, 8192 above 64 pixels"
    )
    parser.add_argument("--peer", choices=("torch",))
    parser.add_argument("--no-compile", action="store_true", help="the peer without torch.compile")
    parser.add_argument("--steps", type=int, default=20, help="per turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--check-steps", type=int, default=0, help="compare the losses of both types over this many steps"
    )
    parser.add_argument("--out", help="a file for the numbers, as JSON")
    parser.add_argument("--devices", type=int, default=machine.cores(), help="CPU devices; by default one per core")
    parser.add_argument("--free-memory", action="store_true", help="do not keep memory on a CPU")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    if not arguments.free_memory and machine.on_cpu():
        machine.keep_memory(os.environ)
    cases = [Case(text, tuple(arguments.projector or ()) or None) for text in arguments.cases]
    dtypes = arguments.dtypes or (["float32"] if jax.default_backend() == "cpu" else ["bfloat16"])
    if arguments.peer:
        try:
            import torch  # noqa: F401
        except ImportError:
            print("PyTorch cannot be imported: no peer.")
            arguments.peer = None
    print(f"JAX {jax.__version__}, {jax.devices()[0].device_kind}, {sys.version.split()[0]}")
    found = {"rows": [], "types": []}
    for case in cases:
        found["rows"] += [measure(case, dtype, arguments) for dtype in dtypes]
        if arguments.check_steps:
            found["types"].append(check_types(case, arguments.check_steps))
        if arguments.out:  # after each case, in case the next does not fit the device
            with open(arguments.out, "w") as file:
                json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
