"""The claims of experiments/claims/: their grids, their verdicts and the runner, without training anything."""

import dataclasses
import json
import math
import pathlib
import re
import sys
import textwrap

import numpy as np
import pytest

from bt_jax.errors import Preempted, UserError
from bt_jax.runtime.processes import code_fingerprint

FOLDER = pathlib.Path(__file__).parents[1] / "experiments" / "claims"
sys.path.insert(0, str(FOLDER))

import recipe  # noqa: E402
import run  # noqa: E402
from harness import claim as claims  # noqa: E402
from harness import grid as grids  # noqa: E402
from harness.again import _jobs, again  # noqa: E402
from harness.claim import Arm, Cell, Statement  # noqa: E402
from harness.grid import Grid, Runner  # noqa: E402
from harness.judge import Outcome, half_width, interval, judge, overall, seeds_needed  # noqa: E402
from harness.report import Spent, _curves, _plot, report  # noqa: E402

CLAIMS = [name for name in claims.names() if name != "tuning"]


# --- Claims as they are written down ---


@pytest.mark.parametrize("scale", claims.SCALES)
@pytest.mark.parametrize("name", claims.names())
def test_every_arm_is_a_valid_run_and_every_statement_names_arms(name, scale):
    claim = claims.load(name, scale)
    arms = {arm.name: claims.cell(scale, arm, 0) for arm in claim.arms}
    assert len(arms) == len(claim.arms)
    runs = {
        json.dumps([cell.method, cell.measure, *sorted((cell.base or cell).settings().items())])
        for cell in arms.values()
    }
    assert len(runs) == len(arms), "two arms are the same run"
    for statement in claim.statements:
        assert statement.weights.keys() <= arms.keys()
        assert statement.claimed in ("above", "below", "same", "kept")
        assert sum(statement.weights.values()) == pytest.approx(0), "an effect is a difference"


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_says_what_is_claimed_and_how_it_is_judged_before_it_is_run(name):
    text = claims.load(name, "cpu").text
    places = [text.find(f"\n{word}:") for word in ("Claimed", "Measure", "Prediction", "Rule")]
    assert -1 not in places and places == sorted(places)


def test_claims_share_their_common_arms():
    together = claims.cells("cpu", [claims.load("loss_parts", "cpu"), claims.load("asymmetry", "cpu")])
    assert len(together) == 3 * (6 + 4 - 1)
    assert [cell.seed for cell in together[:6]] == [0] * 6, "first all arms with one seed"


def test_only_what_is_judged():
    """Arms without a statement are left out; a claim without statements keeps all of its own."""
    claim = claims.load("batch_size", "cpu")
    some, whole = (claims.cells("cpu", [claim], judged=judged) for judged in (True, False))
    fields = {tuple(cell.fields) for cell in some}
    assert () in fields and not any(("batch_size", 1024) in f for f in fields)
    assert [cell for cell in whole if cell in some] == some and len(some) == 3 * 6
    tuning = claims.load("tuning", "cpu")
    assert claims.cells("cpu", [tuning], judged=True) == claims.cells("cpu", [tuning])


def test_names_of_all_runs_differ_and_suit_file_systems():
    for scale in claims.SCALES:
        cells = claims.cells(scale, [claims.load(name, scale) for name in claims.names()])
        names = [cell.name for cell in cells]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[a-zA-Z0-9._-]{1,80}", name) for name in names)


def test_arms_differ_from_the_recipe_in_their_fields_only():
    base = claims.cell("cpu", Arm("a"), 0).settings()
    other = claims.cell("cpu", Arm("b", fields={"barlow_twins.terms": "invariance"}), 3).settings()
    assert {name for name in base.keys() | other.keys() if base.get(name) != other.get(name)} == {
        "barlow_twins.terms",
        "seed",
    }


