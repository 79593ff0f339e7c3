"""What each field of a config may be, one rule a field, and what fields must be together."""

import difflib
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

from bt_jax.errors import UserError
from bt_jax.planning.chips import known, parse_topology

# What `config.task` can name, and the function of (config, workdir) that does it.
TASKS = {
    "pretrain": "bt_jax.tasks.pretrain:pretrain",
    "pod_plan": "bt_jax.tasks.pod_plan:pod_plan",
    "linear": "bt_jax.tasks.linear:linear",
    "finetune": "bt_jax.tasks.finetune:finetune",
    "knn": "bt_jax.tasks.knn:knn",
    "transfer": "bt_jax.tasks.transfer:transfer",
    "export": "bt_jax.tasks.export:export",
}
EVALUATIONS = ("linear", "finetune", "knn", "transfer")
METHODS = ("barlow_twins",)
ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101")
SOURCES = ("photographs", "tfds", "folder", "arrays")
VIEWS = ("host", "device")


Rule = Callable[[Any], str | None]  # what is wrong with a value, or None


def _at_least(low: float, kind: type = int) -> Rule:
    return lambda v: None if v >= low else f"must be {'an integer' if kind is int else 'a number'} of at least {low:g}"


def _above_zero(v: float) -> str | None:
    return None if v > 0 and math.isfinite(v) else "must be a positive number"


def _between(low: float, high: float) -> Rule:
    return lambda v: None if low <= v <= high else f"must be between {low:g} and {high:g}"


def _one_of(names: Iterable[str]) -> Rule:
    names = tuple(names)
    return lambda v: None if v in names else f"must be {_listed(names)}{nearest(v, names)}"


def _range_within(low: float, high: float) -> Rule:
    def rule(v):
        fits = len(v) == 2 and all(map(is_number, v)) and low <= v[0] <= v[1] <= high
        return None if fits else f"must be two rising numbers between {low:g} and {high:g}"

    return rule


def _anything(_) -> None:
    return None


def _numbers(length: int | None, kind: str, fits: Callable[[Any], bool]) -> Rule:
    how_many = "one or more" if length is None else str(length)

    def rule(v):
        right = (len(v) >= 1 if length is None else len(v) == length) and all(fits(x) for x in v)
        return None if right else f"must be {how_many} {kind}"

    return rule


def _topology(v: str) -> str | None:
    try:
        return None if v == "" else parse_topology(v) and None
    except UserError as error:
        return str(error).rstrip(".")


def _rising_above_zero(v) -> str | None:
    fits = all(map(is_number, v)) and all(a < b for a, b in zip((0, *v), v, strict=False))
    return None if fits else "must be rising numbers above 0"


def is_number(v: Any) -> bool:
    return isinstance(v, numbers.Real) and not isinstance(v, bool)


_VIEW_RULES = {
    "crop_scale": _range_within(1e-6, 1),
    "crop_ratio": _range_within(1e-3, 1e3),
    "flip": _between(0, 1),
    "jitter": _between(0, 1),
    "brightness": _between(0, 1),
    "contrast": _between(0, 1),
    "saturation": _between(0, 1),
    "hue": _between(0, 0.5),
    "grayscale": _between(0, 1),
    "blur": _between(0, 1),
    "blur_sigma": _range_within(1e-3, 2.4),  # as far as boxes of five taps reach (views.gaussian_blur)
    "solarize": _between(0, 1),
}

