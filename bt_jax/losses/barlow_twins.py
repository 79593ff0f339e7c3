"""The Barlow Twins loss in two exact forms, on one device or a mesh, and the choice between them.

Let A and B, both (N, D), be the standardised embeddings of the two views, and C = AᵀB/N their cross-correlation:

    on_diagonal  = Σ_i (C_ii - 1)²
    off_diagonal = Σ_{i≠j} C_ij²
    loss         = on_diagonal + lambd · off_diagonal        (Zbontar et al. 2021, equations 1 and 2)

The form "correlation" builds C, which is (D, D). The form "gram" does not: Σ_ij C_ij² = ‖AᵀB‖²/N² = ⟨AAᵀ, BBᵀ⟩/N² needs
two (N, N) Gram matrices, and C_ii = Σ_n A_ni B_ni / N is O(ND). Both give the same value and the same gradient. Their
gradients are written out (`jax.custom_vjp`), because the backward pass needs only what the forward pass has computed. Both
can be differentiated in reverse mode any number of times, but not in forward mode (`jax.jvp`).

All products run at precision "highest", which is float32. By default a float32 product is one bfloat16 pass on TPUs and
TF32 on recent GPUs, with 8 and 11 bits of mantissa. That is too few: the sum for C_ij cancels to 1/√N of the size of its
terms, and the gradient of the standardisation then removes the largest part of a Gram matrix's product. "highest" costs
six passes instead of one on a TPU and does not use a GPU's tensor cores. It applies to these products only: at N = 2048,
D = 8192 they are 0.27 TFLOP, and six times that is 1.6 % of the 104 TFLOP of a ResNet-50 step.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from bt_jax.losses.pairs import DATA_AXIS, checked_pair, columns_here, data_devices, padded, product

FORMS = ("auto", "correlation", "gram")
EPS = 1e-5  # under the root, as in torch's BatchNorm1d(affine=False) in the official main.py

# FLOPs of float32 products at precision "highest" in the time that the links need for one byte: 33 TFLOP/s over 200 GB/s
# on TPU v5e, 46 over 300 on TPU v4, 67 over 450 on H100. All are near 150.
FLOPS_PER_BYTE = 150

# Embeddings, or the part of them on one of several devices, -> the same shape, float32 or float64; called like `standardise`.
Normalise = Callable[[jax.Array, int, tuple[str, ...], tuple[str, ...]], jax.Array]


def barlow_twins_loss(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    lambd: float = 0.0051,
    form: str = "auto",
    mesh: Mesh | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of two views' embeddings: on_diagonal + lambd · off_diagonal (module docstring; paper, equation 1).

    Each column of each view is standardised over the batch with its biased variance and eps 1e-5 under the root.
    Everything is computed in float32, or in float64 if an embedding is; gradients have the embeddings' dtypes.

    `form="auto"` picks the cheaper form, by this model of a forward and a backward pass on each of P devices along the
    mesh's data axis (P = 1 without a mesh):

        gram         8N²D/P FLOPs;  16ND/P bytes for two all-to-alls forward and two backward, 2·8N² for one all-reduce
        correlation  6ND²/P FLOPs;  2·4D² bytes for a reduce-scatter forward and an all-gather backward

    A device sends (P-1)/P of the bytes, and each byte costs as much as 150 FLOPs. On one device this means gram if
    4N < 3D, which is about where its two N × N arrays are smaller than the one D × D array.

    With a mesh, embeddings are assumed to be split by rows along "data". "gram" moves them so that each device has whole
    columns (over all axes of the mesh, so that a "model" axis shares the work), standardises them locally and adds up the
    devices' Gram matrices; the backward pass only moves the gradients back. "correlation" leaves the rows where they are
    and adds up C. Embeddings that are also split over "model" stay so in "gram"; "correlation" first gathers their columns,
    N·D/P numbers per device. Without a mesh, inside `jax.jit`, the compiler distributes the computation as it sees fit.

    Args:
      z_a, z_b: embeddings (N, D), any floating dtype; row n of both is the same image.
      lambd: weight of the redundancy term; 0.0051 (official main.py; the paper's section 2.2 has 5e-3) goes with D = 8192.
      form: "correlation", "gram" or "auto".
      mesh: with an axis "data" that divides N, and AxisType.Auto.

    Returns:
      The loss, (), and its parts {"on_diagonal": (), "off_diagonal": ()}; off_diagonal is not weighted by lambd.

    Raises:
      ValueError: embeddings of the wrong rank, of unequal shapes, not floating-point, with fewer than two rows, or with
        rows that do not divide along the mesh; an unknown form; a mesh without an axis "data".
    """
    on, off = on_and_off_diagonal(*checked_pair(z_a, z_b), form=form, mesh=mesh)
    return on + jnp.asarray(lambd, on.dtype) * off, {"on_diagonal": on, "off_diagonal": off}


