"""bt_jax/checkpoint.py: what was saved comes back bit for bit, and a damaged checkpoint is stepped over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from bt_jax import mesh as mesh_lib
from bt_jax.checkpoint import Checkpoints
from bt_jax.errors import UserError


@pytest.fixture
def mesh():
    return jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))


def state_at(step, mesh):
    tree = {"step": jnp.int32(step), "params": {"w": jax.random.normal(jax.random.key(step), (5, 3))}, "extra": {}}
    return jax.device_put(tree, mesh_lib.everywhere(mesh))


def like(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def save(tmp_path, mesh, steps, keep=3):
    checkpoints = Checkpoints(epath.Path(tmp_path), keep)
    for step in steps:
        checkpoints.save(step, state_at(step, mesh))
    checkpoints.close()


def damage(folder):
    """Cuts every file of a checkpoint in half."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_newest_comes_back(tmp_path, mesh):
    """Bit for bit, with its shardings; older ones than asked to keep are gone."""
    save(tmp_path, mesh, [1, 2, 3, 4], keep=2)
    checkpoints = Checkpoints(epath.Path(tmp_path), 2)
    assert checkpoints.steps() == [3, 4]
    expected = state_at(4, mesh)
    state, step, notices = checkpoints.restore_newest(like(expected))
    assert (step, notices) == (4, [])
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert state["params"]["w"].sharding == expected["params"]["w"].sharding
    checkpoints.close()


def test_saved_state_may_be_donated(tmp_path, mesh):
    """The arrays are copied before `save` returns: steps that overwrite them do not reach the file."""
    change = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints = Checkpoints(epath.Path(tmp_path))
    state = state_at(1, mesh)
    expected = jax.device_get(state)
    checkpoints.save(1, state)
    for _ in range(5):
        state = change(state)
    checkpoints.wait()
    found, _, _ = checkpoints.restore_newest(like(state))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)
    checkpoints.close()


def test_nothing_there(tmp_path, mesh):
    checkpoints = Checkpoints(epath.Path(tmp_path))
    assert checkpoints.restore_newest(like(state_at(0, mesh))) == (None, None, [])
    checkpoints.close()


def test_damaged_newest_falls_back(tmp_path, mesh):
    """To the one before, saying so; the damaged one is kept aside and its step can be saved again."""
    save(tmp_path, mesh, [1, 2, 3])
    damage(tmp_path / "checkpoints" / "3")
    checkpoints = Checkpoints(epath.Path(tmp_path))
    state, step, notices = checkpoints.restore_newest(like(state_at(0, mesh)))
    assert step == 2 and int(state["step"]) == 2
    (notice,) = notices
    assert "checkpoint 3 cannot be read" in notice and "step 2 is used instead" in notice
    assert (tmp_path / "damaged_checkpoints" / "3").is_dir()
    checkpoints.save(3, state_at(3, mesh))
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.close()


def test_all_damaged(tmp_path, mesh):
    """A sentence, and nothing is moved."""
    save(tmp_path, mesh, [1, 2])
    for step in "12":
        damage(tmp_path / "checkpoints" / step)
    checkpoints = Checkpoints(epath.Path(tmp_path))
    with pytest.raises(UserError, match="none of the checkpoints in .* can be read"):
        checkpoints.restore_newest(like(state_at(0, mesh)))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
    checkpoints.close()
