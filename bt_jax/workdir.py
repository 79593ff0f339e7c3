"""A run's folder: whose it is, and whether a config may go on in it."""

from typing import Any

from etils import epath
from ml_collections import ConfigDict

from bt_jax.config import default, flatten, from_json, to_json
from bt_jax.errors import UserError

# What may differ when a run is resumed: none of these changes a weight.
FREE_ON_RESUME = ("mesh.", "checkpoint.", "monitor.", "log.", "pod.", "data.data_dir", "data.download", "data.threads",
                  "data.prefetch", "data.in_memory_bytes", "steps_per_dispatch", "profile.")  # fmt: skip

# Of a pre-training run none of these changes a weight either: they are the evaluations'.
FREE_WHEN_PRETRAINING = (
    "sgd.",
    "linear.",
    "finetune.",
    "knn.",
    "transfer.",
    "repeats",
    "init_from",
    "data.view_supervised.",
)


def claim_workdir(config: ConfigDict, workdir: epath.Path, *, write: bool) -> None:
    """Writes `config.json` into a new workdir, or compares with the one that is there.

    Args:
      write: whether this process writes; the others only compare.

    Raises:
      UserError: the workdir holds a run of another config (the fields that differ are named), or cannot be written.
    """
    path = workdir / "config.json"
    try:
        there = from_json(path.read_text()) if path.exists() else None
    except ValueError:
        raise UserError(f"{path} is not readable as JSON; mend it or choose another --workdir.") from None
    if there is not None:
        # A field that is younger than the run had its default then, whatever did the work.
        old, new = {**flatten(default()), **flatten(there)}, flatten(config)
        free = FREE_ON_RESUME + (FREE_WHEN_PRETRAINING if config.task == "pretrain" else ())
        differ = [
            f"{name} was {old.get(name)!r} and is now {new.get(name)!r}"
            for name in sorted(old.keys() | new.keys())
            if _plain(old.get(name)) != _plain(new.get(name)) and not name.startswith(free)
        ]
        if differ:
            raise UserError(
                f"{workdir} holds a run of another config ({'; '.join(differ)}); choose another --workdir, "
                "or the old config to resume it."
            )
    if write:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            path.write_text(to_json(config))
        except OSError as error:
            raise UserError(f"the workdir {workdir} cannot be written: {error.strerror or error}.") from None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
