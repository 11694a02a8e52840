"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence with the value, what is allowed and what to do next.

    The command line prints the sentence and exits with code 2; there is never a traceback.
    """
