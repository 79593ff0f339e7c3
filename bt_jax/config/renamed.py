"""Former names of fields, and the migration of configs that use them.

Up to 57dd817 (version 0.1.0) a config held all fields of all tasks, and Barlow Twins had no group of its own.
"""

from typing import Any

# Up to 57dd817. A name with a dot at its end stands for all fields of that group.
_MOVED = {
    "loss.": "barlow_twins.",
    "model.projector": "barlow_twins.projector",
    "data.view_a.": "barlow_twins.view_a.",
    "data.view_b.": "barlow_twins.view_b.",
    "data.view_supervised.": "judge.view.",
}
_MOVED_IN_EVALUATIONS = {
    "monitor.batch_size": "features.batch_size",
    "data.view_supervised.": "supervised.view.",
}
_MOVED_IN_TASKS = {
    "linear": _MOVED_IN_EVALUATIONS,
    "finetune": _MOVED_IN_EVALUATIONS,
    "transfer": _MOVED_IN_EVALUATIONS,
    "knn": {
        **_MOVED_IN_EVALUATIONS,
        "monitor.pairs": "knn.pairs",
        "data.view_a.": "pairs.view_a.",
        "data.view_b.": "pairs.view_b.",
    },
}


def new_name(name: str, task: str) -> str:
    """The present name, in a config of `task`, of a field or group with a former name; unchanged names stay."""
    for old, new in {**_MOVED, **_MOVED_IN_TASKS.get(task, {})}.items():
        if name == old:
            return new
        if old.endswith("."):
            if name.startswith(old):
                return new + name.removeprefix(old)
            if name == old[:-1]:
                return new[:-1]
    return name


def is_old(flat: dict[str, Any]) -> bool:
    """Whether these are the fields, by full name, of a config from 57dd817 or before."""
    return "loss.lambd" in flat or "data.view_a.flip" in flat


def migrate(flat: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Converts the fields of a config from 57dd817 or before to the present ones.

    Args:
      flat: the old fields, by full name.
      defaults: of all present fields of this task.

    Returns:
      The present fields. Fields of other tasks, which every old config held, are dropped; new fields have their defaults.
    """
    task = flat["task"]
    renamed = {new_name(name, task): value for name, value in flat.items()}
    if task == "transfer" and flat.get("transfer.protocol") == "svm":  # nothing is trained in batches and epochs there
        renamed = {name: value for name, value in renamed.items() if name not in ("batch_size", "epochs")}
    return {name: renamed.get(name, value) for name, value in defaults.items()}