def test_the_arms_of_less_data_make_about_the_same_number_of_steps():
    for arm in claims.load("less_data", "cpu").arms:
        run = claims.cell("cpu", arm, 0)
        config = run.base.config()
        assert run.config().data.train_split == "train", "all train images vote"
        share = (
            0.05 if "5 %" in arm.name.split(", ")[1] and "%" in arm.name and config.data.train_split != "train" else 1.0
        )
        steps = config.epochs * (int(50_000 * share) // config.batch_size)
        assert steps == pytest.approx(6 * 195, rel=0.01)


def test_the_small_set_of_less_data_is_looked_at_as_often_as_the_whole():
    """Short epochs are many; a look and a checkpoint at each would take longer than the steps."""
    for scale in ("cpu", "gpu"):
        often = []
        for arm in claims.load("less_data", scale).arms:
            config = claims.cell(scale, arm, 0).base.config()
            often.append((config.epochs / config.monitor.every_epochs, config.epochs / config.checkpoint.every_epochs))
        np.testing.assert_allclose(often, [often[0]] * len(often), rtol=0.05)


def test_both_rules_of_rates_start_from_the_same_rate():
    """At the scale's batch, whatever batch a method's own recipe has; the arms are said to be of that batch."""
    for scale in claims.SCALES:
        size = claims.SCALES[scale]
        rates = {}
        for arm in claims.load("batch_size", scale).arms:
            config = claims.cell(scale, arm, 0).config()
            assert arm.x == config.batch_size
            if arm.line not in ("SimCLR", "SimCLR, square root"):
                continue
            rate, power = config.optimizer.learning_rate_weights, {"linear": 1.0, "sqrt": 0.5}
            scaling = config.optimizer.scaling
            rates[arm.line, arm.x] = rate * (config.batch_size / 256) ** power[scaling]
        base = rates["SimCLR", size.batch]
        for (line, batch), rate in rates.items():
            power = 0.5 if "root" in line else 1.0
            assert rate == pytest.approx(base * (batch / size.batch) ** power)


def test_no_grey_takes_away_nothing_else():
    for scale in ("gpu", "paper"):
        (arm,) = (arm for arm in claims.load("augmentations", scale).arms if arm.name == "BYOL, no grey")
        assert {name.split(".")[-1] for name in arm.fields} == {"grayscale"}


@pytest.mark.parametrize(("name", "scale"), [("no_claim", "cpu"), ("loss_parts", "laptop"), ("run", "cpu")])
def test_unknown_claims_and_scales_are_one_sentence(name, scale):
    with pytest.raises(UserError, match="there is no (claim|scale) '.*'; there are .*"):
        claims.load(name, scale)


# --- Verdicts ---


def _accuracies(**arms):
    return {name: dict(enumerate(values)) for name, values in arms.items()}


A_MINUS_B = {"a": 1, "b": -1}


@pytest.mark.parametrize(
    ("claimed", "margin", "a", "verdict"),
    [
        ("above", 1.0, [5.0, 5.1, 4.9], "shown"),
        ("above", 1.0, [0.5, 0.6, 0.4], "not shown"),  # above 0, but an effect of 1 is ruled out
        ("above", 1.0, [-2.0, -2.1, -1.9], "opposite"),
        ("above", 1.0, [4.0, 0.0, -1.0], "undecided"),
        ("below", 1.0, [-5.0, -5.1, -4.9], "shown"),
        ("below", 1.0, [5.0, 5.1, 4.9], "opposite"),
        ("same", 1.0, [0.1, -0.1, 0.0], "shown"),
        ("same", 1.0, [3.0, 3.1, 2.9], "opposite"),
        ("same", 1.0, [2.0, -2.0, 0.0], "undecided"),
        ("kept", 1.0, [-0.1, 0.1, 0.0], "shown"),
        ("kept", 1.0, [-3.0, -3.1, -2.9], "opposite"),
        ("kept", 1.0, [-3.0, 1.0, 0.0], "undecided"),
        ("above", 1.0, [5.0], "undecided"),  # one seed has no interval
    ],
)
def test_verdicts(claimed, margin, a, verdict):
    found = judge(Statement("", A_MINUS_B, claimed, margin), _accuracies(a=a, b=[0.0] * len(a)), range(len(a)))
    assert found.verdict == verdict
    assert found.seeds == len(a)


def test_there_is_no_verdict_before_all_declared_seeds_are_in():
    statement, declared = Statement("", A_MINUS_B, "above", 1.0), (0, 1, 2)
    few = judge(statement, _accuracies(a=[5.0, 5.1], b=[0.0, 0.0]), declared)
    assert (few.verdict, few.seeds) == ("unfinished", 2) and few.mean == pytest.approx(5.05)
    assert overall(["shown", "unfinished", "undecided"]) == "unfinished"


def test_more_seeds_than_declared_are_judged_more_strictly():
    """As they are made because a first verdict was undecided: 4 ± 2.9 by 95 %, and ± 5.3 by 99 %."""
    effects = [2.0, 6.0, 3.0, 5.0]
    first, more = (
        judge(Statement("", A_MINUS_B, "above", 1.0), _accuracies(a=effects, b=[0.0] * 4), range(declared))
        for declared in (4, 3)
    )
    np.testing.assert_allclose([first.low, first.high], [4 - 2.905, 4 + 2.905], atol=1e-3)  # t(3) 3.18245, s.d. 1.82574
    np.testing.assert_allclose([more.low, more.high], [4 - 5.332, 4 + 5.332], atol=1e-3)  # t(3) 5.84091
    assert (first.verdict, more.verdict) == ("shown", "undecided")


@pytest.mark.parametrize("claimed", ["same", "kept"])
def test_runs_that_have_all_diverged_show_no_sameness(claimed):
    diverged = _accuracies(a=[10.0] * 3, b=[10.0] * 3)
    assert judge(Statement("", A_MINUS_B, claimed, 1.0), diverged, range(3)).verdict == "undecided"


def test_the_interval_is_students():
    # scipy.stats.ttest_1samp([1, 2, 4], 0).confidence_interval(): mean 7/3, s.d. 1.5275, t(2) = 4.30265
    low, high = interval([1.0, 2.0, 4.0])
    np.testing.assert_allclose(
        [low, high], [7 / 3 - 4.302652730 * 1.527525232 / 3**0.5, 7 / 3 + 4.302652730 * 1.527525232 / 3**0.5]
    )
    assert interval([1.0]) == (-math.inf, math.inf)


def test_arms_are_paired_by_seed():
    """A spread that both arms share says nothing about their difference."""
    found = judge(
        Statement("", A_MINUS_B, "above", 1.0), _accuracies(a=[12.0, 22.1, 31.9], b=[10.0, 20.0, 30.0]), range(3)
    )
    assert found.verdict == "shown" and found.deviation < 0.2
    only = judge(Statement("", A_MINUS_B, "above", 1.0), {"a": {0: 1.0, 1: 2.0}, "b": {1: 1.0, 2: 5.0}}, (0, 1, 2))
    assert only.seeds == 1 and only.mean == 1.0
    assert judge(Statement("", A_MINUS_B, "above", 1.0), {"a": {0: 1.0}}, (0, 1, 2)).verdict == "not run"


def test_a_claim_is_shown_only_if_all_of_it_is():
    assert overall(["shown", "shown"]) == "shown"
    assert overall(["shown", "undecided"]) == "undecided"
    assert overall(["undecided", "not shown", "shown"]) == "not shown"
    assert overall(["not shown", "opposite"]) == "opposite"


def test_the_seeds_that_would_decide_are_counted():
    statement = Statement("", A_MINUS_B, "above", 1.0)
    undecided = judge(statement, _accuracies(a=[3.0, 1.0, 0.5], b=[0.0, 0.0, 0.0]), range(3))
    assert undecided.verdict == "undecided"
    needed = seeds_needed(statement, undecided)
    assert needed is not None and 3 < needed < 30
    assert seeds_needed(statement, Outcome("undecided", mean=0.0, seeds=3, deviation=5.0)) is not None
    assert seeds_needed(statement, Outcome("undecided", mean=1.0, seeds=1)) is None
    half, before = (half_width(undecided.deviation, count, 0.99) for count in (needed, needed - 1))
    assert undecided.mean - half > 0 > undecided.mean - before


# --- The runner ---

# In place of main.py: writes what a run leaves, by the name of its workdir.
RUN = textwrap.dedent(
    """
    import json, os, pathlib, signal, sys, time
    folder, behaviour = pathlib.Path(sys.argv[1]), sys.argv[2]
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / "begun"
    begun.write_text(begun.read_text() + "x" if begun.exists() else "x")
    if behaviour == "fails":
        sys.exit("error: the rows are wrong.")
    if behaviour == "waits" and begun.read_text() == "x":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        (folder / "waiting").touch()
        time.sleep(60)
    records = [{"step": 0, "knn_accuracy": 0.2}, {"step": 9, "loss": 7.0}]
    if not behaviour.startswith("diverges"):
        records += [{"step": 10, "loss": 3.0}, {"step": 10, "knn_accuracy": 0.41, "rankme": 30.0, "dead_features": 0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\\n" for r in records))
    if behaviour.startswith("diverges"):
        what = behaviour.partition(":")[2] or "loss"
        sys.exit(f"error: the {what} is not finite at step 10 (loss nan); there is no good checkpoint.")
    if behaviour == "breaks":
        sys.exit(0)
    (folder / "pretrain.json").write_text(json.dumps({"knn_accuracy_after": 0.41, "knn_accuracy_raw_pixels": 0.3, "step": 10}))
    result = {"mean": {"final.top1": 0.5, "final.top5": 0.9}, "runs": [{"search": {"chosen": {"encoder": 0.03}}}]}
    (folder / "finetune.json").write_text(json.dumps(result))
    notes = folder / "checkpoints" / "10" / "run"
    notes.mkdir(parents=True, exist_ok=True)
    (notes / "metadata").write_text(json.dumps({"fingerprints": {"params": 7}, "data": {"fingerprint": "cifar"}}))
    """
)


def _cells(*fields):
    return [Cell("cpu", "barlow_twins", (("barlow_twins.lambd", value),), False, 0) for value in fields]


def _hold(grid, other_code=False):
    with grid.held(other_code):
        pass


def _runner(out, behaviours=None, jobs=1, **settings):
    grid = Grid(out, "cpu")
    _hold(grid)
    return grid, Runner(grid, jobs=jobs, command=_command(grid, behaviours or {}), **settings)


def _command(grid, behaviours):
    def command(cell):
        return [sys.executable, "-c", RUN, str(grid.workdir(cell) / "run"), behaviours.get(cell, "works")]

    return command


def test_runs_are_made_once_and_leave_a_small_file(tmp_path, capsys):
    cells = _cells(0.1, 0.2, 0.3)
    grid, runner = _runner(tmp_path, jobs=2)
    runner.run(cells)
    found = [grid.result(cell) for cell in cells]
    assert all(run["accuracy"] == 41.0 and run["untrained"] == 20.0 and run["rankme"] == 30.0 for run in found)
    assert all(run["cpu_seconds"] > 0 and run["attempts"] == 1 and run["code"] == code_fingerprint() for run in found)
    assert not any(grid.workdir(cell).exists() for cell in cells)
    assert "3/3" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    _, again = _runner(tmp_path, dict.fromkeys(cells, "fails"))
    again.run(cells)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}


