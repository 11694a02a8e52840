"""Reads the demonstrations that a user gives: a query and the passage that is right for it, a line each."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.encoder import Demonstration

FIELDS = {"query", "passage"}


def read_demonstrations(path: Path) -> list["Demonstration"]:
    """All demonstrations of the file, in its order; blank lines are allowed.

    Raises UserError naming the line: one demonstration left out would make another prompt than was meant.
    """
    from epic_search.encoder import Demonstration

    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"cannot read the demonstrations {path}: {error.strerror}; give a JSON lines file") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"the demonstrations {path} are not UTF-8 (byte {error.start}); save the file as UTF-8"
        ) from error
    found = [
        Demonstration(**_fields(line, where=f"{path}, line {number}"))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise UserError(f'{path} holds no demonstration; write one {{"query": ..., "passage": ...}} a line')
    return found


def chosen_demonstrations(path: Path | None, *, none: bool) -> list["Demonstration"] | None:
    """What `--demos FILE` and `--no-demos` ask for: a list, an empty list, or None where neither is given."""
    if none and path is not None:
        raise UserError(f"--demos {path} and --no-demos contradict each other; give one of them")
    if none:
        return []
    return read_demonstrations(path) if path is not None else None


def _fields(line: str, *, where: str) -> dict[str, str]:
    wanted = '{"query": "...", "passage": "..."}'
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: this is not JSON ({error}); write {wanted}") from error
    if not isinstance(value, dict) or set(value) != FIELDS:
        got = (
            f"the fields {', '.join(sorted(value)) or 'of an empty object'}"
            if isinstance(value, dict)
            else type(value).__name__
        )
        raise UserError(f"{where}: a demonstration has the fields query and passage alone, got {got}; write {wanted}")
    for field, text in value.items():
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: {field} must be a text that is not empty, got {text!r}")
    return value
