"""bt_jax/evaluation/health.py against the papers' formulas in plain numpy."""

import numpy as np
import pytest

from bt_jax.evaluation.health import alignment, health, is_dead, mean_correlation, rank_in_words, rankme, uniformity


def features(n=80, f=12, seed=0):
    """Correlated, of several scales, all of them above zero as after a ReLU."""
    rng = np.random.default_rng(seed)
    return np.abs(rng.standard_normal((n, f)) @ rng.standard_normal((f, f)) * rng.uniform(0.1, 10, f)).astype(
        np.float32
    )


@pytest.mark.parametrize("shape", [(80, 12), (12, 80)])
def test_rankme(shape):
    """From singular values, as the paper has it; more features than images too."""
    z = features(*shape)
    sigma = np.linalg.svd(z.astype(np.float64), compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    assert rankme(z) == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-6)
    assert rankme(1e-30 * z.astype(np.float64)) == pytest.approx(rankme(z), rel=1e-6), "scale does not matter"


def test_rankme_of_known_ranks():
    """For n orthogonal directions of one length it is n; for one direction 1."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((50, 7)))[0]
    assert rankme(q) == pytest.approx(7, rel=1e-4)
    assert rankme(np.outer(rng.standard_normal(50), rng.standard_normal(9))) == pytest.approx(1, rel=1e-4)
    with pytest.raises(ValueError, match="all features are zero"):
        rankme(np.zeros((3, 2)))


def test_mean_correlation():
    """The mean of what np.corrcoef has off its diagonal; dead features are left out."""
    z = features()
    c = np.abs(np.corrcoef(z.astype(np.float64), rowvar=False))
    expected = c[~np.eye(12, dtype=bool)].mean()
    assert mean_correlation(z) == pytest.approx(expected, rel=1e-9)
    with_dead = np.concatenate([z, np.zeros((80, 2)), np.full((80, 1), 3.0)], axis=1)
    assert is_dead(with_dead).tolist() == [False] * 12 + [True] * 3
    assert mean_correlation(with_dead) == pytest.approx(expected, rel=1e-9)
    assert mean_correlation(with_dead[:, 12:]) == 0.0
    assert is_dead(np.ones((4, 3))).all()


def test_alignment_and_uniformity():
    """Over all pairs, written out; blocks that do not divide change nothing."""
    a, b = features(30, seed=1).astype(np.float64), features(30, seed=2).astype(np.float64)
    unit_a, unit_b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b))
    assert alignment(a, b) == pytest.approx(np.mean(((unit_a - unit_b) ** 2).sum(axis=1)), rel=1e-9)
    assert alignment(a, 5 * a) == pytest.approx(0, abs=1e-12)
    squares = [((unit_a[i] - unit_a[j]) ** 2).sum() for i in range(30) for j in range(i)]
    for block in (7, 64):
        assert uniformity(a, block=block) == pytest.approx(np.log(np.mean(np.exp(-2 * np.array(squares)))), rel=1e-9)
    assert uniformity(np.ones((5, 3))) == pytest.approx(0, abs=1e-9), "collapsed: the worst there is"


def test_all_of_it_by_name():
    z = features()
    assert health(z).keys() == {"rankme", "mean_correlation", "dead_features"}
    found = health(z, (z[:9], z[:9]))
    assert found["alignment"] == 0 and found["uniformity"] == uniformity(z[:9])


def test_features_that_are_all_zero():
    """A collapse too, which a run must be able to report."""
    found = health(np.zeros((9, 4)), (np.zeros((9, 4)),) * 2)
    assert found["rankme"] == 0 and found["dead_features"] == 4 and np.isfinite(list(found.values())).all()
    assert rank_in_words(found["rankme"], 4).startswith("the features have collapsed to about 0.0 of 4")


@pytest.mark.parametrize("bad", [np.ones(3), np.ones((0, 3)), np.array([[np.nan, 1.0], [1, 1]])])
def test_bad_input(bad):
    with pytest.raises(ValueError, match="features"):
        rankme(bad)
    with pytest.raises(ValueError, match="features"):
        health(bad)


def test_bad_pairs():
    with pytest.raises(ValueError, match=r"both must be \(n, F\)"):
        alignment(np.ones((2, 3)), np.ones((3, 3)))
    with pytest.raises(ValueError, match="needs at least 2"):
        uniformity(np.ones((1, 3)))


def test_rank_in_words():
    """Below 2, or 1 % of a wide feature vector, however it came about; a random encoder is far from it."""
    assert rank_in_words(1.7, 128).startswith("the features have collapsed to about 1.7 of 128 dimensions")
    assert rank_in_words(19.0, 2048) and not rank_in_words(2.1, 128) and not rank_in_words(25.0, 2048)
    direction = np.random.default_rng(0).standard_normal(64)
    same = 3 + np.outer(np.random.default_rng(1).standard_normal(100), direction) * 1e-4
    assert rank_in_words(rankme(same), 64)
    assert not rank_in_words(rankme(np.random.default_rng(2).standard_normal((100, 64))), 64)
