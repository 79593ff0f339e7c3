"""The page of results: for each claim its text, a table, a plot and a verdict."""

import datetime
import math
import pathlib
import statistics
from typing import Any

import recipe
from etils import epath

from bt_jax.errors import UserError
from bt_jax.runtime.files import write_whole

from .claim import Arm, Claim, cell, load, names
from .grid import Grid
from .judge import Outcome, half_width, interval, outcomes, overall, seeds_needed

MARKERS = "os^DvPX*<>"
LINES = ("-", "--", "-.", ":")


def report(grid: Grid, page: pathlib.Path | None = None) -> str:
    """Judges all claims that a folder has results of; returns the page as Markdown.

    Args:
      page: where the page is written, if anywhere; plots go into a folder of its name beside it.

    Raises:
      UserError: a result is damaged, or no claim is begun.
    """
    judged, sections, spent, waiting = [], [], Spent(), []
    pictures = page.with_suffix("") if page else None
    for name in names():
        claim = load(name, grid.scale)
        found = _results(grid, claim)
        accuracies = {arm: {seed: r["accuracy"] for seed, r in runs.items()} for arm, runs in found.items()}
        results = outcomes(claim, accuracies)
        # One that has only the arms that it shares with others has not begun.
        hours = spent.add(found)
        if not any(outcome.seeds for outcome in results) and (claim.statements or not any(found.values())):
            waiting.append(claim.title)
            continue
        picture = _plot(claim, accuracies, pictures) if pictures else None
        sections.append(_section(claim, found, results, hours, grid.scale, picture, page))
        if claim.statements:
            judged.append((claim, results, found, hours))
    if not sections:
        raise UserError(f"--out={grid.out} has no claim that is begun")
    if waiting:
        sections.append(f"## Not begun\n\n{'; '.join(waiting)}.")
    text = "\n\n".join([_head(grid, judged, spent), *sections]) + "\n"
    if page:
        write_whole(epath.Path(page), text)
    return text


class Spent:
    """CPU time of the runs, with the pre-trainings of encoders that were evaluated; what claims share counts once in the sum."""

    def __init__(self):
        self.runs: dict[str, dict[str, Any]] = {}

    def add(self, found: dict[str, dict[int, dict[str, Any]]]) -> float:
        """Adds a claim's runs; returns their hours of one core."""
        own = {made["name"]: made for runs in found.values() for run in runs.values() for made in _made(run)}
        self.runs |= own
        return sum(run["cpu_seconds"] for run in own.values()) / 3600

    def hours(self) -> float:
        return sum(run["cpu_seconds"] for run in self.runs.values()) / 3600


def _made(run: dict[str, Any]) -> list[dict[str, Any]]:
    """A run and, if it evaluates an encoder, the pre-training of that."""
    return [run, *([run["base"]] if run["base"] else [])]


