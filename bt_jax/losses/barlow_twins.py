"""The Barlow Twins loss in two exact forms, on one device or a mesh, and the choice between them.

With A and B the standardised embeddings of the two views, (N, D) both, and C = AᵀB/N their cross-correlation:

    on_diagonal  = Σ_i (C_ii - 1)²
    off_diagonal = Σ_{i≠j} C_ij²
    loss         = on_diagonal + lambd · off_diagonal        (Zbontar et al. 2021, equations 1 and 2)

Form "correlation" builds C, (D, D). Form "gram" never does: Σ_ij C_ij² = ‖AᵀB‖²/N² = ⟨AAᵀ, BBᵀ⟩/N² takes two (N, N)
Gram matrices, and C_ii = Σ_n A_ni B_ni / N is O(ND). Both give the same value and the same gradient. Each has its
gradient written out (`jax.custom_vjp`), as what the forward pass has built is all that the backward pass needs. They
can be differentiated in reverse any number of times, but not in forward mode (`jax.jvp`).

All products run at precision "highest", which is float32. By default a float32 product is one bfloat16 pass on TPUs and
TF32 on recent GPUs, with 8 and 11 bits of mantissa: the sum that makes C_ij cancels down to 1/√N of its terms' sizes,
and the gradient of the standardisation then takes out what is largest in a Gram matrix's product. "highest" costs six
passes for one on a TPU and does without a GPU's tensor cores. It concerns these products alone: at N = 2048, D = 8192
they are 0.27 TFLOP, six times that is 1.6 % of the 104 TFLOP of ResNet-50's step.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

FORMS = ("auto", "correlation", "gram")
EPS = 1e-5  # inside the root, as torch's BatchNorm1d(affine=False) has it in the official main.py
DATA_AXIS = "data"

# FLOPs of float32 products at precision "highest" in the time that the links take for one byte: TPU v5e 33 TFLOP/s over
# 200 GB/s, TPU v4 46 over 300, H100 67 over 450. All are near 150.
FLOPS_PER_BYTE = 150


def barlow_twins_loss(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    lambd: float = 0.0051,
    form: str = "auto",
    mesh: Mesh | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of two views' embeddings: on_diagonal + lambd · off_diagonal (module docstring; paper, equation 1).

    Each column of each view is standardised over the batch with its biased variance and eps 1e-5 inside the root.
    Everything is float32, or float64 where an embedding is; gradients come back in the embeddings' dtypes.

    `form="auto"` takes the cheaper form, by this model of a forward and a backward pass on each of P devices along the
    mesh's data axis (P = 1 without a mesh):

        gram         8N²D/P FLOPs;  16ND/P bytes for two all-to-alls there and two back, 2·8N² for one all-reduce
        correlation  6ND²/P FLOPs;  2·4D² bytes for a reduce-scatter there and an all-gather back

    (P-1)/P of the bytes leave a device, and each costs as much as 150 FLOPs. On one device this is gram where 4N < 3D,
    which is about where its two N × N arrays are smaller than the one D × D.

    With a mesh, embeddings are taken to be split over their rows along "data". "gram" moves them until each device has
    whole columns (over all the mesh's axes, so that a "model" axis shares the work), standardises these where they are
    and adds up the devices' Gram matrices; the backward pass needs nothing more but the way back. "correlation" keeps
    the rows where they are and adds up C. Embeddings that come split over "model" as well stay so in "gram"; "correlation"
    collects their columns first, N·D/P numbers a device. Without a mesh the function is plain, and inside `jax.jit` the
    compiler distributes it as it sees fit.

    Args:
      z_a, z_b: embeddings (N, D), any floating dtype; row n of both is the same image.
      lambd: weight of the redundancy term; the paper's 0.0051 goes with D = 8192.
      form: "correlation", "gram" or "auto".
      mesh: with an axis "data" that divides N, and AxisType.Auto.

    Returns:
      The loss, (), and its parts {"on_diagonal": (), "off_diagonal": ()}, of which off_diagonal is without lambd.

    Raises:
      ValueError: embeddings of the wrong rank, of unequal shapes, not floating, of fewer than two rows, or of rows that
        do not divide along the mesh; an unknown form; a mesh without an axis "data".
    """
    z_a, z_b = _checked(z_a, z_b)
    if form not in FORMS:
        raise ValueError(f"form is {form!r}, but must be one of {', '.join(map(repr, FORMS))}.")
    n, d = z_a.shape
    devices = 1 if mesh is None else _data_devices(mesh, n)
    if form == "auto":
        form = choose_form(n, d, devices)
    if mesh is None or mesh.size == 1:
        on, off = (_gram if form == "gram" else _correlation)(z_a, z_b)
    else:
        on, off = (_gram_on_mesh if form == "gram" else _correlation_on_mesh)(z_a, z_b, mesh)
    return on + jnp.asarray(lambd, on.dtype) * off, {"on_diagonal": on, "off_diagonal": off}


