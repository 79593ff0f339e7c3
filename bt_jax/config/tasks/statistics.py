"""The task `statistics`: what the values of a set's images are; its config is that of a pre-training."""

import dataclasses

from bt_jax.config.tasks import pretrain

TASK = dataclasses.replace(
    pretrain.TASK,
    name="statistics",
    doc="finds the channels, the range of values, and the mean and deviation of each channel of a set's images",
)
