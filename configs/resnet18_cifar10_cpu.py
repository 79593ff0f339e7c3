"""A narrow ResNet-18 on CIFAR-10: a small version of resnet18_cifar10.py, for machines without an accelerator.

    python main.py --config=configs/resnet18_cifar10_cpu.py               Barlow Twins
    python main.py --config=configs/resnet18_cifar10_cpu.py:simclr        or byol, swav, pirl, vicreg, supervised, package.module:Class

Source:    ours; the recipe of resnet18_cifar10.py reduced to ten minutes on a CPU.
Data:      TFDS `cifar10`; --config.data.download=True lets TFDS fetch its 163 MB.
Hardware:  2 CPU cores.
Expected:  Barlow Twins: kNN accuracy (10 000 train and 5000 test images) 22.5 % untrained, 34.5 % on raw pixels, 40.9 % after
           six epochs in 10 minutes. Measured with JAX 0.10.2; curves of an earlier version in experiments/results/cifar10_cpu/.
           SimCLR 46.5 %, VICReg 44.1 % (with crops of 8 % and more, and a gradient divisor of 10, which it no longer has), BYOL 35.9 %,
           SwAV 34.1 %, PIRL 28.4 % (before its patches' head had its last ReLU), one seed each (experiments/results/methods.md).
           Supervised: not measured.

The stem has stride 2, so that feature maps are 16×16 instead of 32×32, at a quarter of the cost. LARS does not clip its trust ratios,
as it did not when these were measured.
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
    if "clip" in config.optimizer:
        config.optimizer.clip = False

    config.checkpoint.every_epochs = 1
    config.monitor.every_epochs = 1
    config.monitor.train_examples = 10000
    config.monitor.test_examples = 5000
    if method in SMALLER:
        config[method].update(SMALLER[method])
    if method == "swav":
        config.optimizer.learning_rate = 0.3  # with 0.6 and ε = 0.05 all images go to one prototype within an epoch
    return config


# Heads in proportion to the narrow encoder; and as BYOL's target must follow within 1170 steps, a lower τ.
SMALLER = {
    "barlow_twins": {"projector": (512, 512, 512)},
    "simclr": {"projector": (512, 128)},
    "byol": {"projector": (1024, 256), "predictor": (1024,), "target_momentum": 0.97},
    "pirl": {"projector": (512, 128)},
    "swav": {"projector": (512, 128), "prototypes": 128, "freeze_epochs": 1, "queue": 0, "epsilon": 0.03},
    "vicreg": {"projector": (512, 512, 512), "variance": 25.0},  # with which it was measured
}
