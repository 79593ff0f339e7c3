"""bt_jax/optim/make.py: from the settings of a run to its optimiser and rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax import config as config_lib
from bt_jax.errors import UserError
from bt_jax.facts import Facts
from bt_jax.optim import make_optimizer

FACTS = Facts(num_examples=1024, num_classes=10, batch_size=256, epochs=20)  # 4 steps an epoch
SGD = {
    "name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "schedule": "steps",
    "decay_epochs": (8, 16), "decay_factor": 0.1, "warmup_epochs": 2,
}  # fmt: skip


def test_gradient_divisor():
    """It divides the step of biases, and nothing that LARS adapts without decay."""
    config = config_lib.default().optimizer
    config.weight_decay = 0.0
    params, gradients = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, {"w": jnp.full((3, 2), 0.3), "b": jnp.full(2, 0.3)}
    updates = {}
    for divisor in (1.0, 16.0):
        config.gradient_divisor = divisor
        optimizer = make_optimizer(config, FACTS)
        state = optimizer.init(params)
        for _ in range(3):
            updates[divisor], state = optimizer.update(gradients, state, params)
    np.testing.assert_allclose(updates[16.0]["w"], updates[1.0]["w"], rtol=1e-5)
    np.testing.assert_allclose(updates[16.0]["b"] * 16, updates[1.0]["b"], rtol=1e-5)


def test_lars_is_described():
    """Effective rates, the divisor, and the schedule, as in a run's summary."""
    config = config_lib.default().optimizer
    config.gradient_divisor = 16.0
    optimizer = make_optimizer(config, Facts(num_examples=4096, num_classes=10, batch_size=2048, epochs=20))
    assert optimizer.description == (
        "weights 1.6 = 0.2 × 2048/256, biases 0.0384 = 0.0048 × 2048/256,\n"
        "gradients divided by 16; warm-up 10 epochs, then cosine"
    )
    assert list(optimizer.schedules) == ["weights", "biases"]


def test_lars_of_simclr_is_described():
    config = config_lib.default().optimizer
    config.update(scaling="sqrt", learning_rate_weights=1.2, learning_rate_biases=1.2, rate_in_momentum=True)
    optimizer = make_optimizer(config, Facts(num_examples=4096, num_classes=10, batch_size=4096, epochs=20))
    assert optimizer.description == (
        "weights 4.8 = 1.2 × √(4096/256), biases 4.8 = 1.2 × √(4096/256),\n"
        "gradients divided by 1; warm-up 10 epochs, then cosine; the rate enters the momentum"
    )
    assert float(optimizer.schedules["weights"](10)) == pytest.approx(4.8)


def test_clipped_lars_is_described_and_used():
    config = config_lib.default().optimizer
    config.clip = True
    optimizer = make_optimizer(config, Facts(num_examples=4096, num_classes=10, batch_size=4096, epochs=20))
    assert optimizer.description.endswith("then cosine; trust ratios are clipped")
    config.clip = False
    without = make_optimizer(config, Facts(num_examples=4096, num_classes=10, batch_size=4096, epochs=20))
    params, steps = {"w": jnp.ones((2, 2))}, []
    for made in (optimizer, without):
        state = made.init(params)
        for _ in range(3):
            update, state = made.update({"w": jnp.ones((2, 2))}, state, params)
        steps.append(float(update["w"][0, 0]))
    assert steps[0] != steps[1]


def test_the_papers_rates_are_described():
    """The rates of the fields are not used; a size outside of the paper's table says so; biases depend on the width."""
    config = config_lib.default().optimizer
    config.update(rates="paper", learning_rate_weights=9.0)
    facts = Facts(num_examples=4096, num_classes=10, batch_size=256, epochs=20)
    optimizer = make_optimizer(config, facts, width=1024)
    assert optimizer.description == (
        "weights 0.4 = 0.4 × 256/256, biases 0.0765625 = 0.0765625 × 256/256,\n"
        "the paper's for a batch of 256; biases 196/1024 of weights,\n"
        "gradients divided by 1; warm-up 10 epochs, then cosine"
    )
    assert float(optimizer.schedules["weights"](160)) == pytest.approx(0.4)
    assert float(optimizer.schedules["biases"](160)) == pytest.approx(0.4 * 196 / 1024)
    facts = Facts(num_examples=4096, num_classes=10, batch_size=32, epochs=20)
    small = make_optimizer(config, facts, width=8192)
    assert "weights 0.125 = 1 × 32/256" in small.description and "which it has not tried" in small.description
    with pytest.raises(UserError, match="the method has no attribute `width`; give it one, or set the rates"):
        make_optimizer(config, facts)


def test_sgd_with_one_rate():
    """Linear warm-up to the peak, then steps at their epochs; the rate is for a batch of 256."""
    optimizer = make_optimizer(SGD, FACTS)
    rates = [float(optimizer.schedules["weights"](step)) for step in range(80)]
    np.testing.assert_allclose(rates[:9], 0.1 * np.minimum(np.arange(9) / 8, 1), rtol=1e-6)
    np.testing.assert_allclose(
        rates[8:32] + rates[32:64] + rates[64:], [0.1] * 24 + [0.01] * 32 + [0.001] * 16, rtol=1e-6
    )
    params = {"encoder": {"kernel": jnp.ones((2, 2))}, "classifier": {"bias": jnp.ones(2)}}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert not any(u.any() for u in jax.tree.leaves(updates)), "the first rate of the warm-up is 0"
    assert "warm-up 2 epochs, then ×0.1 after epochs 8, 16" in optimizer.description


def test_sgd_with_a_rate_for_each_part():
    settings = {
        **SGD,
        "learning_rates": {"classifier": 0.3, "encoder": 0.005},
        "warmup_epochs": 0,
        "schedule": "cosine",
    }
    optimizer = make_optimizer(settings, FACTS)
    assert [float(schedule(0)) for schedule in optimizer.schedules.values()] == pytest.approx([0.3, 0.005])
    assert "classifier 0.3 = 0.3 × 256/256, encoder 0.005 = 0.005 × 256/256" in optimizer.description


def test_adamw_is_described():
    """One rate for all parameters, which rises over the warm-up and falls to the end factor."""
    config = config_lib.default(optimizer="adamw").optimizer
    config.update(warmup_epochs=5, end_factor=0.01)
    optimizer = make_optimizer(config, Facts(num_examples=4096, num_classes=10, batch_size=1024, epochs=20))
    assert optimizer.description == (
        "all parameters 0.0006 = 0.00015 × 1024/256;\nAdamW, betas 0.9 and 0.999, weight decay 0.1; warm-up 5 epochs, then cosine"
    )
    rates = [float(optimizer.schedules["weights"](step)) for step in (0, 10, 20, 80)]
    assert rates == pytest.approx([0, 3e-4, 6e-4, 6e-6])


def test_equal_settings_are_equal():
    """So that a compiled step can be cached by what it was made of."""
    assert make_optimizer(SGD, FACTS) == make_optimizer(dict(SGD), FACTS)
    assert hash(make_optimizer(SGD, FACTS)) == hash(make_optimizer(dict(SGD), FACTS))
    assert make_optimizer(SGD, FACTS) != make_optimizer({**SGD, "momentum": 0.8}, FACTS)


def test_too_short_for_the_warm_up():
    config = config_lib.default().optimizer
    with pytest.raises(ValueError, match="epochs is 10, but must be more than the warmup_epochs, 10"):
        make_optimizer(config, Facts(num_examples=1024, num_classes=10, batch_size=256, epochs=10))
