"""NT-Xent, the contrastive loss of SimCLR, over the global batch, on one device or a mesh.

Let u be the 2N embeddings of two views of N images, scaled to unit length, T the temperature, and p(i) the other view of
row i's image. Each row is an anchor, which is to find its other view among the 2N - 1 other rows:

    l_i  = -u_i · u_p(i) / T + log Σ_{k≠i} exp(u_i · u_k / T)
    loss = mean_i l_i

    ∂loss/∂u_i = (Σ_{k≠i} (P_ik + P_ki) u_k - 2 u_p(i)) / (2N T),   P_ik = exp(u_i · u_k / T) / Σ_{j≠i} exp(u_i · u_j / T)

Nothing is stopped: a row has a gradient as an anchor, as a positive and as a negative. As u_i · u_k is symmetric, P_ki follows
from the same products and the denominator of row k, so that a row's gradient needs no other row's. The rows are therefore
computed in blocks, and only the denominators are kept for the backward pass, which computes the products again: the 2N × 2N
matrix never exists as a whole. On a mesh each device has its rows against all; the embeddings are gathered once.

The loss is the paper's. The official code adds the means over the two views' anchors, which is twice as much. LARS does not
feel that in the weights that it adapts, but biases and batch norms, and the proportion of weight decay, do.

Source: Chen et al. 2020, arXiv 2002.05709, equation 1 and algorithm 1; google-research/simclr, objective.py.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from bt_jax.losses.pairs import DATA_AXIS, checked_pair, data_devices, product, spread_of_unit, unit

BLOCK = 2**24  # similarities that exist at a time, on each device: 64 MiB in float32


def nt_xent(
    z_a: jax.Array, z_b: jax.Array, *, temperature: float = 0.1, mesh: Mesh | None = None, block: int = BLOCK
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean over the 2N anchors of two views' embeddings (module docstring).

    Computed in float32, or in float64 if an embedding is, with products at precision "highest"; gradients have the embeddings'
    dtypes. It can be differentiated in reverse mode once.

    Args:
      z_a, z_b: embeddings (N, D), any floating dtype, not normalised; row n of both is the same image.
      temperature: T, above 0.
      mesh: with an axis "data" that divides N, along which embeddings are assumed to be split by rows.
      block: the number of similarities that exist at a time on each device.

    Returns:
      The loss, (), and {"accuracy": (), "spread": ()}: the fraction of anchors whose other view is the nearest of all rows, and
      the spread of the first view's embeddings (`bt_jax.losses.pairs.spread`).

    Raises:
      ValueError: embeddings of the wrong rank, of unequal shapes, not floating-point, or with fewer than two rows, or with
        rows that do not divide along the mesh; a temperature that is not above 0.
    """
    z_a, z_b = checked_pair(z_a, z_b)
    if not temperature > 0 or not math.isfinite(temperature):
        raise ValueError(f"temperature is {temperature}, but must be a positive number.")
    u_a, u_b = unit(z_a), unit(z_b)
    if mesh is None or mesh.size == 1:
        loss, hits = _of_rows(jnp.concatenate([u_a, u_b]), float(temperature), block, ())
    else:
        data_devices(mesh, z_a.shape[0])
        rows, whole = PartitionSpec(DATA_AXIS, None), PartitionSpec()

        def on_device(u_a, u_b):  # (N/P, D) both
            return _of_rows(jnp.concatenate([u_a, u_b]), float(temperature), block, (DATA_AXIS,))

        loss, hits = jax.shard_map(on_device, mesh=mesh, in_specs=(rows, rows), out_specs=(whole, whole))(u_a, u_b)
    return loss, {"accuracy": hits, "spread": spread_of_unit(u_a)}


def without_negatives(z_a: jax.Array, z_b: jax.Array, *, temperature: float = 0.1) -> jax.Array:
    """What is left of NT-Xent without other images: -mean_n cos(z_a[n], z_b[n]) / T, (), which equal embeddings minimise.

    Args:
      z_a, z_b, temperature: as for `nt_xent`.
    """
    z_a, z_b = checked_pair(z_a, z_b)
    return -jnp.mean(jnp.sum(unit(z_a) * unit(z_b), axis=1)) / temperature


def unrelated_nt_xent(n: int) -> float:
    """ln(2N - 1): exactly the loss of `n` images if all embeddings are equal, and about that if views are unrelated.

    Unrelated embeddings of few dimensions add about 1/(2 T² D), as the sum of exponentials has its variance.
    """
    return math.log(2 * n - 1)


