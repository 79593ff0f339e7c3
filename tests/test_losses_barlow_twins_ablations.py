"""bt_jax/losses/barlow_twins_ablations.py against the formulas in numpy and float64, on one device and on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from ml_collections import ConfigDict
from recipes import one_program, relative

from bt_jax.losses import Ablation, ablated_barlow_twins_loss, barlow_twins_loss, loss_floor, mixed_regulariser
from bt_jax.losses.barlow_twins_ablations import (
    ablated_loss_floor,
    ablated_loss_flops,
    expected_ablated_loss_at_start,
    expected_mixed_at_start,
)
from bt_jax.runtime import mesh as mesh_lib

LAMBD = 0.0051
CASES = {
    "none": {},
    "invariance": {"terms": "invariance"},
    "redundancy": {"terms": "redundancy"},
    "features": {"normalization": "features"},
    "centred": {"normalization": "none"},
    "cross-entropy": {"loss": "cross_entropy"},
    "cross-entropy, T 1": {"loss": "cross_entropy", "temperature": 1.0},
    "auto": {"off_diagonals": "auto"},
    "auto, only redundancy": {"off_diagonals": "auto", "terms": "redundancy", "normalization": "none"},
    "cross-entropy of auto along features": {
        "loss": "cross_entropy", "off_diagonals": "auto", "normalization": "features", "terms": "redundancy",
    },
}  # fmt: skip


def draw(n, d, views=2, seed=0):
    """Related views with features of different scales and means, float64."""
    rng = np.random.default_rng(seed)
    base, scale, shift = rng.standard_normal((n, d)), rng.uniform(0.3, 2, d), rng.standard_normal(d)
    return [(base + 0.7 * rng.standard_normal((n, d))) * scale + shift for _ in range(views)]


def normalised(z, how):
    z = z - z.mean(0)
    if how == "none":
        return z
    z = z / np.sqrt(z.var(0) + 1e-5)
    # Rows of length 1, and a sum that is not divided by N: the factor √N in each view undoes that division.
    return z if how == "batch" else np.sqrt(len(z)) * z / np.linalg.norm(z, axis=1, keepdims=True)


def reference(z_a, z_b, *, terms="both", normalization="batch", loss="squared", temperature=0.1, off_diagonals="cross"):
    """The paper's formulas, entry by entry."""
    n, d = z_a.shape
    a, b = normalised(z_a, normalization), normalised(z_b, normalization)
    others = ~np.eye(d, dtype=bool)
    c = a.T @ b / n
    sources = [c] if off_diagonals == "cross" else [a.T @ a / n, b.T @ b / n]
    if loss == "squared":
        on = sum((c[i, i] - 1) ** 2 for i in range(d))
        off = np.mean([np.sum(x[others] ** 2) for x in sources])
    else:
        on = -np.log(sum(np.exp(c[i, i] / temperature) for i in range(d)))
        off = np.mean([np.log(np.sum(np.exp(np.maximum(x[others], 0) / temperature))) for x in sources])
    return {"both": on + LAMBD * off, "invariance": on, "redundancy": LAMBD * off}[terms], on, off


def loss_of(case, form="auto", mesh=None):
    ablation = Ablation(**CASES[case])
    form = "auto" if ablation.loss == "cross_entropy" else form
    return lambda a, b: ablated_barlow_twins_loss(a, b, ablation, lambd=LAMBD, form=form, mesh=mesh)


def value_and_gradients(function, *views):
    return jax.jit(jax.value_and_grad(lambda *z: function(*z)[0], argnums=range(len(views))))(*views)


def of_all(form, mesh=None, of=lambda function, *z: function(*z)):
    """A program with all cases, which compiles much faster than one for each."""
    return jax.jit(lambda *z: {case: of(loss_of(case, form, mesh), *z) for case in CASES})


@pytest.mark.parametrize(("form", "n", "d"), [("gram", 12, 16), ("correlation", 20, 7)])
def test_formulas(form, n, d):
    """Values to 1e-10 in float64 and 2e-5 in float32; gradients by central differences in float64."""
    z = draw(n, d)
    expected = {case: reference(*z, **CASES[case]) for case in CASES}
    single = of_all(form)(*(jnp.asarray(x, jnp.float32) for x in z))
    with jax.enable_x64(True):
        double = of_all(form)(*map(jnp.asarray, z))
        gradients = of_all(form, of=lambda function, *z: value_and_gradients(function, *z)[1])(*map(jnp.asarray, z))
    for case, settings in CASES.items():
        for (loss, parts), dtype, tolerance in ((single[case], "float32", 2e-5), (double[case], "float64", 1e-10)):
            assert loss.dtype == dtype
            found = (loss, parts["on_diagonal"], parts["off_diagonal"])
            np.testing.assert_allclose(found, expected[case], rtol=tolerance, err_msg=case)
        for view in (0, 1):
            for index in [(0, 0), (n - 1, d - 1), (3, 2)]:
                moved = []
                for step in (1e-5, -1e-5):
                    changed = [x.copy() for x in z]
                    changed[view][index] += step
                    moved.append(reference(*changed, **settings)[0])
                slope = (moved[0] - moved[1]) / 2e-5
                assert float(gradients[case][view][index]) == pytest.approx(slope, rel=1e-4, abs=1e-7), case


