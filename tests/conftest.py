"""Settings of every test: eight simulated CPU devices, no silent rank or type promotion, TensorFlow kept quiet."""

import contextlib
import gc
import importlib.metadata
import os
import pathlib
import signal
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Most of the tests' time is compilation; programs that are less optimized, and in JAX 0.10 not written through MLIR, take about
# half of it, and compute the same to rounding. An XLA that does not know a flag ends the process, as that of JAX 0.12 does at the second one.
# Flags that are already set win.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 "
    + ("--xla_cpu_use_fusion_emitters=false " if importlib.metadata.version("jaxlib").startswith("0.10.") else "")
    + os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Of all tests and their processes, and for the next time; never that of runs.
    _programs = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bt_jax" / "tests"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_programs)
    for old in _programs.glob("*"):
        with contextlib.suppress(OSError):  # another run of the tests was faster
            if time.time() - old.stat().st_mtime > 7 * 24 * 3600:
                old.unlink()
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# As in a terminal, also where a script runs the tests in its background: there both are ignored, and runs honour that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

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


@pytest.fixture
def light_views(monkeypatch):
    """Views of the host that only show which image was drawn and with which parameters: quick, and different enough."""
    from bt_jax.data.tensorflow_import import tf
    from bt_jax.data.views import host

    def light(image, _, parameters, size, pixels=None):
        drawn = [
            tf.cast(tf.reduce_sum(p.crop * [1, 3, 7, 11]), tf.uint8) + tf.cast(p.hue * 1e6, tf.uint8)
            for p in parameters
        ]
        return tf.stack([tf.bitwise.bitwise_xor(image[:size, :size], d) for d in drawn])

    monkeypatch.setattr(host, "apply_views", light)


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory):
    """37 images in four files, and again in one; each image's colour and label are its number."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("tensorflow_datasets")
    for name, files, stored in (("numbers_set", 4, None), ("one_file_set", 1, None), ("record_set", 4, "array_record")):
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(14, 14, 3)), "label": tfds.features.ClassLabel(num_classes=37)}
            ),
            split_datasets={
                "train": [(i, {"image": np.full((14, 14, 3), i, np.uint8), "label": i}) for i in range(37)]
            },
            data_dir=root,
            description="for tests",
            download_config=tfds.download.DownloadConfig(num_shards=files),
            file_format=stored,
        )
    return root


# Files of more than half a minute, the longest first.
LONG = (
    "processes", "task_pretrain", "step", "classifier", "methods", "methods_networks", "views_device", "methods_pirl",
    "methods_swav", "pipeline", "methods_barlow_twins", "feed", "losses_barlow_twins_ablations", "encoder", "notebook",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Short files come first, as most faults break one of them; then the long ones, the longest first, so that no worker has one
    left when the other is done."""

    def place(item):
        name = item.path.stem.removeprefix("test_")
        return LONG.index(name) if name in LONG else -1

    items.sort(key=place)


def pytest_collection_finish():
    """What the imports made stays until the end: looking through it at every collection takes a tenth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
