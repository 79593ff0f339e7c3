"""bt_jax/data/tensorflow_import.py, in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
from bt_jax.data.tensorflow_import import tf
before = "keras" in sys.modules
print(json.dumps([before, tf.keras.layers.Dense(3)(tf.zeros((2, 5))).shape.as_list(), "keras" in sys.modules]))
"""


def test_keras_comes_when_it_is_used():
    """It is not imported with TensorFlow, and then works; nothing is printed besides."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [False, [2, 3], True]
    assert done.stderr == ""


@pytest.mark.parametrize(
    "set_before", [{}, {"GCS_READAHEAD_BUFFER_SIZE_BYTES": "77"}, {"GCS_READ_CACHE_BLOCK_SIZE_MB": "8"}]
)
def test_what_is_read_ahead_of_remote_files(set_before):
    """A megabyte instead of 64, before TensorFlow looks at it; not where a user has set it."""
    program = (
        "import json, os, sys, types\nsys.modules['tensorflow'] = None\ntry:\n import bt_jax.data.tensorflow_import\nexcept ImportError:\n"
        " print(json.dumps({name: value for name, value in os.environ.items() if name.startswith('GCS_READ')}))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GCS_READ")} | set_before
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == (set_before or {"GCS_READAHEAD_BUFFER_SIZE_BYTES": str(2**20)})
