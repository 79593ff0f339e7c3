"""The report of a pre-training."""

from bt_jax.config.field import Field, Group
from bt_jax.config.rules import anything

REPORT = Group(
    "report",
    "the page WORKDIR/report.html",
    {
        "write": Field(
            True,
            anything,
            "Whether a pre-training writes WORKDIR/report.html, each time the monitor measures and at its end",
            resume="free",
        ),
    },
)
