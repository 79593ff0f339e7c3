"""bt_jax/parts.py: packages that are absent, or that break when imported."""

import math
import re
import sys

import pytest

from bt_jax.errors import UserError
from bt_jax.parts import import_part


def test_what_is_there():
    assert import_part("math", use="counting", name="Math") is math


def test_what_is_absent_or_broken(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_part.py").write_text("raise TypeError('descriptors cannot be created\\nmore')\n")
    monkeypatch.setitem(sys.modules, "absent_part", None)
    with pytest.raises(
        UserError, match="counting needs Part, which cannot be imported .*; pip install part, or count by hand"
    ):
        import_part("absent_part", use="counting", name="Part", otherwise="count by hand")
    expected = (
        "counting needs Part, which cannot be imported (TypeError: descriptors cannot be created); pip install parts."
    )
    with pytest.raises(UserError, match=re.escape(expected)):
        import_part("broken_part", use="counting", name="Part", package="parts")
