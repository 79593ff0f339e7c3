"""The verdict on a statement, from the accuracies of its arms by seed.

Arms are paired: with the same seed those of a method have the same images, views and initial weights of the encoder, unless they
differ in just these; SimCLR's initial weights are Barlow Twins', those of other methods are not. So the effect is computed seed by
seed, and its 95 % interval is Student's, from the mean and standard deviation over the seeds.

There is no verdict before all seeds are in that the claim declares. With more seeds, which are made because a first verdict was
undecided, intervals are those of 99 %: the two looks together err in at most 6 of 100 claims.
"""

import dataclasses
import math
import statistics
from collections.abc import Collection

import numpy as np
from scipy import stats

from .claim import Claim, Statement

VERDICTS = ("shown", "undecided", "not shown", "opposite", "unfinished", "not run")
LEVEL, LEVEL_OF_MORE = 0.95, 0.99


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the runs say about a statement: `mean` and the interval from `low` to `high` in points, over `seeds` seeds.

    Attributes:
      level: of the interval.
    """

    verdict: str
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    deviation: float = math.nan
    level: float = LEVEL


def interval(values: list[float], level: float = LEVEL) -> tuple[float, float]:
    """The interval of the mean of some values; of one value everything."""
    if len(values) < 2:
        return -math.inf, math.inf
    half, mean = half_width(statistics.stdev(values), len(values), level), statistics.fmean(values)
    return mean - half, mean + half


def half_width(deviation: float, count: int, level: float = LEVEL) -> float:
    """Of the interval of the mean of so many values with this standard deviation."""
    return float(stats.t.ppf(0.5 + level / 2, count - 1)) * deviation / math.sqrt(count)


def judge(statement: Statement, accuracies: dict[str, dict[int, float]], declared: Collection[int]) -> Outcome:
    """The outcome of a statement.

    Args:
      accuracies: by arm, then seed, in %.
      declared: the seeds that the claim declares.

    With effects turned so that the claimed direction is above 0, "shown" is an interval above 0 with a mean of at least the margin;
    "opposite" an interval below 0; "not shown" one that ends below the margin, so that an effect of that size is ruled out; all
    else is "undecided". If the arms are claimed to be the same, "shown" is an interval within the margin on both sides,
    and "opposite" one outside of it; if an accuracy is said to be kept, "shown" is an interval above minus the margin, and "opposite"
    one below that. "unfinished" is one of which declared seeds are missing.
    """
    arms = [accuracies.get(name, {}) for name in statement.weights]
    seeds = sorted(set.intersection(*map(set, arms)))
    if not seeds:
        return Outcome("not run")
    effects = [float(np.dot(list(statement.weights.values()), [arm[seed] for arm in arms])) for seed in seeds]
    level = LEVEL_OF_MORE if len(seeds) > len(declared) else LEVEL
    mean, (low, high) = statistics.fmean(effects), interval(effects, level)
    deviation = statistics.stdev(effects) if len(effects) > 1 else math.nan
    verdict = _verdict(statement, mean, low, high) if set(declared) <= set(seeds) else "unfinished"
    if deviation == 0 and statement.claimed in ("same", "kept"):
        verdict = "undecided"  # no spread at all is that of runs which have all diverged, and tells nothing of the arms
    return Outcome(verdict, mean, low, high, len(seeds), deviation, level)


def _verdict(statement: Statement, mean: float, low: float, high: float) -> str:
    margin = statement.margin
    if statement.claimed == "same":
        if -margin <= low and high <= margin:
            return "shown"
        return "opposite" if low > margin or high < -margin else "undecided"
    if statement.claimed == "kept":
        return "shown" if low >= -margin else "opposite" if high < -margin else "undecided"
    if statement.claimed == "below":
        mean, low, high = -mean, -high, -low
    if low > 0 and mean >= margin:
        return "shown"
    if high < 0:
        return "opposite"
    return "not shown" if high < margin else "undecided"


def overall(verdicts: list[str]) -> str:
    """A claim is shown if all of its statements are; otherwise the first of: opposite, not shown, unfinished, not run, undecided."""
    for verdict in ("opposite", "not shown", "unfinished", "not run", "undecided"):
        if verdict in verdicts:
            return verdict
    return "shown"


def seeds_needed(statement: Statement, outcome: Outcome) -> int | None:
    """About how many seeds would decide a statement: if mean and deviation stayed. None if more than 200 would be needed."""
    if outcome.seeds < 2:
        return None
    for count in range(outcome.seeds + 1, 201):
        half = half_width(outcome.deviation, count, LEVEL_OF_MORE)
        if _verdict(statement, outcome.mean, outcome.mean - half, outcome.mean + half) != "undecided":
            return count
    return None


def outcomes(claim: Claim, accuracies: dict[str, dict[int, float]]) -> list[Outcome]:
    return [judge(statement, accuracies, claim.seeds) for statement in claim.statements]
