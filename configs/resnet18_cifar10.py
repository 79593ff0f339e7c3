"""ResNet-18 on CIFAR-10: Barlow Twins as solo-learn trains it, or another method.

    python main.py --config=configs/resnet18_cifar10.py               Barlow Twins
    python main.py --config=configs/resnet18_cifar10.py:simclr        or byol, swav, pirl, vicreg, supervised, package.module:Class

Source:    solo-learn's CIFAR-10 recipe for Barlow Twins (da Costa et al. 2022, JMLR 23(56)), with the paper's loss.
           SimCLR, BYOL, VICReg: its recipes for these (scripts/pretrain/cifar), with the papers' losses and heads; its SimCLR
           has no batch norm in the projector.
           SwAV: its rate, decay, freezing and queue of 3840 from epoch 50, 512 prototypes as lightly has them (its own has 3000, two
           crops and 89.2 %), four small crops of 16 pixels besides, and LARC.
           PIRL: ours, for 400 epochs: its variant with a cross-entropy, all other images as negatives, patches of 8 pixels.
           Supervised: the usual recipe for this network, SGD over 200 epochs with batches of 128, a learning rate of 0.1,
           cosine decay and weight decay 5e-4; random crops of at least a fifth of the image replace the usual padded ones.
Data:      TFDS `cifar10`; --config.data.download=True lets TFDS fetch its 163 MB.
Hardware:  one GPU.
Expected:  Barlow Twins 92.1 %, SimCLR 90.7 %, BYOL 92.6 %, VICReg 92.1 % top-1 of the online linear classifier after 1000
           epochs, by solo-learn. (lightly, with other code and settings, reports 84.2 % kNN for Barlow Twins at 200 epochs.)
           SwAV, PIRL and supervised: no figures for exactly these recipes. None has been measured with this code.

Differences from the ImageNet recipe: 3×3 stem, no blur (32 pixels have little detail to lose; SimCLR keeps it), a narrower projector,
a trust coefficient of 0.02 with trust ratios clipped, and for Barlow Twins a loss scaled by 0.1, which for LARS is a gradient divisor
of 10. The data set is held in the GPU's memory and views are made there, so that a slow host does not matter.

Differences from solo-learn:
- All: its stem is padded by 2 (feature maps are 34 wide; --config.model.stem_padding=2), here by 1; the last batch-norm scale of each block starts at 0 here, at 1
  there; its warm-up starts at 3e-5, here at 0; its LARS divides by ‖g‖ + decay · ‖w‖, here by ‖g + decay · w‖.
- Barlow Twins: its cosine ends at 0, here at a thousandth of the peak; its projector has biases.
- SimCLR: its batch norms take their statistics from each view, here from both together.
- BYOL, VICReg: its last layers have biases.
- SwAV: its crops are of at least 8 % of the image, here 20 %; its cosine ends at 0, here at a thousandth; and it has LARS without
  adaptation and decay of biases and batch norms.
"""

from bt_jax.config import default


def get_config(method: str = "barlow_twins"):
    config = default(method=method)
    config.dtype = "bfloat16"
    config.batch_size = 256
    config.epochs = 1000

    config.data.source = "tfds"
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.eval_resize = 0
    config.data.views = "device"
    config.steps_per_dispatch = 10
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)

    config.model.arch = "resnet18"
    config.model.small_images = True

    config.checkpoint.every_epochs = 5
    config.monitor.every_epochs = 10
    config.monitor.train_examples = 50000
    if method in RECIPES:
        RECIPES[method](config)
    return config


def barlow_twins(config):
    config.barlow_twins.view_a.blur = 0.0
    config.barlow_twins.view_b.blur = 0.0
    config.barlow_twins.projector = (2048, 2048, 2048)

    config.optimizer.learning_rate_weights = 0.3
    config.optimizer.learning_rate_biases = 0.3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.trust_coefficient = 0.02
    config.optimizer.clip = True
    config.optimizer.gradient_divisor = 10.0


def supervised(config):
    config.batch_size = 128
    config.epochs = 200
    config.supervised.view.crop_scale = (0.2, 1.0)

    config.optimizer.learning_rate = 0.2  # for a batch of 256: 0.1 for one of 128
    config.optimizer.weight_decay = 5e-4


def simclr(config):
    config.simclr.temperature = 0.2
    config.simclr.projector = (2048, 256)
    _rates(config, 0.4, weight_decay=1e-4)


def byol(config):
    config.byol.view_a.blur = 0.0
    config.byol.view_b.blur = 0.0
    config.byol.projector = (4096, 256)
    config.byol.predictor = (4096,)
    config.byol.target_momentum = 0.99
    _rates(config, 1.0, weight_decay=1e-5)


def swav(config):
    for view in (config.swav.view, config.swav.small_view):
        view.blur = 0.0
        view.interpolation = "bicubic"
    config.swav.view.crop_scale = (0.2, 1.0)
    config.swav.small_view.crop_scale = (0.1, 0.3)  # 5 to 14 % of 32 pixels are 7 to 12
    config.swav.small_crops = 4
    config.swav.small_size = 16
    config.swav.projector = (2048, 128)
    config.swav.prototypes = 512
    config.swav.freeze_epochs = 2
    config.swav.queue = 3840
    config.swav.queue_from_epoch = 50
    config.optimizer.learning_rate = 0.6
    config.optimizer.weight_decay = 1e-6
    config.optimizer.trust_coefficient = 0.02


def pirl(config):
    config.epochs = 400
    config.pirl.loss = "cross_entropy"
    config.pirl.temperature = 0.1
    config.pirl.negatives = 0
    config.pirl.projector = (2048, 128)
    config.pirl.patch_size, config.pirl.cell = 8, 11
    config.optimizer.learning_rate = 0.06
    config.optimizer.weight_decay = 5e-4


def vicreg(config):
    config.vicreg.view.blur = 0.0
    config.vicreg.view.crop_scale = (0.2, 1.0)
    config.vicreg.projector = (2048, 2048, 2048)
    config.vicreg.variance = 50.0  # solo-learn's 25 is for the sum of both views' hinges; the loss here has their mean
    _rates(config, 0.3, weight_decay=1e-4)


def _rates(config, rate, *, weight_decay):
    """solo-learn's LARS: one rate for all parameters, applied after the momentum; trust ratios clipped; cosine to 0."""
    config.optimizer.learning_rate_weights = rate
    config.optimizer.learning_rate_biases = rate
    config.optimizer.weight_decay = weight_decay
    config.optimizer.trust_coefficient = 0.02
    config.optimizer.rate_in_momentum = False
    config.optimizer.clip = True
    config.optimizer.end_factor = 0.0


RECIPES = {
    "barlow_twins": barlow_twins, "simclr": simclr, "byol": byol, "swav": swav, "pirl": pirl, "vicreg": vicreg,
    "supervised": supervised,
}  # fmt: skip
