"""Settings of every test: eight simulated CPU devices, no silent rank or type promotion, TensorFlow kept quiet."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """Loads a reference result of the official code: `golden("loss")` gives the arrays of tests/golden/loss.npz."""
    return lambda name: dict(np.load(GOLDEN / f"{name}.npz"))


@pytest.fixture(scope="session")
def _judged_run(tmp_path_factory):
    from recipes import judged_run

    from bt_jax.models import resnet

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, "resnet18", (1, 1))
        return judged_run(tmp_path_factory.mktemp("judged"))


@pytest.fixture
def judged(_judged_run, monkeypatch):
    """The workdir of a small pre-trained run, and its config: see `recipes.judged_run` and `evaluation_of`.

    For as long as a test lasts a resnet18 is one of two blocks, which compiles in a fraction of the time.
    """
    from bt_jax.models import resnet

    monkeypatch.setitem(resnet.BLOCKS, "resnet18", (1, 1))
    workdir, config = _judged_run
    return workdir, config.copy_and_resolve_references()


def pytest_collection_modifyitems(items):
    """Tests of real processes come last: they are the slowest, and what breaks them breaks a faster one first."""
    items.sort(key=lambda item: item.path.stem == "test_processes")
