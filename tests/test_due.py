"""bt_jax/engine/due.py: a table of steps, and what is due after each."""

import pytest

from bt_jax.engine.due import Cadence, due
from bt_jax.facts import Facts

FACTS = Facts(num_examples=35, num_classes=2, batch_size=10, epochs=4)  # 3 steps an epoch, 12 in all


def dues(cadence, steps=range(1, 13)):
    """The steps after which something is due, by its name."""
    found = {"epoch_ends": [], "save": [], "look": [], "last": []}
    before = 0
    for step in steps:
        now = due(before, step, FACTS, cadence)
        before = step
        for name, places in found.items():
            places += [step] * getattr(now, name)
    return found


@pytest.mark.parametrize(
    ("cadence", "save", "look"),
    [
        (Cadence(), [3, 6, 9, 12], []),
        (Cadence(save_epochs=3), [9, 12], []),
        (Cadence(save_epochs=100), [12], []),
        (Cadence(save_epochs=2, look_epochs=1), [6, 12], [3, 6, 9, 12]),
        (Cadence(save_epochs=4, look_epochs=3), [12], [9, 12]),
        (Cadence(save_epochs=4, save_steps=5), [5, 10, 12], []),
        (Cadence(save_epochs=4, save_steps=1), list(range(1, 13)), []),
        (Cadence(look_epochs=100, look_first=True), [3, 6, 9, 12], [12]),
    ],
)
def test_a_table_of_steps(cadence, save, look):
    """The last step is always saved, and evaluated if any step is."""
    found = dues(cadence)
    assert found == {"epoch_ends": [3, 6, 9, 12], "save": save, "look": look, "last": [12]}


def test_dispatches_of_several_steps():
    """A multiple of save_steps that a dispatch passes over is saved after it."""
    found = dues(Cadence(save_epochs=4, save_steps=4), steps=(2, 3, 5, 6, 8, 9, 11, 12))
    assert found["save"] == [5, 8, 12] and found["epoch_ends"] == [3, 6, 9, 12]


def test_a_resumed_run():
    """What was due at the step that it resumes from is not due again."""
    assert not due(6, 7, FACTS, Cadence(save_steps=6)).save
    assert due(6, 12, FACTS, Cadence(save_steps=6)).save
