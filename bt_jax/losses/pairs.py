"""What losses of two views' embeddings share: checks, unit rows, and the spread that shows a collapse."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

DATA_AXIS = "data"


def checked_pair(
    z_a: jax.Array, z_b: jax.Array, names: tuple[str, str] = ("z_a", "z_b")
) -> tuple[jax.Array, jax.Array]:
    """Embeddings (N, D) of two views as arrays of one dtype: the wider one if they differ.

    Raises:
      ValueError: embeddings of the wrong rank, of unequal shapes, not floating-point, with fewer than two rows, or no column.
    """
    z_a, z_b = jnp.asarray(z_a), jnp.asarray(z_b)
    for name, z in zip(names, (z_a, z_b), strict=True):
        if z.ndim != 2:
            raise ValueError(f"{name} has shape {z.shape}, but embeddings must be (N, D).")
        if not jnp.issubdtype(z.dtype, jnp.floating):
            raise ValueError(f"{name} is {z.dtype}, but embeddings must be floating-point numbers.")
    if z_a.shape != z_b.shape:
        raise ValueError(
            f"{names[0]} has shape {z_a.shape} and {names[1]} {z_b.shape}, but the two views must have the same."
        )
    if z_a.shape[0] < 2 or z_a.shape[1] < 1:
        raise ValueError(f"embeddings have shape {z_a.shape}, but there must be at least 2 rows and 1 column.")
    if z_a.dtype != z_b.dtype:
        wider = jnp.float64 if jnp.float64 in (z_a.dtype, z_b.dtype) else jnp.float32
        z_a, z_b = z_a.astype(wider), z_b.astype(wider)
    return z_a, z_b


def data_devices(mesh: Mesh, n: int) -> int:
    """The number of devices along the mesh's axis "data".

    Raises:
      ValueError: there is no such axis, or it does not divide `n` rows.
    """
    if DATA_AXIS not in mesh.axis_names:
        raise ValueError(f"the mesh has the axes {mesh.axis_names}, but one must be {DATA_AXIS!r}.")
    devices = mesh.shape[DATA_AXIS]
    if n % devices:
        raise ValueError(f"embeddings have {n} rows, which do not divide among the {devices} devices along 'data'.")
    return devices


def product(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """`einsum` at precision "highest"."""
    return jnp.einsum(subscripts, x, y, precision="highest")


def padded(z: jax.Array, devices: int) -> jax.Array:
    """Pads with columns of zeros to a width that divides; standardised or centred they stay zero, and add nothing to a product."""
    missing = -z.shape[1] % devices
    return jnp.pad(z, ((0, 0), (0, missing))) if missing else z


def columns_here(axes: tuple[str, ...], width: int) -> jax.Array:
    """The indices of the `width` columns on this device, split along the mesh's `axes`."""
    return (jax.lax.axis_index(axes) * width if axes else 0) + jnp.arange(width)


def full_precision(z: jax.Array) -> jax.Array:
    """In float32, or unchanged if it is float64."""
    return z.astype(jnp.promote_types(z.dtype, jnp.float32))


def unit(z: jax.Array) -> jax.Array:
    """Rows (N, D) scaled to length 1, in float32 or float64: z / √max(‖z‖², 1e-12).

    A row of zeros stays so, with a finite gradient.

    Source: google-deepmind/deepmind-research, byol/utils/helpers.py, l2_normalize; tf.math.l2_normalize in simclr's
    objective.py is the same.
    """
    z = full_precision(z)
    return z * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(z), axis=1, keepdims=True), 1e-12))


def spread(z: jax.Array) -> jax.Array:
    """How far the directions of embeddings (N, D) spread, (): about 1 if they are even on the sphere, 0 if all are the same.

    It is √(Σ_j var_j) of the unit rows over the batch, which is at most 1. Without a gradient.
    """
    return spread_of_unit(unit(jax.lax.stop_gradient(z)))


def spread_of_unit(u: jax.Array) -> jax.Array:
    """`spread` of rows that have length 1 already."""
    u = jax.lax.stop_gradient(u)
    return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(u - jnp.mean(u, axis=0, keepdims=True)), axis=1)))
