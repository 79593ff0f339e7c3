"""The recipes that the claims are tried with, at three sizes; a config file like those in configs/.

    python main.py --config=experiments/claims/recipe.py:cpu,simclr --config.data.data_dir=DIR --workdir=DIR

The argument is SCALE,METHOD[,held_out]; with held_out, the last tenth of the train images takes the test images' place. One run sees:

    cpu    300 000 images of CIFAR-10 at 24×24 pixels (6 epochs), a ResNet-18 of width 16; 8 to 20 minutes of one CPU core
    gpu    10 million images of CIFAR-10 (200 epochs), ResNet-18; one GPU. Not run yet
    paper  300 epochs of ImageNet, ResNet-50, the paper's setting for its ablations; a TPU pod. Not run yet

So that methods differ in their loss alone, all of them have the same batch, images seen, optimizer and views: at `cpu` and `gpu`
crop, flip, colour jitter and grey with solo-learn's strengths for Barlow Twins, alike for both views (SwAV's small crops and PIRL's
patches besides). Each method's learning rate is the base below times a factor that `tuning.py` chose on held-out train images, with
the same number of tries for each. At `paper` each method has the views and the rates of its own paper.
"""

from bt_jax.errors import UserError
from configs import resnet18_cifar10, resnet18_cifar10_cpu, resnet50_imagenet

METHODS = ("barlow_twins", "simclr", "byol", "swav", "pirl")

# Factors of the learning rates: experiments/results/claims.md, "Learning rates".
TUNED: dict[str, dict[str, float]] = {"cpu": {}, "gpu": {}, "paper": {}}


def get_config(argument: str = "cpu,barlow_twins"):
    scale, method, *options = [*argument.split(","), *["barlow_twins"][argument.count(",") :]]
    if scale not in SCALES or method not in METHODS or options not in ([], ["held_out"]):
        raise UserError(
            f"recipe.py:{argument} is not known; it takes {', '.join(SCALES)}, after a comma {', '.join(METHODS)}, and after "
            "another held_out, if at all"
        )
    config = SCALES[scale](method)
    if options:
        config.data.train_split, config.data.test_split = "train[:90%]", "train[90%:]"
    for name in rates(method):
        config.optimizer[name] *= TUNED[scale].get(method, 1.0)
    return config


def rates(method: str) -> tuple[str, ...]:
    """The fields of the optimizer that are learning rates."""
    lars = method in ("barlow_twins", "simclr", "byol")
    return ("learning_rate_weights", "learning_rate_biases") if lars else ("learning_rate",)


def cpu(method: str):
    config = resnet18_cifar10_cpu.get_config(method)
    config.batch_size = 256
    config.epochs = 6
    config.data.image_size = 24
    config.mesh.cpu_devices = 1  # one core a run; the numbers do not depend on it
    config.monitor.every_epochs = 6
    config.monitor.train_examples = 50000
    config.monitor.test_examples = 10000
    config.monitor.pairs = 0
    config.log.tensorboard = False
    if method == "swav":
        config.swav.small_size = 12
        config.optimizer.learning_rate = 0.15  # with 0.6 all images go to one prototype within the first epoch
    if method == "pirl":
        config.pirl.patch_size, config.pirl.cell = 6, 8
    _same_views(config)
    return config


def gpu(method: str):
    config = resnet18_cifar10.get_config(method)
    config.batch_size = 256
    config.epochs = 200
    config.monitor.every_epochs = 20
    config.monitor.pairs = 0
    _same_views(config)
    if method == "swav":
        config.swav.queue_from_epoch = 10
    return config


def paper(method: str):
    config = resnet50_imagenet.get_config(method)
    config.epochs = 300
    if method == "barlow_twins":
        config.batch_size = 2048
    if method == "byol":  # its own for 300 epochs (its paper's appendix)
        config.optimizer.learning_rate_weights = config.optimizer.learning_rate_biases = 0.3
        config.optimizer.weight_decay = 1e-6
        config.byol.target_momentum = 0.99
    return config


def views(method: str) -> tuple[str, ...]:
    """The fields of a method that hold a view's distribution."""
    return {"simclr": ("view",), "swav": ("view", "small_view"), "pirl": ("view", "patch_view")}.get(
        method, ("view_a", "view_b")
    )


def _same_views(config) -> None:
    """solo-learn's strengths without blur and solarising; crops of at least a fifth, which short runs need."""
    for name in views(config.method):
        view = config[config.method][name]
        if name not in ("small_view", "patch_view"):
            view.crop_scale = (0.2, 1.0)
        view.jitter, view.grayscale, view.blur, view.solarize = 0.8, 0.2, 0.0, 0.0
        view.brightness, view.contrast, view.saturation, view.hue = 0.4, 0.4, 0.2, 0.1


SCALES = {"cpu": cpu, "gpu": gpu, "paper": paper}
