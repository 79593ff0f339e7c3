"""The losses of the paper's ablations, and the regulariser of Mixed Barlow Twins.

Notation as in bt_jax/losses/barlow_twins.py: A and B (N, D) are the normalised embeddings and C = AᵀB/N. The paper is Zbontar
et al. 2021, arXiv 2103.03230, section 4 and Tables 5 and 6; what it leaves open is chosen here and marked "our choice".

All sums are over the global batch. Inside `jax.jit` the compiler distributes them; the products of N × D numbers are
distributed as in `barlow_twins_loss`.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bt_jax.losses.barlow_twins import (
    choose_form,
    expected_loss_at_start,
    loss_floor,
    on_and_off_diagonal,
    standardise,
)
from bt_jax.losses.pairs import checked_pair, product

NORMALIZATIONS = ("batch", "features", "none")
TINY = 1e-12  # under the root of a row's length


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What is changed in the loss; the defaults change nothing.

    Attributes:
      terms: "both", or only one of the loss's two terms (Table 5). "invariance" is λ = 0; "redundancy" keeps λ as its weight.
      normalization: how A and B come from the embeddings.
        "batch": columns with mean 0 and variance 1.
        "features" (Table 5, "normalization along feature dim."): the same, then rows of length 1, "and finally we measure the
        (unnormalized) covariance matrix". Our choice: this is the numerator of the paper's equation 2, Σ_n a_ni b_nj,
        without the division by N. Divided by N, all C_ii together could not exceed 1, and λ would not matter.
        "none" (Table 5, "no normalization"): columns with mean 0; C is the cross-covariance.
      loss: "squared", or "cross_entropy" (Table 5), with T for the paper's τ:
        -log Σ_i exp(C_ii/T) + λ log Σ_{i≠j} exp(max(C_ij, 0)/T).
      temperature: T. The paper does not say which it used; the default is our choice.
      off_diagonals: "cross" takes them from C, "auto" from the auto-correlations: the mean of the two terms with AᵀA/N and
        BᵀB/N in place of C. The paper (section 5, future directions) names "the auto-correlation matrix of a single
        network's embedding"; that of both views is our choice, as it treats them alike.
    """

    terms: Literal["both", "invariance", "redundancy"] = "both"
    normalization: Literal["batch", "features", "none"] = "batch"
    loss: Literal["squared", "cross_entropy"] = "squared"
    temperature: float = 0.1
    off_diagonals: Literal["cross", "auto"] = "cross"

    def __post_init__(self):
        for name, allowed in (
            ("terms", ("both", "invariance", "redundancy")),
            ("normalization", NORMALIZATIONS),
            ("loss", ("squared", "cross_entropy")),
            ("off_diagonals", ("cross", "auto")),
        ):
            if getattr(self, name) not in allowed:
                found = getattr(self, name)
                raise ValueError(f"{name} is {found!r}, but must be one of {', '.join(map(repr, allowed))}.")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature is {self.temperature}, but must be a positive number.")


NO_ABLATION = Ablation()


