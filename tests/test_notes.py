"""bt_jax/engine/notes.py: what a checkpoint holds besides the state, to JSON and back."""

import json

import pytest

from bt_jax import config as config_lib
from bt_jax.engine.notes import RunNotes, check_data, data_position
from bt_jax.errors import UserError
from bt_jax.facts import Facts

FACTS = Facts(num_examples=24, num_classes=2, batch_size=8, epochs=2)


def test_there_and_back():
    """All of it survives JSON; the time and the versions are added."""
    notes = RunNotes(
        config={"seed": 3},
        data=data_position(4, FACTS, "ab"),
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
    place = {"images": 24, "steps_per_epoch": 3, "epoch": 1, "batch": 1}
    assert data_position(4, FACTS, "ab") == place | {"fingerprint": "ab"}
    check_data(data_position(4, FACTS, "ab"), 4, FACTS, "ab")
    check_data({}, 4, FACTS, "ab")  # a checkpoint that does not tell
    check_data(place, 4, FACTS, "ab")  # of a version that had no fingerprints
    fewer = Facts(num_examples=20, num_classes=2, batch_size=8, epochs=2)
    with pytest.raises(UserError, match=r"checkpoint 4 was saved \(images was 24 and is now 20; steps_per_epoch was 3"):
        check_data(data_position(4, FACTS, "ab"), 4, fewer, "ab")
    with pytest.raises(UserError, match="the fingerprint of its files, labels or pixels was ab and is now cd"):
        check_data(data_position(4, FACTS, "ab"), 4, FACTS, "cd")


def test_the_test_images():
    """Are compared where a resumed run must have the same."""
    data = data_position(4, FACTS, "ab", "xy")
    assert data["test_fingerprint"] == "xy" and "test_fingerprint" not in data_position(4, FACTS, "ab")
    check_data(data, 4, FACTS, "ab", "xy")
    check_data(data, 4, FACTS, "ab")
    check_data(data_position(4, FACTS, "ab"), 4, FACTS, "ab", "xy")  # of a version that did not save it
    with pytest.raises(UserError, match="saved .the fingerprint of the test images was xy and is now zz., so the run"):
        check_data(data, 4, FACTS, "ab", "zz")


@pytest.mark.parametrize("odd", [-1, 10**9, float("nan"), "24", True, None, [24] * 1000])
def test_odd_numbers_in_the_data(odd):
    with pytest.raises(UserError, match="images was .* and is now 24") as found:
        check_data(data_position(4, FACTS, "ab") | {"images": odd}, 4, FACTS, "ab")
    assert len(str(found.value)) < 250


@pytest.mark.parametrize("odd", [-1, -1.5, 10**400, 1e300, float("nan"), float("inf"), True, "3"])
def test_odd_numbers(odd):
    """Times that no run takes, and records without a step or with what is no number, count as missing."""
    assert RunNotes.from_json({"seconds": odd}).seconds == 0
    good = {"step": 3, "epoch": 1.5, "loss": None}
    assert RunNotes.from_json({"history": [good, {"step": odd} if odd != 10**400 else {}]}).history == (good,)
    if odd not in (-1, -1.5, 1e300):
        assert RunNotes.from_json({"history": [{"step": 3, "loss": odd}, good]}).history == (good,)


@pytest.mark.parametrize("odd", [None, 3, "x", [], [1], {}])
def test_odd_notes(odd):
    """What is damaged counts as missing."""
    for name in RunNotes().to_json():
        notes = RunNotes.from_json({name: odd})
        assert notes.history == () and isinstance(notes.config, dict) and notes.looked is True


def test_the_config_in_the_notes(tmp_path):
    """Is what the run resumes with, also if config.json is lost; free fields may differ."""
    config = config_lib.default()
    notes = RunNotes.from_json(json.loads(json.dumps(RunNotes(config=config.to_dict()).to_json())))
    config.log.every_steps = 7
    notes.check_config(config.to_dict(), tmp_path)
    RunNotes().check_config(config.to_dict(), tmp_path)
    config.barlow_twins.lambd = 0.1
    with pytest.raises(
        UserError, match="holds a run with another config .barlow_twins.lambd was 0.0051 and is now 0.1"
    ):
        notes.check_config(config.to_dict(), tmp_path)
    with pytest.raises(UserError, match="does not have the config of a run .it has no task"):
        RunNotes(config={"seed": 3}).check_config(config.to_dict(), tmp_path)
