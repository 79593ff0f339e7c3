"""Every field of a run, its default and its check: a wrong config dies here with a sentence.

`default()` is the whole list. A file in `configs/` starts from it and changes what its run needs; the command line
changes single fields (`--config.optimizer.weight_decay=1e-4`). `check` looks at all fields at once, by the rules in
config_rules.py, and reports all that is wrong together, so that a user mends a config once and not ten times.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from bt_jax.config.rules import METHODS, RULES, TASKS, contradictions, is_number, nearest
from bt_jax.errors import UserError

__all__ = [
    "METHODS",
    "RULES",
    "TASKS",
    "check",
    "check_overrides",
    "default",
    "fingerprint",
    "flatten",
    "from_json",
    "nearest",
    "to_json",
    "unknown_fields",
]


def default() -> ConfigDict:
    """The official recipe's numbers, with an empty data set: a config file fills in the rest."""
    config = ConfigDict()
    config.task = "pretrain"
    config.method = "barlow_twins"
    config.seed = 0
    config.dtype = "float32"  # of the computation: float32 or bfloat16; parameters and statistics are always float32
    config.batch_size = 2048  # images in a step, over all devices; each gives two views
    config.epochs = 1000
    config.steps_per_dispatch = 1  # steps started at once, of a set in the device's memory; 1 at a time on a CPU
    config.init_from = ""  # what `load_encoder` takes: the encoder that an evaluation judges, or a training starts from

    config.data = ConfigDict()
    config.data.source = "folder"
    config.data.name = ""  # of the TFDS data set
    config.data.data_dir = ""  # TFDS folder, image folder, or .npz file of arrays
    config.data.train_split = "train"
    config.data.test_split = "test"  # "" for none: then there is no kNN monitor
    config.data.image_size = 224  # side of a view, in pixels
    config.data.eval_resize = (
        256  # shorter side before the centre crop when evaluating; 0: resize to image_size, no crop
    )
    config.data.mean = (0.485, 0.456, 0.406)  # of the three channels, on a scale of 0 to 1
    config.data.std = (0.229, 0.224, 0.225)
    config.data.download = False  # may TFDS download the set? never silently
    config.data.max_bad_fraction = 0.001  # of the images may fail to decode; others stand in for them
    config.data.in_memory_bytes = 4 * 2**30  # decoded sets of one image size up to this many bytes live in host memory
    config.data.cache_bytes = 0  # of encoded images a process may keep in memory; for sets that a network brings
    config.data.shuffle_buffer = 16384  # examples; only for large TFDS sets, which are read as a stream
    config.data.threads = 0  # of the host pipeline; 0: as many as there are cores
    config.data.prefetch = 2  # batches that wait ready on the host
    config.data.views = (
        "host"  # where views are made: host (Pillow's levels), or device (for a weak host; see resident.py)
    )
    config.data.device_bytes = (
        0  # with views "device": sets up to this live in each device's memory; 0: a quarter of it
    )
    config.data.canvas_size = (
        0  # with views "device": files are decoded to fit a square of this side; 0: 16/7 image_size
    )
    config.data.view_a = _view(blur=1.0, solarize=0.0)
    config.data.view_b = _view(blur=0.1, solarize=0.2)
    config.data.view_supervised = _view(blur=0.0, solarize=0.0, jitter=0.0, grayscale=0.0)  # of training with labels
    config.data.photographs = ConfigDict()
    config.data.photographs.size = 48  # side of a stored crop, in pixels
    config.data.photographs.train_per_class = 300
    config.data.photographs.test_per_class = 60

    config.model = ConfigDict()
    config.model.arch = "resnet50"
    config.model.width = 64  # channels of the first stage; 64 is the standard network
    config.model.small_images = False  # 3x3 stem without max-pool, for images of about 32 pixels
    config.model.stem_stride = 1  # of that 3x3 stem; 2 for images of about 64 pixels, or where time is short
    config.model.projector = (8192, 8192, 8192)

    config.loss = ConfigDict()
    config.loss.lambd = 0.0051
    config.loss.form = "auto"

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate_weights = 0.2  # for a batch of 256; scaled by batch_size / 256
    config.optimizer.learning_rate_biases = 0.0048  # of 1-D parameters: biases and batch-norm scales
    config.optimizer.weight_decay = 1e-6
    config.optimizer.momentum = 0.9
    config.optimizer.trust_coefficient = 0.001
    config.optimizer.warmup_epochs = 10
    config.optimizer.end_factor = 1e-3  # the last rate over the peak rate
    config.optimizer.gradient_divisor = 1.0  # the number of GPUs of the official run that is to be matched

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices along the data axis; -1: all there are, over mesh.model
    config.mesh.model = 1  # devices that share each of the projector's layers and its optimiser state
    config.mesh.coordinator = ""  # host:port of process 0, where the cluster does not tell it by itself
    config.mesh.processes = 0  # how many there are, with coordinator; 1 alone: this one, whatever the cluster says
    config.mesh.process_index = -1  # this one's number; with coordinator
    config.mesh.join_seconds = 300  # processes wait for each other at the start
    config.mesh.heartbeat_seconds = 100  # after a process stopped answering for so long all end

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1
    config.checkpoint.every_steps = 0  # besides, where an epoch takes long; 0: only at the ends of epochs
    config.checkpoint.keep = 3  # the newest this many
    config.checkpoint.keep_every_epochs = 0  # those at multiples of this are kept for good; 0: none
    config.checkpoint.keep_best = 1  # so many of those with the best kNN accuracy are kept besides

    config.monitor = ConfigDict()
    config.monitor.every_epochs = 0  # kNN accuracy before, every so many epochs and after; 0: never
    config.monitor.train_examples = 10000  # labelled images that vote, spread over the train split
    config.monitor.test_examples = 10000
    config.monitor.batch_size = 256  # images whose features are computed at once, over all devices
    config.monitor.k = 200
    config.monitor.temperature = 0.1
    config.monitor.pairs = 1024  # train images whose two views tell alignment and uniformity; 0: without these two
    config.monitor.judge_at_end = False  # linear accuracy, and fine-tuning beside from scratch, when training is done

    # From here to the log: the evaluations. Epochs, batch_size, seed, data, model and monitor.batch_size (of frozen features)
    # are the fields above.
    config.repeats = 1  # of an evaluation that learns something, with seeds seed, seed + 1, …

    config.sgd = ConfigDict()  # of the tasks linear, finetune and transfer
    config.sgd.learning_rate_head = 0.3  # for a batch of 256; scaled by batch_size / 256, as the next
    config.sgd.learning_rate_encoder = 0.005  # where it is fine-tuned
    config.sgd.momentum = 0.9
    config.sgd.weight_decay = 1e-6
    config.sgd.schedule = "cosine"  # by the epoch, to 0; or "steps"
    config.sgd.decay_epochs = ()  # with "steps": after these the rates are multiplied by decay_factor; fractions too
    config.sgd.decay_factor = 0.1
    config.sgd.evaluate_every_epochs = 1

    config.linear = ConfigDict()
    config.linear.cached = False  # features once, without augmentation, and then L-BFGS in place of SGD
    config.linear.l2 = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # tried for cached: of ½ l2 |W|² beside the mean loss
    config.linear.held_out = 0.1  # of the train split, on which l2 is chosen
    config.linear.max_iterations = 1000

    config.finetune = ConfigDict()
    config.finetune.chosen_by = "seed"  # the labels: "seed", "list", or "source" where the train split has no others
    config.finetune.percent = 1.0  # of the labels; for "list" and "source" what the result is called by
    config.finetune.per_class = 0  # labels a class; 0: as percent says
    config.finetune.list_file = ""  # SimCLR's 1percent.txt or 10percent.txt, for an image folder
    config.finetune.from_scratch = False  # the supervised baseline: a new encoder on the same labels
    config.finetune.learning_rate_from_scratch = 0.1  # of encoder and head, in place of those of sgd

    config.knn = ConfigDict()
    config.knn.k = (10, 20, 50, 100, 200)  # all answered by one search
    config.knn.temperature = 0.1
    config.knn.health_examples = 25600  # test images at most whose features RankMe and the others look at

    config.transfer = ConfigDict()
    config.transfer.protocol = "linear"  # or "svm", for PASCAL VOC
    config.transfer.svm_costs = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # C of a class, chosen by cross-validation
    config.transfer.svm_folds = 3

    config.pod = ConfigDict()  # of the task pod_plan
    config.pod.topology = ""  # a slice of TPU chips, such as v5e:16x16
    config.pod.search = False  # for the largest batch that fits
    config.pod.images = 0  # of an epoch; 0: as many as the source has, which must be there to be asked

    config.export = ConfigDict()  # of the task export: what `init_from` names goes to the workdir
    config.export.dtype = "float32"  # in which weights are kept: float32 or bfloat16
    config.export.projector = True  # the projector as well, where there is one; likewise the classifier
    config.export.classifier = True
    config.export.safetensors = True  # in torchvision's names, for PyTorch
    config.export.program = True  # a jax.export program that needs nothing but JAX
    config.export.platforms = ("cpu", "cuda", "tpu")  # that it runs on

    config.log = ConfigDict()
    config.log.every_steps = 50
    config.log.tensorboard = True

    config.profile = ConfigDict()
    config.profile.steps = 0  # steps to trace into WORKDIR/profile, at the least; 0: none
    config.profile.after = 20  # steps of this start before the trace begins: the first compile and fill caches
    return config