def test_evaluations_follow_their_pre_training(tmp_path, capsys):
    """It is made once for both, with its result if that is asked for, and again if its weights are gone."""
    (base,) = _cells(0.1)
    one, ten = (dataclasses.replace(base, measure=measure) for measure in ("1percent", "10percent"))
    grid, runner = _runner(tmp_path)
    assert f"--config.init_from={grid.workdir(base).resolve() / 'run'}" in grid.command(one)
    assert grid.command(one)[2] == "--config=experiments/claims/recipe.py:cpu,barlow_twins,1percent"
    runner.run([one, ten])
    assert [grid.result(cell)["accuracy"] for cell in (base, one, ten)] == [41.0, 50.0, 50.0]
    assert not list((tmp_path / "running").glob("barlow*"))
    assert grid.result(ten)["encoder"] == grid.result(base)["weights"]
    (tmp_path / "cells" / f"{ten.name}.json").unlink()
    kept = tmp_path / "cells" / f"{base.name}.json"
    kept.write_text(json.dumps(grid.result(base) | {"weights": "of another machine", "accuracy": 40.5}))
    _, again = _runner(tmp_path)
    again.run([base, one, ten])
    assert grid.result(ten)["accuracy"] == 50.0
    said = capsys.readouterr().out
    assert "3/3" in said and f"{base.name} was made again for its weights: OTHER bits" in said
    assert grid.result(base)["accuracy"] == 40.5, "claims that were judged with it do not change"
    (record,) = grid.made_again()
    assert (record["run"], record["same"], record["accuracy"]) == (base.name, False, [40.5, 41.0])
    assert grid.result(ten)["encoder"] != grid.result(base)["weights"]
    scratch = Cell("cpu", "scratch", (), False, 0, "1percent")
    assert scratch.base is None and not any("init_from" in word for word in grid.command(scratch))


