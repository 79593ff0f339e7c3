"""The notes beside a checkpoint's state: where the run was, and what it had recorded."""

import dataclasses
import datetime
import json
import sys
from collections.abc import Mapping
from typing import Any, TypeGuard

import jax
from etils import epath
from ml_collections import ConfigDict

from bt_jax import config as config_lib
from bt_jax.errors import UserError, first_line
from bt_jax.facts import Facts
from bt_jax.runtime.workdir import check_same_run
from bt_jax.version import __version__

_MOST_SECONDS = 1e10  # of a run: three centuries


@dataclasses.dataclass(frozen=True)
class RunNotes:
    """The JSON beside a checkpoint's arrays.

    Attributes:
      config: the run's.
      data: the run's position in its data, and the data's fingerprint, from `data_position`.
      looked: whether the look that was due at this step has been taken.
      history: the records of metrics.jsonl up to this step.
      seconds: wall-clock seconds up to this step, earlier starts included.
    """

    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, int | str] = dataclasses.field(default_factory=dict)
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
        """The inverse of `to_json`; entries that are damaged, or that an older version did not save, get their defaults."""

        def get(name: str, kind: type, default: Any) -> Any:
            return saved[name] if isinstance(saved.get(name), kind) else default

        seconds = saved.get("seconds")
        return cls(
            config=get("config", dict, {}),
            data=get("data", dict, {}),
            looked=get("watched", bool, True),
            history=tuple(filter(_is_record, get("history", list, []))),
            seconds=seconds if _is_number(seconds) and 0 <= seconds < _MOST_SECONDS else 0.0,
        )

    def check_config(self, config: Mapping[str, Any], workdir: epath.Path) -> None:
        """Raises UserError if the run in `workdir`, whose notes these are, cannot be resumed with `config`."""
        if not self.config:  # from a version that did not save it
            return
        try:
            there = config_lib.from_json(json.dumps(self.config))
        except ValueError as error:
            raise UserError(
                f"the newest checkpoint in {workdir} does not have the config of a run ({first_line(error)}); choose another "
                "--workdir."
            ) from None
        check_same_run(ConfigDict(config), there, workdir)


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # which is False for NaN


def _is_record(record: Any) -> bool:
    """Whether it is what `Reporter.record` writes: a step and numbers, null for those that were not finite."""
    if not isinstance(record, dict) or type(record.get("step")) is not int or record["step"] < 0:
        return False
    return all(value is None or _is_number(value) for value in record.values())


def data_position(
    step: int, facts: Facts, fingerprint: str, test_fingerprint: str | None = None
) -> dict[str, int | str]:
    """The position of a run in its data after `step` updates, and the data's fingerprints.

    Args:
      fingerprint: of the training set.
      test_fingerprint: of the images that its result is measured on; None if a resumed run may have others.
    """
    epoch, batch = divmod(step, facts.steps_per_epoch)
    return {
        "images": facts.num_examples,
        "steps_per_epoch": facts.steps_per_epoch,
        "epoch": epoch,
        "batch": batch,
        "fingerprint": fingerprint,
    } | ({} if test_fingerprint is None else {"test_fingerprint": test_fingerprint})


def check_data(
    saved: Mapping[str, int | str], step: int, facts: Facts, fingerprint: str, test_fingerprint: str | None = None
) -> None:
    """Checks that the data has not changed since a checkpoint.

    Args:
      saved: `RunNotes.data` of the checkpoint of `step`.
      fingerprint, test_fingerprint: as for `data_position`.

    Raises:
      UserError: it has changed; the differences are named.
    """
    now = data_position(step, facts, fingerprint, test_fingerprint)
    words = {
        "fingerprint": "the fingerprint of its files, labels or pixels",
        "test_fingerprint": "the fingerprint of the test images",
    }
    differ = [
        f"{words.get(n, n)} was {str(saved[n])[:40]} and is now {now[n]}" for n in now if saved.get(n, now[n]) != now[n]
    ]
    if differ:
        raise UserError(
            f"the data has changed since checkpoint {step} was saved ({'; '.join(differ)}), so the run cannot resume; restore "
            "the data, or choose another --workdir."
        )
