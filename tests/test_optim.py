"""bt_jax/optim/recipe.py against the official optimiser and schedule."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recipes import relative

from bt_jax import config as config_lib
from bt_jax.optim.recipe import lars, make_optimizer, warmup_cosine


def test_golden_lars(golden):
    """Sixty official steps in float64 to 1e-9, with biases and a parameter that starts at zero."""
    results = golden("lars")
    settings = json.loads(str(results["settings"]))
    lengths = {k: settings[k] for k in ("batch_size", "steps_per_epoch", "epochs", "warmup_epochs")}
    names = [k.removeprefix("init_") for k in results if k.startswith("init_")]
    with jax.enable_x64(True):
        params = {n: jnp.asarray(results[f"init_{n}"]) for n in names}
        transform = lars(
            warmup_cosine(settings["base_lr_weights"], **lengths),
            warmup_cosine(settings["base_lr_biases"], **lengths),
            weight_decay=settings["weight_decay"],
            momentum=settings["momentum"],
            trust_coefficient=settings["trust_coefficient"],
        )
        state = transform.init(params)
        compared = 0
        for step in range(60):
            gradients = {n: jnp.asarray(results[f"grad_{step}_{n}"]) for n in names}
            updates, state = transform.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            for n in names:
                if f"param_{step}_{n}" in results:
                    assert relative(params[n], results[f"param_{step}_{n}"]) < 1e-9, (step, n)
                    compared += 1
    assert compared >= 5 * len(names)


def test_golden_schedule(golden):
    """To 1e-6, from Python's integers and, traced, in float32: to the very end, where a plain cosine loses digits."""
    columns = str(golden("schedule")["columns"]).split()
    for row in golden("schedule")["rows"]:
        row = dict(zip(columns, row, strict=True))
        for group, base in (("weights", 0.2), ("biases", 0.0048)):
            settings = {k: int(row[k]) for k in ("batch_size", "steps_per_epoch", "epochs")}
            schedule = warmup_cosine(base, **settings)
            expected = row[f"lr_{group}"]
            for found in (schedule(int(row["step"])), jax.jit(schedule)(jnp.int32(row["step"]))):
                assert float(found) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_schedule_shape():
    """From 0, its peak at the end of the warm-up, falling after, and flat past the end."""
    schedule = warmup_cosine(0.2, batch_size=512, steps_per_epoch=10, epochs=20, warmup_epochs=5)
    rates = np.array([schedule(step) for step in range(200)])
    assert rates[0] == 0 and rates.argmax() == 50 and rates[50] == pytest.approx(0.4)
    assert (np.diff(rates[:51]) > 0).all() and (np.diff(rates[50:]) < 0).all()
    assert schedule(200) == schedule(10**6) == pytest.approx(0.4e-3)
    assert warmup_cosine(1.0, batch_size=256, steps_per_epoch=1, epochs=2, warmup_epochs=0)(0) == 1
    with pytest.raises(ValueError, match="epochs is 10, but must be more than the warmup_epochs, 10"):
        warmup_cosine(0.2, batch_size=256, steps_per_epoch=1, epochs=10)


def test_rate_comes_after_momentum():
    """What `optax.lars` does differently: a rate that falls to zero stops the parameters at once."""
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    fall = optax.piecewise_constant_schedule(1.0, {1: 0.0})
    transform = lars(fall, fall)
    state = transform.init(params)
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, state = transform.update(gradients, state, params)
    assert all((u != 0).all() for u in jax.tree.leaves(updates))
    updates, state = transform.update(gradients, state, params)
    assert not any(u.any() for u in jax.tree.leaves(updates))


def test_gradient_divisor():
    """It divides what biases feel, and nothing that LARS adapts without decay."""
    config = config_lib.default().optimizer
    config.weight_decay = 0.0
    params, gradients = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, {"w": jnp.full((3, 2), 0.3), "b": jnp.full(2, 0.3)}
    updates = {}
    for divisor in (1.0, 16.0):
        config.gradient_divisor = divisor
        optimizer = make_optimizer(config, batch_size=256, steps_per_epoch=4, epochs=20)
        state = optimizer.init(params)
        for _ in range(3):
            updates[divisor], state = optimizer.update(gradients, state, params)
    np.testing.assert_allclose(updates[16.0]["w"], updates[1.0]["w"], rtol=1e-5)
    np.testing.assert_allclose(updates[16.0]["b"] * 16, updates[1.0]["b"], rtol=1e-5)
