"""The recipes that the claims are tried with, at three sizes; a config file like those in configs/.

    python main.py --config=experiments/claims/recipe.py:cpu,simclr --config.data.data_dir=DIR --workdir=DIR

The argument is SCALE,METHOD[,OPTION]. Options: held_out, in which the last tenth of the train images takes the test images' place; and
evaluations of an encoder that METHOD has trained, named by init_from: knn, with all train images as voters; 1percent and 10percent,
fine-tuned on so many labels, with Barlow Twins' schedule for all and rates chosen on held-out labels. METHOD is `scratch` for
training from scratch on the same labels.

One pre-training sees:

    cpu    300 000 images of CIFAR-10 at 24×24 pixels (6 epochs), a ResNet-18 of width 16; 5 to 24 minutes of one CPU core
    gpu    10 million images of CIFAR-10 (200 epochs), ResNet-18; one GPU. Not run yet
    paper  300 epochs of ImageNet, ResNet-50, the paper's setting for its ablations; a TPU pod. Not run yet

So that methods differ in their loss alone, all of them have the same batch, images seen, optimizer and views: at `cpu` and `gpu`
crop, flip, colour jitter and grey with solo-learn's strengths for Barlow Twins, alike for both views (SwAV's small crops and PIRL's
patches besides). Each method's learning rate is the base below times a factor that `tuning.py` chose on held-out train images, with
the same number of tries for each. At `paper` each method has the views and the rates of its own paper.
"""

from collections.abc import Iterable

from bt_jax.config import based_on
from bt_jax.errors import UserError
from configs import resnet18_cifar10, resnet18_cifar10_cpu, resnet50_imagenet

METHODS = ("barlow_twins", "simclr", "byol", "swav", "pirl")

PERCENT = {"1percent": 1.0, "10percent": 10.0}
OPTIONS = ("", "held_out", "knn", *PERCENT)

# Factors of the learning rates: experiments/results/claims.md, "Learning rates".
TUNED: dict[str, dict[str, float]] = {"cpu": {"barlow_twins": 0.5, "simclr": 1.0, "byol": 0.5}, "gpu": {}, "paper": {}}


def get_config(argument: str = "cpu,barlow_twins"):
    scale, method, option, *more = [*argument.split(","), "", ""]
    method = method or "barlow_twins"
    from_scratch = method == "scratch" and option in PERCENT
    if scale not in SCALES or not (method in METHODS or from_scratch) or option not in OPTIONS or any(more):
        raise UserError(
            f"recipe.py:{argument} is not known; it takes {', '.join(SCALES)}, after a comma {', '.join(METHODS)}, and after "
            f"another, if at all, {', '.join(OPTIONS[1:])}"
        )
    config = SCALES[scale]("barlow_twins" if from_scratch else method)
    if option == "held_out":
        config.data.train_split, config.data.test_split = "train[:90%]", "train[90%:]"
    elif option == "knn":
        config = based_on(config, "knn")
        config.knn.k, config.knn.pairs = (20, 200), 0
        return config
    elif option:
        return _few_labels(config, scale, PERCENT[option], from_scratch)
    for name in rates(method):
        config.optimizer[name] *= TUNED[scale].get(method, 1.0)
    return config


def _few_labels(pretraining, scale: str, percent: float, from_scratch: bool):
    config = based_on(pretraining, "finetune")
    if scale == "paper":
        config.batch_size, config.epochs = 256, 20
        config.data.test_split = "validation"
    else:
        config.batch_size, config.epochs = {1.0: (50, 60), 10.0: (100, 30)}[percent]
        config.supervised.view.crop_scale = (0.2, 1.0)
    config.sgd.learning_rate_encoder, config.sgd.learning_rate_head = 0.1, 0.5
    config.sgd.weight_decay, config.sgd.schedule = 0.0, "cosine"
    config.sgd.evaluate_every_epochs = config.epochs
    config.checkpoint.every_epochs = 10
    config.finetune.percent = percent
    config.finetune.search_rates = True
    config.finetune.search_encoder, config.finetune.search_head = (0.3, 1.0, 3.0), (1.0,)
    config.finetune.from_scratch = from_scratch
    config.finetune.learning_rate_from_scratch = 0.5
    config.finetune.protocol = "Barlow Twins, rates searched"
    return config


def untuned(scale: str, methods: Iterable[str]) -> list[str]:
    """Those whose rates are to be tuned at a scale, and were not; at `paper` they are those of each method's own paper."""
    return sorted(set(methods) & set(METHODS) - TUNED[scale].keys()) if scale != "paper" else []


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
