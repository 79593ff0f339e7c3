"""bt_jax/optim/lars.py against the official optimiser."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from recipes import relative

from bt_jax.optim import lars, warmup_cosine
from bt_jax.optim.lars import _scale_by_trust_ratio


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


def test_rate_in_momentum_is_the_official_simclr_order():
    """Against the formulas in float64: v = momentum · v + rate · trust · (g + decay · w), w = w - v; biases plainly."""
    rng, rates = np.random.default_rng(0), (0.3, 0.5, 0.1)
    w, b = rng.standard_normal((3, 4)), rng.standard_normal(4)
    with jax.enable_x64(True):
        schedule = optax.piecewise_constant_schedule(0.3, {1: 0.5 / 0.3, 2: 0.2})
        transform = lars(schedule, schedule, weight_decay=0.1, trust_coefficient=0.02, rate_in_momentum=True)
        params = {"w": jnp.asarray(w), "b": jnp.asarray(b)}
        state = transform.init(params)
        velocity = {"w": 0.0, "b": 0.0}
        for rate in rates:
            gw, gb = rng.standard_normal((3, 4)), rng.standard_normal(4)
            updates, state = transform.update({"w": jnp.asarray(gw), "b": jnp.asarray(gb)}, state, params)
            params = optax.apply_updates(params, updates)
            u = gw + 0.1 * w
            velocity["w"] = 0.9 * velocity["w"] + rate * 0.02 * np.linalg.norm(w) / np.linalg.norm(u) * u
            velocity["b"] = 0.9 * velocity["b"] + rate * gb
            w, b = w - velocity["w"], b - velocity["b"]
            assert relative(params["w"], w) < 1e-12 and relative(params["b"], b) < 1e-12


def test_clipped_ratios_are_solo_learn_s():
    """Against its formulas in float64, with ratios below the rate and above it, a rate that changes, and one of 0."""
    rng, rates, scales = np.random.default_rng(2), (0.0, 0.3, 0.001, 0.1), {"near": 1.0, "far": 1e-3}
    with jax.enable_x64(True):
        schedule = lambda step: jnp.asarray(rates)[step]  # noqa: E731
        w = {name: rng.standard_normal((3, 4)) for name in scales} | {"bias": rng.standard_normal(4)}
        transform = lars(schedule, schedule, weight_decay=0.0, trust_coefficient=0.02, clip=True)
        params = jax.tree.map(jnp.asarray, w)
        state, velocity, clipped = transform.init(params), dict.fromkeys(w, 0.0), []
        for rate in rates:
            g = {name: scales.get(name, 1.0) * rng.standard_normal(w[name].shape) for name in w}
            updates, state = transform.update(jax.tree.map(jnp.asarray, g), state, params)
            params = optax.apply_updates(params, updates)
            for name in w:
                ratio = 1.0
                if name != "bias":
                    ratio = 0.02 * np.linalg.norm(w[name]) / np.linalg.norm(g[name])
                    clipped.append(ratio >= rate)
                    ratio = min(ratio / rate, 1) if rate else 1.0
                velocity[name] = 0.9 * velocity[name] + ratio * g[name]
                w[name] = w[name] - rate * velocity[name]
                assert relative(params[name], w[name]) < 1e-12, (rate, name)
    assert set(clipped) == {True, False}
    constant = lars(0.1, 0.1, clip=True)
    updates, _ = constant.update(
        {"w": 5 * jnp.ones((2, 2))}, constant.init({"w": jnp.ones((2, 2))}), {"w": jnp.ones((2, 2))}
    )
    np.testing.assert_allclose(updates["w"], -0.1 * (0.001 * 2 / 10 / 0.1) * 5 * np.ones((2, 2)), rtol=1e-3)


def test_trust_ratio_is_optax_s_with_half_the_norms():
    """The same bits and the same state, also where a weight or its gradient is zero; two norms a weight, not four."""
    rng = np.random.default_rng(1)
    params = {n: jnp.asarray(rng.standard_normal((7, 5)), jnp.float32) for n in "abc"} | {"zero": jnp.zeros((7, 5))}
    gradients = jax.tree.map(lambda p: 3 * p + 1, params) | {"c": jnp.zeros((7, 5))}
    theirs, ours = optax.scale_by_trust_ratio(trust_coefficient=0.02), _scale_by_trust_ratio(0.02)
    results, reductions = [], []
    for transform in (theirs, ours):
        state = transform.init(params)
        results.append(jax.jit(transform.update)(gradients, state, params))
        reductions.append(str(jax.make_jaxpr(transform.update)(gradients, state, params)).count("name=norm"))
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    assert reductions == [4 * len(params), 2 * len(params)]
