"""A narrow ResNet-18 on CIFAR-10: the small sister of resnet18_cifar10.py, for a machine without accelerator.

    python main.py --config=configs/resnet18_cifar10_cpu.py                  Barlow Twins
    python main.py --config=configs/resnet18_cifar10_cpu.py:supervised       another method, or package.module:Class

Source:    ours; the recipe of resnet18_cifar10.py with what a CPU can do in half an hour.
Data:      TFDS `cifar10`; --config.data.download=True lets TFDS fetch its 163 MB.
Hardware:  2 CPU cores.
Expected:  Barlow Twins: kNN accuracy (10 000 images vote on 5000) 22.5 % untrained, 34.5 % on raw pixels, 40.9 % after six
           epochs in 20 minutes. Measured here, JAX 0.10.2; curves in experiments/results/cifar10_cpu/. Supervised: not
           measured.

The stem takes every second pixel, so that the work inside is done at 16×16 and not at 32×32: a fourth of the cost.
"""

from configs import resnet18_cifar10


def get_config(method: str = "barlow_twins"):
    config = resnet18_cifar10.get_config(method)
    config.dtype = "float32"
    config.epochs = 6
    config.data.views = "host"
    config.steps_per_dispatch = 1

    config.model.width = 16
    config.model.stem_stride = 2
    config.optimizer.warmup_epochs = 1

    config.checkpoint.every_epochs = 1
    config.monitor.every_epochs = 1
    config.monitor.train_examples = 10000
    config.monitor.test_examples = 5000
    if method == "barlow_twins":
        config.barlow_twins.projector = (512, 512, 512)
    return config
