"""A narrow ResNet-18 on crops of photographs: training and evaluation in minutes, on a CPU, with nothing to download.

    python main.py                                             Barlow Twins
    python main.py --config=configs/quickstart.py:simclr       or byol, swav, pirl, vicreg, supervised, or your own,
                                                               package.module:Class

Source:    ours. 17 free photographs and textures that come with scikit-image and scikit-learn, one class per photograph,
           train and test crops from disjoint regions.
Hardware:  2 CPU cores.
Expected:  kNN accuracy 70.5 % (69 to 72 with three seeds; rounding alone moves a seed by a point), 47 % untrained and 37.5 % on
           raw pixels; then 75 % for a linear classifier, and 59 % for fine-tuning on 10 labels per class, 63 % from scratch: so
           short a pre-training does not help there. About two minutes on 2 idle cores, four to six beside other work.
           kNN and a linear classifier, means of three seeds: SimCLR 71.7 and 75.4 %, VICReg 71.0 and 76.0 %, BYOL 70.5 and 74.7 %,
           Barlow Twins 70.5 and 75.4 %, SwAV 65.5 and 71.2 %, PIRL 62.3 and 67.5 % (before its patches' head had
           its last ReLU). All measured with JAX 0.10.2 (experiments/results/methods.md). Supervised, with all training labels, seed 0: 84 % by both.

Differences from the paper's recipe: at 48 pixels the 7×7 stem reduces feature maps to 12×12, where CPUs are fast; views are
never grey or solarised, because colour and tone are most of what tells brick from gravel here; learning rates and trust
coefficient are those of resnet18_cifar10.py.
"""

from bt_jax.config import default


def get_config(method: str = "barlow_twins"):
    config = default(method=method)
    config.batch_size = 128
    config.epochs = 6

    config.data.source = "photographs"
    config.data.image_size = 48
    config.data.eval_resize = 0
    config.judge.view.crop_scale = (0.2, 1.0)

    config.model.arch = "resnet18"
    config.model.width = 16
    config.optimizer.warmup_epochs = 1

    config.checkpoint.every_epochs = 2
    config.monitor.every_epochs = 2
    config.monitor.k = 20
    config.monitor.judge_at_end = True
    config.log.every_steps = 20
    if method in RECIPES:
        RECIPES[method](config)
    return config


def barlow_twins(config):
    for view in (config.barlow_twins.view_a, config.barlow_twins.view_b):
        view.crop_scale = (0.2, 1.0)
        view.grayscale = 0.0
        view.solarize = 0.0
        view.blur = 0.0
    config.barlow_twins.projector = (512, 512, 512)

    config.optimizer.learning_rate_weights = 0.3
    config.optimizer.learning_rate_biases = 0.3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.trust_coefficient = 0.02
    config.optimizer.gradient_divisor = 10.0


def supervised(config):
    config.supervised.view.crop_scale = (0.2, 1.0)
    config.optimizer.learning_rate = 0.2
    config.optimizer.weight_decay = 5e-4


def simclr(config):
    _plain(config.simclr.view)
    config.simclr.projector = (512, 128)
    config.simclr.temperature = 0.2
    _rates(config, 0.3)


def byol(config):
    for view in (config.byol.view_a, config.byol.view_b):
        _plain(view)
    config.byol.projector = (512, 128)
    config.byol.predictor = (512,)
    config.byol.target_momentum = 0.95
    _rates(config, 0.3)


def vicreg(config):
    _plain(config.vicreg.view)
    config.vicreg.projector = (512, 512, 512)
    _rates(config, 0.3)


def swav(config):
    _plain(config.swav.view)
    _plain(config.swav.small_view)
    config.swav.view.interpolation = config.swav.small_view.interpolation = "bicubic"  # as for the other methods
    config.swav.small_view.crop_scale = (0.1, 0.3)
    config.swav.small_crops = 4
    config.swav.small_size = 24
    config.swav.projector = (512, 128)
    config.swav.prototypes = 64
    config.optimizer.learning_rate = 0.3
    config.optimizer.trust_coefficient = 0.02


def pirl(config):
    """Its variant with a cross-entropy, all other images as negatives, and patches in the proportions of 224 pixels."""
    for view in (config.pirl.view, config.pirl.patch_view):
        view.grayscale = 0.0
    config.pirl.view.crop_scale = (0.2, 1.0)
    config.pirl.loss = "cross_entropy"
    config.pirl.temperature = 0.1
    config.pirl.negatives = 0
    config.pirl.projector = (512, 128)
    config.pirl.patch_size, config.pirl.cell = 14, 18
    config.optimizer.learning_rate = 0.1


def _plain(view):
    view.crop_scale = (0.2, 1.0)
    view.grayscale = 0.0
    view.solarize = 0.0
    view.blur = 0.0


def _rates(config, rate):
    """LARS with one rate for all parameters, its official order, and the trust coefficient of resnet18_cifar10.py."""
    config.optimizer.learning_rate_weights = config.optimizer.learning_rate_biases = rate
    config.optimizer.weight_decay = 1e-4
    config.optimizer.trust_coefficient = 0.02
    config.optimizer.rate_in_momentum = False
    config.optimizer.end_factor = 0.001


RECIPES = {
    "barlow_twins": barlow_twins, "simclr": simclr, "byol": byol, "swav": swav, "pirl": pirl, "vicreg": vicreg,
    "supervised": supervised,
}  # fmt: skip
