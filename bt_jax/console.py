"""All output of the package; a failure to print never ends a run.

Characters that the stream's encoding lacks are escaped. Text that cannot be written (because the reader is gone, the terminal is
closed, or the disk of a log is full) is dropped, which the other stream reports once.
"""

import atexit
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

_NAMES = {"stdout": "standard output", "stderr": "standard error"}
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.EINTR}  # may be over by the next write
_reported: set[str] = set()  # streams whose failure has been reported
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@contextlib.contextmanager
def of_a_command() -> Iterator[None]:
    """Wraps a command: opens its standard streams, and lets Ctrl-C end it at once, with a message and no traceback."""
    open_streams()
    before = signal.getsignal(signal.SIGINT)
    ours = before not in (signal.SIG_IGN, None)  # ignored in the background of a script; None: not set from Python
    if ours:
        signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def _end(*_: object) -> None:
    warn_from_handler("ended by Ctrl-C; the same command resumes from the last checkpoint, if there is one")
    os._exit(130)  # without waiting for writes in progress


def open_streams() -> None:
    """Opens closed standard streams; otherwise a file of the run would get their number, and libraries' messages."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for name in _NAMES:
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def say(text: str) -> None:
    """Prints lines on standard output."""
    _write("stdout", printable(text) + "\n")


def warn(text: str) -> None:
    """Prints lines on standard error, below a progress bar if one is shown."""
    _write("stderr", f"{_below_the_bar()}{printable(text)}\n")


def warn_from_handler(text: str) -> None:
    """Like `warn`, for signal handlers, which may interrupt a write to the stream."""
    with contextlib.suppress(OSError):
        os.write(2, f"{_below_the_bar()}{printable(text)}\n".encode("ascii", "backslashreplace"))


def _below_the_bar() -> str:
    """A line break if tqdm has left a bar's line open."""
    open_line, Terminal.open_line = Terminal.open_line, False
    return "\n" * open_line


def printable(text: str) -> str:
    """The text with lone surrogates (as in file names that are not UTF-8) and control characters escaped."""
    return text.translate(_CONTROL).encode("utf-8", "backslashreplace").decode("utf-8")


def flush() -> None:
    for name in _NAMES:
        _write(name, "")


class Terminal:
    """Standard error as a file for tqdm, without errors.

    Attributes:
      open_line: whether the last text written did not end its line.
    """

    open_line = False

    encoding = property(lambda _: getattr(sys.stderr, "encoding", None))

    def write(self, text: str) -> None:
        Terminal.open_line = bool(text) and text[-1] not in "\r\n"
        _write("stderr", text)

    def flush(self) -> None:
        _write("stderr", "")

    def isatty(self) -> bool:
        return sys.stderr is not None and sys.stderr.isatty()

    def fileno(self) -> int:
        return sys.stderr.fileno()


def _write(name: str, text: str) -> None:
    stream: Any = getattr(sys, name)
    if stream is None:  # it was closed when Python started
        return
    try:
        if text:
            try:
                stream.write(text)
            except UnicodeEncodeError:
                encoding = stream.encoding or "ascii"
                stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        _failed(name, error)


def _failed(name: str, error: Exception) -> None:
    if getattr(error, "errno", None) not in _PASSING:
        _drop(name)
    if name in _reported:
        return
    _reported.add(name)
    atexit.register(_drop_what_is_left)
    other = next(n for n in _NAMES if n != name)
    why = getattr(error, "strerror", None) or str(error)
    _write(other, f"{_below_the_bar()}note: {_NAMES[name]} cannot be written ({why}); the run continues without it\n")


def _drop(name: str) -> None:
    """Discards everything that is written to the stream from now on."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, getattr(sys, name).fileno())
        os.close(nowhere)


def _drop_what_is_left() -> None:
    """Python flushes the streams at exit, and exits with status 120 if it cannot."""
    for name in _NAMES:
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError, AttributeError):
            _drop(name)
