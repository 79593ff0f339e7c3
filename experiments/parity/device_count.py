"""Losses of 100 steps on 1, 2 and 4 CPU devices: the device count is not a hyper-parameter.

    python experiments/parity/device_count.py

A small ResNet learns ten batches again and again by the quickstart's optimizer. In float64 the losses must agree to 1e-5 at every
step, else the status is 1. In float32 the differences grow: at these rates training amplifies rounding, whatever its cause.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bt_jax.data.views.spec import batch_spec
from bt_jax.engine.state import init_state
from bt_jax.engine.step import make_train_step
from bt_jax.facts import Facts
from bt_jax.methods import BarlowTwins
from bt_jax.models import Projector, ResNet
from bt_jax.models.inputs import Inputs
from bt_jax.optim import make_optimizer
from bt_jax.runtime import mesh as mesh_lib

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # the configs are not installed

from configs import quickstart

STEPS, BATCH, SIZE = 100, 32, 16


def batches() -> np.ndarray:
    """Ten batches whose second views are the first and noise, (10, N, 2, S, S, 3) uint8."""
    rng = np.random.default_rng(0)
    first = rng.integers(40, 216, (10, BATCH, 1, SIZE, SIZE, 3))
    return np.concatenate([first, first + rng.integers(-40, 40, first.shape)], axis=2).astype(np.uint8)


def losses(devices: int, dtype: str) -> np.ndarray:
    """(STEPS,) float64."""
    mesh = mesh_lib.make_mesh(ConfigDict({"data": devices, "model": 1}), jax.devices()[:devices])
    method = BarlowTwins(
        encoder=ResNet(blocks=(1, 1), bottleneck=False, small_images=True, width=8, dtype=jnp.dtype(dtype)),
        projector=Projector((64, 64), dtype=jnp.dtype(dtype)),
        inputs=Inputs(SIZE, dtype=jnp.dtype(dtype)),
        mesh=mesh,
    )
    optimizer = make_optimizer(quickstart.get_config().optimizer, Facts(50 * BATCH, 0, BATCH, 6))
    state = init_state(method, optimizer, 0, batch_spec(method.view_groups, BATCH), mesh)
    state = jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
    step, views, found = jax.jit(make_train_step(method, optimizer, 0), donate_argnums=0), batches(), []
    for number in range(STEPS):
        state, metrics = step(state, mesh_lib.put_batch(mesh, BATCH, {"views": {"pair": views[number % len(views)]}}))
        found.append(float(metrics["loss"]))
    return np.array(found)


def main() -> int:
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_enable_x64", True)
    right = True
    for dtype in ("float64", "float32"):
        one = losses(1, dtype)
        for devices in (2, 4):
            apart = np.abs(losses(devices, dtype) / one - 1)
            print(
                f"{dtype}, {devices} devices: apart by {apart[:10].max():.1e} in the first 10 steps, {apart.max():.1e} in all {STEPS}; "
                f"loss {one[0]:.2f} to {one[-1]:.2f}",
                flush=True,
            )
            right &= dtype == "float32" or apart.max() < 1e-5
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
