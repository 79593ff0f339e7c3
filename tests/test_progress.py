"""bt_jax/reporting/progress.py: the lines that are printed, and what goes to the files."""

import itertools
import json
import pkgutil

import pytest
from etils import epath

from bt_jax.methods.make import METHODS
from bt_jax.reporting.progress import Reporter, duration

METRICS = {"loss": 123.456, "on_diagonal": 60.5, "off_diagonal": 12345.6}
RATES = {"learning_rate_weights": 0.2, "learning_rate_biases": 0.0048}


def reporter(tmp_path, **settings):
    defaults = {
        "start_step": 0, "total_steps": 1200, "steps_per_epoch": 19, "batch_size": 256, "every_steps": 5, "tensorboard": False,
        "short_names": {"on_diagonal": "on", "off_diagonal": "off"},
    }  # fmt: skip
    return Reporter(epath.Path(tmp_path), **defaults | settings)


def test_plain_lines_fit_eighty_columns(tmp_path, capsys, monkeypatch):
    """One line every five steps, with loss, parts, rate, speed and ETA."""
    clock = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    report = reporter(tmp_path)
    for step in range(1, 12):
        report.step(step, METRICS, RATES)
    report.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("  10/1200 ep 0.5 loss 123.5 on 60.5 off 1.235e+04 lr 0.2 ")
    assert "images/s ETA " in lines[1]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [5, 10]
    assert records[0].items() >= {**METRICS, **RATES, "epoch": 0.2632}.items()


@pytest.mark.parametrize(("total", "per_epoch", "rate"), [(234, 39, 7320.0), (625_000, 625, 12_345.6)])
@pytest.mark.parametrize("name", METHODS)
def test_lines_of_all_methods_fit(tmp_path, capsys, name, total, per_epoch, rate):
    """In eighty columns, with the loss and the time left; what has no room is in the files."""
    method = pkgutil.resolve_name(METHODS[name])
    metrics = method.metrics if isinstance(method.metrics, tuple) else tuple(METRICS)
    report = reporter(tmp_path, total_steps=total, steps_per_epoch=per_epoch, short_names=method.short_names)
    report._rate = rate
    step = total // 2 // 5 * 5
    report.step(step, dict.fromkeys(metrics, 1234.567), RATES)
    report.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert len(line) < 80 and f" ep {step / per_epoch:.1f} " in line and " loss 1235 " in line
    assert f" {rate:.0f} images/s ETA " in line
    (record,) = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert set(metrics) < set(record)


def test_the_first_step_counts_for_no_rate(tmp_path, monkeypatch):
    """It includes the compilation; pauses do not count either."""
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    report = reporter(tmp_path, every_steps=1)
    report.step(1, METRICS, RATES)
    with report.pause():
        next(clock)
    report.step(2, METRICS, RATES)
    report.close()
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert "images_per_second" not in first and second["images_per_second"] > 0


def test_steps_that_were_started_at_once(tmp_path, monkeypatch):
    """Seven per dispatch, and only the time of the last is known: the rate is that of whole dispatches."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    report = reporter(tmp_path)
    for step in range(1, 71):
        clock[0] += 7.0 * (step % 7 == 1)  # all seven are reported when they are done
        report.step(step, METRICS, RATES, timed=step % 7 == 0)
    report.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [record.get("images_per_second") for record in records]
    assert [record["step"] for record in records] == list(range(5, 71, 5))
    assert rates[:2] == [None, None] and len(set(rates[3:])) == 1


@pytest.mark.parametrize("start", [0, 13, 17, 18, 19])
def test_a_step_that_is_reported_at_once_makes_no_rate(tmp_path, monkeypatch, start):
    """The step before a save is reported just before the save's own: after a resume and at a signal this once made 63 146 images/s."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    report = reporter(tmp_path, start_step=start, batch_size=32)
    for step in range(start + 1, 48):
        saved = step % 20 == 0 or step == 47
        # Each step takes a second, and is reported when the next has been computed too; a save waits for no other.
        clock[0] += 0.001 if saved else 2.0 if step % 20 == 1 else 1.0
        report.step(step, METRICS, RATES, at_once=saved)
        if saved:
            with report.pause():
                clock[0] += 30.0
    report.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [record["images_per_second"] for record in records if "images_per_second" in record]
    assert rates and rates == pytest.approx([32.0] * len(rates), rel=0.01)


def test_terminal_line_does_not_wrap(tmp_path, capsys, monkeypatch):
    """The bar shows every step within the terminal's width."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    report = reporter(tmp_path)
    for step in range(1, 60):
        report.step(step, METRICS, RATES)
    report.say("a line above the bar")
    report.close()
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].strip() == "a line above the bar"
    drawn = [part for part in captured.err.replace("\n", "\r").split("\r") if part.strip()]
    assert drawn and max(map(len, drawn)) <= 80


def test_other_processes_are_silent(tmp_path, capsys):
    report = reporter(tmp_path, active=False)
    report.step(5, METRICS, RATES)
    report.say("nothing")
    report.record(5, {"knn_accuracy": 0.5})
    assert report.history() == []
    report.close()
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seconds", "text"), [(7, "0:07"), (754, "12:34"), (18367, "5:06:07"), (183840, "2d 03:04")])
def test_duration(seconds, text):
    assert duration(seconds) == text