def test_without_its_pre_training_nothing_is_evaluated(tmp_path):
    (base,) = _cells(0.1)
    one = dataclasses.replace(base, measure="1percent")
    grid, runner = _runner(tmp_path, {base: "fails"})
    with pytest.raises(UserError, match="1 of 1 runs failed"):
        runner.run([one])
    assert grid.result(one) is None and not grid.workdir(one).exists()


def test_the_data_may_be_a_file(tmp_path):
    (cell,) = _cells(0.1)
    assert Grid(tmp_path, "gpu", "CIFAR10.npz").command(cell)[-3:-1] == [
        f"--config.data.data_dir={pathlib.Path('CIFAR10.npz').resolve()}", "--config.data.source=arrays",
    ]  # fmt: skip


def test_a_failed_run_stops_no_other_and_is_tried_again(tmp_path):
    cells = _cells(0.1, 0.2, 0.3)
    grid, runner = _runner(tmp_path, {cells[1]: "fails"})
    with pytest.raises(
        UserError, match=r"1 of 3 runs failed, all others are done:\n.*lambd-0.2-seed0: error: the rows are wrong"
    ):
        runner.run(cells)
    assert grid.result(cells[2]) is not None and grid.result(cells[1]) is None
    _, runner = _runner(tmp_path)
    runner.run(cells)
    assert grid.result(cells[1])["attempts"] == 2


def test_a_run_that_diverges_is_a_result(tmp_path):
    cells = _cells(0.1, 0.2)
    grid, runner = _runner(tmp_path, {cells[0]: "diverges", cells[1]: "diverges:update"})
    runner.run(cells)
    for cell in cells:
        found = grid.result(cell)
        assert found["diverged"] and found["accuracy"] == 10.0 and found["loss"] == 7.0


def test_an_evaluation_that_diverges_is_a_result_too(tmp_path):
    (base,) = _cells(0.1)
    one, ten = (dataclasses.replace(base, measure=measure) for measure in ("1percent", "10percent"))
    grid, runner = _runner(tmp_path, {one: "diverges"})
    runner.run([one, ten])
    assert grid.result(one)["diverged"] and grid.result(one)["accuracy"] == 10.0
    assert grid.result(ten)["accuracy"] == 50.0


def test_evaluations_of_an_encoder_that_diverged_are_results_too(tmp_path, capsys):
    """So that the seed is not dropped, and the pre-training is not made again at each start."""
    (base,) = _cells(0.1)
    one, ten = (dataclasses.replace(base, measure=measure) for measure in ("1percent", "10percent"))
    grid, runner = _runner(tmp_path, {base: "diverges"})
    runner.run([one])
    assert grid.result(one)["diverged"] and grid.result(one)["accuracy"] == 10.0
    _, runner = _runner(tmp_path, dict.fromkeys((base, one, ten), "fails"))
    runner.run([one, ten])
    assert grid.result(ten)["diverged"] and grid.made_again() == []
    assert grid.result(ten)["cpu_seconds"] == 0 and grid.result(ten)["code"] == code_fingerprint()
    assert f"2/2 {ten.name}: its encoder diverged" in capsys.readouterr().out


def test_a_run_that_leaves_no_result_stops_no_other(tmp_path):
    cells = _cells(0.1, 0.2)
    grid, runner = _runner(tmp_path, {cells[0]: "breaks"})
    with pytest.raises(UserError, match=r"1 of 2 runs failed, all others are done:\n.*lambd-0.1-seed0: FileNotFound"):
        runner.run(cells)
    assert grid.result(cells[1]) is not None


