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
from jax.sharding import Mesh, PartitionSpec

from bt_jax.losses.pairs import (
    DATA_AXIS,
    checked_pair,
    columns_here,
    data_devices,
    full_precision,
    padded,
    product,
    spread,
)

EPS = 1e-4  # under the root of the standard deviation


def vicreg_loss(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """invariance, variance and covariance of two views' embeddings, weighted (module docstring).

    Computed in float32, or in float64 if an embedding is, with products at precision "highest". Σ_ij cov_ij² is computed from
    ZᵀZ, (D, D), or from ZZᵀ, (N, N), if that is smaller. Then, with a mesh, embeddings are moved so that each device has whole
    columns, and the devices' ZZᵀ are added up, as in `barlow_twins_loss`; otherwise the compiler distributes the products.

    Args:
      z_a, z_b: embeddings (N, D), any floating dtype; row n of both is the same image.
      invariance, variance, covariance: the weights λ, μ and ν.
      mesh: with an axis "data" that divides N, along which embeddings are assumed to be split by rows.

    Returns:
      The loss, (), and its parts before weighting, {"invariance": (), "variance": (), "covariance": (), "spread": ()}, with the
      spread of the first view's embeddings (`bt_jax.losses.pairs.spread`).

    Raises:
      ValueError: embeddings of the wrong rank, of unequal shapes, not floating-point, or with fewer than two rows, or with
        rows that do not divide along the mesh.
    """
    z_a, z_b = checked_pair(z_a, z_b)
    n, d = z_a.shape
    if mesh is None or mesh.size == 1 or n >= d:
        parts = _parts(z_a, z_b, d, ())
    else:
        data_devices(mesh, n)
        parts = _parts_on_mesh(z_a, z_b, mesh)
    loss = invariance * parts["invariance"] + variance * parts["variance"] + covariance * parts["covariance"]
    return loss, parts | {"spread": spread(z_a)}


def _parts_on_mesh(z_a: jax.Array, z_b: jax.Array, mesh: Mesh) -> dict[str, jax.Array]:
    others = tuple(name for name in mesh.axis_names if name != DATA_AXIS)
    d = z_a.shape[1]

    def on_device(z_a, z_b):  # (N/P, D/others) both; still in the embeddings' dtype, as bfloat16 halves the bytes sent
        a, b = (jax.lax.all_to_all(z, DATA_AXIS, split_axis=1, concat_axis=0, tiled=True) for z in (z_a, z_b))
        return _parts(a, b, d, (*others, DATA_AXIS))

    rows, whole = PartitionSpec(DATA_AXIS, others or None), PartitionSpec()
    on_mesh = jax.shard_map(on_device, mesh=mesh, in_specs=(rows, rows), out_specs=whole)
    return on_mesh(padded(z_a, mesh.size), padded(z_b, mesh.size))


def _parts(z_a: jax.Array, z_b: jax.Array, d: int, axes: tuple[str, ...]) -> dict[str, jax.Array]:
    """The three terms; the arrays are (N, D), or their columns on one of the devices along `axes`, those from `d` on padding."""
    x, y = full_precision(z_a), full_precision(z_b)
    n, width = x.shape
    real = (columns_here(axes, width) < d).astype(x.dtype)
    hinges, covariances = [], []
    for z in (x, y):
        centred = z - jnp.mean(z, axis=0, keepdims=True)
        squares = jnp.sum(jnp.square(centred), axis=0)
        hinges.append(jnp.sum(real * jnp.maximum(0.0, 1 - jnp.sqrt(squares / (n - 1) + EPS))) / d)
        covariances.append(_off_diagonal(centred, squares, axes) / (float(n - 1) ** 2 * d))
    gap, hinge = jax.lax.psum((jnp.sum(jnp.square(x - y)), sum(hinges) / 2), axes)
    return {"invariance": gap / (n * d), "variance": hinge, "covariance": covariances[0] + covariances[1]}


def _off_diagonal(centred: jax.Array, squares: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Σ_{i≠j} (ZᵀZ)_ij²; `squares` is the diagonal of ZᵀZ."""
    n, d = centred.shape
    if axes or n < d:
        # A difference, which costs digits only where off-diagonals are small; but rank(cov) ≤ N - 1 < D.
        gram = jax.lax.psum(product("nd,md->nm", centred, centred), axes)
        return jnp.sum(jnp.square(gram)) - jax.lax.psum(jnp.sum(jnp.square(squares)), axes)
    products = product("nd,ne->de", centred, centred)
    return jnp.sum(jnp.square(jnp.where(jnp.eye(d, dtype=bool), 0, products)))
