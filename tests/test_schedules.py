"""bt_jax/optim/schedules.py against the official schedules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax.optim.schedules import by_epoch, paper_rates, scaled_rate, warmup_cosine
from configs.resnet50_imagenet_batch_size import LEARNING_RATES


@functools.cache
def schedules(base, **settings):
    """As a function of Python's integers, and compiled."""
    schedule = warmup_cosine(base, **settings)
    return schedule, jax.jit(schedule)


def test_golden_schedule(golden):
    """To 1e-6, from Python's integers and, traced, in float32: up to the end, where a plain cosine loses digits."""
    columns = str(golden("schedule")["columns"]).split()
    for row in golden("schedule")["rows"]:
        row = dict(zip(columns, row, strict=True))
        for group, base in (("weights", 0.2), ("biases", 0.0048)):
            settings = {k: int(row[k]) for k in ("batch_size", "steps_per_epoch", "epochs")}
            plain, compiled = schedules(base, **settings)
            expected = row[f"lr_{group}"]
            for found in (plain(int(row["step"])), compiled(jnp.int32(row["step"]))):
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


def test_scaling():
    """SimCLR's rules agree at its batch of 4096, where they are 0.3 × 4096/256 and 0.075 × √4096; the root favours small ones."""
    assert scaled_rate(0.3, 4096) == pytest.approx(scaled_rate(0.075 * 16, 4096, "sqrt")) == pytest.approx(4.8)
    assert scaled_rate(0.3, 256) == scaled_rate(0.3, 256, "sqrt") == 0.3
    assert scaled_rate(0.3, 64, "sqrt") == pytest.approx(0.15)
    lengths = {"steps_per_epoch": 10, "epochs": 20, "warmup_epochs": 5}
    found = warmup_cosine(1.2, batch_size=1024, scaling="sqrt", **lengths)
    expected = warmup_cosine(2.4, batch_size=256, **lengths)
    assert [float(found(step)) for step in (0, 20, 50, 199)] == [float(expected(step)) for step in (0, 20, 50, 199)]
    with pytest.raises(ValueError, match="scaling is 'root', but must be 'linear' or 'sqrt'"):
        scaled_rate(0.2, 256, "root")


def test_by_epoch():
    """Cosine as the official evaluate.py; ×0.2 after 12 and 16; ÷10 at two equal intervals of 14 epochs."""

    def rates(epochs, **settings):
        settings = {"schedule": "steps", "decay_epochs": (), "decay_factor": 0.1} | settings
        schedule = by_epoch(2.0, steps_per_epoch=3, epochs=epochs, **settings)
        found = np.array([schedule(step) for step in range(3 * epochs)]).reshape(epochs, 3)
        assert (found == found[:, :1]).all(), "the same within an epoch"
        return found[:, 0] / 2

    cosine = rates(100, schedule="cosine")
    np.testing.assert_allclose(cosine, (1 + np.cos(np.pi * np.arange(100) / 100)) / 2, rtol=1e-6)
    steps = rates(20, decay_epochs=(12, 16), decay_factor=0.2)
    np.testing.assert_allclose(steps, [1] * 12 + [0.2] * 4 + [0.04] * 4, rtol=1e-6)
    thirds = rates(14, decay_epochs=(14 / 3, 28 / 3))
    np.testing.assert_allclose(thirds, [1] * 5 + [0.1] * 5 + [0.01] * 4, rtol=1e-6)


def test_by_epoch_is_flat_past_its_end_and_traced_alike():
    schedule = by_epoch(0.5, steps_per_epoch=2, epochs=3, schedule="steps", decay_epochs=(1,), decay_factor=0.5)
    assert float(schedule(1000)) == float(schedule(5)) == 0.25
    assert float(jax.jit(schedule)(jnp.int32(2))) == float(schedule(2)) == 0.25


@pytest.mark.parametrize(("change", "sentence"), [
    ({"schedule": "linear"}, "schedule is 'linear', but must be 'cosine' or 'steps'"),
    ({"steps_per_epoch": 0}, "steps_per_epoch is 0, but must be at least 1"),
])  # fmt: skip
def test_by_epoch_refuses(change, sentence):
    settings = {"steps_per_epoch": 1, "epochs": 2, "schedule": "cosine", "decay_epochs": (), "decay_factor": 0.1}
    with pytest.raises(ValueError, match=sentence):
        by_epoch(0.1, **settings | change)


def test_rates_of_the_paper():
    """Its table, a geometric mean halfway between two sizes, and its ends beyond; biases 0.0048 at 2048 and 8192 columns."""
    for batch_size, rate in LEARNING_RATES.items():
        assert paper_rates(batch_size, 8192)["weights"] == pytest.approx(rate, rel=1e-5)
    assert paper_rates(2048, 8192) == {"weights": 0.2, "biases": pytest.approx(0.0048, rel=0.005)}
    for width in (64, 512, 2048, 8192, 16384):
        assert paper_rates(256, width) == {"weights": 0.4, "biases": pytest.approx(0.4 * 196 / width, rel=1e-5)}
    assert paper_rates(362, 8192)["weights"] == pytest.approx(np.sqrt(0.4 * 0.3), rel=1e-3)
    assert [paper_rates(n, 8192)["weights"] for n in (2, 64, 8192)] == [1.0, 1.0, 0.2]
    rates = [paper_rates(n, 8192)["weights"] for n in range(32, 5000, 7)]
    assert (np.diff(rates) <= 0).all()
