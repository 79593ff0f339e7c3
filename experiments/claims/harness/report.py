"""The page of results: for each claim its text, a table, a plot and a verdict."""

import datetime
import io
import itertools
import math
import pathlib
import statistics
from typing import Any

import recipe
from etils import epath

from bt_jax.errors import UserError
from bt_jax.runtime.files import write_whole

from .claim import Arm, Cell, Claim, Statement, cell, load, names
from .grid import Grid
from .judge import LEVEL, LEVEL_OF_MORE, Outcome, half_width, interval, outcomes, overall, seeds_needed

MARKERS = "os^DvPX*<>"
LINES = ("-", "--", "-.", ":")


def report(grid: Grid, page: pathlib.Path | None = None) -> str:
    """Judges all claims that a folder has results of; returns the page as Markdown.

    Args:
      page: where the page is written, if anywhere; plots go into a folder of its name beside it.

    Raises:
      UserError: a result is damaged, no claim is begun, or the page cannot be written.
    """
    judged, sections, spent, waiting = [], [], Spent(grid.scale), []
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
        sections.append(_section(claim, found, results, hours, spent, picture, page))
        if claim.statements:
            judged.append((claim, results, found, hours))
    if not sections:
        raise UserError(f"--out={grid.out} has no claim that is begun")
    if waiting:
        sections.append(f"## Not begun\n\n{'; '.join(waiting)}.")
    text = "\n\n".join([_head(grid, judged, spent), *sections]) + "\n"
    if page:
        _write(page, text)
    return text