def choose_form(n: int, d: int, devices: int = 1) -> str:
    """The cheaper form for N = `n`, D = `d` and P = `devices`, by the model in `barlow_twins_loss`."""
    sent = FLOPS_PER_BYTE * (devices - 1) / devices
    gram = 8 * n * n * d / devices + sent * (16 * n * d / devices + 16 * n * n)
    correlation = 6 * n * d * d / devices + sent * 8 * d * d
    return "gram" if gram < correlation else "correlation"


def cross_correlation(z_a: jax.Array, z_b: jax.Array) -> jax.Array:
    """C = AᵀB/N of the standardised embeddings, for plots and tests: (N, D) twice -> (D, D), float32 or float64.

    Raises:
      ValueError: as `barlow_twins_loss` does.
    """
    z_a, z_b = _checked(z_a, z_b)
    return _product("nd,ne->de", _standardise(z_a), _standardise(z_b)) / z_a.shape[0]


def expected_loss_at_start(n: int, d: int, lambd: float) -> float:
    """What the loss is near when the two views' embeddings know nothing of each other: D(1 + 1/N) + λD(D-1)/N.

    C_ij is then the mean of N products of independent standardised numbers, of mean 0 and variance 1 each: E C_ij = 0
    and E C_ij² = 1/N (strictly 1/(N-1), as the means are those of the batch). So each of the D diagonal terms is
    E (C_ii - 1)² = 1 + 1/N, and each of the D(D-1) others E C_ij² = 1/N, weighted by λ.
    """
    return d * (1 + 1 / n) + lambd * d * (d - 1) / n


def loss_floor(n: int, d: int, lambd: float) -> float:
    """A bound that the loss cannot go below: D·m(D-r)/(r + m(D-r)), with r = min(D, N-1) and m = min(λ, 1).

    A and B have N rows and columns of mean 0, so rank C ≤ r. Let s = tr C. Then

        Σ_i C_ii² ≥ s²/D               (Cauchy-Schwarz)
        Σ_ij C_ij² = ‖C‖² ≥ s²/r       (s ≤ the sum of C's singular values ≤ √r‖C‖, of which at most r are not zero)

    and with λ ≤ 1 both of these enter the loss with a weight that is not negative:

        loss = Σ_i (C_ii - 1)² + λ(‖C‖² - Σ_i C_ii²) = D - 2s + (1-λ)Σ_i C_ii² + λ‖C‖² ≥ D - 2s + s²((1-λ)/D + λ/r),

    which is least at s = 1/((1-λ)/D + λ/r), where it is D - s: the floor. Where λ > 1 the loss is no less than with
    λ = 1. With λ ≤ 1 the bound is met where C = t·(a projection of rank r with equal diagonal r/D), t = s/r; there are
    embeddings that do, for example where D is a power of 2 (from rows of a Hadamard matrix). It is 0 where N > D.
    """
    r, m = min(d, n - 1), min(lambd, 1.0)
    return d * m * (d - r) / (r + m * (d - r))


