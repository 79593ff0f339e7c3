"""A line of progress in a notebook: replaced in its place, as on a terminal, where a kernel's output is no terminal."""

import importlib
import sys
import time
from typing import Any

_SECONDS = 0.5  # between two texts: each is a message to the browser


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    python: Any = sys.modules.get("IPython")
    shell = python.get_ipython() if python is not None else None
    return getattr(shell, "kernel", None) is not None


class Line:
    """A line under a cell, whose text is replaced at most twice a second; the last one stays."""

    def __init__(self):
        self._display: Any = importlib.import_module("IPython.display").display
        self._handle: Any = None
        self._text, self._shown = "", 0.0

    def show(self, text: str) -> None:
        """Replaces the text, now or by the next call that is late enough."""
        self._text = text
        if time.monotonic() - self._shown >= _SECONDS:
            self._draw()

    def end(self) -> None:
        """Shows the newest text, and leaves it there: the next one gets a line of its own, below what is printed meanwhile."""
        if self._text:
            self._draw()
        self._handle, self._text = None, ""

    def _draw(self) -> None:
        what = {"text/plain": self._text}
        if self._handle is None:
            self._handle = self._display(what, raw=True, display_id=True)
        else:
            self._handle.update(what, raw=True)
        self._shown = time.monotonic()