@pytest.mark.parametrize("model", [1, 2])
@pytest.mark.parametrize(("form", "n", "d"), [("gram", 16, 24), ("correlation", 32, 18)])
def test_eight_devices_equal_one(form, n, d, model):
    """Losses and gradients to 1e-5 on 8 and on 4 × 2 devices, also for a width that does not divide among them."""
    mesh = mesh_lib.make_mesh(ConfigDict({"data": -1, "model": model}))
    z = [jnp.asarray(x, jnp.float32) for x in draw(n, d)]
    split = jax.sharding.PartitionSpec("data", "model" if model > 1 else None)
    spread = [jax.device_put(x, jax.sharding.NamedSharding(mesh, split)) for x in z]
    expected = of_all(form, of=value_and_gradients)(*z)
    for case, (loss, gradients) in of_all(form, mesh, of=value_and_gradients)(*spread).items():
        wanted = np.stack(expected[case][1])
        assert relative(loss, expected[case][0]) < 1e-5, case
        assert np.linalg.norm(np.stack(gradients) - wanted) <= 1e-5 * np.linalg.norm(wanted), case


def test_no_ablation_is_the_loss():
    z_a, z_b = (jnp.asarray(z, jnp.float32) for z in draw(16, 24))
    for form in ("gram", "correlation"):
        loss, gradients = value_and_gradients(loss_of("none", form), z_a, z_b)
        usual = functools.partial(barlow_twins_loss, lambd=LAMBD, form=form)
        expected, wanted = value_and_gradients(usual, z_a, z_b)
        assert relative(loss, expected) < 1e-6 and relative(np.stack(gradients), np.stack(wanted)) < 1e-5


def test_only_invariance_is_lambda_0():
    z_a, z_b = (jnp.asarray(z, jnp.float32) for z in draw(16, 24))
    found = value_and_gradients(loss_of("invariance"), z_a, z_b)
    expected = value_and_gradients(functools.partial(barlow_twins_loss, lambd=0.0), z_a, z_b)
    assert relative(found[0], expected[0]) < 1e-6 and relative(np.stack(found[1]), np.stack(expected[1])) < 1e-5


def test_exchanging_views_changes_nothing():
    z_a, z_b = (jnp.asarray(z, jnp.float32) for z in draw(16, 24))
    there, back = of_all("auto")(z_a, z_b), of_all("auto")(z_b, z_a)
    for case in CASES:
        assert relative(back[case][0], there[case][0]) < 1e-5, case


def test_low_precision_is_computed_in_float32():
    """As if the same numbers had come in float32; gradients have the embeddings' dtype."""
    z = [jnp.asarray(x, jnp.bfloat16) for x in draw(16, 24)]
    found = of_all("auto", of=value_and_gradients)(*z)
    expected = of_all("auto")(*(x.astype(jnp.float32) for x in z))
    for case, (loss, gradients) in found.items():
        assert loss.dtype == jnp.float32 and gradients[0].dtype == jnp.bfloat16
        assert float(loss) == pytest.approx(float(expected[case][0]), rel=1e-6), case


def test_expected_loss_at_start():
    """The mean over independent embeddings, to 2 %; there is none without normalisation."""
    n, d, rng = 64, 128, np.random.default_rng(0)
    z = rng.standard_normal((2, 40, n, d)).astype(np.float32)
    found = jax.jit(jax.vmap(of_all("auto")))(*z)
    for case, settings in CASES.items():
        expected = expected_ablated_loss_at_start(n, d, LAMBD, Ablation(**settings))
        if settings.get("normalization") == "none":
            assert expected is None
        else:
            assert np.mean(found[case][0]) == pytest.approx(expected, rel=0.02), case


def test_floors():
    """The cross-entropy's is reached by equal views whose columns are uncorrelated (those of a Hadamard matrix)."""
    d, ablation = 8, Ablation(loss="cross_entropy", temperature=0.5)
    z = jnp.asarray(scipy.linalg.hadamard(16)[:, 1 : d + 1], jnp.float32)
    reached = float(ablated_barlow_twins_loss(z, z, ablation, lambd=LAMBD)[0])
    assert ablated_loss_floor(16, d, LAMBD, ablation) == pytest.approx(reached, rel=1e-4)
    assert ablated_loss_floor(5, 12, LAMBD, Ablation()) == loss_floor(5, 12, LAMBD)
    assert ablated_loss_floor(5, 12, LAMBD, Ablation(terms="invariance")) is None