def _results(grid: Grid, claim: Claim) -> dict[str, dict[int, dict[str, Any]]]:
    """By arm, then seed; with the run's name, and `base`, the pre-training that it evaluates or None."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for arm in claim.arms:
        found[arm.name] = {}
        for seed in claim.seeds:
            run = cell(grid.scale, arm, seed)
            if (result := grid.result(run)) is not None:
                base = grid.result(run.base) if run.base else None
                named = base and base | {"name": run.base.name if run.base else ""}
                found[arm.name][seed] = result | {"name": run.name, "base": named}
    return found


def _head(grid: Grid, judged: list, spent: Spent) -> str:
    runs = list(spent.runs.values())
    machines = sorted({run["machine"] for run in runs})
    versions = sorted({f"JAX {run['versions']['jax']}, Python {run['versions']['python']}" for run in runs})
    dates = sorted({run["date"] for run in runs})
    codes = sorted({run["code"] for run in runs})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    again = sum(record["cpu_seconds"][1] for record in grid.made_again() if "cpu_seconds" in record) / 3600
    lines = [
        "# The paper's claims, tried",
        f"At the scale `{grid.scale}` (experiments/claims/recipe.py). {len(runs)} runs, {spent.hours():.1f} hours of one core in all{f', and {again:.1f} for runs made again' if again else ''}; "
        f"{'; '.join(machines)}; {'; '.join(versions)}; {when}; code {', '.join(codes)}. Written by `python experiments/claims/run.py "
        f"report` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}.",
        "Accuracies are those of kNN, or of fine-tuning where a claim says so, in %: means over the seeds with the standard deviation and Student's 95 % interval. Effects are "
        "differences in points, paired by seed: with the same seed arms of a method have the same images, views and first weights of the "
        "encoder, unless they differ in just these; of the other methods only SimCLR's has Barlow Twins' first weights. The test error of one "
        "run is about 0.5 points, alike for all arms.",
        *_untuned(grid, judged),
        *_other_data(runs),
        *_made_again(grid),
        "| claim | verdict | main effect, points | hours |\n|---|---|---|---|",
    ]
    for claim, results, found, hours in judged:
        verdict = overall([outcome.verdict for outcome in results])
        missing = _missing(claim, found, judged=True)
        told = f"{verdict}{f' ({missing} of its runs missing)' if missing else ''}"
        lines[-1] += f"\n| [{claim.title}](#{_anchor(claim)}) | {told} | {_effect(results[0])} | {hours:.1f} |"
    return "\n\n".join(lines)


def _untuned(grid: Grid, judged: list) -> list[str]:
    """A sentence, if methods were judged whose rates `tuning` has not chosen at this scale."""
    methods = {run["method"] for _, _, found, _ in judged for runs in found.values() for run in runs.values()}
    if not (untuned := recipe.untuned(grid.scale, methods)):
        return []
    return [f"Not chosen by `tuning`, but those of recipe.py, are the learning rates of {', '.join(untuned)}."]


def _other_data(runs: list[dict[str, Any]]) -> list[str]:
    """A sentence, if runs of the same split were not made with the same data, so that their seeds are not pairs."""
    found: dict[str | None, set[str]] = {}
    for run in runs:
        if "data" in run:
            found.setdefault(run["settings"].get("data.train_split"), set()).add(run["data"])
    if all(len(data) == 1 for data in found.values()):
        return []
    return [
        "Runs of the same split were made with different data, or in another order: arms are not paired by their seeds."
    ]


def _made_again(grid: Grid) -> list[str]:
    """A sentence, if runs were made again."""
    if not (made := grid.made_again()):
        return []
    told = ", ".join(f"{r['run']}, {r['accuracy'][0]:.2f} and {r['accuracy'][1]:.2f} %" for r in made)
    return [
        f"Runs made again on {', '.join(sorted({r['date'][1] for r in made}))}, with the same bits: {sum(r['same'] for r in made)} of {len(made)} ({told})."
    ]


def _section(
    claim: Claim, found: dict, results: list[Outcome], hours: float, scale: str, picture: pathlib.Path | None, page
) -> str:
    parts = [f"## {claim.title}", f"`{claim.name}.py`, {hours:.1f} hours of one core.", f"```\n{claim.text}\n```"]
    if results:
        missing, only_shown = (_missing(claim, found, judged=judged) for judged in (True, False))
        parts.append(
            f"**{overall([outcome.verdict for outcome in results]).capitalize()}.**"
            + f" Of the runs that it is judged by {missing} are missing." * bool(missing)
            + f" Of those that are only shown {only_shown} were not made." * bool(only_shown)
        )
        parts.append(_verdicts(claim, found, results, scale))
    parts.append(_table(claim, found))
    if picture and page:
        parts.append(f"![{claim.title}: accuracy of each arm]({picture.relative_to(page.parent).as_posix()})")
    return "\n\n".join(parts)


def _missing(claim: Claim, found: dict, *, judged: bool) -> int:
    """How many runs there are not, of the arms that statements are about, or of all others."""
    about = {name for statement in claim.statements for name in statement.weights}
    return sum(len(claim.seeds) - len(runs) for name, runs in found.items() if (name in about) == judged)


def _verdicts(claim: Claim, found: dict, results: list[Outcome], scale: str) -> str:
    lines = ["| statement | effect, points | 95 % interval | verdict |", "|---|---|---|---|"]
    after = []
    for statement, outcome in zip(claim.statements, results, strict=True):
        sign = {"below": "≤ −", "above": "≥ ", "same": "within ± ", "kept": "≥ −"}[statement.claimed]
        asked = f"{statement.text} ({sign}{statement.margin:g})"
        between = f"{outcome.low:+.2f} to {outcome.high:+.2f}" if math.isfinite(outcome.low) else ""
        few = f" ({outcome.seeds} of {len(claim.seeds)} seeds)" if 0 < outcome.seeds < len(claim.seeds) else ""
        lines.append(f"| {asked} | {_effect(outcome)} | {between} | {outcome.verdict}{few} |")
        if outcome.verdict == "undecided" and outcome.seeds > 1:  # one seed has no interval
            after.append(_what_it_takes(claim, statement, outcome, found, scale))
    return "\n".join(lines) + "".join(f"\n\n{text}" for text in after)


def _what_it_takes(claim: Claim, statement, outcome: Outcome, found: dict, scale: str) -> str:
    needed = seeds_needed(statement, outcome)
    half = (outcome.high - outcome.low) / 2
    if needed is None:
        return (
            f"“{statement.text}”: the interval is ± {half:.2f} points wide, and the mean is so near to a limit that 200 seeds would "
            "not decide it."
        )
    costs = [
        sum(made["cpu_seconds"] for made in _made(run)) for name in statement.weights for run in found[name].values()
    ]
    more = (needed - outcome.seeds) * len(statement.weights)
    hours = more * statistics.fmean(costs) / 3600
    shrunk = half_width(outcome.deviation, needed)
    # A GPU makes its runs at the scale `gpu`, whose time is not known yet.
    cost = (
        f"{more} more runs, {hours:.1f} hours of one core (on a GPU not measured)"
        if scale == "cpu"
        else f"{more} more runs"
    )
    return (
        f"“{statement.text}”: with this mean and deviation {needed} seeds would decide it, at an interval of about ± {shrunk:.2f} in "
        f"place of ± {half:.2f}: {cost}."
    )


def _table(claim: Claim, found: dict) -> str:
    paper = any(arm.paper for arm in claim.arms)
    lines = [
        "| | accuracy | s.d. | 95 % interval | seeds | RankMe | loss at the end |" + (" paper |" if paper else ""),
        "|---|---|---|---|---|---|---|" + ("---|" if paper else ""),
    ]
    for arm in claim.arms:
        runs = list(found[arm.name].values())
        cells = [arm.name, *_numbers(runs)] + ([arm.paper] if paper else [])
        lines.append("| " + " | ".join(cells) + " |")
    runs = [run for arm in claim.arms for run in found[arm.name].values()]
    untrained = [run["untrained"] for run in runs if "untrained" in run]
    pixels = [run["raw_pixels"] for run in runs if "raw_pixels" in run]
    if untrained:
        mean = f"Untrained {statistics.fmean(untrained):.1f}"
        lines.append(f"\n{mean}" + (f", raw pixels {pixels[0]:.1f}." if pixels else "."))
    return "\n".join(lines)


def _numbers(runs: list[dict[str, Any]]) -> list[str]:
    if not runs:
        return ["not run", "", "", "0", "", ""]
    values = [run["accuracy"] for run in runs]
    low, high = interval(values)
    diverged = sum(run["diverged"] for run in runs)
    ended = [run for run in runs if not run["diverged"]]
    of_ended = f" ({len(ended)} run{'s' * (len(ended) > 1)})" if diverged else ""
    ranks = [run["rankme"] for run in ended if "rankme" in run]
    losses = [run["loss"] for run in ended if run.get("loss") is not None]
    return [
        f"{statistics.fmean(values):.2f}" + (f" ({diverged} diverged)" if diverged else ""),
        f"{statistics.stdev(values):.2f}" if len(values) > 1 else "",
        f"{low:.2f} to {high:.2f}" if len(values) > 1 else "",
        str(len(values)),
        f"{statistics.fmean(ranks):.1f}{of_ended}" if ranks else "",
        f"{statistics.fmean(losses):.4g}{of_ended}" if losses else "",
    ]


def _effect(outcome: Outcome) -> str:
    return f"{outcome.mean:+.2f}" if outcome.seeds else ""


def _anchor(claim: Claim) -> str:
    kept = "".join(c for c in claim.title.lower() if c.isalnum() or c in " -")
    return kept.replace(" ", "-")


def _plot(claim: Claim, accuracies: dict[str, dict[int, float]], folder: pathlib.Path) -> pathlib.Path:
    """Seeds as small points, means as large ones with their interval; arms along an axis, or one below the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    arms = [arm for arm in claim.arms if accuracies[arm.name]]
    along = bool(claim.axis) and all(arm.x is not None for arm in arms)
    figure, axes = plt.subplots(figsize=(6.4, 3.6 if along else 1.2 + 0.38 * len(arms)), layout="constrained")
    if along:
        _curves(axes, claim, arms, accuracies)
    else:
        _rows(axes, arms, accuracies)
    axes.grid(visible=True, linewidth=0.4, color="0.85")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path = folder / f"{claim.name}.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _error(values: list[float]) -> float:
    low, high = interval(values)
    return (high - low) / 2 if len(values) > 1 else 0.0


