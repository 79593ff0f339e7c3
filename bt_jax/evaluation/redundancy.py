"""How redundant features are: the cross-correlation of two views' embeddings, and the spectrum of one set of them.

Computed by numpy, in float32, as a run does it beside its training.
"""

from typing import NamedTuple

import numpy as np

_EPSILON = 1e-5  # under the root of a deviation, as in the loss
_BINS = 200  # of correlations from -1 to 1
_BLOCK = 512  # rows of the matrix that are held at a time


class Correlations(NamedTuple):
    """The cross-correlation matrix C (D, D) of two views' embeddings, reduced.

    Attributes:
      matrix: (d, d) float32, C at evenly spread columns of both, the same for both.
      diagonal: (D,) float32.
      counts: (200,) int64, how many entries off the diagonal lie in each of as many equal parts of -1 to 1.
    """

    matrix: np.ndarray
    diagonal: np.ndarray
    counts: np.ndarray


def cross_correlation(first: np.ndarray, second: np.ndarray, *, shown: int = 128) -> Correlations:
    """C = AᵀB/N of standardised embeddings, block by block, so that the whole matrix is never held.

    Args:
      first, second: (N, D), the embeddings of two views of the same N images, at least two.
      shown: the largest number of columns in `matrix`.
    """
    a, b = _standardised(first), _standardised(second)
    n, d = a.shape
    columns = np.arange(min(d, shown)) * d // min(d, shown)
    diagonal = np.sum(a * b, axis=0) / n
    counts = np.zeros(_BINS, np.int64)
    for start in range(0, d, _BLOCK):
        counts += _counts(a[:, start : start + _BLOCK].T @ b / n)
    counts -= _counts(diagonal)
    return Correlations(a[:, columns].T @ b[:, columns] / n, diagonal, counts)


def spectrum(features: np.ndarray, *, most: int = 1024) -> np.ndarray:
    """The eigenvalues of the covariance of features (n, F), largest first, float32; only those that may differ from 0.

    Args:
      most: at most so many of the images are taken, evenly spread; it bounds the time too.
    """
    n = len(features)
    x = features if n <= most else features[np.arange(most) * n // most]
    x = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    return np.maximum(np.linalg.eigvalsh(gram)[::-1] / len(x), 0).astype(np.float32)


def _standardised(z: np.ndarray) -> np.ndarray:
    z = np.asarray(z, np.float32)
    return (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + _EPSILON)


def _counts(correlations: np.ndarray) -> np.ndarray:
    places = ((correlations + 1) * (_BINS / 2)).astype(np.int64)
    return np.bincount(np.clip(places, 0, _BINS - 1).ravel(), minlength=_BINS)