def test_a_run_made_again(tmp_path):
    """Is compared in its bits, goes on after an interruption, and is told in the report."""
    first, second = (claims.cell("cpu", arm, 0) for arm in claims.load("auto_correlation", "cpu").arms)
    grid, runner = _runner(tmp_path)
    runner.run([first, second])

    other = Grid(grid.out / "running" / "again", "cpu")
    _, interrupted = _runner(other.out, {second: "waits"}, minutes=0.02)
    with pytest.raises(Preempted):
        interrupted.run([second])
    found = again(grid, command=_command(other, {second: "waits"}))
    assert (found["run"], found["same"], found["accuracy"]) == (second.name, True, [41.0, 41.0])
    assert list((other.out / "running").iterdir()) == [other.out / "running" / "lock"]
    assert grid.result(second) is not None and other.result(second) is None

    path = grid.out / "cells" / f"{first.name}.json"
    path.write_text(json.dumps(grid.result(first) | {"weights": "others"}))
    assert not again(grid, first.name, command=_command(other, {}))["same"] and len(grid.made_again()) == 2
    assert f"with the same bits: 1 of 2 ({second.name}, 41.00 and 41.00 %, {first.name}, " in report(grid)
    with pytest.raises(UserError, match=r"has no finished run byol-seed0; its runs are the files in .*cells"):
        again(grid, "byol-seed0")
    with pytest.raises(UserError, match="holds no finished run"):
        again(Grid(tmp_path / "other", "cpu"))


def test_an_interruption_after_a_failure_says_both(tmp_path, capsys):
    """Its status is that of an interruption, so that a loop over short sessions goes on."""
    cells = _cells(0.1, 0.2, 0.3)
    _, runner = _runner(tmp_path, {cells[0]: "fails", cells[1]: "waits"}, minutes=0.03)
    with pytest.raises(Preempted):
        runner.run(cells)
    said = capsys.readouterr().out
    assert "stopped, 0 of 3 runs are done, 1 failed; the same command goes on\n  barlow_twins-lambd-0.1-seed0: " in said


def test_evaluations_that_wait_for_what_failed_are_not_done(tmp_path):
    (base,), (other,) = _cells(0.1), _cells(0.2)
    evaluations = [dataclasses.replace(base, measure=measure) for measure in ("1percent", "10percent")]
    grid, runner = _runner(tmp_path, {base: "fails"})
    with pytest.raises(UserError, match="1 of 4 runs failed, 2 wait for them, all others are done"):
        runner.run([base, *evaluations, other])
    assert grid.result(other) is not None


def test_code_that_changes_meanwhile_stops_the_runs(tmp_path, monkeypatch):
    """Each result is of the code that it names."""
    cells = _cells(0.1, 0.2)
    grid, runner = _runner(tmp_path, {cells[0]: "changes"})
    current = ["old"]
    monkeypatch.setattr(grids, "code_fingerprint", lambda: current[0])
    runner._code = "old"
    command = runner._command

    def changing(cell):
        current[0] = "new"
        return command(cell)

    runner._command = changing
    with pytest.raises(UserError, match="the code of bt_jax was changed while runs were made; .* with --other-code"):
        runner.run(cells)
    assert [grid.result(cell) for cell in cells] == [None, None]
    _hold(grid, other_code=True)
    Runner(grid, jobs=1, command=_command(grid, {})).run(cells)
    assert [grid.result(cell)["code"] for cell in cells] == ["new", "new"]


def test_a_run_that_two_codes_made_names_both(tmp_path, monkeypatch):
    (cell,) = _cells(0.1)
    monkeypatch.setattr(grids, "code_fingerprint", lambda: "old")
    _, runner = _runner(tmp_path, {cell: "waits"}, minutes=0.02)
    with pytest.raises(Preempted):
        runner.run([cell])
    monkeypatch.setattr(grids, "code_fingerprint", lambda: "new")
    grid = Grid(tmp_path, "cpu")
    _hold(grid, other_code=True)
    Runner(grid, jobs=1, command=_command(grid, {cell: "waits"})).run([cell])
    assert grid.result(cell)["code"] == "old then new"


def test_a_run_is_made_again_on_as_many_cores(tmp_path):
    (cell,) = (claims.cell("cpu", arm, 0) for arm in claims.load("auto_correlation", "cpu").arms[:1])
    grid, runner = _runner(tmp_path)
    runner.run([cell])
    there = grids.cores()
    assert grid.result(cell)["cores"] == len(there)
    assert _jobs(grid, cell) == 1
    path = grid.out / "cells" / f"{cell.name}.json"
    path.write_text(json.dumps(grid.result(cell) | {"cores": 1}))
    assert _jobs(grid, cell) == len(there)


def test_damaged_files_of_a_grid_are_one_sentence(tmp_path):
    grid, runner = _runner(tmp_path)
    runner.run(_cells(0.1))
    for text in ('{"records": [', '{"records": 3}'):
        (tmp_path / "again.json").write_text(text)
        with pytest.raises(UserError, match=r"again.json (cannot be read|has no list of records)"):
            grid.made_again()
    (tmp_path / "grid.json").write_text("{")
    with pytest.raises(UserError, match=r"grid.json cannot be read .*; it says which code and scale"):
        _hold(grid)


