"""TensorFlow as this folder uses it: quiet, and kept off the accelerators, which are JAX's. Import it only when needed."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bt_jax import console

# What it prints on standard error under any settings: which instructions it uses, and that it finds no GPU.
_CHATTER = re.compile(
    r"I0000 |WARNING: All log messages before|To enable the following|E0000 .*(cuda|CUDA|cuInit)|.*oneDNN"
)


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Holds back standard error, file descriptor 2 included, and then lets through what is not chatter."""
    console.flush()
    with contextlib.ExitStack() as stack:
        try:
            caught = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            kept = os.dup(2)
        except OSError:  # no room for temporary files, or no standard error
            yield
            return
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            for line in caught:
                if not _CHATTER.match(line) and not re.match(r"\d{4}-\d\d-\d\d .*: I ", line):
                    console.warn(line.rstrip("\n"))


@contextmanager
def _without_keras() -> Iterator[None]:
    """Holds back Keras, whose import is a third of TensorFlow's; `tf.keras` imports it when it is used."""
    if "keras" in sys.modules:
        yield
        return
    sys.modules["keras"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["keras"]


# Its oneDNN kernels round differently on different machines, and are no faster on small images.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Of a file in Google's store it reads 64 MiB at once by default, for an image of a tenth of a megabyte. It looks at this once.
if "GCS_READ_CACHE_BLOCK_SIZE_MB" not in os.environ:
    os.environ.setdefault("GCS_READAHEAD_BUFFER_SIZE_BYTES", str(2**20))
# Its warnings and errors have a traceback, or lines of the JPEG library, for each image that does not decode; the run names such
# images itself, and what else goes wrong is raised. It reads its level here once; JAX and XLA keep theirs, and so do processes
# that are started. JAX sets 1 where nothing is set.
_LEVEL = os.environ.get("TF_CPP_MIN_LOG_LEVEL")
if _LEVEL in (None, "1"):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
with _without_chatter(), _without_keras():
    import tensorflow as tf

    if _LEVEL is None:
        del os.environ["TF_CPP_MIN_LOG_LEVEL"]
    else:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = _LEVEL
    try:
        for _kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], _kind)  # it would take all of their memory
        # There are many images: one thread for each is fastest; several threads for one are a quarter slower.
        tf.config.threading.set_intra_op_parallelism_threads(1)
    except RuntimeError:  # TensorFlow was in use before bt_jax, and keeps what it has taken
        pass


SAID = re.compile(r"\bUserError: (.+)")  # TensorFlow keeps only the text of an error in a Python function


def plain(function: Callable) -> Callable:
    """Keeps autograph off a function that is written in graph operations: it would search for seconds and find nothing."""
    return tf.autograph.experimental.do_not_convert(function)


__all__ = ["SAID", "plain", "tf"]
