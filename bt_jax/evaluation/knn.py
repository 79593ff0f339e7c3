"""Weighted k-nearest-neighbours classification, the usual monitor of self-supervised training.

Wu et al. 2018 (arXiv 1805.01978, section 3.4): each of the k training images most similar to a test image by cosine
votes for its class with weight exp(similarity / temperature).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def knn_predict(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    *,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
    block: int = 1024,
) -> np.ndarray:
    """The class with most votes for each test image.

    Args:
      train_features: (n, F) floats, of any length: they are normalised here; likewise test_features (m, F).
      train_labels: (n,) integers from 0 to num_classes - 1.
      k: how many neighbours vote; at most n.
      block: test images at a time; memory is about 4·block·(n + num_classes) bytes.

    Returns:
      (m,) int32; of classes with equally many votes, the lowest number.

    Raises:
      ValueError: shapes that do not fit, k outside 1 to n, labels outside the range, features that are not finite.
    """
    n, m = len(train_features), len(test_features)
    if train_features.ndim != 2 or test_features.ndim != 2 or train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"train_features is {train_features.shape} and test_features {test_features.shape}; both must be (n, F)."
        )
    if len(train_labels) != n:
        raise ValueError(f"there are {n} train features but {len(train_labels)} labels.")
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}; it must be at least 1 and at most the number of train images, {n}.")
    if n and (train_labels.min() < 0 or train_labels.max() >= num_classes):
        raise ValueError(
            f"train labels run from {train_labels.min()} to {train_labels.max()}; they must lie in 0 to {num_classes - 1}."
        )
    if not (np.isfinite(train_features).all() and np.isfinite(test_features).all()):
        raise ValueError("some features are not finite; the encoder's weights or its input must be wrong.")
    train = jnp.asarray(_unit(train_features))
    labels = jnp.asarray(train_labels, jnp.int32)
    test = _unit(test_features)
    predicted = []
    for start in range(0, m, block):
        rows = test[start : start + block]
        padded = np.pad(rows, ((0, block - len(rows)), (0, 0)))  # one shape, one compilation
        votes = _votes(train, labels, jnp.asarray(padded), jnp.float32(temperature), k=k, num_classes=num_classes)
        predicted.append(np.asarray(jnp.argmax(votes, axis=1), np.int32)[: len(rows)])
    return np.concatenate(predicted) if predicted else np.zeros(0, np.int32)


def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    **settings,
) -> float:
    """The fraction of test images whose predicted class is right; settings as for `knn_predict`."""
    predicted = knn_predict(train_features, train_labels, test_features, **settings)
    return float(np.mean(predicted == test_labels))


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


@partial(jax.jit, static_argnames=("k", "num_classes"))
def _votes(train, labels, test, temperature, *, k, num_classes):
    similarity = jnp.matmul(test, train.T, precision="highest")  # TF32 or bf16 products would reorder near neighbours
    top, index = jax.lax.top_k(similarity, k)
    weight = jnp.exp((top - 1) / temperature)  # -1 changes no order and keeps the exponential from overflowing
    rows = jnp.arange(len(test))[:, None]
    return jnp.zeros((len(test), num_classes)).at[rows, labels[index]].add(weight)
