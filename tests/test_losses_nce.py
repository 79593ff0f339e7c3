"""bt_jax/losses/nce.py: both forms against their formulas, their closed forms, gradients, and the rows' moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import one_program

from bt_jax import losses
from bt_jax.losses import nce
from bt_jax.losses.nce import moved_rows

memory_cross_entropy = one_program(losses.memory_cross_entropy, "temperature")
memory_nce = one_program(losses.memory_nce, "num_images", "num_negatives", "temperature")
partition_constant = one_program(nce.partition_constant, "num_images", "temperature")

N, M, IMAGES = 6, 9, 40


def draw(seed=0):
    """(positive, negative, counted): cosines, with two that do not count in each row."""
    rng = np.random.default_rng(seed)
    counted = np.ones((N, M), bool)
    for row in counted:
        row[rng.choice(M, 2, replace=False)] = False
    return rng.uniform(-1, 1, N), rng.uniform(-1, 1, (N, M)), counted


def official(positive, negative, counted, *, temperature, z, form):
    """nce_loss.py, image by image: NCEAverage, then NCECriterion or CrossEntropyLoss."""
    total, k = 0.0, M - 2
    for s, others, mine in zip(positive, negative, counted, strict=True):
        scores = np.exp(np.concatenate([[s], others[mine]]) / temperature)
        if form == "cross_entropy":
            total -= np.log(scores[0] / scores.sum())
        else:
            p, noise = scores / z, k / IMAGES
            total -= np.log(p[0] / (p[0] + noise)) + np.sum(np.log(noise / (p[1:] + noise)))
    return total / N


def found(arrays, *, temperature, z, form):
    if form == "cross_entropy":
        return memory_cross_entropy(*arrays, temperature=temperature)
    return memory_nce(*arrays, num_images=IMAGES, num_negatives=M - 2, normalizer=z, temperature=temperature)


@pytest.mark.parametrize("form", ["nce", "cross_entropy"])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_formula_and_gradient(form, temperature):
    arrays, settings = draw(), {"temperature": temperature, "z": 123.0, "form": form}
    expected = official(*arrays, **settings)
    with jax.enable_x64(True):
        wide = [jnp.asarray(a) for a in arrays]
        assert float(found(wide, **settings)) == pytest.approx(expected, rel=1e-12)
        slopes = jax.jit(jax.grad(lambda p, n: found((p, n, wide[2]), **settings), argnums=(0, 1)))(*wide[:2])
        for which, place in ((0, (2,)), (1, (3, 4)), (1, (0, 0))):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [a.copy() for a in arrays]
                moved[which][place] += step
                ends.append(official(*moved, **settings))
            assert float(slopes[which][place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-8)
    narrow = [a.astype(np.float32) for a in arrays[:2]]
    assert float(found((*narrow, arrays[2]), **settings)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("k", "nce"), [(4096, 9.32), (32000, 11.37)])
def test_equal_cosines(k, nce):
    """ln(K+1), and ln(1+K) + K ln(1+1/K) with the Z of a first batch."""
    positive, negative, counted = jnp.full(2, 0.3), jnp.full((2, k), 0.3), jnp.ones((2, k), bool)
    assert float(memory_cross_entropy(positive, negative, counted)) == pytest.approx(np.log(k + 1), rel=1e-5)
    z = partition_constant(positive, negative, counted, num_images=10**6, temperature=0.07)
    assert float(z) == pytest.approx(1e6 * np.exp(0.3 / 0.07), rel=1e-4)
    loss = memory_nce(positive, negative, counted, num_images=10**6, num_negatives=k, normalizer=z)
    assert float(loss) == pytest.approx(np.log(1 + k) + k * np.log(1 + 1 / k), rel=1e-3) == pytest.approx(nce, abs=0.01)


def test_partition_constant():
    """The images' number times the mean over all cosines that count, the own rows' too; no gradient goes to it."""
    positive, negative, counted = draw()
    values = np.concatenate([positive, negative[counted]])
    with jax.enable_x64(True):
        z = partition_constant(positive, negative, counted, num_images=IMAGES, temperature=0.5)
        assert float(z) == pytest.approx(IMAGES * np.mean(np.exp(values / 0.5)), rel=1e-12)

        def constant(p):
            return partition_constant(p, jnp.asarray(negative), counted, num_images=IMAGES, temperature=0.5)

        assert not np.any(jax.grad(constant)(jnp.asarray(positive)))


def test_small_temperatures_do_not_overflow():
    positive, negative, counted = (a.astype(np.float32) if a.dtype != bool else a for a in draw())
    assert np.isfinite(memory_cross_entropy(positive, negative, counted, temperature=0.001))
    loss = memory_nce(
        positive, negative, counted, num_images=IMAGES, num_negatives=7, normalizer=100.0, temperature=0.005
    )
    assert np.isfinite(loss)


def test_moved_rows():
    """Half way, then to length 1."""
    rows, u = np.eye(2, 3, dtype=np.float32), np.eye(2, 3, k=1, dtype=np.float32)
    np.testing.assert_allclose(moved_rows(rows, u), (rows + u) / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(moved_rows(rows, u, keep=0.75), (3 * rows + u) / np.sqrt(10), rtol=1e-6)
    assert moved_rows(rows, jnp.asarray(u, jnp.bfloat16)).dtype == jnp.float32


def test_bad_input():
    positive, negative, counted = draw()
    with pytest.raises(ValueError, match=r"positive has shape \(6,\), negative \(9, 6\)"):
        memory_cross_entropy(positive, negative.T, counted.T)
    with pytest.raises(ValueError, match="cosines are int32 and float"):
        memory_cross_entropy(positive.astype(np.int64), negative, counted)
    with pytest.raises(ValueError, match="temperature is 0, but must be a positive number"):
        memory_cross_entropy(positive, negative, counted, temperature=0)
