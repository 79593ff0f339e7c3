"""A TPU slice, for which the task `pod_plan` compiles the step of a pre-training."""

from bt_jax.config.field import Field, Group
from bt_jax.config.rules import anything, at_least

POD = Group(
    "pod",
    "a TPU slice to plan for: --config.task=pod_plan",
    {
        # Its rule is the chips' (bt_jax/planning/chips.py); the task applies it.
        "topology": Field("", anything, "Slice of TPU chips, such as v5e:16x16", resume="free"),
        "search": Field(False, anything, "Whether to look for the largest batch that fits", resume="free"),
        "images": Field(0, at_least(0), "Images of an epoch; 0 for as many as the source says it has", resume="free"),
    },
)
