"""bt_jax/evaluation/lidar.py against the paper's formula by other routes, and where it is known in closed form."""

import numpy as np
import pytest
import scipy.linalg

from bt_jax.evaluation.health import rankme
from bt_jax.evaluation.lidar import DELTA, lidar


def views(n=30, q=4, f=7, noise=0.3, seed=0):
    """Images of several scales, and noise that is not the same in all directions."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((n, 1, f)) * rng.uniform(0.2, 3, f)
    return (images + noise * rng.standard_normal((n, q, f)) @ rng.standard_normal((f, f))).astype(np.float32)


def by_loops(z, delta):
    """The generalised eigenvalue problem Σ_b v = λ Σ_w v, with every sum written out."""
    z = z.astype(np.float64)
    n, q, f = z.shape
    mean = z.reshape(-1, f).mean(axis=0)
    b, w = np.zeros((f, f)), delta * np.eye(f)
    for image in z:
        own = image.mean(axis=0)
        b += np.outer(own - mean, own - mean) / (n - 1)
        for view in image:
            w += np.outer(view - own, view - own) / (n * (q - 1))
    values = np.clip(scipy.linalg.eigh(b, w, eigvals_only=True), 0, None)
    p = values / values.sum() + 1e-15
    return np.exp(-np.sum(p * np.log(p)))


@pytest.mark.parametrize("shape", [(30, 4, 7), (6, 3, 20), (2, 2, 3), (5, 2, 1)])
@pytest.mark.parametrize("delta", [DELTA, 0.5])
def test_against_generalised_eigenvalues(shape, delta):
    """More images than features, fewer, and the smallest there are."""
    z = views(*shape)
    assert lidar(z, delta=delta) == pytest.approx(by_loops(z, delta), rel=1e-9)


def test_against_the_square_root():
    """Σ_w^(-1/2) Σ_b Σ_w^(-1/2) itself, as the paper has it."""
    z = views().astype(np.float64)
    own = z.mean(axis=1, keepdims=True)
    w = np.cov((z - own).reshape(-1, 7).T, bias=True) * 4 / 3 + DELTA * np.eye(7)
    b = np.cov(own[:, 0].T)
    root = np.linalg.inv(scipy.linalg.sqrtm(w))
    p = np.linalg.eigvalsh(root @ b @ root)
    p = p / p.sum()
    assert lidar(z) == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-8)


def test_equal_views_of_isotropic_images():
    """Σ_w is δ I: the rank is that of the images. Orthogonal directions of one length count fully, one direction as 1."""
    corners = np.concatenate([np.eye(5), -np.eye(5)])  # Σ_b is a multiple of I
    assert lidar(np.repeat(corners[:, None], 3, axis=1)) == pytest.approx(5, rel=1e-12)
    line = np.linspace(-1, 1, 9)[:, None] * np.ones(4)
    assert lidar(np.repeat(line[:, None], 2, axis=1)) == pytest.approx(1, rel=1e-9)
    simplex = np.eye(6)  # n images span n - 1 directions about their mean
    assert lidar(np.repeat(simplex[:, None], 2, axis=1)) == pytest.approx(5, rel=1e-9)


def test_noise_within_images_is_not_counted():
    """What RankMe cannot tell: two directions tell images apart, twenty only views. LiDAR is near 2, and RankMe near all."""
    rng = np.random.default_rng(0)
    images = np.concatenate([10 * rng.standard_normal((400, 1, 2)), np.zeros((400, 1, 20))], axis=2)
    z = images + np.concatenate([0.1 * rng.standard_normal((400, 10, 2)), 5 * rng.standard_normal((400, 10, 20))], 2)
    assert lidar(z) == pytest.approx(2, abs=0.1)
    assert rankme(z[:, 0]) > 15


@pytest.mark.parametrize("same", [np.zeros(4), np.full(4, 0.1, np.float32)])
def test_a_collapse_is_1(same):
    """The same features for all images: no rank of rounding errors."""
    assert lidar(np.tile(same, (8, 3, 1))) == 1.0
    rng = np.random.default_rng(0)
    assert lidar(same + 1e-8 * rng.standard_normal((8, 3, 4)) + 1) == 1.0


def test_bounds_and_what_does_not_matter():
    """From 1 to min(n - 1, F); shifts, rotations, and the order of images and views."""
    for seed, shape in enumerate([(4, 3, 9), (50, 2, 9), (9, 9, 9)]):
        z = views(*shape, seed=seed).astype(np.float64)
        found = lidar(z)
        assert 1 <= found <= min(shape[0] - 1, shape[2])
        turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((9, 9)))[0]
        assert lidar(z[::-1, ::-1] @ turn + 3) == pytest.approx(found, rel=1e-8)
    assert lidar(100 * z) == pytest.approx(lidar(z, delta=1e-8), rel=1e-8), "δ is absolute"
    assert 1 <= lidar(1e12 * z) <= 8 and 1 <= lidar(1e-12 * z) <= 8


@pytest.mark.parametrize("shape", [(3, 2), (1, 2, 3), (3, 1, 3), (3, 2, 0), (0,)])
def test_bad_shapes(shape):
    with pytest.raises(ValueError, match=r"views is .*; it must be \(n, q, F\)"):
        lidar(np.ones(shape))


def test_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        lidar(np.full((2, 2, 2), np.nan))
