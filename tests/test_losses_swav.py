"""bt_jax/losses/swav.py: Sinkhorn's marginals and symmetries, the loss against its formula, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from recipes import one_program

from bt_jax import losses
from bt_jax.losses import swav
from bt_jax.losses.swav import swav_floor

sinkhorn = one_program(losses.sinkhorn, "epsilon", "iterations")
swav_loss = one_program(losses.swav_loss, "temperature")
prototypes_in_use = one_program(swav.prototypes_in_use)


def draw(n=12, k=5, seed=0):
    """Scores (N, K): cosines of random unit vectors."""
    rng = np.random.default_rng(seed)
    u, c = rng.standard_normal((n, 8)), rng.standard_normal((k, 8))
    return unit(u) @ unit(c).T


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def official_sinkhorn(scores, epsilon=0.05, iterations=3):
    """main_swav.py, distributed_sinkhorn, in numpy."""
    q = np.exp(scores / epsilon).T
    k, b = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True)
        q /= k
        q /= q.sum(axis=0, keepdims=True)
        q /= b
    return (q * b).T


def official_loss(scores, codes, temperature=0.1):
    """main_swav.py, train: a loop over crops."""
    total, views = 0, scores.shape[1]
    for i in range(codes.shape[1]):
        for v in range(views):
            if v != i:
                x = scores[:, v] / temperature
                log_softmax = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
                total -= np.mean(np.sum(codes[:, i] * log_softmax, axis=1)) / (views - 1)
    return total / codes.shape[1]


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.03, 1), (0.5, 10)])
def test_sinkhorn_is_the_official(epsilon, iterations):
    scores = draw()
    with jax.enable_x64(True):
        found = sinkhorn(jnp.asarray(scores), epsilon=epsilon, iterations=iterations)
        np.testing.assert_allclose(found, official_sinkhorn(scores, epsilon, iterations), rtol=1e-12)
    found = sinkhorn(scores.astype(np.float32), epsilon=epsilon, iterations=iterations)
    np.testing.assert_allclose(found, official_sinkhorn(scores, epsilon, iterations), rtol=1e-4, atol=1e-7)


def test_without_turns_nothing_is_balanced():
    """An ablation: each image's own softmax, so that one prototype may take all of them."""
    scores = draw() + 2 * np.eye(draw().shape[1])[0]
    with jax.enable_x64(True):
        found = np.asarray(sinkhorn(jnp.asarray(scores), epsilon=0.1, iterations=0))
    expected = np.exp(scores / 0.1) / np.exp(scores / 0.1).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[:, 0].sum() > 0.9 * len(scores)


