"""A run as its workdir has it: of any version, finished or not, damaged or not."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from bt_jax.errors import UserError, first_line
from bt_jax.reporting.report.stored import FOLDER, Arrays, read_arrays, read_facts
from bt_jax.runtime.files import read_object

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What a workdir says about a pre-training.

    Attributes:
      name: of the run, for people: the last part of the workdir's path.
      records: the lines of metrics.jsonl, in order.
      config: config.json, nested; {} if it cannot be read.
      result: pretrain.json; {} while the run is not finished.
      facts: report/run.json; {} of a run without it.
      views, first, last: the arrays of views.npz, first.npz and last.npz; None where a run has not kept them.
      confusion: those of linear/confusion.npz.
      problems: sentences about files that are damaged.
    """

    name: str
    workdir: epath.Path
    records: tuple[Record, ...]
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    facts: Mapping[str, Any]
    views: Arrays | None
    first: Arrays | None
    last: Arrays | None
    confusion: Arrays | None
    problems: tuple[str, ...]

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(epochs, values), float64 (n,) both, of the records that have a number of this name."""
        found = [(epoch, r[name]) for r in self.records if _number(r.get(name)) and _number(epoch := self.epoch_of(r))]
        pairs = np.array(found, np.float64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def epoch_of(self, record: Record) -> float:
        """Of a record; its step where an old one has no epoch."""
        return record.get("epoch", record["step"])

    @functools.cached_property
    def names(self) -> list[str]:
        """The names of all numbers in the records, in the order in which they appear."""
        found = {name: None for record in self.records for name in record}
        return [name for name in found if name not in ("step", "epoch")]

    @property
    def step(self) -> int:
        """The last that is recorded."""
        return self.records[-1]["step"] if self.records else 0

    @property
    def title(self) -> str:
        """The method as people write it."""
        plain = self.method if ":" in self.method else self.method.replace("_", " ")
        return str(self.facts.get("title") or plain)

    @property
    def method(self) -> str:
        return str(self.result.get("method") or self.config.get("method") or "barlow_twins")


def read_run(workdir: epath.Path) -> RunFiles:
    """What is in a workdir.

    Raises:
      UserError: it does not exist, or has neither metrics nor a config of a pre-training.
    """
    if not workdir.exists():
        raise UserError(f"there is no workdir {workdir}; name the folder of a run.")
    problems: list[str] = []
    config, result = (_object(workdir / name, problems) for name in ("config.json", "pretrain.json"))
    records = _records(workdir / "metrics.jsonl", problems)
    task = config.get("task", "pretrain")
    if task != "pretrain":
        raise UserError(f"{workdir} is the workdir of the task {task!r}; a report is made of a pre-training.")
    if not records and not config:
        raise UserError(f"{workdir} is not the workdir of a run: it has neither metrics.jsonl nor config.json.")
    kept = workdir / FOLDER
    arrays = {}
    for name in ("views", "first", "last"):
        path = kept / f"{name}.npz"
        arrays[name] = read_arrays(path)
        if arrays[name] is None and path.exists():
            problems.append(f"{path.name} is damaged, and what it has is left out.")
    return RunFiles(
        name=workdir.name or str(workdir),
        workdir=workdir,
        records=tuple(records),
        config=config,
        result=result if isinstance(result.get("metrics", {}), dict) else {},
        facts=read_facts(kept / "run.json"),
        **arrays,
        confusion=read_arrays(workdir / "linear" / "confusion.npz"),
        problems=tuple(problems),
    )


def _object(path: epath.Path, problems: list[str]) -> dict[str, Any]:
    try:
        return read_object(path) if path.exists() else {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({first_line(error)}).")
        return {}


def _records(path: epath.Path, problems: list[str]) -> list[Record]:
    """The whole lines of metrics.jsonl; those that are damaged, and a torn last one, are counted and left out."""
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({first_line(error)}).")
        return []
    records, damaged = [], 0
    for line in filter(None, lines):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or type(record.get("step")) is not int:
                raise ValueError("not a record")
        except (ValueError, RecursionError):
            damaged += 1
            continue
        records.append(record)
    if damaged:
        problems.append(
            f"{damaged} line{'s' * (damaged > 1)} of metrics.jsonl {'are' if damaged > 1 else 'is'} damaged or torn, and left out."
        )
    return records


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
