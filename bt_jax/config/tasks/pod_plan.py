"""The task `pod_plan`: compiles the step of a pre-training, from its config, for a TPU slice."""

import dataclasses

from bt_jax.config.tasks import pretrain

TASK = dataclasses.replace(
    pretrain.TASK, name="pod_plan", doc="plans a pre-training on a TPU slice, by compiling its step without a TPU"
)
