"""Time and memory of the loss and both gradients: each form compared with the literal one, in the same run.

    python experiments/benchmarks/loss.py [--sizes 256x8192 2048x8192] [--repeats 5] [--peer torch]

The literal form is the straightforward one: standardise, build C, add up its two parts, and let autodiff do the rest. Forms
take turns, so that other load on the machine affects all of them; a ratio is that of the median times, with the smallest and
largest ratio of single turns in brackets. Memory is what the compiled program allocates in addition to its inputs: temporaries
and results. Above 1 the form is faster, or smaller, than the literal one.

If the literal form would take more than --literal-gb it is left out, and only the other's memory is reported. With
`--peer torch` PyTorch's autograd of the official form takes turns too, if PyTorch can be imported.
"""

import argparse
import functools
import resource
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax.losses import barlow_twins_loss, choose_form

LAMBD = 0.0051


def literal(z_a: jax.Array, z_b: jax.Array) -> jax.Array:
    """The loss as in the paper's pseudo-code."""
    a, b = ((z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5) for z in (z_a, z_b))
    c = a.T @ b / len(a)
    on = jnp.sum((jnp.diagonal(c) - 1) ** 2)
    off = jnp.sum(jnp.where(jnp.eye(len(c), dtype=bool), 0, c) ** 2)
    return on + LAMBD * off


def compiled(loss: Callable, n: int, d: int) -> jax.stages.Compiled:
    z = jax.ShapeDtypeStruct((n, d), jnp.float32)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(z, z).compile()


def allotted(program: jax.stages.Compiled) -> int:
    """Bytes in addition to the inputs."""
    memory = program.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def torch_peer(z_a: np.ndarray, z_b: np.ndarray) -> Callable[[], None] | None:
    """The official form with PyTorch's autograd on the CPU, or None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    inputs = [torch.tensor(z, requires_grad=True) for z in (z_a, z_b)]
    norm = torch.nn.BatchNorm1d(z_a.shape[1], affine=False)
    d = z_a.shape[1]

    def turn():
        c = norm(inputs[0]).T @ norm(inputs[1]) / len(z_a)
        off_diagonal = c.flatten()[:-1].view(d - 1, d + 1)[:, 1:]  # main.py, off_diagonal
        loss = (c.diagonal() - 1).square().sum() + LAMBD * off_diagonal.square().sum()
        torch.autograd.grad(loss, inputs)

    return turn


def alternate(turns: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, by name: `repeats` rounds of turns, after one round that does not count."""
    seconds = {name: [] for name in turns}
    for repeat in range(repeats + 1):
        for name, turn in turns.items():
            begin = time.perf_counter()
            jax.block_until_ready(turn())
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def measure(n: int, d: int, repeats: int, literal_bytes: float, peer: str | None) -> None:
    """Prints a line for each form at N = n, D = d."""
    rng = np.random.default_rng(0)
    z = [rng.standard_normal((n, d), dtype=np.float32) for _ in "ab"]
    on_device = [jax.device_put(x) for x in z]
    auto = choose_form(n, d)
    programs = {}
    if 3 * 4 * d * d < literal_bytes:
        programs["literal"] = compiled(literal, n, d)
    for form in ("correlation", "gram"):
        # C alone may not fit even if the Gram matrices do.
        if form == auto or 4 * d * d < literal_bytes:
            loss = functools.partial(barlow_twins_loss, lambd=LAMBD, form=form)
            programs[form] = compiled(lambda a, b, loss=loss: loss(a, b)[0], n, d)
    turns = {name: (lambda program=program: program(*on_device)) for name, program in programs.items()}
    if peer == "torch" and "literal" in programs:
        turn = torch_peer(*z)
        if turn is None:
            print("PyTorch cannot be imported: no peer.")
        else:
            turns["torch"] = turn
    seconds = alternate(turns, repeats)
    for name in turns:
        line = f"N={n:<5d} D={d:<6d} {name + (' (auto)' if name == auto else ''):19s}"
        if name in programs:
            line += f" {allotted(programs[name]) / 2**20:8.0f} MiB"
        else:
            line += " " * 13
        if name != "literal" and "literal" in turns:
            ratios = [one / other for one, other in zip(seconds["literal"], seconds[name], strict=True)]
            ratio = statistics.median(seconds["literal"]) / statistics.median(seconds[name])
            line += f"   speed x{ratio:.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
            if name in programs:
                line += f"   memory x{allotted(programs['literal']) / allotted(programs[name]):.1f} less"
        elif name != "literal":
            line += f"   runs; the literal form is left out, as C alone takes {4 * d * d / 2**30:.0f} GiB"
        print(line, flush=True)


def size(text: str) -> tuple[int, int]:
    try:
        n, d = map(int, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write NxD, for example 256x8192") from None
    if n < 2 or d < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must have at least 2 rows and 1 column")
    return n, d


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least 1")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Each form of the loss compared with the literal one, in the same run."
    )
    sizes = [(256, 1024), (2048, 512), (256, 8192), (256, 65536)]
    parser.add_argument(
        "--sizes", nargs="+", type=size, default=sizes, metavar="NxD", help="embeddings to measure with"
    )
    parser.add_argument("--repeats", type=count, default=5, help="turns of each form")
    parser.add_argument("--literal-gb", type=float, default=8.0, help="leave the literal form out above this memory")
    parser.add_argument("--peer", choices=["torch"], help="also measure the official form in this framework")
    arguments = parser.parse_args()
    for n, d in arguments.sizes:
        measure(n, d, arguments.repeats, arguments.literal_gb * 1e9, arguments.peer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"The whole process, including interpreter and compiler, took {peak:.1f} GiB at its peak.")


if __name__ == "__main__":
    main()
