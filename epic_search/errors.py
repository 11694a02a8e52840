"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence with the value, what is allowed and what to do next.

    The command line prints the sentence and exits with code 2; there is never a traceback.
    """


class Unavailable(UserError):
    """What is asked for cannot be had now, and is not wrong: the disk is full, a lock is held, a process has died."""
