"""The settings of a run: every field with its default and its rule."""

from bt_jax.config.schema import check, default, flatten, from_json, to_json

__all__ = ["check", "default", "flatten", "from_json", "to_json"]
