"""bt_jax/models/inputs.py: pixels as the official ToTensor and Normalize leave them."""

import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax.models.inputs import normalize


def test_golden(golden):
    results = golden("augment")
    for i in range(3):
        np.testing.assert_allclose(normalize(jnp.asarray(results[f"{i}_base"])), results[f"{i}_normalized"], atol=1e-6)


def test_dtype_and_bad_input():
    assert normalize(jnp.zeros((2, 4, 4, 3), jnp.uint8), dtype=jnp.bfloat16).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="float32"):
        normalize(jnp.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="3 channels"):
        normalize(jnp.zeros((4, 4, 1), jnp.uint8))