def _checked(z_a: jax.Array, z_b: jax.Array) -> tuple[jax.Array, jax.Array]:
    z_a, z_b = jnp.asarray(z_a), jnp.asarray(z_b)
    for name, z in (("z_a", z_a), ("z_b", z_b)):
        if z.ndim != 2:
            raise ValueError(f"{name} has shape {z.shape}, but embeddings must be (N, D).")
        if not jnp.issubdtype(z.dtype, jnp.floating):
            raise ValueError(f"{name} is {z.dtype}, but embeddings must be floating-point numbers.")
    if z_a.shape != z_b.shape:
        raise ValueError(f"z_a has shape {z_a.shape} and z_b {z_b.shape}, but the two views must have the same.")
    if z_a.shape[0] < 2 or z_a.shape[1] < 1:
        raise ValueError(f"embeddings have shape {z_a.shape}, but there must be at least 2 rows and 1 column.")
    if z_a.dtype != z_b.dtype:
        wider = jnp.float64 if jnp.float64 in (z_a.dtype, z_b.dtype) else jnp.float32
        z_a, z_b = z_a.astype(wider), z_b.astype(wider)
    return z_a, z_b


def _data_devices(mesh: Mesh, n: int) -> int:
    if DATA_AXIS not in mesh.axis_names:
        raise ValueError(f"the mesh has the axes {mesh.axis_names}, but one must be {DATA_AXIS!r}.")
    devices = mesh.shape[DATA_AXIS]
    if n % devices:
        raise ValueError(f"embeddings have {n} rows, which do not divide among the {devices} devices along 'data'.")
    return devices


def _product(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, x, y, precision="highest")


def _standardise(z: jax.Array, devices: int = 1, axes: tuple[str, ...] = ()) -> jax.Array:
    """Columns of mean 0 and variance 1 (nearly, by EPS); the rows are split over `devices` along the mesh's `axes`.

    Two passes, as E[z²] - E[z]² would lose to cancellation what it saves in time where the mean is large.
    """
    z = z.astype(jnp.float64 if z.dtype == jnp.float64 else jnp.float32)
    n = z.shape[0] * devices
    mean = jax.lax.psum(jnp.sum(z, axis=0), axes) / n
    centred = z - mean[None, :]
    var = jax.lax.psum(jnp.sum(jnp.square(centred), axis=0), axes) / n
    return centred * jax.lax.rsqrt(var + EPS)[None, :]


def _padded(z: jax.Array, devices: int) -> jax.Array:
    """Columns of zeros make the width divide; standardised they are still zero, and add nothing to any product."""
    missing = -z.shape[1] % devices
    return jnp.pad(z, ((0, 0), (0, missing))) if missing else z


def _columns_here(axes: tuple[str, ...], width: int) -> jax.Array:
    """The numbers of the `width` columns that this device holds, where they are split along the mesh's `axes`."""
    return (jax.lax.axis_index(axes) * width if axes else 0) + jnp.arange(width)


