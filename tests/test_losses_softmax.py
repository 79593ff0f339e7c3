"""bt_jax/losses/softmax.py against numpy and PyTorch's formula in float64, and on any number of devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import one_program

from bt_jax import losses
from bt_jax.losses.softmax import smoothed_entropy
from bt_jax.runtime import mesh as mesh_lib

softmax_cross_entropy = one_program(losses.softmax_cross_entropy, "label_smoothing")


def draw(n=6, k=5, seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    return scale * rng.standard_normal((n, k)), rng.integers(0, k, n)


def reference(logits, labels, smoothing):
    """The loss and its gradient, from the targets and the probabilities."""
    n, k = logits.shape
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    q = np.full((n, k), smoothing / k)
    q[np.arange(n), labels] += 1 - smoothing
    return -(q * np.log(p)).sum(1).mean(), (p - q) / n


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_against_numpy(smoothing):
    """Value and gradient to 1e-12 in float64, and 1e-5 in float32."""
    logits, labels = draw()
    expected, gradient = reference(logits, labels, smoothing)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        with jax.enable_x64(dtype == np.float64):

            def loss(z):
                return softmax_cross_entropy(z, jnp.asarray(labels), label_smoothing=smoothing)[0]

            value, found = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logits, dtype))
        assert value.dtype == found.dtype == dtype
        np.testing.assert_allclose(value, expected, rtol=tolerance)
        np.testing.assert_allclose(found, gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_by_finite_differences(smoothing):
    logits, labels = draw()
    with jax.enable_x64(True):

        def loss(z):
            return softmax_cross_entropy(jnp.asarray(z), jnp.asarray(labels), label_smoothing=smoothing)[0]

        gradient = np.asarray(jax.jit(jax.grad(loss))(logits))
        step = 1e-6
        for place in np.ndindex(logits.shape):
            moved = np.zeros_like(logits)
            moved[place] = step
            difference = float(loss(logits + moved) - loss(logits - moved)) / (2 * step)
            assert difference == pytest.approx(gradient[place], abs=1e-9)


def test_accuracy():
    logits = jnp.asarray([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 2.0], [5.0, 1.0, 4.0]])
    _, parts = softmax_cross_entropy(logits, jnp.asarray([0, 2, 1, 2]))
    assert float(parts["accuracy"]) == 0.75


def test_large_logits_and_bfloat16():
    """No overflow, and bfloat16 logits give a float32 loss."""
    loss, parts = softmax_cross_entropy(jnp.asarray([[1e4, 0.0], [0.0, 1e4]]), jnp.asarray([0, 0]))
    assert float(loss) == 5e3
    loss, parts = softmax_cross_entropy(jnp.zeros((4, 10), jnp.bfloat16), jnp.arange(4))
    assert loss.dtype == parts["accuracy"].dtype == jnp.float32
    assert float(loss) == pytest.approx(math.log(10), rel=1e-6)


def test_the_device_count_makes_no_difference():
    logits, labels = draw(n=16)
    found = []
    for devices in (1, 8):
        mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
        batch = mesh_lib.put_batch(mesh, 16, {"z": logits.astype(np.float32), "y": labels.astype(np.int32)})
        loss = jax.jit(jax.value_and_grad(lambda z, y: softmax_cross_entropy(z, y, label_smoothing=0.1)[0]))
        found.append(jax.device_get(loss(batch["z"], batch["y"])))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-6)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_floor(smoothing):
    """Met where the probabilities are the smoothed targets."""
    q = np.full(7, smoothing / 7)
    q[3] += 1 - smoothing
    logits = np.log(np.maximum(q, 1e-300))
    loss, _ = softmax_cross_entropy(jnp.asarray(logits[None], jnp.float32), jnp.asarray([3]), label_smoothing=smoothing)
    assert float(loss) == pytest.approx(smoothed_entropy(7, smoothing), abs=1e-5)


@pytest.mark.parametrize(
    ("logits", "labels", "smoothing", "sentence"),
    [
        (jnp.zeros((2, 3, 4)), jnp.zeros(2, int), 0.0, r"logits are float32 \(2, 3, 4\), but must be"),
        (jnp.zeros((2, 3), int), jnp.zeros(2, int), 0.0, r"logits are int32 \(2, 3\)"),
        (jnp.zeros((2, 3)), jnp.zeros(3, int), 0.0, r"labels are int32 \(3,\), but must be integers \(2,\)"),
        (jnp.zeros((2, 3)), jnp.zeros(2), 0.0, "labels are float32"),
        (jnp.zeros((2, 3)), jnp.zeros(2, int), 1.0, "label_smoothing is 1.0, but must be at least 0 and less than 1"),
    ],
)
def test_bad_input(logits, labels, smoothing, sentence):
    with pytest.raises(ValueError, match=sentence):
        softmax_cross_entropy(logits, labels, label_smoothing=smoothing)
