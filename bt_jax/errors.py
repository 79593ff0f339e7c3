"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """Bad input: one sentence with what was found and what would be right.

    `main.py` prints the sentence and exits with status 1; library callers can catch it, or `ValueError`. Whoever
    raises it names the file, field or shape at fault. Every other exception is a bug of bt_jax and keeps its trace.
    """


class Preempted(SystemExit):
    """The run was told to leave, has saved, and wants to be run again: exit status 75, EX_TEMPFAIL of sysexits.h."""

    def __init__(self):
        super().__init__(75)


def first_line(error: Exception) -> str:
    """What a library's error says, short enough to stand in a sentence: without node names and what follows."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rpartition("}} ")[2][:200]


def some(names: list) -> str:
    """The first three of a list, and how many more there are: short enough to stand in a sentence."""
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