def ablated_barlow_twins_loss(
    z_a: jax.Array,
    z_b: jax.Array,
    ablation: Ablation,
    *,
    lambd: float = 0.0051,
    form: str = "auto",
    mesh: Mesh | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of two views' embeddings with an ablation; for `Ablation()` it is `barlow_twins_loss`.

    Args:
      z_a, z_b, lambd, form, mesh: as for `barlow_twins_loss`. The cross-entropy needs all of C: its form is "correlation"
        unless it is "auto", which chooses that too.

    Returns:
      The loss, (), and {"on_diagonal": (), "off_diagonal": ()}, its terms without λ: with "cross_entropy" the two logarithms.
      Both are returned whatever `terms` is; "invariance" gives the other no gradient.

    Raises:
      ValueError: as `barlow_twins_loss`; the cross-entropy with form "gram", or of embeddings with one column.
    """
    z_a, z_b = checked_pair(z_a, z_b)
    still = jax.lax.stop_gradient if ablation.terms == "invariance" else lambda z: z
    pairs = ((z_a, z_b),) if ablation.off_diagonals == "cross" else ((z_a, z_a), (z_b, z_b))
    pairs = [(still(x), still(y)) for x, y in pairs]
    normalise, temperature = _NORMALISE[ablation.normalization], ablation.temperature
    diagonal = jnp.mean(normalise(z_a) * normalise(z_b), axis=0)
    if ablation.loss == "cross_entropy":
        if form == "gram":
            raise ValueError("form is 'gram', but the cross-entropy needs the D × D correlation.")
        on = -jax.nn.logsumexp(diagonal / temperature)
        offs = [_log_off_diagonal(normalise(x), normalise(y), temperature, mesh) for x, y in pairs]
    else:
        on = jnp.sum(jnp.square(diagonal - 1))
        offs = [on_and_off_diagonal(x, y, form=form, mesh=mesh, normalise=normalise)[1] for x, y in pairs]
    off = jnp.mean(jnp.stack(offs))
    weighted = jnp.asarray(lambd, on.dtype) * off
    loss = {"both": on + weighted, "invariance": on, "redundancy": weighted}[ablation.terms]
    return loss, {"on_diagonal": on, "off_diagonal": off}


def mixed_regulariser(
    z_a: jax.Array,
    z_b: jax.Array,
    z_m: jax.Array,
    *,
    order: jax.Array,
    share: jax.Array,
    form: str = "auto",
    mesh: Mesh | None = None,
) -> jax.Array:
    """The regulariser of Mixed Barlow Twins, without its weight: how far mixed images are from mixed embeddings.

    With s the share, M the standardised embeddings of the mixed images s·a_n + (1-s)·b_order(n), and S B the rows of B in
    that order:

        ‖MᵀA/N - (s AᵀA + (1-s) (S B)ᵀA)/N‖² + ‖MᵀB/N - (s AᵀB + (1-s) (S B)ᵀB)/N‖²  =  (‖EᵀA‖² + ‖EᵀB‖²)/N²

    with E = M - s A - (1-s) S B. The loss is that of Barlow Twins plus λ_reg · λ times this. λ_reg is 4 for CIFAR-10,
    CIFAR-100 and TinyImageNet and 2 for STL-10, with λ = 1/128 or 1/1024, D = 1024 and N = 256.

    Args:
      z_a, z_b, z_m: (N, D), of the two views and of the mixed images.
      order: (N,) integers, a permutation.
      share: (), from 0 to 1; uniform, as Beta(1, 1) in the source.
      form, mesh: as for `barlow_twins_loss`; the cost is that of two such losses.

    Returns:
      (), float32, or float64 if an embedding is.

    Source: Bandara et al. 2023, arXiv 2312.02151; wgcban/mix-bt, README.md, section 1, and main.py, function train. Its
    main_imagenet.py differs: BᵀB in place of AᵀB in the second term, a factor of 1/2, and a weight that rises over 10 epochs.
    Both divide by the unbiased deviation without eps, and main.py first gives each row the length 1.
    """
    z_a, z_b = checked_pair(z_a, z_b)
    z_a, z_m = checked_pair(z_a, z_m)
    a, b, m = (standardise(z) for z in (z_a, z_b, z_m))
    share = share.astype(a.dtype)
    e = m - share * a - (1 - share) * b[order]
    total = jnp.zeros((), a.dtype)
    for x in (a, b):
        off = on_and_off_diagonal(e, x, form=form, mesh=mesh, normalise=_as_it_is)[1]
        total += off + jnp.sum(jnp.square(jnp.mean(e * x, axis=0)))
    return total


def expected_ablated_loss_at_start(n: int, d: int, lambd: float, ablation: Ablation) -> float | None:
    """The expected loss if all columns of both embeddings are independent; None if it depends on their variances.

    With `expected_loss_at_start` for "batch", where E C_ii = E C_ij = 0 and E C_ij² = 1/N. With "features" the rows of A and B
    have length 1, so Σ_ij E C_ij² = Σ_n ‖a_n‖²‖b_n‖² = N and E C_ij² = N/D². The cross-entropy's sums are near their means
    for large D: with s = 1/(T√N), E exp(C_ii/T) = exp(s²/2) and E exp(max(C_ij, 0)/T) = 1/2 + exp(s²/2) Φ(s).
    """
    if ablation.normalization == "none":
        return None
    square = 1 / n if ablation.normalization == "batch" else n / d**2  # of each C_ij
    if ablation.loss == "cross_entropy":
        s2 = square / ablation.temperature**2
        above = 0.5 * (1 + math.erf(math.sqrt(s2 / 2)))
        on = -math.log(d) - s2 / 2
        off = math.log(d * (d - 1)) + math.log(0.5 + math.exp(s2 / 2) * above)
    else:
        on, off = d * (1 + square), d * (d - 1) * square
    if ablation == NO_ABLATION:
        return expected_loss_at_start(n, d, lambd)
    return {"both": on + lambd * off, "invariance": on, "redundancy": lambd * off}[ablation.terms]


def ablated_loss_floor(n: int, d: int, lambd: float, ablation: Ablation) -> float | None:
    """A lower bound of the loss where one is known: None for other cases, and where it is 0.

    That of `loss_floor` for C; for the cross-entropy of correlations, whose entries are at most 1, -log D - 1/T + λ log D(D-1).
    """
    if ablation.normalization != "batch" or ablation.terms != "both":
        return None
    if ablation.loss == "cross_entropy":
        return -math.log(d) - 1 / ablation.temperature + lambd * math.log(d * (d - 1))
    return loss_floor(n, d, lambd) if ablation.off_diagonals == "cross" else None


def expected_mixed_at_start(n: int, d: int) -> float:
    """The expected `mixed_regulariser` if the columns of A, B and M are independent: 10/3 · D²/N + D/3.

    E has three independent parts, M, s A and (1-s) S B. MᵀA/N and MᵀB/N have D² entries with E C_ij² = 1/N; so have the three
    of s AᵀB and (1-s)(S B)ᵀX, with E s² = E (1-s)² = 1/3; s AᵀA/N has the same and a diagonal of s.
    """
    return 10 / 3 * d * d / n + d / 3


def ablated_loss_flops(n: int, d: int, form: str, ablation: Ablation, *, data: int = 1, devices: int = 1) -> float:
    """FLOPs of the products per step and device: see the cost model of `barlow_twins_loss`.

    Args:
      data, devices: the devices along the mesh's axis "data", and of the whole mesh.
    """
    if ablation.loss == "cross_entropy":  # the rows of C are split over all devices
        form, data = "correlation", devices
    elif form == "auto":
        form = choose_form(n, d, data)
    if (
        form == "gram"
    ):  # two Gram matrices, also of auto-correlations, where the compiler finds that each is needed twice
        forward = backward = 4 * n * n * d / devices
    else:
        matrices = 1 if ablation.off_diagonals == "cross" else 2
        forward, backward = matrices * 2 * n * d * d / data, matrices * 4 * n * d * d / data
    return forward if ablation.terms == "invariance" else forward + backward


def _as_it_is(z, devices=1, row_axes=(), column_axes=()):
    del devices, row_axes, column_axes
    return z


def _centre(z, devices=1, row_axes=(), column_axes=()):
    del column_axes  # each column is by itself
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    mean = jax.lax.psum(jnp.sum(z, axis=0), row_axes) / (z.shape[0] * devices)
    return z - mean[None, :]


def _along_features(z, devices=1, row_axes=(), column_axes=()):
    """Rows of length √N, so that AᵀB/N is the sum without the division."""
    x = standardise(z, devices, row_axes)
    length = jax.lax.psum(jnp.sum(jnp.square(x), axis=1), column_axes)
    return x * (math.sqrt(z.shape[0] * devices) * jax.lax.rsqrt(length + TINY))[:, None]


_NORMALISE = {"batch": standardise, "features": _along_features, "none": _centre}


def _log_off_diagonal(a: jax.Array, b: jax.Array, temperature: float, mesh: Mesh | None) -> jax.Array:
    """log Σ_{i≠j} exp(max(C_ij, 0)/T), with the rows of C split over the mesh."""
    n, d = a.shape
    if d < 2:
        raise ValueError("embeddings have one column, but the cross-entropy needs at least 2.")
    c = product("nd,ne->de", a, b) / n
    if mesh is not None and d % mesh.size == 0:
        c = jax.lax.with_sharding_constraint(c, NamedSharding(mesh, PartitionSpec(mesh.axis_names, None)))
    exponents = jnp.maximum(c, 0) / temperature
    diagonal = jnp.arange(d)[:, None] == jnp.arange(d)[None, :]
    return jax.nn.logsumexp(jnp.where(diagonal, -jnp.inf, exponents))
