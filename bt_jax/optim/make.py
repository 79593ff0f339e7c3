"""Makes the optimizer of a run from its config group, with its schedules and their description."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import optax
from ml_collections import ConfigDict

from bt_jax.errors import UserError
from bt_jax.facts import Facts
from bt_jax.optim.adamw import adamw
from bt_jax.optim.larc import larc
from bt_jax.optim.lars import lars
from bt_jax.optim.schedules import by_epoch, paper_rates, scaled_rate, warmup_cosine
from bt_jax.optim.sgd import sgd


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer and its learning-rate schedules.

    Optimizers with equal settings are equal, so that compiled programs can be cached by them. It can be used wherever optax
    expects a transformation.

    Attributes:
      schedules: functions of the step by name, such as "weights"; the first is shown during training.
      description: for the summary of a run.
    """

    name: str
    settings: tuple[tuple[str, Any], ...]
    facts: Facts

    @functools.cached_property
    def _built(self) -> tuple[optax.GradientTransformation, dict[str, optax.Schedule], str]:
        return _BUILDERS[self.name](dict(self.settings), self.facts)

    @property
    def schedules(self) -> dict[str, optax.Schedule]:
        return self._built[1]

    @property
    def description(self) -> str:
        return self._built[2]

    def init(self, params: optax.Params) -> optax.OptState:
        return self._built[0].init(params)

    def update(self, updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **_: Any):
        return self._built[0].update(updates, state, params)


AnyOptimizer = Optimizer | optax.GradientTransformation


def make_optimizer(settings: ConfigDict | Mapping[str, Any], facts: Facts, *, width: int | None = None) -> Optimizer:
    """The optimizer with the name `settings.name`.

    lars: learning rates `learning_rate_weights` and `learning_rate_biases` with `warmup_cosine`. `gradient_divisor` divides
    the gradient first. The official program sums C over its W GPUs outside autograd and lets DistributedDataParallel average,
    so its gradient is that of the global batch divided by W, which is 16 in the run with 73.5 %; here it is the true gradient.
    For weights the trust ratio cancels a constant factor, but it changes the step of 1-D parameters, and the proportion of
    weight decay in u. To reproduce that run, set gradient_divisor = 16; otherwise it is 1, and learning_rate_biases and
    weight_decay have their usual meaning. With `rates` "paper" both rates are those of `paper_rates`. `rate_in_momentum`, `clip`
    and `scaling` are explained in `lars` and `scaled_rate`.

    larc: SGD under LARC, with one learning rate for all parameters, biases too, and `warmup_cosine`.

    adamw: with one learning rate for all parameters, and `warmup_cosine`.

    sgd: PyTorch's, with one learning rate for all parts, or one for each of `learning_rates`.

    Args:
      settings: `config.optimizer` of a run, or a mapping with its fields.
      facts: the lengths of the training.
      width: of the method's embeddings; needed for `rates` "paper" only.

    Raises:
      UserError: `rates` is "paper", and the width is not known.
      ValueError: epochs not more than the warm-up.
    """
    fields = {name: _hashable(value) for name, value in settings.items()}
    name = fields.pop("name", "lars")
    if fields.get("rates") == "paper":
        if width is None:
            raise UserError(
                "optimizer.rates is 'paper', by which the rate of biases depends on the width of the embeddings, but the method "
                "has no attribute `width`; give it one, or set the rates."
            )
        fields["width"] = width
    optimizer = Optimizer(name, tuple(sorted(fields.items())), facts)
    optimizer.schedules  # noqa: B018  (raises what is wrong)
    return optimizer


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping | ConfigDict):
        return tuple((name, _hashable(part)) for name, part in value.items())
    return tuple(value) if isinstance(value, list) else value


def _lars(fields: dict[str, Any], facts: Facts):
    from_paper = fields.get("rates", "given") == "paper"
    rates = {kind: fields[f"learning_rate_{kind}"] for kind in ("weights", "biases")}
    if from_paper:
        rates = paper_rates(facts.batch_size, fields["width"])
    schedules = {
        kind: _warmup_cosine(base_rate, fields, facts, scaling=fields.get("scaling", "linear"))
        for kind, base_rate in rates.items()
    }
    transformation = lars(
        schedules["weights"],
        schedules["biases"],
        weight_decay=fields["weight_decay"],
        momentum=fields["momentum"],
        trust_coefficient=fields["trust_coefficient"],
        rate_in_momentum=fields.get("rate_in_momentum", False),
        clip=fields.get("clip", False),
    )
    divisor = fields["gradient_divisor"]
    if divisor != 1:
        transformation = optax.chain(optax.scale(1 / divisor), transformation)
    words = ", ".join(f"{kind} {_scaled(rate, facts, fields.get('scaling', 'linear'))}" for kind, rate in rates.items())
    if from_paper:
        words += f",\nthe paper's for a batch of {facts.batch_size}" + (
            ", which it has not tried" * (not 128 <= facts.batch_size <= 4096)
        )
        words += f"; biases 196/{fields['width']} of weights"
    description = f"{words},\ngradients divided by {divisor:g}; warm-up {fields['warmup_epochs']} epochs, then cosine"
    if fields.get("rate_in_momentum", False):
        description += "; the rate enters the momentum"
    if fields.get("clip", False):
        description += "; trust ratios are clipped"
    return transformation, schedules, description