@pytest.mark.parametrize("case", ["none", "invariance", "cross-entropy", "auto"])
@pytest.mark.parametrize("form", ["gram", "correlation"])
def test_flops(case, form):
    """Those of the compiled program, which has other operations than products too."""
    n, d = 64, 96
    z = jax.ShapeDtypeStruct((n, d), jnp.float32)
    program = jax.jit(jax.value_and_grad(loss_of(case, form), argnums=(0, 1), has_aux=True))
    compiled = program.lower(z, z).compile().cost_analysis()["flops"]
    assert 1 < compiled / ablated_loss_flops(n, d, form, Ablation(**CASES[case])) < 1.3


def mixed_reference(z_a, z_b, z_m, order, share):
    """As the source computes it, matrix by matrix."""
    n = len(z_a)
    a, b, m = (normalised(z, "batch") for z in (z_a, z_b, z_m))
    target_a = share * a.T @ a / n + (1 - share) * b[order].T @ a / n
    target_b = share * a.T @ b / n + (1 - share) * b[order].T @ b / n
    return np.sum((m.T @ a / n - target_a) ** 2) + np.sum((m.T @ b / n - target_b) ** 2)


ORDER, SHARE = np.random.default_rng(5).permutation(16), 0.3


def mixed_of(form="auto", mesh=None, order=ORDER, share=SHARE):
    settings = {"order": jnp.asarray(order), "share": jnp.asarray(share), "form": form, "mesh": mesh}
    return lambda *z: (mixed(*z, **settings), None)


mixed = one_program(mixed_regulariser, "form", "mesh")


@pytest.mark.parametrize("form", ["gram", "correlation"])
def test_mixed(form):
    """Against the source's matrices; gradients by central differences."""
    z = draw(16, 12, views=3)
    expected = mixed_reference(*z, ORDER, SHARE)
    assert relative(mixed_of(form)(*(jnp.asarray(x, jnp.float32) for x in z))[0], expected) < 2e-5
    with jax.enable_x64(True):
        value, gradients = value_and_gradients(mixed_of(form), *map(jnp.asarray, z))
    assert float(value) == pytest.approx(expected, rel=1e-10)
    for view in range(3):
        for index in [(0, 0), (15, 11), (4, 7)]:
            moved = []
            for step in (1e-5, -1e-5):
                changed = [x.copy() for x in z]
                changed[view][index] += step
                moved.append(mixed_reference(*changed, ORDER, SHARE))
            assert float(gradients[view][index]) == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-4, abs=1e-7)


def test_mixed_is_0_for_mixed_embeddings():
    """Not only near it: M = s A + (1-s) S B up to the standardisation, which does nothing for s = 1."""
    z_a, z_b = (jnp.asarray(z, jnp.float32) for z in draw(16, 12))
    assert float(mixed_of(share=1.0)(z_a, z_b, z_a)[0]) < 1e-6
    assert float(mixed_of(share=0.0)(z_a, z_b, z_b[ORDER])[0]) < 1e-6


@pytest.mark.parametrize("model", [1, 2])
@pytest.mark.parametrize("form", ["gram", "correlation"])
def test_mixed_on_eight_devices(form, model):
    mesh = mesh_lib.make_mesh(ConfigDict({"data": -1, "model": model}))
    z = [jnp.asarray(x, jnp.float32) for x in draw(16, 10, views=3)]
    expected, wanted = value_and_gradients(mixed_of(form), *z)
    spread = [jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))) for x in z]
    value, found = value_and_gradients(mixed_of(form, mesh), *spread)
    assert relative(value, expected) < 1e-5 and relative(np.stack(found), np.stack(wanted)) < 1e-5


def test_expected_mixed_at_start():
    n, d, rng = 64, 128, np.random.default_rng(0)
    found = []
    for _ in range(60):
        z = rng.standard_normal((3, n, d)).astype(np.float32)
        found.append(float(mixed_of(order=rng.permutation(n), share=rng.random())(*z)[0]))
    assert np.mean(found) == pytest.approx(expected_mixed_at_start(n, d), rel=0.05)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Ablation(terms="on"), "terms is 'on', but must be one of 'both', 'invariance', 'redundancy'"),
        (lambda: Ablation(temperature=0.0), "temperature is 0.0, but must be a positive number"),
        (lambda: _cross_entropy((4, 3), form="gram"), "form is 'gram', but the cross-entropy needs"),
        (lambda: _cross_entropy((4, 1)), "embeddings have one column"),
        (lambda: _cross_entropy((1, 4)), "at least 2 rows"),
    ],
)
def test_bad_input(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def _cross_entropy(shape, **settings):
    z = jnp.zeros(shape)
    return ablated_barlow_twins_loss(z, z, Ablation(loss="cross_entropy"), **settings)
