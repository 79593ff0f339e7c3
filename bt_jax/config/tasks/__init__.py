"""The tasks and their fields, one module each."""

from bt_jax.config.field import Field, Group, Task
from bt_jax.config.rules import one_of
from bt_jax.config.tasks import embed, export, finetune, knn, linear, pod_plan, pretrain, report, statistics, transfer

LIKE_PRETRAIN = ("pod_plan", "report", "statistics")  # they take the config of a pre-training
_ALL = (
    pretrain.TASK,
    pod_plan.TASK,
    linear.TASK,
    finetune.TASK,
    knn.TASK,
    transfer.TASK,
    embed.TASK,
    export.TASK,
    report.TASK,
    statistics.TASK,
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}

TASK = Group(
    "",
    "what to do",
    {"task": Field("pretrain", one_of(TASKS), f"What the run does: {', '.join(TASKS)}")},
)
