"""Rules for the values of fields, with messages for values that break them."""

import difflib
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

from bt_jax.config.field import Rule
from bt_jax.import_path import is_import_path


def shown(number: float) -> str:
    """A number for a message; whole ones with all their digits."""
    return str(int(number)) if float(number).is_integer() and abs(number) < 2**53 else f"{number:g}"


def anything(_: Any) -> None:
    """Accepts every value of the field's type."""
    return


def at_least(low: float, kind: type = int) -> Rule:
    what = "an integer" if kind is int else "a number"
    return lambda v: None if v >= low else f"must be {what} of at least {shown(low)}"


def above_zero(v: float) -> str | None:
    return None if v > 0 and math.isfinite(v) else "must be a positive number"


def below_one(v: float) -> str | None:
    return None if 0 <= v < 1 else "must be at least 0 and less than 1"


def between(low: float, high: float) -> Rule:
    return lambda v: None if low <= v <= high else f"must be between {shown(low)} and {shown(high)}"


def one_of(names: Iterable[str]) -> Rule:
    names = tuple(names)
    return lambda v: None if v in names else f"must be {listed(names)}{nearest(v, names)}"


def one_of_or_import_path(names: Iterable[str], example: str) -> Rule:
    """A known name, or an import path, "package.module:Name"."""
    names = tuple(names)

    def rule(v):
        if v in names or is_import_path(v):
            return None
        return f"must be {', '.join(map(repr, names))} or an import path such as {example!r}{nearest(v, names)}"

    return rule


def range_within(low: float, high: float) -> Rule:
    def rule(v):
        fits = len(v) == 2 and all(map(is_number, v)) and low <= v[0] <= v[1] <= high
        return None if fits else f"must be two increasing numbers between {shown(low)} and {shown(high)}"

    return rule


def values(length: int | None, kind: str, fits: Callable[[Any], bool]) -> Rule:
    """A tuple of `length` values, or of one or more if None, each of which fits; `kind` is their name in the plural."""
    how_many = "one or more" if length is None else str(length)

    def rule(v):
        right = (len(v) >= 1 if length is None else len(v) == length) and all(fits(x) for x in v)
        return None if right else f"must be {how_many} {kind}"

    return rule


def positive_integers(v: tuple) -> str | None:
    return values(None, "positive integers", lambda x: isinstance(x, int) and not isinstance(x, bool) and x > 0)(v)


def positive_integers_or_none(v: tuple) -> str | None:
    return None if tuple(v) == () else positive_integers(v) and "must be positive integers, or empty"


def positive_numbers(v: tuple) -> str | None:
    return values(None, "positive numbers", lambda x: is_number(x) and x > 0)(v)


def rising_above_zero(v: tuple) -> str | None:
    fits = all(map(is_number, v)) and all(a < b for a, b in zip((0, *v), v, strict=False))
    return None if fits else "must be increasing numbers above 0"


def is_number(v: Any) -> bool:
    return isinstance(v, numbers.Real) and not isinstance(v, bool)


def nearest(name: Any, names: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"`, or "" if no name is similar."""
    name, names = str(name), list(names)
    last = {n.rpartition(".")[2]: n for n in names}
    part = name.rpartition(".")[2]
    if part in last and "." in last[part]:  # the right field in the wrong group
        same = [n for n in names if n.rpartition(".")[2] == part]
        close = difflib.get_close_matches(name, same, n=1, cutoff=0) or same[:1]
    else:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        close = close or [last[found] for found in difflib.get_close_matches(part, last, n=1, cutoff=0.6)]
    return f" (did you mean {close[0]!r}?)" if close else ""


def listed(names: Iterable[str], last: str = "or") -> str:
    """`'a', 'b' or 'c'`."""
    quoted = [repr(n) for n in names]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + f" {last} " + quoted[-1]
