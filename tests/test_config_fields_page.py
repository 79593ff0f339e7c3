"""bt_jax/config/fields_page.py: docs/fields.md is true, and the table of a run."""

import pathlib

import pytest

from bt_jax import config as config_lib
from bt_jax.config.fields_page import WIDTH, page, shown, table
from bt_jax.config.methods import METHODS
from configs import quickstart

ROOT = pathlib.Path(__file__).parent.parent


def test_the_page_is_true():
    assert (ROOT / "docs" / "fields.md").read_text() == page(), (
        "fields have changed: python -m bt_jax.config.fields_page > docs/fields.md"
    )


def test_the_page_has_every_field():
    """Of views, once for all of them."""
    text = page()
    for task in config_lib.TASKS:
        for method in METHODS:
            for name in config_lib.fields_of(config_lib.default(task, method)):
                prefix = name.rpartition(".")[0]
                assert f"`{name}`" in text or f"`{prefix}.*`" in text, name


@pytest.mark.parametrize("task", config_lib.TASKS)
def test_a_table_has_every_field_in_100_columns(task):
    config = config_lib.default(task)
    lines = table(config).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert f"{len(config_lib.flatten(config))} fields, 0 of them changed" in lines[0]
    assert not any(line.startswith("*") for line in lines)


def test_what_is_changed_is_marked():
    config = quickstart.get_config()
    lines = table(config).splitlines()
    (epochs,) = (line for line in lines if line[2:].startswith("epochs") and "Passes" in line)
    assert epochs.startswith("* epochs ") and epochs.split()[1:4] == ["epochs", "6", "1000"]
    (workers,) = (line for line in lines if line[2:].startswith("threads"))
    assert workers.startswith("  ")
    assert "barlow_twins.view_a" in lines


def test_values_are_as_the_command_line_takes_them():
    assert [shown(v) for v in ("", "x", 1e-6, 0.5, True, (1.0, 0.25), (5,), ("cpu", "tpu"))] == [
        '""', "x", "1e-06", "0.5", "True", "(1,0.25)", "(5,)", "('cpu','tpu')"
    ]  # fmt: skip