def _warmup_cosine(rate: float, fields: dict[str, Any], facts: Facts, **more: Any) -> optax.Schedule:
    """The schedule of one rate that grows with the batch, by the fields of an optimizer."""
    return warmup_cosine(
        rate,
        batch_size=facts.batch_size,
        steps_per_epoch=facts.steps_per_epoch,
        epochs=facts.epochs,
        warmup_epochs=fields["warmup_epochs"],
        end_factor=fields["end_factor"],
        **more,
    )


def _larc(fields: dict[str, Any], facts: Facts):
    rate = fields["learning_rate"]
    schedule = _warmup_cosine(rate, fields, facts, start_factor=fields["start_factor"])
    transformation = larc(
        schedule,
        weight_decay=fields["weight_decay"],
        momentum=fields["momentum"],
        trust_coefficient=fields["trust_coefficient"],
    )
    description = (
        f"all parameters {_scaled(rate, facts)};\nSGD under LARC, momentum {fields['momentum']:g}; warm-up "
        f"{fields['warmup_epochs']} epochs, then cosine"
    )
    return transformation, {"weights": schedule}, description


def _adamw(fields: dict[str, Any], facts: Facts):
    rate = fields["learning_rate"]
    schedule = _warmup_cosine(rate, fields, facts)
    settings = {name: fields[name] for name in ("weight_decay", "beta1", "beta2", "eps")}
    description = (
        f"all parameters {_scaled(rate, facts)};\nAdamW, betas {fields['beta1']:g} and {fields['beta2']:g}, weight decay "
        f"{fields['weight_decay']:g}; warm-up {fields['warmup_epochs']} epochs, then cosine"
    )
    return adamw(schedule, **settings), {"weights": schedule}, description


def _sgd(fields: dict[str, Any], facts: Facts):
    rates = dict(fields["learning_rates"]) if "learning_rates" in fields else {"": fields["learning_rate"]}
    warmup = fields.get("warmup_epochs", 0)

    def schedule(rate):
        peak = rate * facts.batch_size / 256
        falling = by_epoch(
            peak,
            steps_per_epoch=facts.steps_per_epoch,
            epochs=facts.epochs,
            schedule=fields["schedule"],
            decay_epochs=fields["decay_epochs"],
            decay_factor=fields["decay_factor"],
            end_factor=fields.get("end_factor", 0.0),
        )
        if not warmup:
            return falling
        steps = warmup * facts.steps_per_epoch
        rising = optax.linear_schedule(0.0, peak, steps)
        return optax.join_schedules([rising, lambda step: falling(step + steps)], [steps])

    schedules = {part: schedule(rate) for part, rate in rates.items()}
    common = {
        "momentum": fields["momentum"],
        "weight_decay": fields["weight_decay"],
        "nesterov": fields.get("nesterov", False),
        "decay_norms": fields.get("decay_norms", True),
        "decay_biases": fields.get("decay_biases", True),
    }
    if "learning_rates" in fields:
        transformation = sgd(schedules, **common)
    else:
        transformation = _of_the_whole(schedules[""], common)
        schedules = {"weights": schedules[""]}
    words = ", ".join(f"{part or 'all parameters'} {_scaled(rate, facts)}" for part, rate in rates.items())
    description = f"{words};\nSGD, momentum {fields['momentum']:g}{', Nesterov' * common['nesterov']}, weight decay "
    description += f"{fields['weight_decay']:g}; "
    return transformation, schedules, description + described_schedule(fields)


def _of_the_whole(schedule: optax.Schedule, common: dict[str, Any]) -> optax.GradientTransformation:
    """`sgd` with all parameters as one part."""
    inner: Any = sgd({"all": schedule}, **common)

    def update(updates: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        updates, state = inner.update({"all": updates}, state, {"all": params})
        return updates["all"], state

    return optax.GradientTransformation(lambda params: inner.init({"all": params}), update)


def described_schedule(settings: Mapping[str, Any] | ConfigDict) -> str:
    """`cosine`, or `warm-up 5 epochs, then ×0.1 after epochs 30, 60`."""
    warmup = settings.get("warmup_epochs", 0)
    rising = f"warm-up {warmup} epochs, then " if warmup else ""
    if settings["schedule"] == "cosine":
        return f"{rising}cosine"
    epochs = ", ".join(f"{epoch:g}" for epoch in settings["decay_epochs"])
    return f"{rising}×{settings['decay_factor']:g} after epochs {epochs}"


def _scaled(rate: float, facts: Facts, scaling: str = "linear") -> str:
    factor = f"{facts.batch_size}/256" if scaling == "linear" else f"√({facts.batch_size}/256)"
    return f"{scaled_rate(rate, facts.batch_size, scaling):g} = {rate:g} × {factor}"


_BUILDERS = {"lars": _lars, "larc": _larc, "sgd": _sgd, "adamw": _adamw}
