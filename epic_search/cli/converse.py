"""`epic-search query` without a text: a prompt on a terminal, one query a line from a pipe.

Index and encoder are loaded once. The search runs in a thread of its own, so that Ctrl-C gives up waiting for an
answer and never cuts off a request to the store.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epic_search.cli import console
from epic_search.cli.explanation import print_taught
from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.index import Hit
    from epic_search.index.answer import TaughtExplanation

HISTORY_LINES = 1000
HELP = """\
Type a query and press Enter. A line that begins with ':' is a command (put a space before a query that does):
  :k N      show N documents
  :open N   show all of hit N: the whole passage and the payload
  :json     answer in JSON, or in text again
  :help     this
Ctrl-C gives up a query, Ctrl-D ends."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an index says to a query. `asked`: index, query and how it was searched; `offset`: better hits left out."""

    asked: dict[str, Any]
    query: str
    hits: "Sequence[Hit]"
    offset: int
    facets: "Mapping[str, Sequence[tuple[Any, int]]]"
    taught: "TaughtExplanation | None"

    @property
    def json(self) -> dict[str, Any]:
        """All of it, for scripts."""
        from epic_search.index.answer import hits_as_json

        found = {**self.asked, "hits": hits_as_json(self.hits)}
        if self.facets:
            found["facets"] = {
                field: [{"value": value, "documents": count} for value, count in counts]
                for field, counts in self.facets.items()
            }
        return found if self.taught is None else {**found, "taught": self.taught.as_json()}

    def print(self, *, lead: str | None = None) -> None:
        """Hits, facets and what was taught, for a person or a pipe (see `console.print_hits`)."""
        console.print_hits(self.hits, query=self.query, offset=self.offset, lead=lead)
        if not self.hits:
            console.note("nothing found" if lead is None else f"nothing found for '{console.printable(lead)}'")
        console.print_facets(self.facets)
        if self.taught is not None:
            print_taught(self.taught)


Ask = Callable[[str, int], Answer]  # query, k


def answer_lines(ask: Ask, *, k: int, jsonl: bool) -> int:
    """Answer each line of stdin as it comes; returns how many could not be answered.

    With `jsonl` every line that is not blank gets one JSON object, in order: the answer's, or `{"query", "error"}`.
    Otherwise hits are printed as for a single query, each line of them led by the query.
    """
    failures = 0
    for number, line in enumerate(sys.stdin.buffer, 1):
        query = line.decode("utf-8", errors="surrogateescape").strip()
        if not query:
            continue
        try:
            answer = ask(query, k)
        except UserError as error:
            failures += 1
            console.note(f"error: line {number}: {error}")
            if jsonl:
                console.print_jsonl({"query": query, "error": str(error)})
            continue
        if jsonl:
            console.print_jsonl(answer.json)
        else:
            answer.print(lead=query)
            sys.stdout.flush()
    return failures


def converse(ask: Ask, *, k: int, json: bool) -> None:
    """Ask for queries on the terminal until Ctrl-D."""
    console.note("type a query; :help lists the commands, Ctrl-D ends")
    with ThreadPoolExecutor(max_workers=1) as worker, _history():
        conversation = _Conversation(ask, k, json, worker)
        while True:
            try:
                line = _ask()
                if line.strip():
                    conversation.reply(line)
            except EOFError:
                print(file=sys.stderr)
                return
            except KeyboardInterrupt:
                print(file=sys.stderr)
            except UserError as error:
                console.note(f"error: {error}")


@dataclass
class _Conversation:
    ask: Ask
    k: int
    json: bool
    worker: ThreadPoolExecutor
    last: Answer | None = None

    def reply(self, line: str) -> None:
        if line.startswith(":"):
            self._command(*line[1:].split())
            return
        self.last = self.worker.submit(self.ask, line.strip(), self.k).result()
        if self.json:
            console.print_json(self.last.json)
        else:
            self.last.print()

    def _command(self, name: str = "", *values: str) -> None:
        match name, values:
            case "help", ():
                print(HELP, file=sys.stderr)
            case "json", ():
                self.json = not self.json
                console.note("answers are JSON now" if self.json else "answers are text now")
            case "k", (number,):
                self.k = _number(number, what=":k")
            case "open", (number,):
                if self.last is None or not self.last.hits:
                    raise UserError("there is no hit to open yet; ask something first")
                first = self.last.offset + 1
                rank = _number(number, what=":open", least=first, most=self.last.offset + len(self.last.hits))
                console.print_whole(self.last.hits[rank - first])
            case _:
                raise UserError(f"':{' '.join([name, *values])}' is no command; :k N, :open N, :json and :help are")


def _number(text: str, *, what: str, least: int = 1, most: int | None = None) -> int:
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        raise UserError(f"{what} {text}: give a number from {least}{f' to {most}' if most else ''}")
    return int(text)


def _ask() -> str:
    if sys.stdout.isatty():
        return input("> ")
    # Where the answers go to a file, the prompt does not.
    print("> ", end="", file=sys.stderr, flush=True)
    return input()


@contextmanager
def _history() -> Iterator[None]:
    """Lines typed before come back with the arrow keys, where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    file = _history_file()
    with suppress(OSError):  # none yet, or it cannot be read: the prompt works without
        readline.read_history_file(file)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            readline.write_history_file(file)
            file.chmod(0o600)


def _history_file() -> Path:
    shared = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".local" / "state") / "epic-search" / "history"