def _correlation(z_a: jax.Array, z_b: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _correlation_terms(_standardise(z_a), _standardise(z_b), z_a.shape, ())


def _correlation_on_mesh(z_a: jax.Array, z_b: jax.Array, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    shape, devices = z_a.shape, mesh.shape[DATA_AXIS]

    def on_device(z_a, z_b):  # (N/P, D) both
        a, b = (_standardise(z, devices, (DATA_AXIS,)) for z in (z_a, z_b))
        return _correlation_terms(a, b, shape, (DATA_AXIS,))

    rows, whole = PartitionSpec(DATA_AXIS, None), PartitionSpec()
    on_mesh = jax.shard_map(on_device, mesh=mesh, in_specs=(rows, rows), out_specs=(whole, whole))
    return on_mesh(_padded(z_a, devices), _padded(z_b, devices))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _correlation_terms(
    a: jax.Array, b: jax.Array, shape: tuple[int, int], axes: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    """(on_diagonal, off_diagonal) by way of C.

    `shape` is (N, D). a and b have it, or are rows of it on one of the devices along `axes`, then with padding columns.
    """
    return _correlation_forward(a, b, shape, axes)[0]


def _correlation_forward(a, b, shape, axes):
    (n, d), width = shape, a.shape[1]
    total = _product("nd,ne->de", a, b)
    if axes:  # each device keeps some rows of the sum and the backward pass collects them: in all, one all-reduce
        total = jax.lax.psum_scatter(total, axes, scatter_dimension=0, tiled=True)
    # The only (D, D) array there is: N·C with its diagonal emptied, which is what both the sum and the gradient need.
    # Taking the diagonal's squares off the whole sum instead would lose small off-diagonals to cancellation.
    total = jnp.where(_columns_here(axes, total.shape[0])[:, None] == jnp.arange(width)[None, :], 0, total)
    diagonal = jax.lax.psum(jnp.sum(a * b, axis=0), axes) / n
    gap = diagonal - (jnp.arange(width) < d).astype(a.dtype)  # padding's own target is 0
    off = jax.lax.psum(jnp.sum(jnp.square(total)), axes) / float(n) ** 2  # an integer could exceed 32 bits
    return (jnp.sum(jnp.square(gap)), off), (a, b, total, gap)


def _correlation_backward(shape, axes, residuals, cotangents):
    (a, b, total, gap), (on, off), n = residuals, cotangents, shape[0]
    if axes:
        total = jax.lax.all_gather(total, axes, tiled=True)
    diagonal = (2 / n * on * gap)[None, :]
    grad_a = 2 / n**2 * off * _product("ne,de->nd", b, total) + diagonal * b
    grad_b = 2 / n**2 * off * _product("nd,de->ne", a, total) + diagonal * a
    return grad_a, grad_b


_correlation_terms.defvjp(_correlation_forward, _correlation_backward)


def _gram(z_a: jax.Array, z_b: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _gram_terms(_standardise(z_a), _standardise(z_b), z_a.shape[1], ())


def _gram_on_mesh(z_a: jax.Array, z_b: jax.Array, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    d = z_a.shape[1]
    others = tuple(name for name in mesh.axis_names if name != DATA_AXIS)

    def on_device(z_a, z_b):  # (N/P, D/others) both
        # Still in the embeddings' own dtype: bfloat16 travels at half the cost.
        columns = (jax.lax.all_to_all(z, DATA_AXIS, split_axis=1, concat_axis=0, tiled=True) for z in (z_a, z_b))
        a, b = (_standardise(z) for z in columns)  # (N, D/size of the mesh)
        return _gram_terms(a, b, d, (*others, DATA_AXIS))

    rows, whole = PartitionSpec(DATA_AXIS, others or None), PartitionSpec()
    on_mesh = jax.shard_map(on_device, mesh=mesh, in_specs=(rows, rows), out_specs=(whole, whole))
    return on_mesh(_padded(z_a, mesh.size), _padded(z_b, mesh.size))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _gram_terms(a: jax.Array, b: jax.Array, d: int, axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """(on_diagonal, off_diagonal) by way of AAᵀ and BBᵀ.

    a and b are (N, D), or their columns on one of the devices along `axes`, in this order; padding from `d` on.
    """
    return _gram_forward(a, b, d, axes)[0]


def _gram_forward(a, b, d, axes):
    n, width = a.shape
    diagonal = jnp.sum(a * b, axis=0) / n
    gap = diagonal - (_columns_here(axes, width) < d).astype(a.dtype)  # padding's own target is 0
    gram_a, gram_b, on, squares = jax.lax.psum(
        (
            _product("nd,md->nm", a, a),
            _product("nd,md->nm", b, b),
            jnp.sum(jnp.square(gap)),
            jnp.sum(jnp.square(diagonal)),
        ),
        axes,
    )
    # A difference, so in float32 wrong by some 1e-7·D however small it is. That matters only where it can be small,
    # which is where N > D and C can be the identity; "auto" takes the other form there.
    off = jnp.sum(gram_a * gram_b) / float(n) ** 2 - squares
    return (on, off), (a, b, gram_a, gram_b, diagonal, gap)


def _gram_backward(d, axes, residuals, cotangents):
    # Whole columns and whole Gram matrices are already here: no device needs to ask another.
    del d, axes
    (a, b, gram_a, gram_b, diagonal, gap), (on, off) = residuals, cotangents
    n = a.shape[0]
    on_diagonal = (2 / n * (on * gap - off * diagonal))[None, :]
    grad_a = 2 / n**2 * off * _product("nm,md->nd", gram_b, a) + on_diagonal * b
    grad_b = 2 / n**2 * off * _product("nm,md->nd", gram_a, b) + on_diagonal * a
    return grad_a, grad_b


_gram_terms.defvjp(_gram_forward, _gram_backward)