def test_a_grid_on_a_disk_that_is_still_full_can_be_started(tmp_path, monkeypatch):
    grid, _ = _runner(tmp_path)
    monkeypatch.setattr(grids, "write_whole", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    _hold(grid)
    (tmp_path / "grid.json").unlink()
    with pytest.raises(UserError, match=r"grid.json cannot be written \(No space left on device\)"):
        _hold(grid)


def test_an_interrupted_grid_goes_on(tmp_path):
    cells = _cells(0.1, 0.2)
    grid, runner = _runner(tmp_path, {cells[0]: "waits"}, minutes=0.02)
    with pytest.raises(Preempted):
        runner.run(cells)
    assert grid.result(cells[0]) is None and grid.result(cells[1]) is None
    _, runner = _runner(tmp_path, {cells[0]: "waits"})
    runner.run(cells)
    assert grid.result(cells[0])["attempts"] == 2, "the same workdir was run again"


def test_a_full_disk_stops_before_the_next_run(tmp_path, monkeypatch):
    _, runner = _runner(tmp_path)
    monkeypatch.setattr(grids, "NEEDED_BYTES", 1 << 60)
    with pytest.raises(UserError, match="MB left, and runs need .*; make room, and the same command goes on"):
        runner.run(_cells(0.1))
    assert not list((tmp_path / "cells").iterdir())


def test_a_folder_belongs_to_one_scale_one_code_and_one_runner(tmp_path, monkeypatch):
    grid, runner = _runner(tmp_path)
    runner.run(_cells(0.1))
    with grid.held(other_code=False), pytest.raises(UserError, match="in use by another run.py"):
        _hold(grid)
    with pytest.raises(UserError, match="holds runs at the scale cpu; choose another"):
        _hold(Grid(tmp_path, "gpu"))
    monkeypatch.setattr(grids, "code_fingerprint", lambda: "other")
    with pytest.raises(UserError, match="holds runs made with other code of bt_jax .*--other-code"):
        _hold(grid)
    _hold(grid, other_code=True)


def test_results_of_another_recipe_and_damaged_ones_are_refused(tmp_path):
    (cell,) = _cells(0.1)
    grid, runner = _runner(tmp_path)
    runner.run([cell])
    path = tmp_path / "cells" / f"{cell.name}.json"
    found = json.loads(path.read_text())
    found["settings"]["optimizer.weight_decay"] = 0.5
    path.write_text(json.dumps(found))
    with pytest.raises(
        UserError, match="the result of another run .optimizer.weight_decay 0.5 there, 0.0001 here.; choose another"
    ):
        grid.result(cell)
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match="is not a result .*; remove it, and its run is made again"):
        grid.result(cell)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["no_claim"], "there is no claim 'no_claim'; there are asymmetry"),
        (["loss_parts"], "there is no CIFAR-10 in --data-dir=; name the folder"),
        (["loss_parts", "--data-dir=none.npz"], "there is no CIFAR-10 in --data-dir=none.npz; name the folder"),
        (["loss_parts", "--scale=paper"], "runs at the scale paper need a pod"),
        (["report", "--out=nowhere"], "--out=nowhere holds no results"),
        (["loss_parts", "--seeds=-1"], "--seeds=-1 is below 0"),
        (["all", "no_claim"], "there is no claim 'no_claim'"),
        (["all", "tuning"], "there is no CIFAR-10"),
    ],
)
def test_bad_commands_are_one_sentence(words, sentence, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    with pytest.raises(UserError, match=sentence) as error:
        run.main()
    assert "\n" not in str(error.value)


# --- The page ---


def _write_results(out, claim, accuracy):
    (out / "cells").mkdir(parents=True)
    (out / "grid.json").write_text(json.dumps({"scale": "cpu", "code": "c0de"}))
    for arm in claim.arms:
        for seed in claim.seeds:
            cell = claims.cell("cpu", arm, seed)
            value = accuracy(arm.name, seed)
            found = {
                "settings": cell.settings(), "method": cell.method, "accuracy": value, "untrained": 22.0, "raw_pixels": 34.5, "rankme": 20.0,
                "diverged": value == 10.0, "loss": 5.0, "cpu_seconds": 600.0, "machine": "2 cores", "code": "c0de",
                "versions": {"jax": "0.10.2", "python": "3.11"}, "date": "2026-11-26",
            }  # fmt: skip
            (out / "cells" / f"{cell.name}.json").write_text(json.dumps(found))


def test_the_page_has_verdicts_tables_and_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    claim = claims.load("loss_parts", "cpu")
    base = {"Barlow Twins": 40.0, "along features": 39.5, "no normalisation": 10.0}
    noise = {"along features": [0.8, 0.0, -0.8]}
    _write_results(
        tmp_path,
        claim,
        lambda arm, seed: base.get(arm, 30.0) + noise.get(arm, [0.0, 0.1, -0.1])[seed] * (arm != "no normalisation"),
    )
    page = tmp_path / "claims.md"
    text = report(Grid(tmp_path, "cpu"), page)
    assert page.read_text() == text
    assert "18 runs, 3.0 hours of one core in all; " in text
    assert "**Undecided.**" in text and "seeds would decide it" in text
    assert "| no normalisation | 10.00 (3 diverged) | 0.00 | 10.00 to 10.00 | 3 |  |  |" in text
    assert "| invariance alone: below the whole loss (≤ −2) | -10.00 |" in text
    assert (
        "![Both terms of the loss, and its normalisation, are needed: accuracy of each arm](claims/loss_parts.png)"
        in text
    )
    assert (tmp_path / "claims" / "loss_parts.png").read_bytes().startswith(b"\x89PNG")


def test_an_unfinished_grid_has_a_page_too(tmp_path):
    claim = claims.load("auto_correlation", "cpu")
    _write_results(tmp_path, claim, lambda arm, seed: 40.0 + seed)
    (gone, *others) = sorted((tmp_path / "cells").glob("*auto*"))
    gone.unlink()
    text = report(Grid(tmp_path, "cpu"))
    assert (
        "(1 of its runs missing)" in text
        and "judged by 1 are missing." in text
        and "## Not begun\n\nStop-gradient" in text
    )
    (evaluated,) = (arm for arm in claims.load("table2", "cpu").arms if arm.name == "SimCLR, 1 %")
    run = claims.cell("cpu", evaluated, 0)
    found = json.loads(others[0].read_text()) | {"settings": run.settings(), "cpu_seconds": 3600.0}
    path = tmp_path / "cells" / f"{run.name}.json"
    path.write_text(json.dumps(found))
    assert "5 runs, 0.8 hours of one core" in text
    assert "6 runs, 1.8 hours of one core" in report(Grid(tmp_path, "cpu")), "those of claims that have not begun too"
    for result in (*others, path):
        result.unlink()
    with pytest.raises(UserError, match="has no claim that is begun"):
        report(Grid(tmp_path, "cpu"))


def test_hours_hold_the_pre_trainings_of_evaluated_encoders_and_runs_made_again(tmp_path):
    claim = claims.load("less_data", "cpu")
    _write_results(tmp_path, claim, lambda arm, seed: 40.0 + seed)
    for arm in claim.arms:
        for seed in claim.seeds:
            run = claims.cell("cpu", arm, seed)
            path = tmp_path / "cells" / f"{run.name}.json"
            (tmp_path / "cells" / f"{run.base.name}.json").write_text(
                json.dumps(json.loads(path.read_text()) | {"settings": run.base.settings(), "cpu_seconds": 1200.0})
            )
    text = report(Grid(tmp_path, "cpu"))
    assert "24 runs, 6.0 hours of one core in all; " in text, "twelve of 10 minutes and twelve of 20"
    (tmp_path / "again.json").write_text(json.dumps({"records": [{
        "run": run.base.name, "same": True, "accuracy": [1.0, 1.0], "date": ["", ""], "cpu_seconds": [1200.0, 7200.0],
    }]}))  # fmt: skip
    assert "24 runs, 6.0 hours of one core in all, and 2.0 of one core for runs made again; " in report(
        Grid(tmp_path, "cpu")
    )


def test_the_page_says_what_was_not_tuned_and_what_has_other_data(tmp_path, monkeypatch):
    claim = claims.load("auto_correlation", "cpu")
    _write_results(tmp_path, claim, lambda arm, seed: 40.0 + seed)
    text = report(Grid(tmp_path, "cpu"))
    assert "Not chosen by" not in text and "different data" not in text
    monkeypatch.setattr(recipe, "untuned", lambda scale, methods: sorted(methods))
    assert "Not chosen by `tuning`, but those of recipe.py, are the learning rates of barlow_twins." in report(
        Grid(tmp_path, "cpu")
    )
    for path, data in zip(sorted((tmp_path / "cells").iterdir()), "aab", strict=False):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data": data}))
    assert "were made with different data" in report(Grid(tmp_path, "cpu"))


def test_the_page_says_where_the_best_rate_is_at_an_edge(tmp_path):
    _write_results(tmp_path, claims.load("auto_correlation", "cpu"), lambda arm, seed: 40.0 + seed)
    tried = {"barlow_twins × 0.5": 3.0, "simclr × 1": 2.0, "byol × 2": 1.0}
    for arm in claims.load("tuning", "cpu").arms:
        if arm.method in ("barlow_twins", "simclr", "byol"):
            run = claims.cell("cpu", arm, 9)
            (some, *_) = (tmp_path / "cells").iterdir()
            found = json.loads(some.read_text()) | {
                "settings": run.settings(),
                "accuracy": 30.0 + tried.get(arm.name, 0),
            }
            (tmp_path / "cells" / f"{run.name}.json").write_text(json.dumps(found))
    assert (
        "the best of barlow_twins is the smallest, the best of byol is the largest, so a better one may lie beyond."
        in report(Grid(tmp_path, "cpu"))
    )


def test_the_page_says_which_method_is_below_raw_pixels(tmp_path):
    """34.5 % here; only of methods' own settings, and not of what is meant to lose."""
    claim = claims.load("augmentations", "cpu")
    _write_results(tmp_path, claim, lambda arm, seed: (30.0 if "BYOL" in arm or "crop" in arm else 40.0) + seed / 10)
    text = report(Grid(tmp_path, "cpu"))
    assert text.count("is below kNN on raw pixels") == 1
    assert "“BYOL, all”, with 30.1 %, is below kNN on raw pixels, 34.5 %" in text


def test_more_seeds_are_judged_with_the_declared_ones(tmp_path):
    claim = claims.load("auto_correlation", "cpu")
    more = dataclasses.replace(claim, seeds=claim.first_seeds(4))
    assert more.seeds == (0, 1, 2, 3) and claim.first_seeds(2) == (0, 1)
    _write_results(tmp_path, more, lambda arm, seed: 40.0 + (arm != "Barlow Twins") * [2.0, 0.1, 1.0, -1.0][seed])
    text = report(Grid(tmp_path, "cpu"))
    assert "8 runs" in text and re.search(r"\(99 %, 4 seeds\) \| undecided \|", text)
    assert re.search(r"by `run.py auto_correlation --judged --seeds=\d+`", text)
    assert [cell.seed for cell in claims.cells("cpu", [claim], seeds=4)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_page_names_protocol_and_chosen_rates(tmp_path):
    claim = claims.load("table2", "cpu")
    _write_results(tmp_path, claim, lambda arm, seed: 40.0 + seed)
    run = claims.cell("cpu", claim.arms[0], 0)
    path = tmp_path / "cells" / f"{run.name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rates": {"encoder": 0.3}}))
    text = report(Grid(tmp_path, "cpu"))
    assert "Protocol of the rows: Barlow Twins, rates searched." in text
    assert "Rates of the encoder that the seeds chose: from scratch, 1 %: 0.3." in text
    assert f"not kept of {3 * len(claim.arms) - 1} runs." in text


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path):
    _write_results(tmp_path, claims.load("auto_correlation", "cpu"), lambda arm, seed: 40.0 + seed)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"):
        report(Grid(tmp_path, "cpu"), tmp_path / "file" / "page.md")


