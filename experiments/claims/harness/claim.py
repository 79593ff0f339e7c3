"""How a claim is written down: arms, statements about their accuracy, and the grid of runs that follows.

A claim is a module of experiments/claims/ with

- a docstring: the sentence claimed and its source, the measure, the prediction and the rule, written before the runs;
- `TITLE`, a few words;
- `arms(scale)`, the settings that are compared, and `statements(scale)`, what is said about them.
"""

import dataclasses
import hashlib
import importlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import recipe

from bt_jax import config as config_lib
from bt_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Scale:
    """A size at which claims are tried; see recipe.py.

    Attributes:
      name: cpu, gpu or paper.
      batch: images per step in the base recipe.
      width: channels of Barlow Twins' embedding in the base recipe.
      seeds: of the runs of an arm.
      minutes: how long a run takes, for estimates: of one core, of one GPU, or None. At `cpu` the mean of the first 126 runs, evaluations
        among them.
    """

    name: str
    batch: int
    width: int
    seeds: tuple[int, ...]
    minutes: float | None


SCALES = {
    "cpu": Scale("cpu", batch=256, width=512, seeds=(0, 1, 2), minutes=9),
    "gpu": Scale("gpu", batch=256, width=2048, seeds=(0, 1, 2), minutes=None),
    "paper": Scale("paper", batch=2048, width=8192, seeds=(0, 1, 2), minutes=None),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One setting: a method, and the fields in which it differs from the scale's recipe.

    Attributes:
      measure: "" for the kNN accuracy with which the pre-training ends, or an evaluation of recipe.py: knn, 1percent, 10percent.
      held_out: whether train images that are held out take the place of the test images.
      line, x: for claims about a number such as the batch size, the curve that the arm is a point of, and where.
      also: other curves that it is a point of.
      tick: what stands at x on the axis; x itself if "".
      paper: the paper's number for it, as text.
    """

    name: str
    method: str = "barlow_twins"
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measure: str = ""
    held_out: bool = False
    line: str = ""
    x: float | None = None
    also: tuple[str, ...] = ()
    tick: str = ""
    paper: str = ""


@dataclasses.dataclass(frozen=True)
class Statement:
    """Something said about accuracies, in points.

    Attributes:
      text: the statement, as a sentence.
      weights: the effect is the sum of these weights times the arms' accuracies, seed by seed.
      claimed: "above" or "below": the effect is at least `margin` above or below 0. "same": it is within ± `margin`. "kept": it is
        not more than `margin` below 0.
      margin: the smallest effect that counts, in points.
    """

    text: str
    weights: Mapping[str, float]
    claimed: str
    margin: float


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim at a scale. `seeds` are those that it declares: it is judged when all of them are in."""

    name: str
    title: str
    text: str
    arms: tuple[Arm, ...]
    statements: tuple[Statement, ...]
    seeds: tuple[int, ...]
    axis: str = ""

    def first_seeds(self, count: int) -> tuple[int, ...]:
        """So many of the declared seeds, and the numbers after them if there are fewer."""
        last = self.seeds[-1]
        return (*self.seeds, *range(last + 1, last + 1 + count - len(self.seeds)))[:count]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: an arm's method and fields with a seed. Claims with the same arm share it.

    With a `measure` it is the evaluation of the encoder that its `base` has trained.
    """

    scale: str
    method: str
    fields: tuple[tuple[str, Any], ...]
    held_out: bool
    seed: int
    measure: str = ""

    @property
    def base(self) -> "Cell | None":
        """The pre-training that comes first, of an evaluation; None from scratch."""
        return dataclasses.replace(self, measure="") if self.measure and self.method != "scratch" else None

    @property
    def name(self) -> str:
        """For people and for the file system; equal only for equal cells."""
        said = "-".join(f"{name.removeprefix(self.method + '.')}-{value}" for name, value in self.fields)
        said = re.sub(
            r"[^a-zA-Z0-9.]+", "-", said.replace("optimizer.learning_rate", "rate").replace("optimizer.", "")
        ).strip("-")
        whole = "-".join(filter(None, (self.method, "held-out" * self.held_out, said)))
        if len(whole) > 60:
            digest = hashlib.sha256(repr(self.fields).encode()).hexdigest()[:8]
            whole = f"{whole[:51]}-{digest}"
        return "-".join(filter(None, (whole, self.measure, f"seed{self.seed}")))

    def arguments(self) -> list[str]:
        """Of main.py, without workdir and the data's place."""
        fields = [] if self.measure else [f"--config.{name}={value}" for name, value in self.fields]
        return [f"--config=experiments/claims/recipe.py:{self._recipe}", *fields, f"--config.seed={self.seed}"]

    @property
    def _recipe(self) -> str:
        return ",".join(filter(None, (self.scale, self.method, self.measure or "held_out" * self.held_out)))

    def config(self):
        """The run's config."""
        config = recipe.get_config(self._recipe)
        fields = {"init_from": "the pre-training"} if self.base else {} if self.measure else dict(self.fields)
        config.update_from_flattened_dict(fields | {"seed": self.seed})
        config_lib.check(config)
        return config

    def settings(self) -> dict[str, Any]:
        """All fields in which the run differs from the defaults, as JSON has them."""
        config = self.config()
        usual = config_lib.flatten(
            config_lib.default(config.task) if self.measure else config_lib.default(method=self.method)
        )
        fields = config_lib.flatten(config)
        changed = {name: value for name, value in fields.items() if value != usual.get(name, value)}
        return json.loads(json.dumps(changed))


def names() -> list[str]:
    """All claims."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("run", "recipe"))


def load(name: str, scale: str) -> Claim:
    """A claim at a scale.

    Raises:
      UserError: there is no such claim, or no such scale.
    """
    if name not in names():
        raise UserError(f"there is no claim {name!r}; there are {', '.join(names())}")
    if scale not in SCALES:
        raise UserError(f"there is no scale {scale!r}; there are {', '.join(SCALES)}")
    module = importlib.import_module(name)
    size = SCALES[scale]
    return Claim(
        name=name,
        title=module.TITLE,
        text=(module.__doc__ or "").strip(),
        arms=tuple(module.arms(size)),
        statements=tuple(module.statements(size)),
        seeds=getattr(module, "SEEDS", size.seeds),
        axis=getattr(module, "AXIS", ""),
    )


def cell(scale: str, arm: Arm, seed: int) -> Cell:
    return Cell(scale, arm.method, tuple(sorted(arm.fields.items())), arm.held_out, seed, arm.measure)


def cells(scale: str, claims: list[Claim], *, judged: bool = False, seeds: int = 0) -> list[Cell]:
    """All runs of some claims, each once: the first seed of all arms, then the second, and so on.

    Args:
      seeds: how many of them; 0 for those that a claim declares.
      judged: leaves out arms that no statement is about; they would only be in the table and the plot.
    """
    found: dict[Cell, None] = {}
    for claim in claims:
        about = {name for statement in claim.statements for name in statement.weights}
        for seed in claim.first_seeds(seeds) if seeds else claim.seeds:
            for arm in claim.arms:
                if judged and about and arm.name not in about:
                    continue
                found[cell(scale, arm, seed)] = None
    return list(found)
