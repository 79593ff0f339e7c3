"""bt_jax/reporting/counter.py: a line now and then, and one at the end."""

import pytest

from bt_jax.reporting import counter
from bt_jax.reporting.counter import Counter


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(counter.time, "monotonic", lambda: now[0])
    return now


def test_lines_in_a_log(clock, capsys):
    """Every ten seconds; the rate leaves out what earlier starts did."""
    with Counter(20_000, 4000) as counting:
        for _ in range(16):
            clock[0] += 4
            counting.advance(1000)
    assert capsys.readouterr().out.splitlines() == [
        "7000 of 20 000 images, 250 images/s, 0:52 left",
        "10 000 of 20 000 images, 250 images/s, 0:40 left",
        "13 000 of 20 000 images, 250 images/s, 0:28 left",
        "16 000 of 20 000 images, 250 images/s, 0:16 left",
        "19 000 of 20 000 images, 250 images/s, 0:04 left",
        "20 000 of 20 000 images, 250 images/s",
    ]


def test_other_processes_are_silent(clock, capsys):
    with Counter(10, active=False) as counting:
        clock[0] += 60
        counting.advance(10)
    assert capsys.readouterr().out == ""
