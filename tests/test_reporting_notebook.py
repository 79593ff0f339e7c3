"""bt_jax/reporting/notebook.py: one line that is replaced, and a new one below what is printed."""

import types

import IPython
import IPython.display
import pytest
from etils import epath

from bt_jax.reporting import notebook
from bt_jax.reporting.progress import Reporter


@pytest.fixture
def shown(monkeypatch):
    """The lines under a cell, each as the texts that it had; the clock stands still until it is set."""
    lines: list[list[str]] = []

    def display(what, *, raw, display_id):
        assert raw and display_id
        lines.append([what["text/plain"]])
        line = lines[-1]
        return types.SimpleNamespace(update=lambda what, raw: line.append(what["text/plain"]))

    clock = types.SimpleNamespace(now=100.0, lines=lines)
    monkeypatch.setattr(IPython, "get_ipython", lambda: types.SimpleNamespace(kernel=object()))
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(notebook.time, "monotonic", lambda: clock.now)
    return clock


def test_a_line_is_replaced_now_and_then(shown):
    line = notebook.Line()
    for number in range(100):
        line.show(str(number))
        shown.now += 0.1
    assert len(shown.lines) == 1 and len(shown.lines[0]) <= 21
    line.end()
    assert shown.lines[0][-1] == "99", "the newest is not lost"
    line.end()
    shown.now += 1
    line.show("a new one")
    assert shown.lines[1:] == [["a new one"]]


def test_a_run_in_a_notebook(shown, tmp_path, capsys):
    """Its first step is seen, its steps are no lines of the log, and its last one stays."""
    report = Reporter(
        epath.Path(tmp_path), start_step=0, total_steps=40, steps_per_epoch=10, batch_size=8, every_steps=5, tensorboard=False
    )  # fmt: skip
    for step in range(1, 41):
        report.step(step, {"loss": 2.0}, {"learning_rate": 0.1})
        shown.now += 0.01
        if step == 20:
            report.say("a look")
    report.close()
    assert capsys.readouterr().out == "a look\n"
    assert [line[-1][:5] for line in shown.lines] == ["20/40", "40/40"]
    assert shown.lines[0][0].startswith(" 1/40")


def test_elsewhere_is_no_notebook(monkeypatch):
    assert not notebook.in_notebook()
    monkeypatch.setattr(IPython, "get_ipython", lambda: types.SimpleNamespace())  # in a terminal
    assert not notebook.in_notebook()
