"""Time and memory of NT-Xent and both gradients, compared with the literal form, in the same run.

    python experiments/benchmarks/nt_xent.py [--sizes 4096x128 8192x128] [--repeats 5]

The literal form builds the 2N × 2N matrix, masks its diagonal, and leaves the rest to autodiff; ours computes rows in blocks,
again in the backward pass. They take turns, so that other load on the machine affects both; a ratio is that of the median times,
with the smallest and largest ratio of single turns in brackets. Memory is what the compiled program allocates in addition to
its inputs. Above 1 ours is faster, or smaller.
"""

import argparse
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from loss import allotted, alternate, compiled, count, size

from bt_jax.losses import nt_xent

TEMPERATURE = 0.1


def literal(z_a: jax.Array, z_b: jax.Array) -> jax.Array:
    """The loss as in the paper's algorithm 1."""
    z = jnp.concatenate([z_a, z_b])
    u = z / jnp.linalg.norm(z, axis=1, keepdims=True)
    similar = jnp.where(jnp.eye(len(u), dtype=bool), -jnp.inf, u @ u.T / TEMPERATURE)
    positive = (jnp.arange(len(u)) + len(z_a)) % len(u)
    return jnp.mean(jax.nn.logsumexp(similar, axis=1) - similar[jnp.arange(len(u)), positive])


def ours(z_a: jax.Array, z_b: jax.Array) -> jax.Array:
    return nt_xent(z_a, z_b, temperature=TEMPERATURE)[0]


def measure(n: int, d: int, repeats: int) -> None:
    """Prints a line for N = n, D = d."""
    rng = np.random.default_rng(0)
    z = [jax.device_put(rng.standard_normal((n, d), dtype=np.float32)) for _ in "ab"]
    programs = {"literal": compiled(literal, n, d), "ours": compiled(ours, n, d)}
    values = {name: program(*z) for name, program in programs.items()}
    apart = max(
        float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a))
        for a, b in zip(*(jax.tree.leaves(values[name]) for name in programs), strict=True)
    )
    seconds = alternate({name: (lambda program=program: program(*z)) for name, program in programs.items()}, repeats)
    ratios = [one / other for one, other in zip(seconds["literal"], seconds["ours"], strict=True)]
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    memory = {name: allotted(program) / 2**20 for name, program in programs.items()}
    print(
        f"N={n:<5d} D={d:<4d} literal {medians['literal']:.2f} s, {memory['literal']:.0f} MiB; ours {medians['ours']:.2f} s, "
        f"{memory['ours']:.0f} MiB; speed x{medians['literal'] / medians['ours']:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"memory x{memory['literal'] / memory['ours']:.1f} less; apart by {apart:.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="NT-Xent compared with the literal form, in the same run.")
    parser.add_argument(
        "--sizes", nargs="+", type=size, default=[(4096, 128), (8192, 128)], metavar="NxD", help="embeddings"
    )
    parser.add_argument("--repeats", type=count, default=5, help="turns of each form")
    arguments = parser.parse_args()
    for n, d in arguments.sizes:
        measure(n, d, arguments.repeats)


if __name__ == "__main__":
    main()
