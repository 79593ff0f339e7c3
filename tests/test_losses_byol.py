"""bt_jax/losses/byol.py: the loss against its formula, and the target's moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import one_program

from bt_jax import losses
from bt_jax.losses import byol
from bt_jax.losses.byol import moved_towards

byol_loss = one_program(losses.byol_loss)
moving_average_rate = one_program(byol.moving_average_rate, "start", "total_steps", "end")


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def reference(p_a, p_b, t_a, t_b):
    return np.mean(np.sum((unit(p_a) - unit(t_b)) ** 2, 1) + np.sum((unit(p_b) - unit(t_a)) ** 2, 1))


def draw(seed=0):
    return np.random.default_rng(seed).standard_normal((4, 6, 5))


def test_formula_in_float64():
    p_a, p_b, t_a, t_b = draw()
    expected = reference(p_a, p_b, t_a, t_b)
    cosines = np.sum(unit(p_a) * unit(t_b), 1) + np.sum(unit(p_b) * unit(t_a), 1)
    assert expected == pytest.approx(np.mean(4 - 2 * cosines))
    with jax.enable_x64(True):
        arrays = [jnp.asarray(z) for z in (p_a, p_b, t_a, t_b)]
        assert float(byol_loss(*arrays)) == pytest.approx(expected, rel=1e-13)
        gradient = jax.jit(jax.grad(byol_loss, argnums=(0, 1, 2, 3)))(*arrays)
        assert not np.any(gradient[2]) and not np.any(gradient[3]), "no gradient goes to the targets"
        step, place = 1e-6, (2, 3)
        for which in (0, 1):
            moved = [np.array(z) for z in (p_a, p_b, t_a, t_b)]
            moved[which][place] += step
            up = reference(*moved)
            moved[which][place] -= 2 * step
            assert float(gradient[which][place]) == pytest.approx((up - reference(*moved)) / (2 * step), rel=1e-7)
    assert float(byol_loss(*(z.astype(np.float32) for z in (p_a, p_b, t_a, t_b)))) == pytest.approx(expected, rel=1e-6)


def test_worked_case():
    """Predictions 2 za + 0.3 and zb - 0.2 of za = sin(1+3i+j), zb = cos(0.5+3i+2j)."""
    i, j = np.mgrid[0:4, 0:3]
    with jax.enable_x64(True):
        z_a, z_b = jnp.asarray(np.sin(1 + 3 * i + j)), jnp.asarray(np.cos(0.5 + 3 * i + 2 * j))
        assert float(byol_loss(2 * z_a + 0.3, z_b - 0.2, z_a, z_b)) == pytest.approx(4.31536202247343, abs=1e-13)


def test_identities():
    """0 for equal directions, 4 for orthogonal and 8 for opposite ones; lengths and the views' order do not matter."""
    z = np.eye(4, dtype=np.float32)
    other = np.roll(z, 1, axis=1)
    assert float(byol_loss(z, 3 * z, 0.1 * z, z)) == pytest.approx(0, abs=1e-6)
    assert float(byol_loss(z, z, other, other)) == pytest.approx(4)
    assert float(byol_loss(z, z, -z, -z)) == pytest.approx(8)
    p_a, p_b, t_a, t_b = draw(1).astype(np.float32)
    assert float(byol_loss(p_a, p_b, t_a, t_b)) == pytest.approx(float(byol_loss(p_b, p_a, t_b, t_a)), rel=1e-6)
    zero = np.zeros((4, 4), np.float32)
    assert np.isfinite(jax.jit(jax.grad(byol_loss))(zero, z, z, z)).all()


def test_moving_average_rate():
    """τ is its start at step 0, half way to 1 in the middle, and 1 at the end and after it; by the step, from 0."""
    for total in (10, 100_000):
        tau = [1 - float(moving_average_rate(0.99, step, total)) for step in (0, total // 2, total, 2 * total)]
        assert tau == pytest.approx([0.99, 0.995, 1, 1], abs=1e-8)
        steps = np.arange(0, total, max(total // 7, 1))
        expected = (1 - 0.99) * (np.cos(np.pi * steps / total) + 1) / 2
        np.testing.assert_allclose([moving_average_rate(0.99, s, total) for s in steps], expected, rtol=1e-5, atol=1e-9)
    constant = [float(moving_average_rate(0.0, step, 10, end=0.0)) for step in (0, 5, 10)]
    assert constant == [1.0, 1.0, 1.0], "with τ = 0 the target is the online network"
    assert 1 - float(moving_average_rate(0.9, 5, 10, end=0.95)) == pytest.approx(0.925)
    near_end = float(moving_average_rate(0.996, 99_999, 100_000))
    assert near_end == pytest.approx(0.004 * (np.pi / 2 / 100_000) ** 2, rel=1e-3), (
        "1 - τ keeps its digits near the end"
    )


def test_moved_towards():
    """ξ + (1-τ)(θ-ξ); a bfloat16 online network does not make the target bfloat16, where it would never move."""
    target, online = {"w": jnp.ones(3)}, {"w": jnp.full(3, 2.0, jnp.bfloat16)}
    moved = moved_towards(target, online, jnp.float32(0.001))
    assert moved["w"].dtype == jnp.float32
    np.testing.assert_allclose(moved["w"], 1.001, rtol=1e-6)


def test_bad_input():
    z = np.ones((4, 3), np.float32)
    with pytest.raises(
        ValueError, match=r"p_a has shape \(4, 3\) and t_b \(4, 2\), but the two views must have the same"
    ):
        byol_loss(z, z, z, z[:, :2])
    with pytest.raises(ValueError, match=r"p_a has shape \(4, 3\) and p_b \(2, 3\)"):
        byol_loss(z, z[:2], z[:2], z)
    with pytest.raises(ValueError, match="t_a is int32"):
        byol_loss(z, z, z.astype(np.int32), z)
    with pytest.raises(ValueError, match="at least 2 rows"):
        byol_loss(z[:1], z[:1], z[:1], z[:1])
