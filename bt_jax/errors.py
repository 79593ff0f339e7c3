"""Exceptions with a meaning for users, and helpers for their messages."""


class UserError(ValueError):
    """Bad input: one sentence with what was found and what would be right.

    `main.py` prints the sentence and exits with status 1; library callers can catch it, or `ValueError`. The sentence
    names the file, field or shape at fault. Any other exception is a bug in bt_jax and keeps its traceback.
    """


class NotFinite(UserError):
    """A training whose loss or weights are not finite, usually because its learning rates are too high."""


class Preempted(SystemExit):
    """The run was asked to stop, has saved, and should be run again: exit status 75, EX_TEMPFAIL in sysexits.h."""

    def __init__(self):
        super().__init__(75)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without TensorFlow's node names, cut to fit into a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rpartition("}} ")[2][:200]


def some(names: list) -> str:
    """The first three names of a list and how many more it has, for use in a sentence."""
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