# One rule a field, so that no field goes unchecked (a test compares this list with `default()`).
RULES: dict[str, Rule] = {
    "task": _one_of(TASKS),
    "method": _one_of(METHODS),
    "seed": _between(0, 2**31 - 1),
    "dtype": _one_of(("float32", "bfloat16")),
    "batch_size": _at_least(2),
    "epochs": _at_least(1),
    "steps_per_dispatch": _at_least(1),
    "init_from": _anything,
    "data.source": _one_of(SOURCES),
    "data.name": _anything,
    "data.data_dir": _anything,
    "data.train_split": lambda v: None if v else "must name a split",
    "data.test_split": _anything,
    "data.image_size": _at_least(8),
    "data.eval_resize": _at_least(0),
    "data.mean": _numbers(3, "numbers", is_number),
    "data.std": _numbers(3, "positive numbers", lambda x: is_number(x) and x > 0),
    "data.download": _anything,
    "data.max_bad_fraction": _between(0, 1),
    "data.in_memory_bytes": _at_least(0),
    "data.cache_bytes": _at_least(0),
    "data.shuffle_buffer": _at_least(1),
    "data.threads": _at_least(0),
    "data.prefetch": _at_least(1),
    "data.views": _one_of(VIEWS),
    "data.device_bytes": _at_least(0),
    "data.canvas_size": _at_least(0),
    **{f"data.view_{v}.{name}": rule for v in ("a", "b", "supervised") for name, rule in _VIEW_RULES.items()},
    "data.photographs.size": _at_least(8),
    "data.photographs.train_per_class": _at_least(1),
    "data.photographs.test_per_class": _at_least(1),
    "model.arch": _one_of(ARCHITECTURES),
    "model.width": _at_least(1),
    "model.small_images": _anything,
    "model.stem_stride": _between(1, 2),
    "model.projector": _numbers(None, "positive integers", lambda x: isinstance(x, int) and x > 0),
    "loss.lambd": _at_least(0, float),
    "loss.form": _one_of(("auto", "correlation", "gram")),
    "optimizer.learning_rate_weights": _at_least(0, float),
    "optimizer.learning_rate_biases": _at_least(0, float),
    "optimizer.weight_decay": _at_least(0, float),
    "optimizer.momentum": lambda v: None if 0 <= v < 1 else "must be at least 0 and less than 1",
    "optimizer.trust_coefficient": _above_zero,
    "optimizer.warmup_epochs": _at_least(0),
    "optimizer.end_factor": _between(0, 1),
    "optimizer.gradient_divisor": _above_zero,
    "mesh.data": lambda v: None if v == -1 or v >= 1 else "must be a number of devices, or -1 for all there are",
    "mesh.model": _at_least(1),
    "mesh.coordinator": _anything,
    "mesh.processes": _at_least(0),
    "mesh.process_index": _at_least(-1),
    "mesh.join_seconds": _at_least(5),
    "mesh.heartbeat_seconds": _at_least(5),
    "checkpoint.every_epochs": _at_least(1),
    "checkpoint.every_steps": _at_least(0),
    "checkpoint.keep": _at_least(1),
    "checkpoint.keep_every_epochs": _at_least(0),
    "checkpoint.keep_best": _at_least(0),
    "monitor.every_epochs": _at_least(0),
    "monitor.train_examples": _at_least(1),
    "monitor.test_examples": _at_least(1),
    "monitor.batch_size": _at_least(1),
    "monitor.k": _at_least(1),
    "monitor.temperature": _above_zero,
    "pod.topology": _topology,
    "pod.search": _anything,
    "pod.images": _at_least(0),
    "monitor.pairs": lambda v: None if v == 0 or v >= 2 else "must be 0, or an integer of at least 2",
    "monitor.judge_at_end": _anything,
    "repeats": _at_least(1),
    "sgd.learning_rate_head": _at_least(0, float),
    "sgd.learning_rate_encoder": _at_least(0, float),
    "sgd.momentum": lambda v: None if 0 <= v < 1 else "must be at least 0 and less than 1",
    "sgd.weight_decay": _at_least(0, float),
    "sgd.schedule": _one_of(("cosine", "steps")),
    "sgd.decay_epochs": _rising_above_zero,
    "sgd.decay_factor": _between(0, 1),
    "sgd.evaluate_every_epochs": _at_least(1),
    "linear.cached": _anything,
    "linear.l2": _numbers(None, "positive numbers", lambda x: is_number(x) and x > 0),
    "linear.held_out": lambda v: None if 0 < v < 1 else "must be more than 0 and less than 1",
    "linear.max_iterations": _at_least(1),
    "finetune.chosen_by": _one_of(("seed", "list", "source")),
    "finetune.percent": lambda v: None if 0 < v <= 100 else "must be more than 0 and at most 100",
    "finetune.per_class": _at_least(0),
    "finetune.list_file": _anything,
    "finetune.from_scratch": _anything,
    "finetune.learning_rate_from_scratch": _at_least(0, float),
    "knn.k": _numbers(None, "positive integers", lambda x: isinstance(x, int) and x > 0),
    "knn.temperature": _above_zero,
    "knn.health_examples": _at_least(2),
    "transfer.protocol": _one_of(("linear", "svm")),
    "transfer.svm_costs": _numbers(None, "positive numbers", lambda x: is_number(x) and x > 0),
    "transfer.svm_folds": _at_least(2),
    "export.dtype": _one_of(("float32", "bfloat16")),
    "export.projector": _anything,
    "export.classifier": _anything,
    "export.safetensors": _anything,
    "export.program": _anything,
    "export.platforms": _numbers(
        None, "of 'cpu', 'cuda', 'rocm' and 'tpu'", ("cpu", "cuda", "rocm", "tpu").__contains__
    ),
    "log.every_steps": _at_least(1),
    "log.tensorboard": _anything,
    "profile.steps": _at_least(0),
    "profile.after": _at_least(1),
}


