"""bt_jax/evaluation/cached_probe.py against scikit-learn's logistic regression on the same features."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from bt_jax.data.order import permutation
from bt_jax.evaluation.cached_probe import CachedProbe, standardizer


def mesh_of(devices):
    return jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])


def classes(n, seed, f=24, c=5):
    """Overlapping classes, features of very different scales, one of them dead."""
    centres = np.random.default_rng(99).standard_normal((c, f))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, n)
    scale = np.logspace(-2, 2, f)
    scale[3] = 0
    return ((centres[labels] + 2 * rng.standard_normal((n, f))) * scale).astype(np.float32), labels


@pytest.fixture(scope="module")
def probe():
    return CachedProbe(*classes(601, 0), num_classes=5, mesh=mesh_of(8))


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_equals_scikit_learn(probe, l2):
    """The same weights, and so the same accuracy: 0.2 points are allowed; here not one image of 1001 differs."""
    x, y = classes(601, 0)
    test, labels = classes(1001, 1)
    expected = LogisticRegression(C=1 / (601 * l2), tol=1e-10, max_iter=10000).fit(probe.standardized(x), y)
    found = probe.fit(l2)
    centred = found["kernel"] - found["kernel"].mean(axis=1, keepdims=True)  # all classes may be moved together
    np.testing.assert_allclose(centred.T, expected.coef_ - expected.coef_.mean(axis=0), atol=3e-3)
    top1 = probe.count(found, test, labels).result()["top1"]
    assert abs(top1 - expected.score(probe.standardized(test), labels)) <= 0.001


def test_the_devices_make_no_difference(probe):
    """On 1 and 8, with 601 images, which 8 does not divide: the same classifier, and the same hits in sets of 1, 7 and 1000."""
    alone = CachedProbe(*classes(601, 0), num_classes=5, mesh=mesh_of(1))
    fits = [p.fit_best((1e-3, 1e-1), seed=3) for p in (probe, alone)]
    np.testing.assert_allclose(fits[0][0]["kernel"], fits[1][0]["kernel"], atol=2e-3)
    assert fits[0][1:] == fits[1][1:]
    for m in (1, 7, 1000):
        test, labels = classes(m, 1)
        counts = [p.count(fits[0][0], test, labels) for p in (probe, alone)]
        assert counts[0].images == m
        assert (counts[0].top1, counts[0].top5) == (counts[1].top1, counts[1].top5)


def test_l2_is_chosen_on_held_out_train_images(probe):
    """By scikit-learn's accuracies on them when it is fitted on the others; then all are fitted. What is held out follows from the seed."""
    x, y = classes(150, 0)
    noisy, l2s = CachedProbe(x, y, num_classes=5, mesh=mesh_of(8)), (1e-6, 0.03, 100.0)
    classifier, l2, accuracy = noisy.fit_best(l2s, held_out=0.3, seed=4)
    held = np.isin(np.arange(150), permutation(4, 0, 150)[:45])
    z, expected = noisy.standardized(x), {}
    for value in l2s:
        peer = LogisticRegression(C=1 / (105 * value), tol=1e-10, max_iter=10000).fit(z[~held], y[~held])
        expected[value] = peer.score(z[held], y[held])
        assert value > 1 or peer.score(z[~held], y[~held]) > expected[value] + 0.1, "the two parts cannot be confused"
    assert accuracy == pytest.approx(expected, abs=0.03) and l2 == max(accuracy, key=accuracy.get)
    assert len(set(accuracy.values())) == 3
    np.testing.assert_allclose(classifier["kernel"], noisy.fit(l2)["kernel"], atol=3e-3)
    found = [probe.fit_best((1e-3,), seed=seed)[2][1e-3] for seed in (1, 1, 2, 3, 4)]
    assert found[0] == found[1] and len(set(found)) > 1


def test_standardizer():
    """Mean 0 and deviation 1, by numpy in float64; a dead feature stays as it is."""
    x, _ = classes(100, 0)
    mean, deviation = standardizer(x)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.delete(deviation, 3), np.delete(wide.std(axis=0), 3), rtol=1e-5)
    assert deviation[3] == 1


def test_bad_input():
    with pytest.raises(ValueError, match=r"must be \(n, F\) and \(n,\)"):
        CachedProbe(np.ones((3, 2), np.float32), np.zeros(2, int), num_classes=2, mesh=mesh_of(1))
    with pytest.raises(ValueError, match="cannot be both fitted and held out"):
        CachedProbe(np.ones((1, 2), np.float32), np.zeros(1, int), num_classes=2, mesh=mesh_of(1)).fit_best((1.0,))
