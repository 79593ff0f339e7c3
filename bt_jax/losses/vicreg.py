"""VICReg's loss: invariance between two views, variance of each embedding's columns, and covariance between columns.

With X and Y (N, D) the embeddings of the two views, centred over the batch where a variance is taken:

    invariance = mean_nj (x_nj - y_nj)²
    variance   = ½ Σ_{Z ∈ X, Y} mean_j max(0, 1 - √(var_j(Z) + 1e-4))          var with N - 1
    covariance = Σ_{Z ∈ X, Y} Σ_{i≠j} cov_ij(Z)² / D                            cov with N - 1
    loss       = 25 · invariance + 25 · variance + 1 · covariance

The official code's variance is this half sum (the paper's equation 6 has the whole one), and its weights are those for it.

Source: Bardes et al. 2022, arXiv 2105.04906, section 4.1; facebookresearch/vicreg, main_vicreg.py, class VICReg.
"""

import jax
import jax.numpy as jnp

from bt_jax.losses.pairs import checked_pair, full_precision, product, spread

EPS = 1e-4  # under the root of the standard deviation


def vicreg_loss(
    z_a: jax.Array, z_b: jax.Array, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """invariance, variance and covariance of two views' embeddings, weighted (module docstring).

    Computed in float32, or in float64 if an embedding is, with products at precision "highest". Inside `jax.jit` all means are over the
    global batch, however N is sharded. Σ_ij cov_ij² is computed from ZᵀZ, (D, D), or from ZZᵀ, (N, N), if that is smaller.

    Args:
      z_a, z_b: embeddings (N, D), any floating dtype; row n of both is the same image.
      invariance, variance, covariance: the weights λ, μ and ν.

    Returns:
      The loss, (), and its parts before weighting, {"invariance": (), "variance": (), "covariance": (), "spread": ()}, with the
      spread of the first view's embeddings (`bt_jax.losses.pairs.spread`).

    Raises:
      ValueError: embeddings of the wrong rank, of unequal shapes, not floating-point, or with fewer than two rows.
    """
    x, y = (full_precision(z) for z in checked_pair(z_a, z_b))
    centred = [z - jnp.mean(z, axis=0, keepdims=True) for z in (x, y)]
    parts = {
        "invariance": jnp.mean(jnp.square(x - y)),
        "variance": (_hinge(centred[0]) + _hinge(centred[1])) / 2,
        "covariance": _off_diagonal(centred[0]) + _off_diagonal(centred[1]),
    }
    loss = invariance * parts["invariance"] + variance * parts["variance"] + covariance * parts["covariance"]
    return loss, parts | {"spread": spread(x)}


def _hinge(z: jax.Array) -> jax.Array:
    deviation = jnp.sqrt(jnp.sum(jnp.square(z), axis=0) / (z.shape[0] - 1) + EPS)
    return jnp.mean(jnp.maximum(0.0, 1 - deviation))


def _off_diagonal(z: jax.Array) -> jax.Array:
    """Σ_{i≠j} cov_ij² / D of centred columns."""
    n, d = z.shape
    if n < d:
        # A difference, which costs digits only where off-diagonals are small; but rank(cov) ≤ N - 1 < D.
        gram = product("nd,md->nm", z, z)
        total = jnp.sum(jnp.square(gram)) - jnp.sum(jnp.square(jnp.sum(jnp.square(z), axis=0)))
    else:
        products = product("nd,ne->de", z, z)
        total = jnp.sum(jnp.square(jnp.where(jnp.eye(d, dtype=bool), 0, products)))
    return total / (float(n - 1) ** 2 * d)