def _view(*, blur: float, solarize: float, jitter: float = 0.8, grayscale: float = 0.2) -> ConfigDict:
    """The distribution of one view; the numbers are the paper's (appendix A)."""
    return ConfigDict(
        {
            "crop_scale": (0.08, 1.0),  # area of the crop over the image's
            "crop_ratio": (3 / 4, 4 / 3),  # width over height
            "flip": 0.5,  # this and those without a comment: probabilities
            "jitter": jitter,
            "brightness": 0.4,  # the factor is uniform in 1 -/+ this; likewise contrast and saturation
            "contrast": 0.4,
            "saturation": 0.2,
            "hue": 0.1,  # the shift is uniform in -/+ this, in turns of the colour wheel
            "grayscale": grayscale,
            "blur": blur,
            "blur_sigma": (0.1, 2.0),  # pixels; at most 2.4
            "solarize": solarize,
        }
    )


def check(config: ConfigDict) -> None:
    """Looks at every field.

    Raises:
      UserError: one sentence a wrong field, all together: unknown, missing, of the wrong type, out of range, or at odds
        with another.
    """
    given, expected = flatten(config), flatten(default())
    wrong = unknown_fields(given)
    wrong += [f"{name} is missing" for name in expected if name not in given]
    sound = {}
    for name, value in given.items():
        if name not in expected:
            continue
        kind = type(expected[name])
        if not _has_type(value, kind):
            wrong.append(f"{name} is {value!r}, but must be {_TYPE_NAMES[kind]}")
        elif problem := RULES[name](value):
            wrong.append(f"{name} is {value!r}, but {problem}")
        else:
            sound[name] = value
    wrong += contradictions(sound)
    if wrong:
        raise UserError("the config is wrong: " + "; ".join(wrong) + ".")


