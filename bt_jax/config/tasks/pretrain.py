"""The task `pretrain`: trains an encoder with a method."""

from bt_jax.config.field import Task
from bt_jax.config.groups.checkpoint import CHECKPOINT
from bt_jax.config.groups.data import DATA
from bt_jax.config.groups.mesh import MESH
from bt_jax.config.groups.model import MODEL
from bt_jax.config.groups.monitor import JUDGE, MONITOR
from bt_jax.config.groups.pod import POD
from bt_jax.config.groups.report import REPORT
from bt_jax.config.groups.run import DISPATCH, INIT_FROM, LENGTHS, LOG, PROFILE, RUN

TASK = Task(
    "pretrain",
    "trains an encoder with a method",
    (RUN, LENGTHS, DISPATCH, INIT_FROM, DATA, MODEL, MESH, CHECKPOINT, MONITOR, JUDGE, PROFILE, LOG, REPORT, POD),
    trains=True,
)
