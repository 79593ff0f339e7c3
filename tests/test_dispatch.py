"""bt_jax/training/dispatch.py: several steps at once are the same steps."""

import jax
import numpy as np
from recipes import relative, small_method, small_optimizer

from bt_jax import config as config_lib
from bt_jax import mesh as mesh_lib
from bt_jax.data.resident import DeviceFeed
from bt_jax.data.sources import ArraySource
from bt_jax.training.dispatch import make_program
from bt_jax.training.state import init_state
from bt_jax.training.step import make_train_step


def test_two_steps_at_once_are_two_steps():
    """Of a set of 40 images in batches of 16, two an epoch, on eight devices: parameters and each step's loss to 1e-5.

    A compiler may order the sums of a loop's body otherwise than those of a single step, so bits are not promised.
    """
    rng = np.random.default_rng(0)
    source = ArraySource("noise", rng.integers(0, 256, (40, 16, 16, 3), np.uint8), np.arange(40) % 2)
    config = config_lib.default()
    config.batch_size, config.data.views, config.data.image_size = 16, "device", 16
    for view in (config.data.view_a, config.data.view_b):
        view.update(jitter=0.0, grayscale=0.0, blur=0.0)  # quicker to compile
    mesh = mesh_lib.make_mesh(config.mesh)
    method, optimizer, feed = small_method(mesh), small_optimizer(), DeviceFeed(config, source, mesh)
    program = jax.jit(make_program(make_train_step(method, optimizer, seed=0), feed.prepare))
    found = []
    for together in (1, 2):
        feed.together = together
        state, losses = init_state(method, optimizer, 0, (16, 16, 3), mesh), []
        ends = []
        for step, delivery in feed.batches(0, 4):
            state, metrics = program(state, delivery)
            ends.append(step)
            losses += np.asarray(metrics["loss"]).tolist()
        assert ends == {1: [1, 2, 3, 4], 2: [2, 4]}[together] and int(state.step) == 4
        found.append((losses, np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5)
    assert relative(found[1][1], found[0][1]) < 1e-5


def test_ready_batches_need_no_program():
    step = make_train_step(small_method(), small_optimizer(), seed=0)
    assert make_program(step) is step
