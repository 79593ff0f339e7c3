"""bt_jax/evaluation/redundancy.py: against numpy's own correlations and eigenvalues."""

import numpy as np
import pytest

from bt_jax.evaluation import redundancy
from bt_jax.evaluation.redundancy import cross_correlation, spectrum


@pytest.mark.parametrize(("width", "shown"), [(6, 128), (40, 10)])
def test_cross_correlation(width, shown, monkeypatch):
    """In several blocks; the matrix is at evenly spread columns, the counts are of all others."""
    monkeypatch.setattr(redundancy, "_BLOCK", 7)
    rng = np.random.default_rng(0)
    a = rng.normal(3, 2, (50, width))
    b = a + rng.normal(0, 1, a.shape)
    whole = np.corrcoef(a.T, b.T)[:width, width:]
    found = cross_correlation(a, b, shown=shown)
    columns = np.arange(min(width, shown)) * width // min(width, shown)
    np.testing.assert_allclose(found.matrix, whole[np.ix_(columns, columns)], atol=1e-4)
    np.testing.assert_allclose(found.diagonal, np.diag(whole), atol=1e-4)
    assert found.counts.sum() == width * (width - 1)
    off = whole[~np.eye(width, dtype=bool)]
    middle = found.counts.reshape(20, 10).sum(axis=1) - np.histogram(off, np.linspace(-1, 1, 21))[0]
    assert np.abs(middle).sum() <= 2, "rounding at an edge"


def test_a_constant_column_correlates_with_nothing():
    a = np.stack([np.ones(20), np.arange(20.0)], 1)
    found = cross_correlation(a, a)
    np.testing.assert_allclose(found.matrix, [[0, 0], [0, 1]], atol=1e-3)


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_spectrum(shape):
    x = np.random.default_rng(1).normal(size=shape) * np.linspace(1, 3, shape[1])
    expected = np.sort(np.linalg.eigvalsh(np.cov(x.T, bias=True)))[::-1][: min(shape)]
    np.testing.assert_allclose(spectrum(x), expected, rtol=1e-4, atol=1e-5)
    assert len(spectrum(np.ones((3000, 2)), most=100)) == 2