def _rows(axes, arms: list[Arm], accuracies) -> None:
    for row, arm in enumerate(arms):
        values = list(accuracies[arm.name].values())
        axes.plot(values, [row] * len(values), "o", color="0.55", markersize=4)
        axes.errorbar(
            statistics.fmean(values), row, xerr=_error(values), fmt="|", color="black", capsize=4, markersize=12
        )
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy, %  (points: seeds; bar: mean and 95 % interval)")


def _curves(axes, claim: Claim, arms: list[Arm], accuracies) -> None:
    lines: dict[str, list[Arm]] = {}
    for arm in arms:
        for line in (arm.line, *arm.also):
            lines.setdefault(line, []).append(arm)
    found = sorted({arm.x for arm in arms if arm.x is not None})
    logarithmic = found[0] > 0 and found[-1] / found[0] >= 8
    for place, (name, points) in enumerate(lines.items()):
        points = sorted(points, key=lambda arm: arm.x or 0.0)
        values = [list(accuracies[arm.name].values()) for arm in points]
        # Lines beside each other, and seeds beside their mean, as they would hide one another.
        aside = 0.03 * (place - (len(lines) - 1) / 2)
        at = [[_moved(arm.x or 0.0, by, found, logarithmic) for arm in points] for by in (aside, aside + 0.012)]
        gray, marker = f"{0.6 * place / max(1, len(lines) - 1):.2f}", MARKERS[place % len(MARKERS)]
        axes.errorbar(
            at[0], [statistics.fmean(v) for v in values], yerr=[_error(v) for v in values], label=name, color=gray, marker=marker,
            linestyle=LINES[place % len(LINES)], capsize=3, markersize=5,
        )  # fmt: skip
        for x, v in zip(at[1], values, strict=True):
            axes.plot([x] * len(v), v, "o", color=gray, markersize=3, markerfacecolor="white", markeredgewidth=0.8)
    if logarithmic:
        axes.set_xscale("log")
    names = {arm.x: arm.tick or f"{arm.x:g}" for arm in arms}
    axes.set_xticks(found, [names[x] for x in found], minor=False)
    axes.minorticks_off()
    axes.set_xlabel(claim.axis)
    axes.set_ylabel("accuracy, %\n(means with 95 % intervals; rings: seeds)")
    axes.legend(fontsize="small", frameon=False)


def _moved(x: float, by: float, found: list[float], logarithmic: bool) -> float:
    """A place on the axis moved by a share of its length."""
    return x * (found[-1] / found[0]) ** by if logarithmic else x + by * (found[-1] - found[0])
