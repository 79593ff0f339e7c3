"""Label-free measures of a representation: its rank, redundancy, dead features and geometry.

They show a collapse in self-supervised training before accuracy falls. All are computed in float64 on the host, from the
features (n, F) of n images.
"""

import numpy as np

DEAD = 1e-6  # a feature is dead if its standard deviation is at most this fraction of the largest one


def rankme(features: np.ndarray) -> float:
    """The effective rank: exp of the entropy of the singular values, from 1 to min(n, F).

        RankMe(Z) = exp(-Σ p_k log p_k),   p_k = σ_k(Z) / Σ_i σ_i(Z) + 1e-7

    Computed from the eigenvalues of ZᵀZ, or of ZZᵀ if that is smaller: an order of magnitude faster than a singular value
    decomposition, and equal to it to 1e-8 of the largest value.

    Source: Garrido et al. 2023, arXiv 2210.02885, section 3.1. They use the embeddings after the projector; here the caller
    chooses.

    Raises:
      ValueError: features of a wrong shape, not finite, or all zero.
    """
    z = _checked(features)
    scale = np.abs(z).max()
    if scale == 0:
        raise ValueError("all features are zero; they have no rank.")
    z = z / scale  # squares neither overflow nor vanish
    gram = z.T @ z if z.shape[0] >= z.shape[1] else z @ z.T
    sigma = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
    p = sigma / sigma.sum() + 1e-7
    return float(np.exp(-np.sum(p * np.log(p))))


def is_dead(features: np.ndarray) -> np.ndarray:
    """(F,) bool: features that are the same for all images, up to rounding (see `DEAD`)."""
    deviation = _checked(features).std(axis=0)
    return deviation <= DEAD * deviation.max()


def mean_correlation(features: np.ndarray) -> float:
    """The mean of |correlation| over pairs of different features, 0 to 1: redundancy in the paper's sense.

    Dead features are left out; 0 if fewer than two are left.
    """
    z = _checked(features)
    z = z[:, ~is_dead(z)]
    f = z.shape[1]
    if f < 2:
        return 0.0
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    correlation = np.abs(z.T @ z) / len(z)
    return float((correlation.sum() - np.trace(correlation)) / (f * (f - 1)))


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """The mean squared distance between two views of an image on the unit sphere: 0 to 4, lower is better.

    Args:
      first, second: (n, F), the features of the first and the second views of n images.

    Source: Wang and Isola 2020, arXiv 2005.10242, section 4.1, with α = 2.
    """
    a, b = _checked(first), _checked(second)
    if a.shape != b.shape:
        raise ValueError(f"first is {a.shape} and second {b.shape}; both must be (n, F).")
    return float(np.mean(np.sum(np.square(_unit(a) - _unit(b)), axis=1)))


def uniformity(features: np.ndarray, *, block: int = 1024) -> float:
    """log of the mean of exp(-2 d²) over all pairs of images on the unit sphere: -8 to 0, lower is better.

    Args:
      block: rows of the distance matrix that are computed at a time.

    Source: as for `alignment`, section 4.1, with t = 2.

    Raises:
      ValueError: fewer than two images.
    """
    z = _unit(_checked(features))
    n = len(z)
    if n < 2:
        raise ValueError(f"uniformity is a mean over pairs of images and needs at least 2, but got {n}.")
    total = 0.0
    for start in range(0, n, block):
        cosine = z[start : start + block] @ z.T
        total += np.exp(-4 * (1 - np.minimum(cosine, 1.0))).sum()
        total -= np.exp(-4 * (1 - np.minimum(np.sum(np.square(z[start : start + block]), axis=1), 1.0))).sum()
    return float(np.log(total / (n * (n - 1))))


def health(features: np.ndarray, views: tuple[np.ndarray, ...] | None = None) -> dict[str, float]:
    """All measures, by their names in metrics.jsonl.

    Args:
      features: (n, F), of images without augmentation.
      views: two (m, F), of two training views of m images; needed for alignment and uniformity.
    """
    found = {
        "rankme": rankme(features) if np.any(features) else 0.0,  # a collapse, which is to be reported
        "mean_correlation": mean_correlation(features),
        "dead_features": int(is_dead(features).sum()),
    }
    if views is not None:
        found |= {"alignment": alignment(views[0], views[1]), "uniformity": uniformity(views[0])}
    return found


def rank_in_words(rank: float, width: int) -> str:
    """A sentence if a RankMe of features (n, F = `width`) shows a collapse, less than 2 or 1 % of F; else ""."""
    if rank >= max(2, width / 100):
        return ""
    return (
        f"the features have collapsed to about {rank:.1f} of {width} dimensions; lower the learning rate, and see whether the "
        "views and the loss's terms are what they should be"
    )


def _unit(z: np.ndarray) -> np.ndarray:
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)


def _checked(features: np.ndarray) -> np.ndarray:
    z = np.asarray(features, np.float64)
    if z.ndim != 2 or not z.size:
        raise ValueError(f"features is {z.shape}; it must be (n, F) and not empty.")
    if not np.isfinite(z).all():
        raise ValueError("some features are not finite; the encoder's weights or its input must be wrong.")
    return z
