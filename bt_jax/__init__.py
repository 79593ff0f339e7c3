"""Barlow Twins for JAX: self-supervised pre-training, from a laptop to a TPU pod."""

import importlib
from typing import TYPE_CHECKING, Any

from bt_jax.errors import UserError
from bt_jax.losses.barlow_twins import barlow_twins_loss
from bt_jax.version import __version__

if TYPE_CHECKING:
    from bt_jax.evaluation.neighbours import neighbours
    from bt_jax.export.encoder import load_encoder
    from bt_jax.library import embed, load_config, pretrain

__all__ = [
    "UserError",
    "__version__",
    "barlow_twins_loss",
    "embed",
    "load_config",
    "load_encoder",
    "neighbours",
    "pretrain",
]

# On demand: they import Flax and Orbax, which take seconds.
_MODULES = {
    "embed": "bt_jax.library",
    "load_config": "bt_jax.library",
    "load_encoder": "bt_jax.export.encoder",
    "neighbours": "bt_jax.evaluation.neighbours",
    "pretrain": "bt_jax.library",
}


_PACKAGES = ("export", "models", "optim")  # whose parts docs/library.md uses; losses is imported above


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"bt_jax.{name}")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
