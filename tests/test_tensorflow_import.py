"""bt_jax/data/tensorflow_import.py, in a process of its own."""

import json
import os
import subprocess
import sys

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
