"""How healthy a representation is, without labels: its rank, its redundancy, its dead features, its geometry.

What collapses in self-supervised training shows here before an accuracy falls. All in float64 on the host; the features
are rows (n, F) of images.
"""

import numpy as np

DEAD = 1e-6  # a feature is dead if its deviation over the images is below this part of the largest one


def rankme(features: np.ndarray) -> float:
    """The effective rank: exp of the entropy of the singular values, from 1 to min(n, F).

        RankMe(Z) = exp(-Σ p_k log p_k),   p_k = σ_k(Z) / Σ_i σ_i(Z) + 1e-7

    From the eigenvalues of ZᵀZ, or of ZZᵀ where that is smaller: an order faster than the singular values, and equal to them
    to 1e-8 of the largest.

    Source: Garrido et al. 2023, arXiv 2210.02885, section 3.1. They take the embeddings after the projector; here it is
    what the caller gives.

    Raises:
      ValueError: features of another shape, not finite, or all zero.
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
    """(F,) bool: features that are the same for all images, as far as can be told (see `DEAD`)."""
    deviation = _checked(features).std(axis=0)
    return deviation <= DEAD * deviation.max()


def mean_correlation(features: np.ndarray) -> float:
    """The mean of |correlation| over pairs of different features that are not dead, 0 to 1: the paper's redundancy.

    0 where fewer than two features live.
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
    """The mean squared distance of the two views of an image, on the unit sphere: 0 to 4, lower is better.

    Args:
      first, second: (n, F), the features of the first and of the second views of n images.

    Source: Wang and Isola 2020, arXiv 2005.10242, section 4.1, with α = 2.
    """
    a, b = _checked(first), _checked(second)
    if a.shape != b.shape:
        raise ValueError(f"first is {a.shape} and second {b.shape}; both must be (n, F).")
    return float(np.mean(np.sum(np.square(_unit(a) - _unit(b)), axis=1)))


def uniformity(features: np.ndarray, *, block: int = 1024) -> float:
    """log of the mean of exp(-2 d²) over all pairs of images, on the unit sphere: -8 to 0, lower is better.

    Args:
      block: rows of the distance matrix at a time.

    Source: as `alignment`, section 4.1, with t = 2.

    Raises:
      ValueError: fewer than two images.
    """
    z = _unit(_checked(features))
    n = len(z)
    if n < 2:
        raise ValueError(f"there are {n} images; uniformity is over pairs, and needs at least 2.")
    total = 0.0
    for start in range(0, n, block):
        cosine = z[start : start + block] @ z.T
        total += np.exp(-4 * (1 - np.minimum(cosine, 1.0))).sum()
        total -= np.exp(-4 * (1 - np.minimum(np.sum(np.square(z[start : start + block]), axis=1), 1.0))).sum()
    return float(np.log(total / (n * (n - 1))))


def health(features: np.ndarray, views: tuple[np.ndarray, np.ndarray] | None = None) -> dict[str, float]:
    """All of it, by the names that metrics.jsonl has.

    Args:
      features: (n, F) of images as evaluations look at them.
      views: two (m, F), of the two training views of m images; without them there is no alignment and uniformity.
    """
    found = {
        "rankme": rankme(features),
        "mean_correlation": mean_correlation(features),
        "dead_features": int(is_dead(features).sum()),
    }
    if views is not None:
        found |= {"alignment": alignment(*views), "uniformity": uniformity(views[0])}
    return found


def _unit(z: np.ndarray) -> np.ndarray:
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)


def _checked(features: np.ndarray) -> np.ndarray:
    z = np.asarray(features, np.float64)
    if z.ndim != 2 or not z.size:
        raise ValueError(f"features is {z.shape}; it must be (n, F), neither of them 0.")
    if not np.isfinite(z).all():
        raise ValueError("some features are not finite; the encoder's weights or its input must be wrong.")
    return z