def contradictions(fields: dict[str, Any]) -> list[str]:
    """What no single field shows; looks only at fields that are sound by themselves."""
    wrong = []
    get = fields.get
    evaluates = get("task") in EVALUATIONS
    lengths = {"epochs", "optimizer.warmup_epochs"} <= fields.keys()
    if lengths and not evaluates and get("epochs") <= get("optimizer.warmup_epochs"):
        wrong.append(
            f"epochs is {get('epochs')}, but must be more than optimizer.warmup_epochs, "
            f"which is {get('optimizer.warmup_epochs')}"
        )
    if get("data.source") == "tfds" and get("data.name") == "":
        wrong.append("data.name is empty, but must name the TFDS data set when data.source is 'tfds'")
    if get("data.source") in ("folder", "arrays") and get("data.data_dir") == "":
        what = "the image folder" if get("data.source") == "folder" else "the .npz file"
        wrong.append(f"data.data_dir is empty, but must name {what} when data.source is {get('data.source')!r}")
    if {"data.eval_resize", "data.image_size"} <= fields.keys() and 0 < get("data.eval_resize") < get(
        "data.image_size"
    ):
        wrong.append(
            f"data.eval_resize is {get('data.eval_resize')}, but must be 0 or at least data.image_size, "
            f"which is {get('data.image_size')}"
        )
    if get("task") == "pod_plan" and get("pod.topology") == "":
        wrong.append(f"pod.topology is empty, but must name a slice when task is 'pod_plan': {known()}")
    every, kept = get("checkpoint.every_epochs", 1), get("checkpoint.keep_every_epochs", 0)
    if kept % every:
        wrong.append(
            f"checkpoint.keep_every_epochs is {kept}, but must be a multiple of every_epochs, which is {every}"
        )
    if get("monitor.every_epochs", 0) > 0 and get("data.test_split") == "":
        wrong.append("data.test_split is empty, but must name a split when monitor.every_epochs is not 0")
    if evaluates:
        wrong += _evaluation_contradictions(get)
    if get("steps_per_dispatch", 1) > 1 and get("data.views") == "host":
        wrong.append(
            f"steps_per_dispatch is {get('steps_per_dispatch')}, but must be 1 when data.views is 'host'; "
            "set data.views to 'device' to make views where the set is"
        )
    split, sizes = get("mesh.model", 1), get("model.projector", ())
    if any(size % split for size in sizes):
        wrong.append(f"mesh.model is {split}, but must divide each of model.projector, {'-'.join(map(str, sizes))}")
    parts = ("mesh.coordinator", "mesh.processes", "mesh.process_index")
    if set(parts) <= fields.keys():
        given = (get(parts[0]) != "", get(parts[1]) > 0, get(parts[2]) >= 0)
        alone = get(parts[1]) == 1 and not given[0] and not given[2]
        if any(given) and not all(given) and not alone:
            wrong.append(f"{', '.join(parts)} must be given all three or not at all")
        elif all(given) and get(parts[2]) >= get(parts[1]):
            wrong.append(
                f"mesh.process_index is {get(parts[2])}, but must be less than mesh.processes, {get(parts[1])}"
            )
    return wrong


def _evaluation_contradictions(get: Callable) -> list[str]:
    wrong = []
    task = get("task")
    if get("init_from") == "" and not (task == "finetune" and get("finetune.from_scratch")):
        wrong.append(f"init_from is empty, but must name the encoder that {task} judges: a run's workdir, for example")
    if get("data.test_split") == "":
        wrong.append(f"data.test_split is empty, but must name the labelled split that {task} counts on")
    if get("sgd.schedule") == "steps" and get("sgd.decay_epochs") == ():
        wrong.append("sgd.decay_epochs is empty, but must say when the rates fall where sgd.schedule is 'steps'")
    if task == "finetune":
        by, file, per_class = (get(f"finetune.{name}") for name in ("chosen_by", "list_file", "per_class"))
        if (by == "list") != (file != ""):
            wrong.append(
                "finetune.list_file must name a file where finetune.chosen_by is 'list', and nothing elsewhere"
            )
        if by != "seed" and per_class:
            wrong.append(f"finetune.per_class is {per_class}, but must be 0 where finetune.chosen_by is {by!r}")
    return wrong


def nearest(name: Any, names: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"`, or nothing when no name is near."""
    name, names = str(name), list(names)
    last = {n.rpartition(".")[2]: n for n in names}
    part = name.rpartition(".")[2]
    if part in last and "." in last[part]:  # the right field in the wrong group
        close = [last[part]]
    else:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        close = close or [last[found] for found in difflib.get_close_matches(part, last, n=1, cutoff=0.6)]
    return f" (did you mean {close[0]!r}?)" if close else ""


def _listed(names: tuple[str, ...]) -> str:
    quoted = [repr(n) for n in names]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]
