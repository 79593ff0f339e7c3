"""LiDAR: the rank of what tells images apart, beside what their views have in common.

RankMe counts every direction in which features vary, also those in which the views of one image vary among themselves. LiDAR
takes each image as a class of its views, and counts the directions of linear discriminant analysis between these classes.
"""

import numpy as np
import scipy.linalg  # JAX needs scipy too

DELTA = 1e-4  # the paper names δ but gives no number; this is stable-pretraining's
_ALIKE = 1e-6  # images are alike if their means deviate by at most this fraction of the largest feature


def lidar(views: np.ndarray, *, delta: float = DELTA) -> float:
    """The effective rank of the LDA matrix between images, from 1 to min(n - 1, F).

        μ_i = mean_v z_iv,   μ = mean_i μ_i
        Σ_b = Σ_i (μ_i - μ)(μ_i - μ)ᵀ / (n - 1)
        Σ_w = Σ_iv (z_iv - μ_i)(z_iv - μ_i)ᵀ / (n (q - 1)) + δ I
        LiDAR = exp(-Σ p_k log p_k),   p_k = λ_k / Σ_j λ_j,   λ the eigenvalues of Σ_w^(-1/2) Σ_b Σ_w^(-1/2)

    In float64. The eigenvalues are those of X Xᵀ / (n - 1) as well, where row i of X is L⁻¹ (μ_i - μ) and Σ_w = L Lᵀ; so a
    wide layer costs one Cholesky decomposition and the eigenvalues of a matrix of the smaller of n and F.

    The scale of the features matters where their variance within an image is not far above δ. Images that all have the same
    features give 1. A direction that does not tell images apart has an eigenvalue of about 1/q, not of 0, so that only numbers
    for the same n, q and F compare. The paper has about 1000 images and 50 views.

    Args:
      views: (n, q, F), features of q views of each of n images, at least two of both.
      delta: δ, above 0.

    Source: Thilak et al. 2023, arXiv 2312.04000, equations 1 to 4 (its ε in p_k, for the logarithm of 0, is not needed: 0 log 0 = 0).

    Raises:
      ValueError: another shape, or features that are not finite.
    """
    z = np.asarray(views, np.float64)
    if z.ndim != 3 or min(z.shape[:2], default=0) < 2 or not z.size:
        raise ValueError(f"views is {z.shape}; it must be (n, q, F), with at least 2 images and 2 views.")
    if not np.isfinite(z).all():
        raise ValueError("some features are not finite; the encoder's weights or its input must be wrong.")
    n, q, f = z.shape
    means = z.mean(axis=1)
    within = (z - means[:, None, :]).reshape(n * q, f)
    between = means - means.mean(axis=0)
    if np.sqrt(np.square(between).sum() / (n - 1)) <= _ALIKE * np.abs(z).max():
        return 1.0
    sigma_w = within.T @ within / (n * (q - 1))
    # At least the rounding error of Σ_w, so that features of any scale have a decomposition.
    sigma_w[np.diag_indices(f)] += max(delta, f * np.finfo(np.float64).eps * np.trace(sigma_w))
    root = scipy.linalg.cholesky(sigma_w, lower=True)
    x = np.asarray(scipy.linalg.solve_triangular(root, between.T, lower=True))  # (F, n)
    values = np.maximum(np.linalg.eigvalsh(x @ x.T if f <= n else x.T @ x), 0.0)
    p = values / values.sum()
    p = p[p > 0]
    return float(np.exp(-np.sum(p * np.log(p))))
