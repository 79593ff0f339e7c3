"""bt_jax/losses/barlow_twins.py against the official results and numpy in float64, and the properties that the loss claims."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from ml_collections import ConfigDict
from recipes import one_program, relative

from bt_jax import losses
from bt_jax.losses import expected_loss_at_start, loss_floor
from bt_jax.losses.barlow_twins import choose_form
from bt_jax.planning.compiled import collectives
from bt_jax.runtime import mesh as mesh_lib

FORMS = ("correlation", "gram")
barlow_twins_loss = one_program(losses.barlow_twins_loss, "lambd", "form", "mesh")
cross_correlation = one_program(losses.cross_correlation)


def reference(z_a, z_b, lambd):
    """Equations 1 and 2 of the paper, and their gradients by hand, in float64."""
    n, _ = z_a.shape
    sides = []
    for z in (z_a.astype(np.float64), z_b.astype(np.float64)):
        root = np.sqrt(z.var(0) + 1e-5)
        sides.append(((z - z.mean(0)) / root, root))
    (a, root_a), (b, root_b) = sides
    c = a.T @ b / n
    diagonal = np.diag(c)
    on, off = np.sum((diagonal - 1) ** 2), np.sum(c**2) - np.sum(diagonal**2)
    grad_c = 2 * lambd * c
    np.fill_diagonal(grad_c, 2 * (diagonal - 1))

    def through_norm(g, x, root):  # the gradient of standardising
        return (g - g.mean(0) - x * (g * x).mean(0)) / root

    grads = through_norm(b @ grad_c.T / n, a, root_a), through_norm(a @ grad_c / n, b, root_b)
    return on + lambd * off, on, off, grads


def draw(n, d, seed=0):
    """Two related views, as they are in training: features of different scales and means."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((n, d))
    scale, shift = rng.uniform(0.1, 3, d), rng.standard_normal(d)
    return tuple(((base + 0.7 * rng.standard_normal((n, d))) * scale + shift).astype(np.float32) for _ in range(2))


def value_and_gradients(z_a, z_b, **settings):
    return jax.jit(jax.value_and_grad(lambda a, b: barlow_twins_loss(a, b, **settings)[0], argnums=(0, 1)))(z_a, z_b)


@pytest.mark.parametrize("form", FORMS)
def test_golden(golden, form):
    """The official loss, its parts and gradients: 1e-10 in float64 and 1e-5 in float32."""
    results = golden("loss")
    for i in range(len([k for k in results if k.endswith("_za")])):
        case = {k.removeprefix(f"{i}_"): v for k, v in results.items() if k.startswith(f"{i}_")}
        lambd = float(case["lambda"])
        for dtype, tolerance in (("float64", 1e-10), ("float32", 1e-5)):
            with jax.enable_x64(dtype == "float64"):
                a, b = jnp.asarray(case["za"], dtype), jnp.asarray(case["zb"], dtype)
                loss, parts = barlow_twins_loss(a, b, lambd=lambd, form=form)
                _, (grad_a, grad_b) = value_and_gradients(a, b, lambd=lambd, form=form)
                assert loss.dtype == dtype and grad_a.dtype == dtype
                for found, name in (
                    (loss, "loss"), (parts["on_diagonal"], "on_diag"), (parts["off_diagonal"], "off_diag"),
                    (grad_a, "grad_a"), (grad_b, "grad_b"), (cross_correlation(a, b), "c"),
                ):  # fmt: skip
                    assert relative(found, case[name]) < tolerance, (i, dtype, name)