def on_and_off_diagonal(
    z_a: jax.Array, z_b: jax.Array, *, form: str, mesh: Mesh | None, normalise: Normalise | None = None
) -> tuple[jax.Array, jax.Array]:
    """The two parts of the loss, Σ_i (C_ii - 1)² and Σ_{i≠j} C_ij², both ().

    Args:
      z_a, z_b: from `checked_pair`.
      normalise: in place of `standardise`.

    Raises:
      ValueError: for the form or the mesh, as `barlow_twins_loss` does.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}, but must be one of {', '.join(map(repr, FORMS))}.")
    n, d = z_a.shape
    devices = 1 if mesh is None else data_devices(mesh, n)
    if form == "auto":
        form = choose_form(n, d, devices)
    normalise = normalise or standardise
    if mesh is None or mesh.size == 1:
        return (_gram if form == "gram" else _correlation)(z_a, z_b, normalise)
    return (_gram_on_mesh if form == "gram" else _correlation_on_mesh)(z_a, z_b, mesh, normalise)


def choose_form(n: int, d: int, devices: int = 1) -> str:
    """The cheaper form for N = `n`, D = `d` and P = `devices`, by the cost model in `barlow_twins_loss`."""
    sent = FLOPS_PER_BYTE * (devices - 1) / devices
    gram = 8 * n * n * d / devices + sent * (16 * n * d / devices + 16 * n * n)
    correlation = 6 * n * d * d / devices + sent * 8 * d * d
    return "gram" if gram < correlation else "correlation"


def cross_correlation(z_a: jax.Array, z_b: jax.Array) -> jax.Array:
    """C = AᵀB/N of the standardised embeddings, for plots and tests: (N, D) twice -> (D, D), float32 or float64.

    Raises:
      ValueError: as `barlow_twins_loss` does.
    """
    z_a, z_b = checked_pair(z_a, z_b)
    return product("nd,ne->de", standardise(z_a), standardise(z_b)) / z_a.shape[0]


def expected_loss_at_start(n: int, d: int, lambd: float) -> float:
    """The expected loss if the two views' embeddings are independent: D(1 + 1/N) + λD(D-1)/N.

    C_ij is then the mean of N products of independent numbers with mean 0 and variance 1, so E C_ij = 0 and E C_ij² = 1/N
    (strictly 1/(N-1), because the means are those of the batch). Each of the D diagonal terms is E (C_ii - 1)² = 1 + 1/N,
    and each of the D(D-1) others E C_ij² = 1/N, weighted by λ.
    """
    return d * (1 + 1 / n) + lambd * d * (d - 1) / n


def loss_floor(n: int, d: int, lambd: float) -> float:
    """A lower bound of the loss: D·m(D-r)/(r + m(D-r)), with r = min(D, N-1) and m = min(λ, 1).

    A and B have N rows, and columns of mean 0, so rank C ≤ r. Let s = tr C. Then

        Σ_i C_ii² ≥ s²/D               (Cauchy-Schwarz)
        Σ_ij C_ij² = ‖C‖² ≥ s²/r       (s ≤ the sum of C's singular values ≤ √r‖C‖, as at most r of them are not zero)

    and with λ ≤ 1 both enter the loss with a non-negative weight:

        loss = Σ_i (C_ii - 1)² + λ(‖C‖² - Σ_i C_ii²) = D - 2s + (1-λ)Σ_i C_ii² + λ‖C‖² ≥ D - 2s + s²((1-λ)/D + λ/r),

    whose minimum, at s = 1/((1-λ)/D + λ/r), is D - s: the bound. For λ > 1 the loss is at least that for λ = 1. For
    λ ≤ 1 the bound is attained if C = t·(a projection of rank r with equal diagonal r/D), t = s/r; such embeddings exist,
    for example, if D is a power of 2 (from rows of a Hadamard matrix). The bound is 0 if N > D.
    """
    r, m = min(d, n - 1), min(lambd, 1.0)
    return d * m * (d - r) / (r + m * (d - r))


def standardise(
    z: jax.Array, devices: int = 1, row_axes: tuple[str, ...] = (), column_axes: tuple[str, ...] = ()
) -> jax.Array:
    """Columns with mean 0 and variance 1 (up to EPS).

    Takes two passes, because E[z²] - E[z]² suffers from cancellation if the mean is large.

    Args:
      z: (N, D), or inside `jax.shard_map` a part of it.
      devices: among which the rows are split, along the mesh's `row_axes`.
      column_axes: along which the columns are split.
    """
    del column_axes  # each column is by itself
    z = z.astype(jnp.float64 if z.dtype == jnp.float64 else jnp.float32)
    n = z.shape[0] * devices
    mean = jax.lax.psum(jnp.sum(z, axis=0), row_axes) / n
    centred = z - mean[None, :]
    var = jax.lax.psum(jnp.sum(jnp.square(centred), axis=0), row_axes) / n
    return centred * jax.lax.rsqrt(var + EPS)[None, :]


def _correlation(z_a: jax.Array, z_b: jax.Array, normalise: Normalise) -> tuple[jax.Array, jax.Array]:
    a, b = (normalise(z, 1, (), ()) for z in (z_a, z_b))
    return _correlation_terms(a, b, z_a.shape, ())


def _correlation_on_mesh(
    z_a: jax.Array, z_b: jax.Array, mesh: Mesh, normalise: Normalise
) -> tuple[jax.Array, jax.Array]:
    shape, devices = z_a.shape, mesh.shape[DATA_AXIS]

    def on_device(z_a, z_b):  # (N/P, D) both
        a, b = (normalise(z, devices, (DATA_AXIS,), ()) for z in (z_a, z_b))
        return _correlation_terms(a, b, shape, (DATA_AXIS,))

    rows, whole = PartitionSpec(DATA_AXIS, None), PartitionSpec()
    on_mesh = jax.shard_map(on_device, mesh=mesh, in_specs=(rows, rows), out_specs=(whole, whole))
    return on_mesh(padded(z_a, devices), padded(z_b, devices))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _correlation_terms(
    a: jax.Array, b: jax.Array, shape: tuple[int, int], axes: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    """(on_diagonal, off_diagonal) from C.

    `shape` is (N, D). a and b have this shape, or are the rows on one of the devices along `axes`, with padding columns.
    """
    return _correlation_forward(a, b, shape, axes)[0]


def _correlation_forward(a, b, shape, axes):
    (n, d), width = shape, a.shape[1]
    total = product("nd,ne->de", a, b)
    if axes:  # each device keeps some rows of the sum, and the backward pass gathers them: together one all-reduce
        total = jax.lax.psum_scatter(total, axes, scatter_dimension=0, tiled=True)
    # The only (D, D) array: N·C with a zero diagonal, which both the sum and the gradient need. Subtracting the diagonal's
    # squares from the whole sum instead would lose small off-diagonals to cancellation.
    total = jnp.where(columns_here(axes, total.shape[0])[:, None] == jnp.arange(width)[None, :], 0, total)
    diagonal = jax.lax.psum(jnp.sum(a * b, axis=0), axes) / n
    gap = diagonal - (jnp.arange(width) < d).astype(a.dtype)  # the target of padding is 0
    off = jax.lax.psum(jnp.sum(jnp.square(total)), axes) / float(n) ** 2  # an integer could exceed 32 bits
    return (jnp.sum(jnp.square(gap)), off), (a, b, total, gap)


def _correlation_backward(shape, axes, residuals, cotangents):
    (a, b, total, gap), (on, off), n = residuals, cotangents, shape[0]
    if axes:
        total = jax.lax.all_gather(total, axes, tiled=True)
    diagonal = (2 / n * on * gap)[None, :]
    grad_a = 2 / n**2 * off * product("ne,de->nd", b, total) + diagonal * b
    grad_b = 2 / n**2 * off * product("nd,de->ne", a, total) + diagonal * a
    return grad_a, grad_b


_correlation_terms.defvjp(_correlation_forward, _correlation_backward)


def _gram(z_a: jax.Array, z_b: jax.Array, normalise: Normalise) -> tuple[jax.Array, jax.Array]:
    a, b = (normalise(z, 1, (), ()) for z in (z_a, z_b))
    return _gram_terms(a, b, z_a.shape[1], ())


def _gram_on_mesh(z_a: jax.Array, z_b: jax.Array, mesh: Mesh, normalise: Normalise) -> tuple[jax.Array, jax.Array]:
    d = z_a.shape[1]
    others = tuple(name for name in mesh.axis_names if name != DATA_AXIS)
    axes = (*others, DATA_AXIS)

    def on_device(z_a, z_b):  # (N/P, D/others) both
        # Still in the embeddings' dtype: bfloat16 halves the bytes sent.
        columns = (jax.lax.all_to_all(z, DATA_AXIS, split_axis=1, concat_axis=0, tiled=True) for z in (z_a, z_b))
        a, b = (normalise(z, 1, (), axes) for z in columns)  # (N, D/size of the mesh)
        return _gram_terms(a, b, d, axes)

    rows, whole = PartitionSpec(DATA_AXIS, others or None), PartitionSpec()
    on_mesh = jax.shard_map(on_device, mesh=mesh, in_specs=(rows, rows), out_specs=(whole, whole))
    return on_mesh(padded(z_a, mesh.size), padded(z_b, mesh.size))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _gram_terms(a: jax.Array, b: jax.Array, d: int, axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """(on_diagonal, off_diagonal) from AAᵀ and BBᵀ.

    a and b are (N, D), or their columns on one of the devices along `axes`, in this order; columns from `d` on are padding.
    """
    return _gram_forward(a, b, d, axes)[0]


def _gram_forward(a, b, d, axes):
    n, width = a.shape
    diagonal = jnp.sum(a * b, axis=0) / n
    gap = diagonal - (columns_here(axes, width) < d).astype(a.dtype)  # the target of padding is 0
    gram_a, gram_b, on, squares = jax.lax.psum(
        (
            product("nd,md->nm", a, a),
            product("nd,md->nm", b, b),
            jnp.sum(jnp.square(gap)),
            jnp.sum(jnp.square(diagonal)),
        ),
        axes,
    )
    # A difference, with a float32 error of some 1e-7·D however small it is. That matters only if it can be small, which is
    # if N > D, where C can be the identity; "auto" picks the other form there.
    off = jnp.sum(gram_a * gram_b) / float(n) ** 2 - squares
    return (on, off), (a, b, gram_a, gram_b, diagonal, gap)


def _gram_backward(d, axes, residuals, cotangents):
    # Each device has whole columns and whole Gram matrices: nothing needs to be sent.
    del d, axes
    (a, b, gram_a, gram_b, diagonal, gap), (on, off) = residuals, cotangents
    n = a.shape[0]
    on_diagonal = (2 / n * (on * gap - off * diagonal))[None, :]
    grad_a = 2 / n**2 * off * product("nm,md->nd", gram_b, a) + on_diagonal * b
    grad_b = 2 / n**2 * off * product("nm,md->nd", gram_a, b) + on_diagonal * a
    return grad_a, grad_b


_gram_terms.defvjp(_gram_forward, _gram_backward)
