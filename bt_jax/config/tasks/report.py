"""The task `report`: the report of the run in a workdir; its config is the run's, or any other of a pre-training."""

import dataclasses

from bt_jax.config.tasks import pretrain

TASK = dataclasses.replace(
    pretrain.TASK, name="report", doc="writes WORKDIR/report.html of a pre-training, finished or not"
)
