"""bt_jax/models/norm.py against batch normalisation written out in numpy, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import relative

from bt_jax.models import ViewBatchNorm


def reference(x, scale, bias, mean, var, views):
    """One view after the other, as torch.nn.BatchNorm2d does it."""
    out = np.empty_like(x)
    for v in range(views):
        part = x[v::views]
        axes = tuple(range(part.ndim - 1))
        count = part.size // part.shape[-1]
        m, s = part.mean(axes), part.var(axes)
        out[v::views] = (part - m) / np.sqrt(s + 1e-5) * scale + bias
        mean, var = 0.9 * mean + 0.1 * m, 0.9 * var + 0.1 * s * count / (count - 1)
    return out, mean, var


@pytest.mark.parametrize(("shape", "views"), [((12, 5, 4, 3), 2), ((10, 7), 2), ((9, 3, 3, 4), 1), ((12, 6), 3)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_equals_the_reference(shape, views, offset):
    """With a mean far from zero too, where one-pass variances lose digits."""
    rng = np.random.default_rng(0)
    c = shape[-1]
    x = rng.standard_normal(shape) * rng.uniform(0.5, 2, c) + offset
    scale, bias, mean, var = (
        rng.standard_normal(c),
        rng.standard_normal(c),
        offset + rng.standard_normal(c),
        rng.random(c),
    )
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
    variables = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), variables)
    norm = ViewBatchNorm()
    train = jax.jit(lambda v, x: norm.apply(v, x, views=views, train=True, mutable=["batch_stats"]))
    out, after = train(variables, jnp.asarray(x, jnp.float32))
    expected, mean_after, var_after = reference(x, scale, bias, mean, var, views)
    assert relative(out, expected) < 1e-5
    assert relative(after["batch_stats"]["mean"], mean_after) < 1e-5
    assert relative(after["batch_stats"]["var"], var_after) < 1e-5
    evaluated = jax.jit(lambda v, x: norm.apply(v, x, views=views, train=False))(variables, jnp.asarray(x, jnp.float32))
    assert relative(evaluated, (x - mean) / np.sqrt(var + 1e-5) * scale + bias) < 1e-5


def test_gradient_is_that_of_the_definition():
    """The shift by the running mean must not leak into the gradient."""
    rng = np.random.default_rng(1)
    x, w = (jnp.asarray(rng.standard_normal((8, 3)), jnp.float32) for _ in range(2))
    variables = ViewBatchNorm().init(jax.random.key(0), x, views=2, train=False)
    variables["batch_stats"]["mean"] = jnp.asarray([0.3, -0.2, 1.0])

    def ours(x):
        return jnp.sum(w * ViewBatchNorm().apply(variables, x, views=2, train=True, mutable=["batch_stats"])[0])

    def plain(x):
        v = x.reshape(4, 2, 3)
        return jnp.sum(w.reshape(4, 2, 3) * (v - v.mean(0, keepdims=True)) / jnp.sqrt(v.var(0, keepdims=True) + 1e-5))

    assert relative(jax.jit(jax.grad(ours))(x), jax.jit(jax.grad(plain))(x)) < 1e-5


def test_one_value_has_no_variance():
    with pytest.raises(ValueError, match="no variance"):
        ViewBatchNorm().init(jax.random.key(0), jnp.zeros((2, 3)), views=2, train=True)
