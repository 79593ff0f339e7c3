"""Settings of every test: eight simulated CPU devices, no silent rank or type promotion, TensorFlow kept quiet."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax  # noqa: E402  (the flags above must be set first)
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """Loads a reference result of the official code: `golden("loss")` gives the arrays of tests/golden/loss.npz."""
    return lambda name: dict(np.load(GOLDEN / f"{name}.npz"))


def pytest_collection_modifyitems(items):
    """Tests of real processes come last: they are the slowest, and what breaks them breaks a faster one first."""
    items.sort(key=lambda item: item.path.stem == "test_processes")