@pytest.mark.parametrize(("n", "d"), [(8, 4), (64, 512), (512, 64), (256, 2048)])
@pytest.mark.parametrize("form", FORMS)
def test_float32_against_float64(n, d, form):
    """Loss and gradients to 2e-5 (norm over norm)."""
    z_a, z_b = draw(n, d)
    expected, on, off, grads = reference(z_a, z_b, 0.0051)
    loss, found = value_and_gradients(z_a, z_b, form=form)
    assert relative(loss, expected) < 2e-5
    for f, g in zip(found, grads, strict=True):
        assert relative(f, g) < 2e-5
    _, parts = barlow_twins_loss(z_a, z_b, form=form)
    assert relative(parts["on_diagonal"], on) < 2e-5
    assert relative(parts["off_diagonal"], off) < 2e-5


@pytest.mark.parametrize("form", FORMS)
def test_invariances(form):
    """To each feature's scale and shift, to the order of the batch; symmetric in the views."""
    z_a, z_b = draw(32, 24)
    loss = float(barlow_twins_loss(z_a, z_b, form=form)[0])
    rng = np.random.default_rng(1)
    scale, shift = rng.uniform(1, 4, (1, 24)).astype(np.float32), rng.standard_normal((1, 24)).astype(np.float32)
    order = rng.permutation(32)
    same = {"scale and shift": (z_a * scale + shift, z_b), "order": (z_a[order], z_b[order]), "views": (z_b, z_a)}
    for name, (a, b) in same.items():
        assert float(barlow_twins_loss(a, b, form=form)[0]) == pytest.approx(
            loss, rel=1e-3 if name == "scale and shift" else 1e-5
        ), name


def test_identical_views_have_a_unit_diagonal():
    """Up to the eps in the root."""
    z, _ = draw(64, 8)
    np.testing.assert_allclose(np.diag(cross_correlation(z, z)), 1, atol=1e-2)
    assert float(barlow_twins_loss(z, z)[1]["on_diagonal"]) < 1e-3


@pytest.mark.parametrize(("n", "d"), [(32, 64), (64, 32), (16, 27)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", [1, 2])
def test_eight_devices_equal_one(n, d, form, model):
    """Also for a width that does not divide among them, and for embeddings split over a model axis too."""
    mesh = mesh_lib.make_mesh(ConfigDict({"data": -1, "model": model}))
    z_a, z_b = draw(n, d)
    expected, found_one = value_and_gradients(z_a, z_b, form=form)
    split = jax.sharding.PartitionSpec("data", "model" if model > 1 and d % model == 0 else None)
    spread = [jax.device_put(z, jax.sharding.NamedSharding(mesh, split)) for z in (z_a, z_b)]
    loss, found = value_and_gradients(*spread, form=form, mesh=mesh)
    assert relative(loss, expected) < 2e-6
    for f, g in zip(found, found_one, strict=True):
        assert relative(f, g) < 2e-6


def test_gram_form_sends_no_d_squared():
    """Bytes that each of 8 devices exchanges for loss and gradients, counted in the compiled program."""
    n, d, devices = 64, 1024, 8
    mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,))
    rows = mesh_lib.over_batch(mesh)
    z = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=rows)
    loss = jax.value_and_grad(lambda a, b: barlow_twins_loss(a, b, form="gram", mesh=mesh)[0], argnums=(0, 1))
    text = jax.jit(loss, out_shardings=(mesh_lib.everywhere(mesh), (rows, rows))).lower(z, z).compile().as_text()
    moved = sum(collective.bytes for collective in collectives(text, devices))
    assert 0 < moved <= 1.05 * (4 * n * d // devices * 4 + 2 * n * n * 4)


def test_correlation_form_holds_one_matrix():
    """Never two D×D arrays at once: the compiled program's memory stays below that."""
    n, d = 32, 1024
    z = jax.ShapeDtypeStruct((n, d), jnp.float32)
    for form, limit in (("correlation", 1.6), ("gram", 0.6)):
        loss = jax.value_and_grad(lambda a, b, form=form: barlow_twins_loss(a, b, form=form)[0], argnums=(0, 1))
        memory = jax.jit(loss).lower(z, z).compile().memory_analysis()
        assert memory.temp_size_in_bytes < limit * 4 * d * d, form


def test_low_precision_is_computed_in_float32():
    z_a, z_b = (jnp.asarray(z, jnp.bfloat16) for z in draw(64, 32))
    loss, _ = barlow_twins_loss(z_a, z_b)
    exact, _ = barlow_twins_loss(z_a.astype(jnp.float32), z_b.astype(jnp.float32))
    assert loss.dtype == jnp.float32
    assert float(loss) == float(exact)


def test_choice_of_form():
    assert [choose_form(n, 8192) for n in (256, 2048, 6143, 6144)] == ["gram", "gram", "gram", "correlation"]


def test_expected_loss_at_start():
    """Independent embeddings: the average over draws is the formula's, within its sampling error."""
    n, d, lambd = 64, 128, 0.0051
    rng = np.random.default_rng(0)
    losses = [float(barlow_twins_loss(*(rng.standard_normal((n, d)) for _ in range(2)))[0]) for _ in range(50)]
    assert np.mean(losses) == pytest.approx(expected_loss_at_start(n, d, lambd), rel=0.02)


@pytest.mark.parametrize(("n", "d", "lambd"), [(5, 12, 0.5), (9, 40, 0.0051), (4, 16, 0.1), (4, 6, 3.0)])
def test_floor_is_a_bound(n, d, lambd):
    """Descent from random views comes near it, and never goes below."""
    views = jax.random.normal(jax.random.key(0), (2, n, d))
    loss = jax.value_and_grad(lambda v: barlow_twins_loss(v[0], v[1], lambd=lambd)[0])
    optimizer = optax.adam(0.02)

    def descend(carry, _):
        views, state = carry
        value, gradient = loss(views)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(views, updates), state), value

    _, losses = jax.jit(lambda v: jax.lax.scan(descend, (v, optimizer.init(v)), length=1000))(views)
    losses = np.asarray(losses, np.float64)
    assert loss_floor(n, d, lambd) <= losses.min() * (1 + 1e-4) < 0.5 * losses[0]


