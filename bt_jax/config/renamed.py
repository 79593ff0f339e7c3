"""Names that fields had before, and configs written under them.

Up to 57dd817 (version 0.1.0) a config held all fields of all tasks, and those of Barlow Twins stood among the others.
"""

from typing import Any

# Up to 57dd817. A name that ends with a dot stands for all fields of that group.
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
    """What a field, or a group of fields, of before is called now in a config of `task`; the name itself if it stays."""
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
    """Whether these are the fields, by full names, of a config of 57dd817 or before."""
    return "loss.lambd" in flat or "data.view_a.flip" in flat


def migrate(flat: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config of 57dd817 or before under their names of now.

    Args:
      flat: by full names.
      defaults: of all fields that a config of this task has now.

    Returns:
      The fields of now. Those of other tasks, which every config held, are gone; those that did not exist have their
      defaults.
    """
    task = flat["task"]
    renamed = {new_name(name, task): value for name, value in flat.items()}
    if task == "transfer" and flat.get("transfer.protocol") == "svm":  # nothing is trained in batches and epochs there
        renamed = {name: value for name, value in renamed.items() if name not in ("batch_size", "epochs")}
    return {name: renamed.get(name, value) for name, value in defaults.items()}