def nt_xent_floor(n: int, temperature: float) -> float:
    """A lower bound of the loss: ln(1 + (2N - 2) exp(-m/T)) with m = 1 + 1/(N - 1).

    Similarities with the other view are at most 1. By Jensen, l_i ≥ ln(1 + (2N - 2) exp(s̄_i/T - u_i · u_p(i)/T)), where s̄_i is the
    mean similarity with the negatives, and the mean of l_i is at least that of the mean exponent. The 2N rows have
    ‖Σ u‖² ≥ 0, so the mean of u_i · u_k over i and all k ≠ i, p(i) is at least -(1 + q)/(2N - 2), where q is the mean of
    u_i · u_p(i). The exponent is at least -(q + (1 + q)/(2N - 2))/T, which is least for q = 1: -(1 + 1/(N - 1))/T. It is attained
    by equal views whose N directions are a regular simplex, which needs D ≥ N - 1.
    """
    return math.log1p((2 * n - 2) * math.exp(-(1 + 1 / (n - 1)) / temperature))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _of_rows(u: jax.Array, temperature: float, block: int, axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """(loss, accuracy) of all rows.

    Args:
      u: (2n, D), unit rows: one view's, then the other's; those on one of the devices along the mesh's `axes`.
    """
    return _forward(u, temperature, block, axes)[0]


def _forward(u, temperature, block, axes):
    everyone, here = _gathered(u, axes), _place(u, axes)
    partner = jnp.roll(u, u.shape[0] // 2, axis=0)

    def anchors(rows, own, positive):
        similar = _similarities(rows, everyone, own, temperature)
        found = jnp.argmax(similar, axis=1) == positive
        return jax.nn.logsumexp(similar, axis=1), found.astype(u.dtype)

    positives = here + (jnp.arange(u.shape[0]) + u.shape[0] // 2) % u.shape[0]
    denominators, found = _by_blocks(anchors, block, everyone.shape[0], u, here + jnp.arange(u.shape[0]), positives)
    losses = denominators - jnp.sum(u * partner, axis=1) / temperature
    total, hits = jax.lax.psum((jnp.sum(losses), jnp.sum(found)), axes)
    count = everyone.shape[0]
    return (total / count, hits / count), (u, everyone, denominators)


def _backward(temperature, block, axes, residuals, cotangents):
    (u, everyone, denominators), (loss, _) = residuals, cotangents
    here, all_denominators = _place(u, axes), _gathered(denominators, axes)

    def gradients(rows, own, denominator):
        similar = _similarities(rows, everyone, own, temperature)
        weights = jnp.exp(similar - denominator[:, None]) + jnp.exp(similar - all_denominators[None, :])
        return (product("ik,kd->id", weights, everyone),)

    own = here + jnp.arange(u.shape[0])
    (drawn,) = _by_blocks(gradients, block, everyone.shape[0], u, own, denominators)
    partner = jnp.roll(u, u.shape[0] // 2, axis=0)
    return (loss / (everyone.shape[0] * temperature) * (drawn - 2 * partner),)


_of_rows.defvjp(_forward, _backward)


def _similarities(rows: jax.Array, everyone: jax.Array, own: jax.Array, temperature: float) -> jax.Array:
    """Rows against all, over the temperature; with -∞ for a row with itself, which has no share in a sum of exponentials."""
    found = product("id,kd->ik", rows, everyone) / temperature
    return jnp.where(own[:, None] == jnp.arange(everyone.shape[0])[None, :], -jnp.inf, found)


def _gathered(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.all_gather(x, axes, tiled=True) if axes else x


def _place(u: jax.Array, axes: tuple[str, ...]) -> jax.Array | int:
    """The index of this device's first row among all that are gathered."""
    return jax.lax.axis_index(axes) * u.shape[0] if axes else 0


def _by_blocks(function, block: int, columns: int, *arguments: jax.Array) -> tuple[jax.Array, ...]:
    """`function` of blocks of rows, one after the other, each with at most `block` / `columns` rows (at least one)."""
    count = arguments[0].shape[0]
    size = min(max(block // columns, 1), count)
    if size == count:
        return function(*arguments)
    missing = -count % size
    padded = [jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in arguments]
    split = [x.reshape(-1, size, *x.shape[1:]) for x in padded]
    found = jax.lax.map(lambda rows: function(*rows), tuple(split))
    return tuple(x.reshape(-1, *x.shape[2:])[:count] for x in found)
