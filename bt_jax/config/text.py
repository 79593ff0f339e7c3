"""Configs as text: the config.json of a run."""

import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from bt_jax.config.renamed import is_old, migrate
from bt_jax.config.schema import default, flatten, nested


def to_json(config: ConfigDict) -> str:
    """The config as JSON, nested like the config."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`: lists become tuples, as in `default()`, and configs of earlier versions are migrated.

    Raises:
      ValueError: the text is not the JSON of a config, or has an unknown task.
    """
    try:
        found = _with_tuples(json.loads(text))
        if not isinstance(found, dict):
            raise ValueError("it is not a JSON object")
        if not isinstance(found.get("task"), str):
            raise ValueError("it has no task")
        config = ConfigDict(found)
        fields = flatten(config)
        if not is_old(fields):
            return config
        return ConfigDict(nested(migrate(fields, flatten(default(config.task)))))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"its fields are not those of a config: {type(error).__name__}") from None


def fingerprint(config: ConfigDict) -> str:
    """The sha256 of the config as JSON, equal for equal configs."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _with_tuples(v) for k, v in value.items()}
    return tuple(_with_tuples(x) for x in value) if isinstance(value, list) else value