def test_marginals():
    """Rows sum to 1 after any number of turns; prototypes' sums come near N/K only with many of them."""
    scores = draw(40, 6).astype(np.float32)
    # 200 turns in one program would take minutes to compile.
    few, many = sinkhorn(scores), losses.sinkhorn(scores, iterations=200)
    for codes in (few, many):
        np.testing.assert_allclose(np.sum(codes, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.sum(many, axis=0), 40 / 6, rtol=1e-4)
    assert 1e-3 < np.abs(np.sum(few, axis=0) / (40 / 6) - 1).max() < 0.5


def test_symmetries():
    """Permuted images or prototypes permute the codes; a constant added to all scores, or to an image's, changes nothing."""
    scores = draw()
    rng = np.random.default_rng(1)
    rows, columns = rng.permutation(12), rng.permutation(5)
    with jax.enable_x64(True):
        codes = np.asarray(sinkhorn(jnp.asarray(scores)))
        np.testing.assert_allclose(sinkhorn(jnp.asarray(scores[rows][:, columns])), codes[rows][:, columns], rtol=1e-12)
        np.testing.assert_allclose(sinkhorn(jnp.asarray(scores + 3)), codes, rtol=1e-10)
        np.testing.assert_allclose(sinkhorn(jnp.asarray(np.ones((6, 3)))), np.full((6, 3), 1 / 3), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
def test_no_epsilon_overflows(dtype):
    """exp(1/0.01) is above float32's largest number, and exp(1/0.05) above float16's: here logs are taken."""
    for epsilon in (0.05, 0.01, 1e-4):
        codes = np.asarray(sinkhorn(jnp.asarray(draw(16, 4), dtype), epsilon=epsilon), np.float64)
        assert np.isfinite(codes).all()
        np.testing.assert_allclose(codes.sum(axis=1), 1, rtol=1e-4)


def test_worked_case():
    """Two views sin(1+3i+j) and cos(0.5+3i+2j) of four images, five prototypes sin(2+3k+1.5j)."""
    i, j = np.mgrid[0:4, 0:3]
    k, along = np.mgrid[0:5, 0:3]
    prototypes = unit(np.sin(2 + 3 * k + 1.5 * along))
    scores = np.stack([unit(z) @ prototypes.T for z in (np.sin(1 + 3 * i + j), np.cos(0.5 + 3 * i + 2 * j))], axis=1)
    with jax.enable_x64(True):
        codes = jnp.stack([sinkhorn(jnp.asarray(scores[:, v])) for v in (0, 1)], axis=1)
        assert float(swav_loss(jnp.asarray(scores), codes)[0]) == pytest.approx(5.071859023296, abs=1e-11)
        np.testing.assert_allclose(codes[:, 0].sum(axis=0), [1.020, 0.791, 0.700, 0.786, 0.704], atol=5e-4)


def test_loss_over_all_pairs_of_crops():
    """Eight crops of which two are assigned; with two crops it is the swapped prediction of the two."""
    rng = np.random.default_rng(2)
    scores = np.stack([draw(seed=seed) for seed in range(8)], axis=1)
    codes = rng.dirichlet(np.ones(5), (12, 2))
    with jax.enable_x64(True):
        found, _ = swav_loss(jnp.asarray(scores), jnp.asarray(codes), temperature=0.2)
        assert float(found) == pytest.approx(official_loss(scores, codes, 0.2), rel=1e-12)
        two, _ = swav_loss(jnp.asarray(scores[:, :2]), jnp.asarray(codes))
        logs = [np.log(np.exp(10 * s) / np.exp(10 * s).sum(1, keepdims=True)) for s in (scores[:, 0], scores[:, 1])]
        swapped = -np.mean(np.sum(codes[:, 0] * logs[1] + codes[:, 1] * logs[0], axis=1)) / 2
        assert float(two) == pytest.approx(swapped, rel=1e-12)
    assert float(swav_loss(scores.astype(np.float32), codes.astype(np.float32))[0]) == pytest.approx(
        official_loss(scores, codes), rel=1e-5
    )


def test_gradient():
    """By finite differences; none goes to the codes."""
    scores = np.stack([draw(seed=seed) for seed in range(3)], axis=1)
    codes = np.random.default_rng(3).dirichlet(np.ones(5), (12, 2))
    with jax.enable_x64(True):
        gradients = jax.jit(jax.grad(lambda s, q: swav_loss(s, q)[0], argnums=(0, 1)))(scores, codes)
    assert not np.any(gradients[1])
    for place in ((0, 0, 0), (5, 1, 2), (11, 2, 4)):
        moved = [scores.copy(), scores.copy()]
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        slope = (official_loss(moved[0], codes) - official_loss(moved[1], codes)) / 2e-6
        assert float(gradients[0][place]) == pytest.approx(slope, rel=1e-6, abs=1e-10)


def test_start_and_floor():
    """ln K for equal scores; never below log(1 + (K-1) exp(-2/T))."""
    scores, codes = np.zeros((6, 4, 7), np.float32), np.full((6, 2, 7), 1 / 7, np.float32)
    assert float(swav_loss(scores, codes)[0]) == pytest.approx(np.log(7), rel=1e-6)
    best = np.where(np.eye(7) > 0, 1.0, -1.0)[:, None, :].repeat(2, axis=1)
    perfect = np.eye(7)[:, None, :].repeat(2, axis=1)
    with jax.enable_x64(True):
        assert float(swav_loss(jnp.asarray(best), jnp.asarray(perfect))[0]) == pytest.approx(
            swav_floor(7, 0.1), rel=1e-6
        )


def test_prototypes_in_use():
    scores = np.eye(4, 6, dtype=np.float32)
    assert float(prototypes_in_use(scores)) == pytest.approx(4)
    assert float(prototypes_in_use(np.ones((4, 1), np.float32) * scores[:1])) == pytest.approx(1)
    three_to_one = np.eye(6, dtype=np.float32)[[0, 0, 0, 1]]
    assert float(prototypes_in_use(three_to_one)) == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))


def test_assignment_over_the_devices_is_that_of_the_batch():
    """Eight devices assign the whole batch; each by itself would use every prototype equally within its own share."""
    scores = draw(32, 3).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    placed = jax.device_put(scores, NamedSharding(mesh, PartitionSpec("data")))
    found = sinkhorn(placed)
    np.testing.assert_allclose(found, official_sinkhorn(scores.astype(np.float64)), rtol=1e-4, atol=1e-7)
    shares = np.concatenate([official_sinkhorn(part.astype(np.float64)) for part in np.split(scores, 8)])
    assert np.abs(shares - np.asarray(found)).max() > 0.1, "the trap would show"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: sinkhorn(np.ones(3, np.float32)), r"scores have shape \(3,\), but must be \(N, K\)"),
        (lambda: sinkhorn(np.ones((0, 3), np.float32)), "none of them 0"),
        (lambda: sinkhorn(np.ones((2, 3), np.int32)), "scores are int32"),
        (lambda: sinkhorn(np.ones((2, 3), np.float32), epsilon=0), "epsilon is 0, but must be a positive number"),
        (lambda: sinkhorn(np.ones((2, 3), np.float32), iterations=-1), "iterations is -1, but must be at least 0"),
        (
            lambda: swav_loss(np.ones((2, 1, 3), np.float32), np.ones((2, 1, 3), np.float32)),
            r"scores have shape \(2, 1, 3\) and codes \(2, 1, 3\)",
        ),
        (lambda: swav_loss(np.ones((2, 2, 3), np.float32), np.ones((2, 2, 4), np.float32)), "A ≤ V and V ≥ 2"),
        (
            lambda: swav_loss(np.ones((2, 2, 3), np.float32), np.ones((2, 2, 3), np.float32), temperature=-1),
            "temperature is -1",
        ),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
