"""bt_jax/engine/notes.py: what a checkpoint tells besides the state, to JSON and back."""

import json

import pytest

from bt_jax.engine.notes import RunNotes, check_data, data_position
from bt_jax.errors import UserError
from bt_jax.facts import Facts

FACTS = Facts(num_examples=24, num_classes=2, batch_size=8, epochs=2)


def test_there_and_back():
    """All of it survives JSON; the time and the versions are added."""
    notes = RunNotes(
        config={"seed": 3},
        data=data_position(4, FACTS),
        looked=False,
        history=({"step": 1, "loss": 2.5},),
        seconds=7.25,
    )
    saved = json.loads(json.dumps(notes.to_json()))
    assert RunNotes.from_json(saved) == notes
    assert saved["versions"]["jax"] and saved["saved"].endswith("+00:00")


def test_of_version_0_1_0():
    """The names on disk are those of the first version, and what is missing has a default."""
    assert set(RunNotes().to_json()) == {"config", "data", "watched", "history", "seconds", "saved", "versions"}
    assert RunNotes.from_json({"watched": False}).looked is False
    assert RunNotes.from_json({}) == RunNotes()


def test_the_place_in_the_data():
    assert data_position(4, FACTS) == {"images": 24, "steps_per_epoch": 3, "epoch": 1, "batch": 1}
    check_data(data_position(4, FACTS), 4, FACTS)
    check_data({}, 4, FACTS)  # a checkpoint that does not tell
    fewer = Facts(num_examples=20, num_classes=2, batch_size=8, epochs=2)
    with pytest.raises(UserError, match=r"checkpoint 4 was saved \(images was 24 and is now 20; steps_per_epoch was 3"):
        check_data(data_position(4, FACTS), 4, fewer)
