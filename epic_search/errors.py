"""The one exception that means "the user can fix this", and a check that raises it."""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake in what the user gave: one sentence with the value, what is allowed and what to do next.

    The command line prints the sentence and exits with code 2; there is never a traceback. `pointer`: what the user
    wrote and the character in it (from 0) that the sentence speaks of, shown below it.
    """

    def __init__(self, sentence: str, *, pointer: tuple[str, int] | None = None) -> None:
        super().__init__(sentence)
        self.pointer = pointer


class Unavailable(UserError):
    """What is asked for cannot be had now, and is not wrong: the disk is full, a lock is held, a process has died."""


def require_texts(given: Sequence[str]) -> None:
    """Raise UserError for one text in the place of several, whose letters would be taken for them, and for no text."""
    if isinstance(given, str):
        raise UserError(f"{given[:80]!r} is one text where several are expected; give it in a list")
    for i, text in enumerate(given):
        if not isinstance(text, str):
            raise UserError(f"number {i + 1} of the texts is no text but {text!r:.80}; give texts alone")
