"""The loss and its gradients in float32, compared with numpy in float64, for both forms, on one device and on eight.

    python experiments/parity/loss_accuracy.py [--sizes 8x4 256x2048 2048x8192]

Prints ‖found - exact‖ / ‖exact‖. Eight devices are simulated on the CPU. 2048 × 8192 takes 5 GB and half a minute.
"""

import argparse
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np

from bt_jax import barlow_twins_loss

LAMBD = 0.0051


def exact(z: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
    """Equations 1 and 2 of the paper, and their gradients derived by hand."""
    n = len(z[0])
    roots = [np.sqrt(x.var(0) + 1e-5) for x in z]
    a, b = ((x - x.mean(0)) / root for x, root in zip(z, roots, strict=True))
    c = a.T @ b / n
    diagonal = np.diag(c).copy()
    np.fill_diagonal(c, 0)
    loss = np.sum((diagonal - 1) ** 2) + LAMBD * np.sum(c**2)
    c *= 2 * LAMBD
    np.fill_diagonal(c, 2 * (diagonal - 1))
    gradients = []
    for g, x, root in ((b @ c.T / n, a, roots[0]), (a @ c / n, b, roots[1])):
        gradients.append((g - g.mean(0) - x * (g * x).mean(0)) / root)
    return float(loss), gradients


def draw(n: int, d: int) -> list[np.ndarray]:
    """Two related views; features have different scales and means."""
    rng = np.random.default_rng(0)
    base, scale, shift = rng.standard_normal((n, d)), rng.uniform(0.1, 3, d), rng.standard_normal(d)
    return [((base + 0.7 * rng.standard_normal((n, d))) * scale + shift).astype(np.float32) for _ in "ab"]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected))


def main() -> None:
    parser = argparse.ArgumentParser(description="The loss in float32, compared with float64.")
    parser.add_argument("--sizes", nargs="+", default=["8x4", "256x2048", "2048x8192"], metavar="NxD")
    arguments = parser.parse_args()
    print("|     N |     D | form        | devices |    loss | gradients |")
    print("|---|---|---|---|---|---|")
    for size in arguments.sizes:
        n, d = map(int, size.split("x"))
        z = draw(n, d)
        loss, gradients = exact([x.astype(np.float64) for x in z])
        for form in ("correlation", "gram"):
            for devices in (1, 8):
                mesh = jax.make_mesh(
                    (devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
                )
                rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

                def function(a, b, form=form, mesh=mesh):
                    return barlow_twins_loss(a, b, lambd=LAMBD, form=form, mesh=mesh)[0]

                step = jax.jit(jax.value_and_grad(function, argnums=(0, 1)))
                found, grads = step(*(jax.device_put(x, rows) for x in z))
                worst = max(relative(f, g) for f, g in zip(grads, gradients, strict=True))
                off = abs(float(found) - loss) / loss
                print(f"| {n:5d} | {d:5d} | {form:11s} | {devices:7d} | {off:.1e} | {worst:9.1e} |", flush=True)


if __name__ == "__main__":
    main()
