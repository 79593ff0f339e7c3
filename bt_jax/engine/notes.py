"""The notes beside a checkpoint's state: where the run was, and what it had recorded."""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

import jax

from bt_jax.errors import UserError
from bt_jax.facts import Facts
from bt_jax.version import __version__


@dataclasses.dataclass(frozen=True)
class RunNotes:
    """The JSON beside a checkpoint's arrays.

    Attributes:
      config: the run's.
      data: the run's position in its data, from `data_position`.
      looked: whether the look that was due at this step has been taken.
      history: the records of metrics.jsonl up to this step.
      seconds: wall-clock seconds up to this step, earlier starts included.
    """

    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, int] = dataclasses.field(default_factory=dict)
    looked: bool = True
    history: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The notes, the time, and the versions of the code, for saving."""
        return {
            "config": self.config,
            "data": self.data,
            "watched": self.looked,  # its name since the first version
            "history": list(self.history),
            "seconds": round(self.seconds, 3),
            "saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {"bt_jax": __version__, "jax": jax.__version__},
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "RunNotes":
        """The inverse of `to_json`; what an older version did not save gets its default."""
        return cls(
            config=saved.get("config", {}),
            data=saved.get("data", {}),
            looked=saved.get("watched", True),
            history=tuple(saved.get("history", ())),
            seconds=saved.get("seconds", 0.0),
        )


def data_position(step: int, facts: Facts) -> dict[str, int]:
    """The position of a run in its data after `step` updates."""
    epoch, batch = divmod(step, facts.steps_per_epoch)
    return {"images": facts.num_examples, "steps_per_epoch": facts.steps_per_epoch, "epoch": epoch, "batch": batch}


def check_data(saved: Mapping[str, int], step: int, facts: Facts) -> None:
    """Checks that the data has not changed since a checkpoint.

    Args:
      saved: `RunNotes.data` of the checkpoint of `step`.

    Raises:
      UserError: it has changed; the differences are named.
    """
    now = data_position(step, facts)
    differ = [f"{n} was {saved[n]} and is now {now[n]}" for n in now if saved.get(n, now[n]) != now[n]]
    if differ:
        raise UserError(
            f"the data is not what it was when checkpoint {step} was saved ({'; '.join(differ)}), so the run cannot resume; "
            "bring back the data, or choose another --workdir."
        )
