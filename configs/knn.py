"""Weighted kNN on frozen features, and measures of the features: no training, no recipe.

    python main.py --config=configs/knn.py                        on ImageNet, the encoder of resnet50_imagenet.py
    python main.py --config=configs/knn.py:resnet18_cifar10_cpu   the data and the encoder of that config

Source:    Wu et al. 2018 (arXiv 1805.01978, section 3.4): cosine similarity, temperature 0.1 and k = 200 as in the
           literature, and smaller k as well, all in one search.
Encoder:   the run in runs/<that config>; --config.init_from=PATH for another.
Hardware:  any; the features of ImageNet's train images are 10.5 GB over all devices.
Expected:  45.4 % with k = 20 and 43.9 % with k = 200 for resnet18_cifar10_cpu, with all 50 000 train images
           (experiments/results/evaluation.md). The others have not been measured.
"""

import importlib

from bt_jax.config import based_on
from bt_jax.errors import UserError

ENCODERS = ("resnet50_imagenet", "resnet18_cifar10", "resnet18_cifar10_cpu", "quickstart")


def get_config(encoder: str = "resnet50_imagenet"):
    if encoder not in ENCODERS:
        raise UserError(f"knn.py:{encoder} is not known; it takes {', '.join(ENCODERS)}.")
    pretraining = importlib.import_module(f"configs.{encoder}").get_config()
    config = based_on(pretraining, "knn")
    config.pairs.update(view_a=pretraining.barlow_twins.view_a, view_b=pretraining.barlow_twins.view_b)
    config.init_from = f"runs/{encoder}"
    return config
