"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """Bad input: one sentence with what was found and what would be right.

    `main.py` prints the sentence and exits with status 1; library callers can catch it, or `ValueError`. Whoever
    raises it names the file, field or shape at fault. Every other exception is a bug of bt_jax and keeps its trace.
    """
