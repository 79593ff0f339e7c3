"""The settings of a run: every field once, with its default, its rule and its meaning."""

from bt_jax.config.checks import check, check_names, check_overrides, unknown_fields
from bt_jax.config.field import Contradiction, Field, contradiction
from bt_jax.config.methods import METHODS
from bt_jax.config.rules import nearest
from bt_jax.config.schema import based_on, complete, default, fields_of, flatten, plain
from bt_jax.config.tasks import TASKS
from bt_jax.config.text import fingerprint, from_json, to_json

__all__ = [
    "METHODS",
    "TASKS",
    "Contradiction",
    "Field",
    "based_on",
    "check",
    "check_names",
    "check_overrides",
    "complete",
    "contradiction",
    "default",
    "fields_of",
    "fingerprint",
    "flatten",
    "from_json",
    "nearest",
    "plain",
    "to_json",
    "unknown_fields",
]
