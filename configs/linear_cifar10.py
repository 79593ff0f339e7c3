"""A linear classifier on a frozen encoder, on CIFAR-10.

    python main.py --config=configs/linear_cifar10.py                        the encoder of resnet18_cifar10.py
    python main.py --config=configs/linear_cifar10.py:resnet18_cifar10_cpu   the encoder of that config

Source:    the paper's protocol (section 3.1) with crops of at least a fifth of the image.
Data:      TFDS `cifar10`, as in resnet18_cifar10.py.
Encoder:   the run in runs/<that config>; --config.init_from=PATH for another.
Hardware:  one GPU; or a CPU for the narrow encoder or with --config.linear.cached=True, which takes a minute there.
Expected:  with linear.cached 49.8 % top-1 for the narrow encoder after its six epochs (experiments/results/evaluation.md);
           for the wide one see resnet18_cifar10.py. SGD reaches 40.8 % where cached features reach 43.4 %, by SwAV's narrow encoder.
"""

import importlib

from bt_jax.config import based_on
from bt_jax.errors import UserError

ENCODERS = ("resnet18_cifar10", "resnet18_cifar10_cpu")


def get_config(encoder: str = "resnet18_cifar10"):
    if encoder not in ENCODERS:
        raise UserError(f"linear_cifar10.py:{encoder} is not known; it takes {' or '.join(ENCODERS)}.")
    config = based_on(importlib.import_module(f"configs.{encoder}").get_config(), "linear")
    config.init_from = f"runs/{encoder}"
    config.batch_size = 256
    config.epochs = 100

    config.supervised.view.crop_scale = (0.2, 1.0)
    config.sgd.learning_rate_head = 0.3
    config.sgd.weight_decay = 1e-6
    config.sgd.schedule = "cosine"
    return config
