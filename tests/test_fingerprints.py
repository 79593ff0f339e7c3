"""bt_jax/engine/fingerprints.py: every bit counts, and the devices and the host agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax.engine.fingerprints import compare, fingerprints, fingerprints_on_host, not_finite
from bt_jax.runtime import mesh as mesh_lib


@pytest.fixture
def mesh():
    return jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))


def test_fingerprints(mesh):
    """Change with any bit of any kind of array, and not with its sharding."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((8, 3)).astype(t) for t in (np.float32, jnp.bfloat16, np.int8)] + [
        rng.random(8) < 0.5
    ]
    for array in arrays:
        (expected,) = fingerprints([jnp.asarray(array)]).values()
        assert list(fingerprints([jax.device_put(array, mesh_lib.over_batch(mesh))]).values()) == [expected]
        for _ in range(20):
            raw = bytearray(array.tobytes())
            place = int(rng.integers(len(raw)))
            raw[place] ^= 1 if array.dtype == bool else 1 << int(rng.integers(8))
            other = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
            assert list(fingerprints([jnp.asarray(other)]).values()) != [expected]
    swapped = arrays[0][::-1].copy()
    assert fingerprints([jnp.asarray(swapped)]) != fingerprints([jnp.asarray(arrays[0])])


def test_on_the_host(monkeypatch):
    """The same numbers, in blocks of any size."""
    rng = np.random.default_rng(0)
    state = {
        "scalar": np.int32(7), "vector": rng.standard_normal(5).astype(np.float32),
        "kernel": rng.standard_normal((3, 5, 2, 7)).astype(jnp.bfloat16), "mask": rng.random((4, 3)) < 0.5,
        "small": rng.integers(-9, 9, (2, 3), np.int8), "empty": np.zeros((0, 3), np.float32), "key": np.zeros(2, np.uint32),
    }  # fmt: skip
    expected = fingerprints(jax.tree.map(jnp.asarray, state))
    assert fingerprints_on_host(state) == expected
    monkeypatch.setattr("bt_jax.engine.fingerprints._BLOCK", 100)
    assert fingerprints_on_host(state) == expected
    with jax.enable_x64(True):
        wide = {"wide": rng.standard_normal((4, 3))}
        assert fingerprints_on_host(wide) == fingerprints({"wide": jnp.asarray(wide["wide"])})


def test_what_is_not_finite_is_named(mesh):
    """In any kind of float, on one device or several; integers are finite."""
    state = {
        "a": np.ones((8, 3), np.float32),
        "b": {"c": np.ones(8, jnp.bfloat16)},
        "n": np.arange(3),
        "empty": np.ones((0, 2)),
        "none": None,
    }
    assert not_finite(jax.tree.map(jnp.asarray, state)) == []
    state["a"][7, 2], state["b"]["c"][0] = np.nan, -np.inf
    assert not_finite(jax.tree.map(jnp.asarray, state)) == ["a", "b/c"]
    placed = {name: jax.device_put(state[name], mesh_lib.over_batch(mesh)) for name in ("a", "b")}
    assert not_finite(placed) == ["a", "b/c"]
    assert not_finite({"n": jnp.arange(3)}) == []


def test_what_differs_is_named():
    compare({"a": 1, "gone": 2}, {"a": 1, "new": 3})
    with pytest.raises(ValueError, match="b differs from what was saved: its fingerprint is 3, not 2"):
        compare({"a": 1, "b": 2}, {"a": 1, "b": 3})
