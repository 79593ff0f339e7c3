"""Fingerprints: a number for every array of a state, to compare what is read with what was saved; and which arrays are not finite."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SPREAD = 2654435761  # 2³² by the golden ratio
_BLOCK = 2**22  # words that the host processes at a time


def fingerprints(state: Any) -> dict[str, int]:
    """A number for every array, by its path, that changes with any bit of the array and not with its sharding.

    All processes must call it together. It is computed on the arrays' devices.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    sums = jax.device_get(_fingerprints([leaf for _, leaf in leaves]))
    return {_name(path): int(value) for (path, _), value in zip(leaves, sums, strict=True)}


def fingerprints_on_host(state: Any) -> dict[str, int]:
    """The same numbers for NumPy arrays, computed on the host."""
    return {_name(path): _on_host(np.asarray(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def compare(expected: Mapping[str, int], found: Mapping[str, int]) -> None:
    """Raises ValueError for the first array that differs from what was saved."""
    for name, value in found.items():
        if name in expected and expected[name] != value:
            raise ValueError(f"{name} differs from what was saved: its fingerprint is {value}, not {expected[name]}")


def not_finite(state: Any) -> list[str]:
    """The paths of the arrays with a NaN or an infinity; all processes must call it together, and all get the same."""
    leaves = [x for x in jax.tree_util.tree_leaves_with_path(state) if jnp.issubdtype(x[1].dtype, jnp.inexact)]
    finite = jax.device_get(_are_finite([leaf for _, leaf in leaves]))
    return [_name(path) for (path, _), is_finite in zip(leaves, finite, strict=True) if not is_finite]


@jax.jit
def _are_finite(arrays: list[jax.Array]) -> jax.Array:
    return jnp.array([jnp.all(jnp.isfinite(x)) for x in arrays], bool)


@jax.jit
def _fingerprints(arrays: list[jax.Array]) -> jax.Array:
    """One program for all arrays: with more than 32 at once, the CPU devices of a process deadlock."""
    return jnp.stack([_fingerprint(x) for x in arrays])


def _fingerprint(x: jax.Array) -> jax.Array:
    """Σ word × an odd number for its position, modulo 2³²: a flipped bit adds ±2ᵏ × an odd number, which is never 0."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)  # 8 bytes become another axis of two words
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        place = place * np.uint32(_SPREAD) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)


def _on_host(x: np.ndarray) -> int:
    if x.dtype == bool:
        x = x.astype(np.uint8)
    unsigned = {1: np.uint8, 2: np.uint16}.get(x.dtype.itemsize, np.uint32)
    shape = x.shape + ((2,) if x.dtype.itemsize == 8 else ())
    words = np.ascontiguousarray(x).reshape(-1).view(unsigned).reshape(shape or (1,))
    inner = np.zeros(words.shape[1:], np.uint32)
    for axis, size in enumerate(inner.shape):
        inner = inner * np.uint32(_SPREAD)
        inner += np.arange(size, dtype=np.uint32).reshape([-1 if i == axis else 1 for i in range(inner.ndim)])
    first = np.uint32(pow(_SPREAD, inner.ndim, 2**32))
    rows, total = max(1, _BLOCK // max(1, inner.size)), 0
    for start in range(0, len(words), rows):
        part = words[start : start + rows].astype(np.uint32)
        place = np.arange(start, start + len(part), dtype=np.uint32) * first
        place = place.reshape(-1, *[1] * inner.ndim) + inner
        total += int(np.sum(part * (2 * place + 1), dtype=np.uint32))
    return total % 2**32


def _name(path: tuple) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