def test_hours_of_a_gpu_are_those_of_the_clock(tmp_path):
    spent = Spent("gpu")
    run = {"name": "a", "cpu_seconds": 9000.0, "seconds": 3600.0, "base": None}
    assert spent.add({"arm": {0: run}}) == 1.0 and spent.unit == "hours of one GPU"


def test_methods_whose_rates_are_not_chosen():
    assert recipe.untuned("gpu", {"byol", "scratch"}) == ["byol"]
    assert recipe.untuned("cpu", {"simclr"}) == recipe.untuned("paper", {"byol"}) == []


def test_points_of_one_place_are_drawn_beside_each_other():
    """The base arm is a point of both rules' lines, and steps have their names on the axis."""
    figures = pytest.importorskip("matplotlib.figure")
    for name, ticks in (("batch_size", ["32", "256", "1024"]), ("augmentations", ["all", "crop and flip", "crop"])):
        claim = claims.load(name, "cpu")
        axes = figures.Figure().subplots()
        _curves(axes, claim, claim.arms, {arm.name: {seed: 40.0 + seed for seed in claim.seeds} for arm in claim.arms})
        assert [text.get_text() for text in axes.get_xticklabels()] == ticks
        places = np.concatenate([bars.lines[0].get_xdata() for bars in axes.containers])
        assert len(set(places)) == len(places), "no mean hides another"
        assert len(places) == len(claim.arms), "a point that two lines share is drawn once"
        lines = {line.get_label(): line.get_xdata() for line in axes.lines if not line.get_label().startswith("_")}
        if name == "batch_size":
            (shared,) = set(lines["SimCLR"]) & set(lines["SimCLR, square root"])
            assert shared in places, "the base arm ends both rules' lines"