@pytest.mark.parametrize("lambd", [0.0051, 0.5, 1.0])
def test_floor_is_met(lambd):
    """Where C = t·(a projection of equal diagonal), made of rows of a Hadamard matrix."""
    assert loss_floor(100, 50, lambd) == 0
    n, d, r = 4, 8, 3
    hadamard = scipy.linalg.hadamard(d)[1 : r + 1].astype(np.float64)  # r rows of mean 0 over the columns
    projection = hadamard.T @ hadamard / d
    t = 1 / ((1 - lambd) / d + lambd / r) / r
    c = t * projection
    reached = np.sum((np.diag(c) - 1) ** 2) + lambd * (np.sum(c**2) - np.sum(np.diag(c) ** 2))
    assert reached == pytest.approx(loss_floor(n, d, lambd), rel=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "settings", "sentence"),
    [
        ((4, 3), (4, 2), {}, r"z_a has shape \(4, 3\) and z_b \(4, 2\)"),
        ((4,), (4,), {}, r"z_a has shape \(4,\), but embeddings must be \(N, D\)"),
        ((1, 3), (1, 3), {}, "at least 2"),
        ((4, 3), (4, 3), {"form": "grm"}, "form is 'grm', but must be one of 'auto', 'correlation', 'gram'"),
    ],
)
def test_bad_input(a, b, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        barlow_twins_loss(jnp.zeros(a), jnp.zeros(b), **settings)
    with pytest.raises(ValueError, match="int32"):
        barlow_twins_loss(jnp.zeros((4, 3), jnp.int32), jnp.zeros((4, 3)))


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_whose_square_exceeds_32_bits(form):
    """2¹⁶ rows: traced only, as gram would take 32 GiB."""
    z = jax.ShapeDtypeStruct((2**16, 4), jnp.float32)
    loss, parts = jax.eval_shape(lambda a, b: barlow_twins_loss(a, b, form=form), z, z)
    assert loss.shape == parts["off_diagonal"].shape == ()
