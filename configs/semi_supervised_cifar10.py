"""An encoder fine-tuned on 1 % or 10 % of CIFAR-10's labels, 50 or 500 per class.

    python main.py --config=configs/semi_supervised_cifar10.py:1percent
    python main.py --config=configs/semi_supervised_cifar10.py:10percent,resnet18_cifar10_cpu
    python main.py --config=configs/semi_supervised_cifar10.py:1percent --config.finetune.from_scratch=True --workdir=…

Source:    ours, after the paper's section 3.1; the labels are chosen by the seed, the same number in each class.
Data:      TFDS `cifar10`, as in resnet18_cifar10.py.
Encoder:   the run in runs/<its config>; --config.init_from=PATH for another.
Hardware:  one GPU; a CPU for the narrow encoder.
Expected:  for resnet18_cifar10_cpu after its six epochs, top-1 41.2 % with 1 % of the labels (from scratch 38.6 %), and 50.6 %
           with 10 % (from scratch 56.7 %: there such a short pre-training no longer helps); experiments/results/evaluation.md.
"""

import importlib

from bt_jax.config import based_on
from bt_jax.errors import UserError
from configs.linear_cifar10 import ENCODERS

SUBSETS = {"1percent": (1.0, 50, 60), "10percent": (10.0, 100, 30)}


def get_config(argument: str = "1percent"):
    subset, _, encoder = argument.partition(",")
    encoder = encoder or ENCODERS[0]
    if subset not in SUBSETS or encoder not in ENCODERS:
        raise UserError(
            f"semi_supervised_cifar10.py:{argument} is not known; it takes {' or '.join(SUBSETS)}, and after a comma "
            f"{' or '.join(ENCODERS)}."
        )
    percent, batch_size, epochs = SUBSETS[subset]
    config = based_on(importlib.import_module(f"configs.{encoder}").get_config(), "finetune")
    config.init_from = f"runs/{encoder}"
    config.batch_size = batch_size
    config.epochs = epochs

    config.supervised.view.crop_scale = (0.2, 1.0)
    config.sgd.learning_rate_encoder = 0.1
    config.sgd.learning_rate_head = 0.5
    config.sgd.weight_decay = 0.0
    config.sgd.schedule = "cosine"
    config.sgd.evaluate_every_epochs = 10
    config.checkpoint.every_epochs = 10

    config.finetune.percent = percent
    config.finetune.learning_rate_from_scratch = 0.5
    config.log.every_steps = 100
    return config