@pytest.mark.parametrize("name", claims.names())
def test_no_text_of_a_plot_is_cut_off(name, tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    claim = claims.load(name, "cpu")
    _plot(claim, {arm.name: {seed: 40.0 + seed for seed in claim.seeds} for arm in claim.arms}, tmp_path)
    (figure,) = drawn
    used, rounded = figure.get_tightbbox(), 0.05  # in inches; letters are a little wider at another resolution
    assert min(used.x0, used.y0) > -rounded
    assert used.x1 < figure.get_figwidth() + rounded and used.y1 < figure.get_figheight() + rounded


def test_a_line_of_shared_points_alone_is_not_drawn():
    figures = pytest.importorskip("matplotlib.figure")
    claim = claims.load("batch_size", "cpu")
    arms = [arm for arm in claim.arms if arm.name in ("BYOL, 256", "SimCLR, 32", "SimCLR, 256")]
    axes = figures.Figure().subplots()
    _curves(axes, claim, arms, {arm.name: {0: 40.0} for arm in arms})
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["SimCLR", "BYOL"]


def test_runs_that_no_statement_is_about_are_not_missing(tmp_path):
    claim = claims.load("batch_size", "cpu")
    _write_results(tmp_path, claim, lambda arm, seed: 40.0 + seed)
    judged = {cell.name for cell in claims.cells("cpu", [claim], judged=True)}
    for path in (tmp_path / "cells").iterdir():
        if path.stem not in judged:
            path.unlink()
    text = report(Grid(tmp_path, "cpu"))
    assert (
        "missing" not in text
        and f"Of those that are only shown {3 * len(claim.arms) - len(judged)} were not made." in text
    )
