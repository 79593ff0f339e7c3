"""TensorFlow as this folder uses it: quiet, and kept off the accelerators, which are JAX's. Importing this imports it."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bt_jax import console

# What it tells of itself on standard error, past all its settings: which instructions it uses, and that it finds no GPU.
_CHATTER = re.compile(
    r"I0000 |WARNING: All log messages before|To enable the following|E0000 .*(cuda|CUDA|cuInit)|.*oneDNN"
)


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Holds standard error back, file descriptor 2 included, and lets through afterwards what is not chatter."""
    console.flush()
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            kept = os.dup(2)
        except OSError:  # no room for temporary files, or no standard error
            yield
            return
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if not _CHATTER.match(line) and not re.match(r"\d{4}-\d\d-\d\d .*: I ", line):
                    console.warn(line.rstrip("\n"))


# Its oneDNN kernels round differently from machine to machine and are no faster on small images.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Its warnings hold a traceback for each image that does not decode; the run names such images itself.
if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # JAX sets it to 1 where it is not set
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
with _without_chatter():
    import tensorflow as tf

    try:
        for _kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], _kind)  # it would take all of their memory
        # Images are many: a thread each is the best division of labour, and sharing one among threads a quarter slower.
        tf.config.threading.set_intra_op_parallelism_threads(1)
    except RuntimeError:  # TensorFlow was at work before bt_jax was: what it has taken it has
        pass


def plain(function: Callable) -> Callable:
    """What is here is written in graph operations: there is nothing for autograph to translate, and it takes seconds."""
    return tf.autograph.experimental.do_not_convert(function)


__all__ = ["plain", "tf"]
