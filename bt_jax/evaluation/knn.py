"""Weighted k-nearest-neighbours classification, the usual monitor of self-supervised training.

Wu et al. 2018 (arXiv 1805.01978, section 3.4): each of the k training images most similar to a test image by cosine
votes for its class with weight exp(similarity / temperature).

The search is exact and never holds the similarities of all pairs. Train images stand in blocks of fixed size, each device
has some of the blocks and passes through them with the best k so far in hand, and then the devices' best are merged. A
product is always of one block of test images with one block of train images, whose borders do not depend on the devices;
of equally similar images the one that comes first is nearer. So the result is the same to the last bit on any number of
devices of a kind.
"""

import functools
from collections.abc import Iterator, Sequence

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
    """The class with most votes for each test image.

    Args:
      train_features: (n, F) floats, of any length: they are normalised here; likewise test_features (m, F).
      train_labels: (n,) integers from 0 to num_classes - 1.
      k: how many neighbours vote, at most n; or several such numbers, all answered by one search.
      block, train_block: test and train images at a time. A device holds its share of the train features, 4·n·F bytes over
        the number of devices, and beside it about 12·block·(train_block + 2·k) bytes while it searches.
      mesh: whose devices share the search; by default the first local device alone.

    Returns:
      (m,) int32, or (number of k, m) where k is several; of classes with equally many votes, the lowest number.

    Raises:
      ValueError: shapes that do not fit, k outside 1 to n, labels outside the range, features that are not finite.
    """
    ks = [k] if np.ndim(k) == 0 else list(k)
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
    found = _nearest(train_features, test_features, k=max(ks), block=block, train_block=train_block, mesh=mesh)
    for rows, similarity, index in found:
        # On the host, in float64: some accelerators add up scattered numbers in an order that changes.
        weights = np.exp((similarity.astype(np.float64) - 1) / temperature)  # -1 keeps it from overflowing
        cells = np.arange(len(rows))[:, None] * num_classes + np.asarray(train_labels)[index]
        for i, one in enumerate(ks):
            votes = np.bincount(cells[:, :one].ravel(), weights[:, :one].ravel(), len(rows) * num_classes)
            predicted[i, rows] = votes.reshape(len(rows), num_classes).argmax(axis=1)
    return predicted[0] if np.ndim(k) == 0 else predicted


def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    **settings,
) -> float | list[float]:
    """The fraction of test images whose predicted class is right; settings as for `knn_predict`.

    A list where k is several.
    """
    predicted = knn_predict(train_features, train_labels, test_features, **settings)
    right = np.mean(predicted == np.asarray(test_labels), axis=-1)
    return right.tolist() if predicted.ndim > 1 else float(right)


def _nearest(
    train_features: np.ndarray, test_features: np.ndarray, *, k: int, block: int, train_block: int, mesh: Mesh | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For one block of test images after the other: their rows (b,), similarities (b, k) falling, train images (b, k)."""
    if mesh is None:
        mesh = jax.make_mesh(
            (1,), (mesh_lib.DATA_AXIS,), (jax.sharding.AxisType.Auto,), devices=jax.local_devices()[:1]
        )
    n, m, width = len(train_features), len(test_features), train_features.shape[1]
    train_block, block = min(train_block, n), min(block, max(m, 1))
    blocks = -(-n // (train_block * mesh.size)) * mesh.size

    def share(index):
        """The blocks that a device asks for: its images normalised, the rest zero."""
        start, stop, _ = index[0].indices(blocks)
        part = np.zeros((stop - start, train_block, width), np.float32)
        for number, block in zip(range(start, stop), part, strict=True):  # one by one: no second copy of all
            rows = _unit(train_features[number * train_block : (number + 1) * train_block])
            block[: len(rows)] = rows
        return part

    train = jax.make_array_from_callback((blocks, train_block, width), mesh_lib.over_batch(mesh), share)
    search = _search(mesh, k, n)
    for start in range(0, m, block):
        rows = _unit(test_features[start : start + block])
        padded = np.pad(rows, ((0, block - len(rows)), (0, 0)))  # one shape, one compilation
        test = jax.make_array_from_callback(padded.shape, mesh_lib.everywhere(mesh), lambda index, p=padded: p[index])
        similarity, index = (np.asarray(array)[: len(rows)] for array in search(train, test))
        yield np.arange(start, start + len(rows)), similarity, index


@functools.lru_cache(maxsize=8)
def _search(mesh: Mesh, k: int, n: int):
    """The compiled search: train (blocks, train_block, F) and test (b, F) -> similarities (b, k), train images (b, k)."""
    axes = mesh.axis_names

    def best(similarity, index):
        top, place = jax.lax.top_k(similarity, k)  # of equal ones the first: the train image of lower number
        return top, jnp.take_along_axis(index, place, axis=1)

    def search(train, test):
        mine, size, _ = train.shape
        first = jax.lax.axis_index(axes) * mine

        def pass_through(held, block):
            number, rows = block
            # TF32 or bf16 products would reorder near neighbours.
            similarity = jnp.matmul(test, rows.T, precision="highest")
            index = (first + number) * size + jnp.arange(size, dtype=jnp.int32)
            similarity = jnp.where(index[None, :] < n, similarity, -jnp.inf)
            index = jnp.broadcast_to(index[None, :], similarity.shape)
            return best(*(jnp.concatenate(pair, axis=1) for pair in zip(held, (similarity, index), strict=True))), None

        nothing = jnp.full((len(test), k), -jnp.inf), jnp.full((len(test), k), n, jnp.int32)
        held, _ = jax.lax.scan(pass_through, nothing, (jnp.arange(mine, dtype=jnp.int32), train))
        return best(*(jax.lax.all_gather(part, axes, axis=1, tiled=True) for part in held))

    sharded, whole = PartitionSpec(axes), PartitionSpec()
    # check_vma would want to be told that what all_gather and top_k give is the same on all devices.
    mapped = jax.shard_map(search, mesh=mesh, in_specs=(sharded, whole), out_specs=(whole, whole), check_vma=False)
    return jax.jit(mapped)


def _finite(features: np.ndarray) -> bool:
    """By blocks: the test's own array would be as long as a million images are many."""
    return all(np.isfinite(features[i : i + 65536]).all() for i in range(0, len(features), 65536))


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
