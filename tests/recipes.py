"""What several tests share: parameters by the recipe of tests/golden/README.md, and small methods."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax import config as config_lib
from bt_jax import mesh as mesh_lib
from bt_jax.methods import BarlowTwins
from bt_jax.models import Projector, ResNet
from bt_jax.optim import make_optimizer
from bt_jax.training.state import init_state
from bt_jax.training.step import make_train_step


def recipe(name: str, shape: tuple[int, ...], salt: int) -> np.ndarray:
    """The value of the torch parameter or statistic `name`, as the golden files were made with."""
    rng = np.random.default_rng(zlib.crc32(name.encode()) + salt)
    if name.endswith("running_var"):
        value = 0.5 + rng.random(shape)
    elif name.endswith("running_mean"):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        value = 0.1 * rng.standard_normal(shape) + (1 if name.endswith("weight") else 0)
    else:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return value.astype(np.float32)


def relative(found, expected) -> float:
    """‖found - expected‖ / ‖expected‖, in float64."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def small_method(mesh=None, *, sizes=(32, 32), form="auto", dtype=jnp.float32) -> BarlowTwins:
    """A residual network of two blocks with a small projector: all that a step has, and quick to compile."""
    return BarlowTwins(
        encoder=ResNet(blocks=(1, 1), bottleneck=False, small_images=True, width=4, dtype=dtype),
        projector=Projector(sizes, dtype=dtype),
        lambd=0.0051,
        form=form,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        dtype=dtype,
        mesh=mesh,
    )


SIZES = (32, 32, 32)  # of a projector with one layer more than those split by inputs


def small_optimizer():
    return make_optimizer(config_lib.default().optimizer, batch_size=256, steps_per_epoch=2, epochs=12)


def five_steps(mesh, *, form="auto"):
    """The state after five steps of `small_method` on batches of 16, the same for every mesh; and the losses."""
    batches = np.random.default_rng(0).integers(0, 256, (5, 16, 2, 16, 16, 3), np.uint8)
    method, optimizer = small_method(mesh, sizes=SIZES, form=form), small_optimizer()
    state = init_state(method, optimizer, 0, (16, 16, 3), mesh)
    step = jax.jit(make_train_step(method, optimizer, seed=0), donate_argnums=0)
    rows, losses = mesh_lib.process_rows(mesh, 16), []
    for views in batches:
        state, metrics = step(state, mesh_lib.put_batch(mesh, 16, {"views": views[rows]}))
        losses.append(float(metrics["loss"]))
    return state, losses
