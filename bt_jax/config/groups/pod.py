"""The TPU slice for which the task `pod_plan` compiles the step of a pre-training."""

from bt_jax.config.field import Field, Group
from bt_jax.config.rules import anything, at_least

POD = Group(
    "pod",
    "a TPU slice to plan for: --config.task=pod_plan",
    {
        # The task checks it against the known chips (bt_jax/planning/chips.py).
        "topology": Field("", anything, "Slice of TPU chips, such as v5e:16x16", resume="free"),
        "search": Field(False, anything, "Whether to look for the largest batch that fits", resume="free"),
        "images": Field(0, at_least(0), "Images per epoch; 0 for the number in the source", resume="free"),
        "num_classes": Field(1000, at_least(0), "Classes of the labels, where images is given", resume="free"),
    },
)
