"""Checks of a user's method, and of what a method needs from a training set."""

import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from bt_jax.data.views.spec import ViewGroup, check_groups
from bt_jax.errors import UserError
from bt_jax.methods.base import Method

# The functions that a method must have, with the number of arguments in a call.
_ARGUMENTS = {
    "init": 2,
    "loss": 6,
    "after_update": 4,
    "partition": 1,
    "heads": 0,
    "collapse": 1,
    "loss_flops": 1,
    "describe": 1,
}


def check_class(method: type, path: str) -> None:
    """Checks a user's method before it is built.

    Args:
      path: its import path, for the error.

    Raises:
      UserError: it is not a class, or functions are missing or take other arguments; all are named.
    """
    if not isinstance(method, type):
        raise UserError(f"method is {path!r}, which is a {type(method).__name__}, but must be a class.")
    keywords = dict.fromkeys(("encoder", "inputs", "facts", "mesh"))
    wrong = _wrong_function(method, "build", (None,), keywords)
    for name in _ARGUMENTS:
        if _is_missing(method, name):
            wrong.append(f"{name} is missing")
    _refuse(path, wrong)


def check_method(method: Method, path: str) -> None:
    """Checks a user's method after it is built.

    Raises:
      UserError: parts of the protocol are missing or invalid; all are named.
    """
    wrong = []
    for name, count in _ARGUMENTS.items():
        wrong += _wrong_function(method, name, (None,) * count, {})
    for name, (fits, rule) in _ATTRIBUTES.items():
        if not hasattr(method, name):
            wrong.append(f"{name} is missing")
        elif not fits(getattr(method, name)):
            wrong.append(f"{name} is {_short(getattr(method, name))}, but must be {rule}")
    if not wrong:
        groups = {group.name: group.num_views for group in check_groups(method.view_groups)}
        if method.alignment is not None and not all(
            v in range(groups.get(method.alignment[0], 0)) for v in method.alignment[1:]
        ):
            wrong.append(f"alignment is {method.alignment}, which does not name two views of view_groups")
    _refuse(path, wrong)


def check_source(method: Method, source: Any) -> None:
    """Checks that a training set has what a method needs.

    Args:
      source: with `name`, `num_classes` and `stable_examples`.

    Raises:
      UserError: it has no labels, or its images have no stable numbers.
    """
    if method.needs_labels and source.num_classes < 2:
        raise UserError(
            f"{method.name} needs labels of at least 2 classes, but {source.name} has {source.num_classes}; choose a "
            "labelled set, or another method."
        )
    if method.needs_stable_examples and not source.stable_examples:
        raise UserError(
            f"{method.name} needs images with stable numbers, but {source.name} is read as a stream, which has none; "
            "raise data.in_memory_bytes, or choose another source."
        )


def _names(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(name, str) for name in value)


def _alignment(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and len(value) == 3 and [*map(type, value)] == [str, int, int])


_ATTRIBUTES = {
    "name": (lambda v: isinstance(v, str), "a string"),
    "encoder": (lambda v: isinstance(v, nn.Module), "the Linen module that build was given"),
    "view_groups": (
        lambda v: isinstance(v, tuple) and len(v) > 0 and all(isinstance(g, ViewGroup) for g in v),
        "a tuple of one or more ViewGroup",
    ),
    "metrics": (lambda v: _names(v) and v[:1] == ("loss",), "a tuple of names, 'loss' the first"),
    "short_names": (lambda v: isinstance(v, Mapping), "a mapping of metrics to names"),
    "needs_labels": (lambda v: isinstance(v, bool), "True or False"),
    "needs_stable_examples": (lambda v: isinstance(v, bool), "True or False"),
    "alignment": (_alignment, "None or (group, view, view)"),
    "advice": (lambda v: isinstance(v, str), "a string"),
    "overfitting_advice": (lambda v: isinstance(v, str), "a string"),
}


def _is_missing(owner: Any, name: str) -> bool:
    """Whether a function does not exist, or is only the protocol's, which is empty."""
    function = getattr(owner, name, None)
    own = getattr(function, "__func__", function)
    return not callable(function) or (
        name in ("build", "init", "loss") and own is getattr(vars(Method)[name], "__func__", vars(Method)[name])
    )


def _wrong_function(owner: Any, name: str, arguments: tuple, keywords: dict[str, Any]) -> list[str]:
    if _is_missing(owner, name):
        return [f"{name} is missing"]
    try:
        inspect.signature(getattr(owner, name)).bind(*arguments, **keywords)
    except TypeError:
        taken = inspect.signature(getattr(owner, name))
        wanted = inspect.signature(getattr(Method, name))
        wanted = [
            str(p) if p.kind is p.KEYWORD_ONLY else p.name for p in wanted.parameters.values() if p.name != "self"
        ]
        return [f"{name} takes {taken}, but is called with ({', '.join(wanted)})"]
    return []


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def _refuse(path: str, wrong: list[str]) -> None:
    if wrong:
        raise UserError(f"method is {path!r}, which does not implement bt_jax.methods.Method: {'; '.join(wrong)}.")
