"""`epic-search query` without a text: a prompt on a terminal, one query a line from a pipe.

Index and encoder are loaded once. The search runs in a thread of its own, so that Ctrl-C gives up waiting for an
answer and never cuts off a request to the store.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epic_search.cli import console
from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.index import Hit

    Search = Callable[[str, int], Sequence[Hit]]
    AsJson = Callable[[str, Sequence[Hit]], dict[str, Any]]

HISTORY_LINES = 1000
HELP = """\
Type a query and press Enter. A line that begins with ':' is a command (put a space before a query that does):
  :k N      show N documents
  :open N   show all of hit N: the whole passage and the payload
  :json     answer in JSON, or in text again
  :help     this
Ctrl-C gives up a query, Ctrl-D ends."""


def answer_lines(search: "Search", *, as_json: "AsJson", k: int, jsonl: bool) -> int:
    """Answer each line of stdin as it comes; returns how many could not be answered.

    With `jsonl` every line that is not blank gets one JSON object, in order: `as_json` of the query and its hits, or
    `{"query", "error"}`. Otherwise hits are printed as for a single query, each line of them led by the query.
    """
    failures = 0
    for number, line in enumerate(sys.stdin.buffer, 1):
        query = line.decode("utf-8", errors="surrogateescape").strip()
        if not query:
            continue
        try:
            hits = search(query, k)
        except UserError as error:
            failures += 1
            console.note(f"error: line {number}: {error}")
            if jsonl:
                console.print_jsonl({"query": query, "error": str(error)})
            continue
        if jsonl:
            console.print_jsonl(as_json(query, hits))
        else:
            console.print_hits(hits, query=query, lead=query)
            sys.stdout.flush()
    return failures


def converse(search: "Search", *, as_json: "AsJson", k: int, json: bool) -> None:
    """Ask for queries on the terminal until Ctrl-D."""
    console.note("type a query; :help lists the commands, Ctrl-D ends")
    with ThreadPoolExecutor(max_workers=1) as worker, _history():
        conversation = _Conversation(search, as_json, k, json, worker)
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
    search: "Search"
    as_json: "AsJson"
    k: int
    json: bool
    worker: ThreadPoolExecutor
    hits: "Sequence[Hit]" = field(default_factory=list)

    def reply(self, line: str) -> None:
        if line.startswith(":"):
            self._command(*line[1:].split())
            return
        query = line.strip()
        self.hits = self.worker.submit(self.search, query, self.k).result()
        if self.json:
            console.print_json(self.as_json(query, self.hits))
        elif self.hits:
            console.print_hits(self.hits, query=query)
        else:
            console.note("nothing found")

    def _command(self, name: str = "", *values: str) -> None:
        match name, values:
            case "help", ():
                print(HELP, file=sys.stderr)
            case "json", ():
                self.json = not self.json
                console.note("answers are JSON now" if self.json else "answers are text now")
            case "k", (number,):
                self.k = _number(number, most=None, what=":k")
            case "open", (number,):
                if not self.hits:
                    raise UserError("there is no hit to open yet; ask something first")
                console.print_whole(self.hits[_number(number, most=len(self.hits), what=":open") - 1])
            case _:
                raise UserError(f"':{' '.join([name, *values])}' is no command; :k N, :open N, :json and :help are")


def _number(text: str, *, most: int | None, what: str) -> int:
    if not text.isdecimal() or int(text) < 1 or (most is not None and int(text) > most):
        raise UserError(f"{what} {text}: give a number from 1{f' to {most}' if most else ''}, as in {what} 3")
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
