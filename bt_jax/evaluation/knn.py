"""Weighted k-nearest-neighbours classification, the usual monitor of self-supervised training.

Wu et al. 2018 (arXiv 1805.01978, section 3.4): each of the k training images with the highest cosine similarity to a test
image votes for its class with weight exp(similarity / temperature).

The search is exact and never holds the similarities of all pairs. Train images are divided into blocks of fixed size. Each
device goes through its share of the blocks and keeps the best k so far; then the devices' best are merged. Every product is
of one block of test images with one block of train images, and the blocks do not depend on the number of devices; among
equally similar images, the first counts as nearer. The result is therefore bit-identical on any number of devices of the
same kind.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from bt_jax.runtime import mesh as mesh_lib


def knn_predict(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    *,
    num_classes: int,
    k: int | Sequence[int] = 200,
    temperature: float = 0.1,
    block: int = 1024,
    train_block: int = 2048,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """The class with the most votes for each test image.

    Args:
      train_features: (n, F) floats, not necessarily normalised; likewise test_features (m, F).
      train_labels: (n,) integers from 0 to num_classes - 1.
      k: the number of neighbours that vote, at most n; or several such numbers, which share one search.
      block, train_block: test and train images per product. A device holds its share of the train features, 4·n·F bytes
        divided by the number of devices, and about 12·block·(train_block + 2·k) bytes more during the search.
      mesh: its devices share the search; by default only the first local device is used.

    Returns:
      (m,) int32, or (number of k, m) for several k. On a tie the class with the lowest number wins.

    Raises:
      ValueError: shapes that do not match, k outside 1 to n, labels out of range, features that are not finite.
    """
    ks = [k] if isinstance(k, int | np.integer) else list(k)
    n, m = len(train_features), len(test_features)
    if np.ndim(train_features) != 2 or np.ndim(test_features) != 2 or train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"train_features is {train_features.shape} and test_features {test_features.shape}; both must be (n, F)."
        )
    if len(train_labels) != n:
        raise ValueError(f"there are {n} train features but {len(train_labels)} labels.")
    for one in ks:
        if not 1 <= one <= n:
            raise ValueError(f"k is {one}; it must be at least 1 and at most the number of train images, {n}.")
    if n and (train_labels.min() < 0 or train_labels.max() >= num_classes):
        raise ValueError(
            f"train labels run from {train_labels.min()} to {train_labels.max()}; they must lie in 0 to {num_classes - 1}."
        )
    if not (_finite(train_features) and _finite(test_features)):
        raise ValueError("some features are not finite; the encoder's weights or its input must be wrong.")
    predicted = np.zeros((len(ks), m), np.int32)
    found = nearest(train_features, test_features, k=max(ks), block=block, train_block=train_block, mesh=mesh)
    for rows, similarity, index in found:
        # On the host, in float64: some accelerators sum scattered numbers in a varying order.
        weights = np.exp((similarity.astype(np.float64) - 1) / temperature)  # -1 keeps it from overflowing
        cells = np.arange(len(rows))[:, None] * num_classes + np.asarray(train_labels, np.int64)[index]
        for i, one in enumerate(ks):
            votes = np.bincount(cells[:, :one].ravel(), weights[:, :one].ravel(), len(rows) * num_classes)
            predicted[i, rows] = votes.reshape(len(rows), num_classes).argmax(axis=1)
    return predicted[0] if isinstance(k, int | np.integer) else predicted


@overload
def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    k: int = 200,
    **settings: Any,
) -> float: ...
@overload
def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    k: Sequence[int],
    **settings: Any,
) -> list[float]: ...
def knn_accuracy(train_features, train_labels, test_features, test_labels, *, k=200, **settings):
    """The fraction of test images that are classified correctly, or a list of them for several k.

    Settings are those of `knn_predict`.
    """
    predicted = knn_predict(train_features, train_labels, test_features, k=k, **settings)
    right = np.mean(predicted == np.asarray(test_labels), axis=-1)
    return right.tolist() if predicted.ndim > 1 else float(right)


def nearest(
    train_features: np.ndarray, test_features: np.ndarray, *, k: int, block: int, train_block: int, mesh: Mesh | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The k nearest train images of each test image, by cosine similarity; arguments as for `knn_predict`.

    Yields:
      For each block of test images: their rows (b,), decreasing similarities (b, k) float32, and train images (b, k) int32.
    """
    if mesh is None:
        mesh = jax.make_mesh(
            (1,), (mesh_lib.DATA_AXIS,), (jax.sharding.AxisType.Auto,), devices=jax.local_devices()[:1]
        )
    n, m, width = len(train_features), len(test_features), train_features.shape[1]
    train_block, block = min(train_block, n), min(block, max(m, 1))
    blocks = -(-n // (train_block * mesh.size)) * mesh.size

    def share(index):
        """A device's blocks of normalised train images, padded with zeros."""
        start, stop, _ = index[0].indices(blocks)
        part = np.zeros((stop - start, train_block, width), np.float32)
        for number, block in zip(range(start, stop), part, strict=True):  # one by one, to avoid a second copy of all
            rows = _unit(train_features[number * train_block : (number + 1) * train_block])
            block[: len(rows)] = rows
        return part

    train = jax.make_array_from_callback((blocks, train_block, width), mesh_lib.over_batch(mesh), share)
    search = _search(mesh, k, n)
    for start in range(0, m, block):
        rows = _unit(test_features[start : start + block])
        padded = np.pad(rows, ((0, block - len(rows)), (0, 0)))  # one shape, so that it compiles once
        test = jax.make_array_from_callback(padded.shape, mesh_lib.everywhere(mesh), lambda index, p=padded: p[index])
        similarity, index = (np.asarray(array)[: len(rows)] for array in search(train, test))
        yield np.arange(start, start + len(rows)), similarity, index


@functools.lru_cache(maxsize=8)
def _search(mesh: Mesh, k: int, n: int):
    """The compiled search: train (blocks, train_block, F) and test (b, F) -> similarities (b, k), train images (b, k)."""
    axes = mesh.axis_names

    def best(similarity, index):
        top, place = jax.lax.top_k(similarity, k)  # among equals the first: the train image with the lower number
        return top, jnp.take_along_axis(index, place, axis=1)

    def search(train, test):
        mine, size, _ = train.shape
        first = jax.lax.axis_index(axes) * mine

        def pass_through(held, block):
            number, rows = block
            # TF32 or bfloat16 products would reorder close neighbours.
            similarity = jnp.matmul(test, rows.T, precision="highest")
            index = (first + number) * size + jnp.arange(size, dtype=jnp.int32)
            similarity = jnp.where(index[None, :] < n, similarity, -jnp.inf)
            index = jnp.broadcast_to(index[None, :], similarity.shape)
            return best(*(jnp.concatenate(pair, axis=1) for pair in zip(held, (similarity, index), strict=True))), None

        nothing = jnp.full((len(test), k), -jnp.inf), jnp.full((len(test), k), n, jnp.int32)
        held, _ = jax.lax.scan(pass_through, nothing, (jnp.arange(mine, dtype=jnp.int32), train))
        return best(*(jax.lax.all_gather(part, axes, axis=1, tiled=True) for part in held))

    sharded, whole = PartitionSpec(axes), PartitionSpec()
    # check_vma cannot see that the results of all_gather and top_k are the same on all devices.
    mapped = jax.shard_map(search, mesh=mesh, in_specs=(sharded, whole), out_specs=(whole, whole), check_vma=False)
    return jax.jit(mapped)


def _finite(features: np.ndarray) -> bool:
    """Checks block by block, to avoid a mask as large as the features."""
    return all(np.isfinite(features[i : i + 65536]).all() for i in range(0, len(features), 65536))


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
