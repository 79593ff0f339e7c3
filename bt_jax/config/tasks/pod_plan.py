"""The task `pod_plan`: a pre-training's step compiled for a TPU slice, from the config of that pre-training."""

import dataclasses

from bt_jax.config.tasks import pretrain

TASK = dataclasses.replace(
    pretrain.TASK, name="pod_plan", doc="plans a pre-training on a TPU slice, by compiling its step without one"
)
