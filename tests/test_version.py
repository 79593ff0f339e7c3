"""bt_jax/version.py: the same number in all files."""

import pathlib
import re

import bt_jax

ROOT = pathlib.Path(__file__).parents[1]


def test_the_citation_and_the_changelog_have_the_version():
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == bt_jax.__version__
    headings = re.findall(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", bt_jax.__version__]
