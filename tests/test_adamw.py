"""bt_jax/optim/adamw.py: PyTorch's arithmetic, and what is not decayed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bt_jax.optim import adamw


def torchs(w, gradients, *, rate, decay, betas, eps):
    """torch.optim.AdamW in numpy: the parameter after steps with these gradients."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for k, g in enumerate(gradients, 1):
        w = w * (1 - rate * decay)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        w = w - rate / (1 - betas[0] ** k) * m / (np.sqrt(v) / np.sqrt(1 - betas[1] ** k) + eps)
    return w


def test_it_is_pytorchs_arithmetic():
    """Kernels are decayed; biases, norms, the class token and the position embedding are not."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (4, 3), "scale": (3,), "bias": (3,), "cls_token": (1, 1, 3), "pos_embed": (1, 5, 3)}
    params = {"encoder": {name: rng.standard_normal(shape) for name, shape in shapes.items()}}
    gradients = [{"encoder": {name: rng.standard_normal(s) for name, s in shapes.items()}} for _ in range(5)]
    with jax.enable_x64(True):
        optimizer = adamw(0.01, weight_decay=0.3, beta1=0.8, beta2=0.95, eps=1e-6)
        found = jax.tree.map(jnp.asarray, params)
        state = optimizer.init(found)
        for step in gradients:
            updates, state = optimizer.update(jax.tree.map(jnp.asarray, step), state, found)
            found = optax.apply_updates(found, updates)
    for name, w in params["encoder"].items():
        of_w = [step["encoder"][name] for step in gradients]
        decay = 0.3 if name == "kernel" else 0.0
        expected = torchs(w, of_w, rate=0.01, decay=decay, betas=(0.8, 0.95), eps=1e-6)
        np.testing.assert_allclose(found["encoder"][name], expected, rtol=1e-12, err_msg=name)
