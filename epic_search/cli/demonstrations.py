"""Reads the pairs and queries that a user gives in files: demonstrations, what to teach, what might be taught."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.encoder import Demonstration
    from epic_search.index.taught_pair import Lesson
    from epic_search.index.ways import Demos

DEMONSTRATION = '{"query": "...", "passage": "..."}'
LESSON = '{"query": "...", "id": "..."} or {"query": "...", "passage": "..."}'
MODES: tuple["Demos", ...] = ("fixed", "nearest", "none")


def read_demonstrations(path: Path) -> list["Demonstration"]:
    """All demonstrations of the file, in its order; blank lines are allowed.

    Raises UserError naming the line: one demonstration left out would make another prompt than was meant.
    """
    from epic_search.encoder import Demonstration

    found = []
    for where, value in _objects(path, "demonstrations", wanted=DEMONSTRATION):
        if set(value) != {"query", "passage"}:
            raise UserError(
                f"{where}: a demonstration has the fields query and passage alone, got {_fields(value)}; "
                f"write {DEMONSTRATION}"
            )
        texts = _texts(value, where)
        found.append(Demonstration(query=texts["query"], passage=texts["passage"]))
    if not found:
        raise UserError(f"{path} holds no demonstration; write one {DEMONSTRATION} a line")
    return found


def read_lessons(path: Path) -> list["Lesson"]:
    """All pairs to teach of the file; raises UserError naming the line that is wrong."""
    from epic_search.index.taught_pair import Lesson

    found = []
    for where, value in _objects(path, "pairs", wanted=LESSON):
        if set(value) not in ({"query", "id"}, {"query", "passage"}):
            raise UserError(
                f"{where}: a pair has query and id, or query and passage, got {_fields(value)}; write {LESSON}"
            )
        texts = _texts(value, where)
        found.append(Lesson(texts["query"], document=texts.get("id"), passage=texts.get("passage")))
    if not found:
        raise UserError(f"{path} holds no pair to teach; write one {LESSON} a line")
    return found


def read_queries(path: Path) -> list[str]:
    """All queries of the file: a line each, as it is, or as JSON under query or text."""
    found = []
    for where, line in _lines(path, "queries"):
        if not line.lstrip().startswith("{"):
            found.append(line.strip())
            continue
        value = _object(line, where, wanted='{"query": "..."}')
        query = value.get("query", value.get("text"))
        if not isinstance(query, str) or not query.strip():
            raise UserError(f'{where}: there is no query in it, got {_fields(value)}; write {{"query": "..."}}')
        found.append(query)
    if not found:
        raise UserError(f"{path} holds no query; write one a line")
    return found


def chosen_demonstrations(path: Path | None, *, none: bool) -> list["Demonstration"] | None:
    """What `--demos FILE` and `--no-demos` ask for: a list, an empty list, or None where neither is given."""
    if none and path is not None:
        raise UserError(f"--demos {path} and --no-demos contradict each other; give one of them")
    if none:
        return []
    return read_demonstrations(path) if path is not None else None


def chosen_demos(given: str | None, *, none: bool) -> tuple["Demos | None", list["Demonstration"] | None]:
    """What `query --demos` and `--no-demos` ask for: a mode, or the demonstrations of a file."""
    if none and given is not None:
        raise UserError(f"--demos {given} and --no-demos contradict each other; give one of them")
    if none:
        return "none", None
    if given is None:
        return None, None
    for mode in MODES:
        if given == mode:
            return mode, None
    if not Path(given).is_file():
        raise UserError(f"--demos '{given}' is neither one of {', '.join(MODES)} nor a file of demonstrations")
    return "fixed", read_demonstrations(Path(given))


def _objects(path: Path, what: str, *, wanted: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in _lines(path, what):
        yield where, _object(line, where, wanted=wanted)


def _lines(path: Path, what: str) -> Iterator[tuple[str, str]]:
    """(where it is, the line), without blank lines."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}; give a JSON lines file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the {what} {path} are not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path}, line {number}", line


def _object(line: str, where: str, *, wanted: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: this is not JSON ({error}); write {wanted}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: this is a JSON {type(value).__name__}; write {wanted}")
    return value


def _fields(value: dict[str, Any]) -> str:
    return f"the fields {', '.join(sorted(value)) or 'of an empty object'}"


def _texts(value: dict[str, Any], where: str) -> dict[str, str]:
    for field, text in value.items():
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: {field} must be a text that is not empty, got {text!r}")
    return value
