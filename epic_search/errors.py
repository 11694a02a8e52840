"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence with the value, what is allowed and what to do next.

    The command line prints the sentence and exits with code 2; there is never a traceback. `pointer`: what the user
    wrote and the character in it (from 0) that the sentence speaks of, shown below it.
    """

    def __init__(self, sentence: str, *, pointer: tuple[str, int] | None = None) -> None:
        super().__init__(sentence)
        self.pointer = pointer