def check_overrides(argv: Iterable[str]) -> None:
    """Looks at the names in `--config.a.b=value` arguments before they are parsed, to name all unknown ones at once."""
    names = [arg.lstrip("-").partition("=")[0] for arg in argv if arg.startswith(("--config.", "-config."))]
    groups = {name.rpartition(".")[0] for name in RULES}
    wrong = unknown_fields(name for name in (n.removeprefix("config.") for n in names) if name not in groups)
    if wrong:
        raise UserError("the config is wrong: " + "; ".join(wrong) + ".")


def unknown_fields(names: Iterable[str]) -> list[str]:
    """A sentence for each name that is no field."""
    return [f"there is no field {name!r}{nearest(name, RULES)}" for name in names if name not in RULES]


_TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a text", tuple: "a tuple"}


def _has_type(value: Any, kind: type) -> bool:
    if kind is float:
        return is_number(value) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, (tuple, list)) if kind is tuple else isinstance(value, kind)


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """The fields by dotted name, in their order."""
    flat = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {f"{prefix}{name}": value}
    return flat


def to_json(config: ConfigDict) -> str:
    """The fields as JSON text, nested as they are."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def fingerprint(config: ConfigDict) -> str:
    """The sha256 of the fields as JSON: equal for equal configs."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`: lists become tuples, as in `default()`."""

    def tuples(value):
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return ConfigDict(tuples(json.loads(text)))