def _write(path: pathlib.Path, content: str | bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(epath.Path(path), content)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from None


class Spent:
    """Time of the runs, with the pre-trainings of encoders that were evaluated; what claims share counts once in the sum.

    It is CPU time at the scale `cpu`, and else the time by the clock, as of a GPU that makes one run at a time.
    """

    def __init__(self, scale: str):
        self.runs: dict[str, dict[str, Any]] = {}
        self._field, self.unit = (
            ("cpu_seconds", "hours of one core") if scale == "cpu" else ("seconds", "hours of one GPU")
        )

    def add(self, found: dict[str, dict[int, dict[str, Any]]]) -> float:
        """Adds a claim's runs; returns their hours of one core."""
        own = {made["name"]: made for runs in found.values() for run in runs.values() for made in _made(run)}
        self.runs |= own
        return sum(map(self.of, own.values()))

    def of(self, run: dict[str, Any]) -> float:
        """A run's hours."""
        return run[self._field] / 3600

    def hours(self) -> float:
        return sum(map(self.of, self.runs.values()))


def _made(run: dict[str, Any]) -> list[dict[str, Any]]:
    """A run and, if it evaluates an encoder, the pre-training of that."""
    return [run, *([run["base"]] if run["base"] else [])]


def _results(grid: Grid, claim: Claim) -> dict[str, dict[int, dict[str, Any]]]:
    """By arm, then seed; with the run's name, and `base`, the pre-training that it evaluates or None.

    Of the declared seeds, and those after them as far as there are any.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {arm.name: {} for arm in claim.arms}
    for seed in itertools.chain(claim.seeds, itertools.count(claim.seeds[-1] + 1)):
        runs = {arm.name: run for arm in claim.arms if (run := _result(grid, cell(grid.scale, arm, seed)))}
        if not runs and seed not in claim.seeds:
            break
        for name, run in runs.items():
            found[name][seed] = run
    return found


def _result(grid: Grid, run: Cell) -> dict[str, Any] | None:
    if (result := grid.result(run)) is None:
        return None
    base = grid.result(run.base) if run.base else None
    return result | {"name": run.name, "base": base and base | {"name": run.base.name if run.base else ""}}


def _head(grid: Grid, judged: list, spent: Spent) -> str:
    runs = list(spent.runs.values())
    machines = sorted({run["machine"] for run in runs})
    versions = sorted({f"JAX {run['versions']['jax']}, Python {run['versions']['python']}" for run in runs})
    dates = sorted({run["date"] for run in runs})
    codes = sorted({run["code"] for run in runs})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    devices = sorted({run["devices"] for run in runs if run.get("devices")}) if grid.scale != "cpu" else []
    lines = [
        "# The paper's claims, tried",
        f"At the scale `{grid.scale}` (experiments/claims/recipe.py). {len(runs)} runs, {spent.hours():.1f} {spent.unit} in all"
        f"{_time_again(grid)}; {'; '.join([*devices, *machines])}; {'; '.join(versions)}; {when}; code {', '.join(codes)}. Written by `python experiments/claims/run.py "
        f"report` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}.",
        "Accuracies are those of kNN, or of fine-tuning where a claim says so, in %: means over the seeds with the standard deviation and Student's 95 % interval. Effects are "
        "differences in points, paired by seed: with the same seed arms of a method have the same images, views and first weights of the "
        "encoder, unless they differ in just these; of the other methods only SimCLR's has Barlow Twins' first weights. Intervals are over the "
        "seeds, for these test images; other test images would move an accuracy by about 0.5 points.",
        *_untuned(grid, judged),
        *_edges(grid),
        *_other_data(runs),
        *_made_again(grid),
        "A claim is shown if each of its statements is; else the verdict is that of the least favourable one, whose effect is given.",
        "| claim | verdict | statements shown | effect that decides, points | hours |\n|---|---|---|---|---|",
    ]
    for claim, results, found, hours in judged:
        verdicts = [outcome.verdict for outcome in results]
        verdict = overall(verdicts)
        missing = _missing(claim, found, judged=True)
        told = f"{verdict}{f' ({missing} of its runs missing)' if missing else ''}"
        shown = f"{verdicts.count('shown')} of {len(verdicts)}"
        effect = _effect(results[verdicts.index(verdict)])
        lines[-1] += f"\n| [{claim.title}](#{_anchor(claim)}) | {told} | {shown} | {effect} | {hours:.1f} |"
    return "\n\n".join(lines)


def _time_again(grid: Grid) -> str:
    made = grid.made_again()
    timed = [record["cpu_seconds"][1] for record in made if "cpu_seconds" in record]
    if not timed:
        return ""
    of = f"{len(timed)} of the {len(made)} runs" if len(timed) < len(made) else "runs"
    return f", and {sum(timed) / 3600:.1f} of one core for {of} made again"


def _edges(grid: Grid) -> list[str]:
    """A sentence, if the best rate that `tuning` tried is the smallest or the largest, so that a better one may lie beyond."""
    tuning = load("tuning", grid.scale)
    found = _results(grid, tuning)
    at_edge = []
    for method in recipe.METHODS:
        tried = [list(found[arm.name].values()) for arm in tuning.arms if arm.method == method]
        if all(tried):
            means = [statistics.fmean(run["accuracy"] for run in runs) for runs in tried]
            at_edge += [f"the best of {method} is the {word}" for word, mean in _ends(means) if mean == max(means)]
    if not at_edge:
        return []
    return [f"Of the learning rates that were tried {', '.join(at_edge)}, so a better one may lie beyond."]


def _ends(values: list[float]) -> tuple[tuple[str, float], ...]:
    return ("smallest", values[0]), ("largest", values[-1])


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
    claim: Claim, found: dict, results: list[Outcome], hours: float, spent: Spent, picture: pathlib.Path | None, page
) -> str:
    parts = [f"## {claim.title}", f"`{claim.name}.py`, {hours:.1f} {spent.unit}.", f"```\n{claim.text}\n```"]
    if results:
        missing, only_shown = (_missing(claim, found, judged=judged) for judged in (True, False))
        parts.append(
            f"**{overall([outcome.verdict for outcome in results]).capitalize()}.**"
            + f" Of the runs that it is judged by {missing} are missing." * bool(missing)
            + f" Of those that are only shown {only_shown} were not made." * bool(only_shown)
        )
        parts.append(_verdicts(claim, found, results, spent))
        parts += _below_raw_pixels(claim, found)
    parts.append(_table(claim, found))
    if picture and page:
        parts.append(f"![{claim.title}: accuracy of each arm]({picture.relative_to(page.parent).as_posix()})")
    return "\n\n".join(parts)


def _missing(claim: Claim, found: dict, *, judged: bool) -> int:
    """How many runs there are not, of the arms that statements are about, or of all others."""
    runs = [runs for name, runs in found.items() if (name in _judged_arms(claim)) == judged]
    return sum(seed not in of_arm for of_arm in runs for seed in claim.seeds)


def _judged_arms(claim: Claim) -> set[str]:
    return {name for statement in claim.statements for name in statement.weights}


def _below_raw_pixels(claim: Claim, found: dict) -> list[str]:
    """A sentence, if a judged method's own setting does not reach kNN on raw pixels: what has learnt little has little to lose."""
    told = []
    for arm in claim.arms:
        runs = [run for run in found[arm.name].values() if "raw_pixels" in run]
        if arm.fields or arm.name not in _judged_arms(claim) or not runs:
            continue
        mean, pixels = statistics.fmean(run["accuracy"] for run in runs), runs[0]["raw_pixels"]
        if mean < pixels:
            told.append(
                f"“{arm.name}”, with {mean:.1f} %, is below kNN on raw pixels, {pixels:.1f} %: it has learnt little here, and may have "
                "little to lose."
            )
    return told


def _verdicts(claim: Claim, found: dict, results: list[Outcome], spent: Spent) -> str:
    lines = ["| statement | effect, points | 95 % interval | verdict |", "|---|---|---|---|"]
    after = []
    for statement, outcome in zip(claim.statements, results, strict=True):
        sign = {"below": "≤ −", "above": "≥ ", "same": "within ± ", "kept": "≥ −"}[statement.claimed]
        asked = f"{statement.text} ({sign}{statement.margin:g})"
        between = f"{outcome.low:+.2f} to {outcome.high:+.2f}" if math.isfinite(outcome.low) else ""
        between += f" ({100 * outcome.level:g} %, {outcome.seeds} seeds)" * (outcome.level != LEVEL)
        few = f" ({outcome.seeds} of {len(claim.seeds)} seeds)" if 0 < outcome.seeds < len(claim.seeds) else ""
        lines.append(f"| {asked} | {_effect(outcome)} | {between} | {outcome.verdict}{few} |")
        if outcome.verdict == "undecided" and outcome.seeds > 1:  # one seed has no interval
            after.append(_what_it_takes(claim, statement, outcome, found, spent))
    return "\n".join(lines) + "".join(f"\n\n{text}" for text in after)


def _what_it_takes(claim: Claim, statement: Statement, outcome: Outcome, found: dict, spent: Spent) -> str:
    needed = seeds_needed(statement, outcome)
    half = (outcome.high - outcome.low) / 2
    if needed is None:
        return (
            f"“{statement.text}”: the interval is ± {half:.2f} points wide, and the mean is so near to a limit that 200 seeds would "
            "not decide it."
        )
    costs = [sum(map(spent.of, _made(run))) for name in statement.weights for run in found[name].values()]
    more = (needed - outcome.seeds) * len(statement.weights)
    # A GPU makes its runs at the scale `gpu`, whose time is not known yet.
    on_gpu = " (on a GPU not measured)" if spent.unit == "hours of one core" else ""
    return (
        f"“{statement.text}”: if mean and deviation stayed, about {needed} seeds would decide it, by intervals of {100 * LEVEL_OF_MORE:g} % "
        f"(harness/judge.py), ± {half_width(outcome.deviation, needed, LEVEL_OF_MORE):.2f} in place of ± {half:.2f}: {more} more runs, "
        f"{more * statistics.fmean(costs):.1f} {spent.unit}{on_gpu}, by `run.py {claim.name} --judged --seeds={needed}`."
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
    if rates := _rates(claim, found):
        lines.append(f"\n{rates}")
    if untrained:
        mean = f"Untrained {statistics.fmean(untrained):.1f}"
        lines.append(f"\n{mean}" + (f", raw pixels {pixels[0]:.1f}." if pixels else "."))
    return "\n".join(lines)


def _rates(claim: Claim, found: dict) -> str:
    """By which protocol encoders were fine-tuned, and which factors of its rates the runs chose on held-out labels."""
    runs = {
        arm.name: [run for run in found[arm.name].values() if "finetune.protocol" in run["settings"]]
        for arm in claim.arms
    }
    protocols = {run["settings"]["finetune.protocol"] for of_arm in runs.values() for run in of_arm}
    if not protocols:
        return ""
    told = [f"Protocol of the rows: {', '.join(sorted(protocols))}."]
    chosen = {
        name: [f"{run['rates']['encoder']:g}" for run in of_arm if "rates" in run] for name, of_arm in runs.items()
    }
    if any(chosen.values()):
        each = "; ".join(f"{name}: {', '.join(rates)}" for name, rates in chosen.items() if rates)
        told.append(f"Rates of the encoder that the seeds chose: {each}.")
    if missing := sum("rates" not in run for of_arm in runs.values() for run in of_arm):
        told.append(f"Which rates were chosen was not kept of {missing} runs.")
    return " ".join(told)


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
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=130)
    plt.close(figure)
    path = folder / f"{claim.name}.png"
    _write(path, drawn.getvalue())
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
    several = any(len(accuracies[arm.name]) > 1 for arm in arms)
    # Below the whole figure, as long names leave the axes too narrow for it.
    axes.figure.supxlabel(
        "accuracy, %  (points: seeds; bar: mean and 95 % interval)" if several else "accuracy, %  (one seed each)",
        fontsize="medium",
    )


def _curves(axes, claim: Claim, arms: list[Arm], accuracies) -> None:
    """A line is of its own points and of those that it shares with another, at which these are drawn."""
    lines = list(dict.fromkeys(arm.line for arm in arms))  # one that has shared points only says nothing
    methods = list(dict.fromkeys(arm.method for arm in arms))
    found = sorted({arm.x for arm in arms if arm.x is not None})
    logarithmic = found[0] > 0 and found[-1] / found[0] >= 8

    def place(arm: Arm, more: float = 0.0) -> float:
        # Lines beside each other, and seeds beside their mean, as they would hide one another.
        aside = 0.03 * (lines.index(arm.line) - (len(lines) - 1) / 2)
        return _moved(arm.x or 0.0, aside + more, found, logarithmic)

    for number, name in enumerate(lines):
        points = sorted((arm for arm in arms if name in (arm.line, *arm.also)), key=lambda arm: arm.x or 0.0)
        own = [at for at, arm in enumerate(points) if arm.line == name]
        values = [list(accuracies[arm.name].values()) for arm in points]
        method = points[own[0]].method
        of_method = [line for line in lines if any(arm.line == line and arm.method == method for arm in arms)]
        gray = f"{0.6 * methods.index(method) / max(1, len(methods) - 1):.2f}"
        axes.plot(
            [place(arm) for arm in points], [statistics.fmean(v) for v in values], label=name, color=gray,
            linestyle=LINES[of_method.index(name) % len(LINES)], marker=MARKERS[number % len(MARKERS)], markevery=own, markersize=6,
            markerfacecolor=gray if of_method.index(name) == 0 else "white",
        )  # fmt: skip
        for at in own:
            axes.errorbar(
                place(points[at]), statistics.fmean(values[at]), yerr=_error(values[at]), color=gray, capsize=3
            )
            beside = [place(points[at], 0.012)] * len(values[at])
            axes.plot(beside, values[at], "o", color=gray, markersize=3, markerfacecolor="white", markeredgewidth=0.8)
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
