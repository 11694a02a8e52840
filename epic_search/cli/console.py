"""How the command line speaks: tables, plain lines, JSON, progress bars and exit codes.

Answers go to stdout: tables on a terminal, tab-separated lines without a header in a pipe, JSON on demand.
Progress and remarks go to stderr, and a progress bar only when stderr is a terminal.
Text that came from documents is made printable first: it can neither move the cursor nor be read as markup.
"""

import json
import os
import shlex
import sys
import textwrap
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from epic_search.cli import settings
from epic_search.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

TYPED = "epic_search.typed"

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as for a command that the signal ends

EXCERPT_LINES = 3
READABLE = 14  # characters that a column of text needs at least
PLAIN_EXCERPT = 200  # characters, where there is no terminal to fit

POINTED_BEFORE = 40  # characters of a text that are shown before the one pointed at, and after it
RATE_SECONDS = 30.0

# Control characters (escape sequences), format characters (bidirectional overrides) and lone surrogates;
# not the soft hyphen, the joiners and the direction marks that ordinary text needs.
_UNPRINTABLE = {"Cc", "Cf", "Cs"}
_NEEDED = set("\u00ad\u200c\u200d\u200e\u200f")


class VerbGroup(TyperGroup):
    """A command group in which every verb ends with the same exit codes and sentences."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb, once its options have what environment and configuration file say."""
        found = super().resolve_command(ctx, args)
        if found[0] != "config":
            with suppress(UserError) if ctx.resilient_parsing else nullcontext():  # completing a line, say nothing
                settings.apply(self, ctx)
        return found

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; a user's mistake, Ctrl-C and a closed pipe become exit codes, not tracebacks."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except typer.BadParameter as error:
            settings.say_origin(error)
            raise
        except UserError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            if error.pointer is not None:
                print(textwrap.indent(pointed(*error.pointer), "  "), file=sys.stderr)
            raise typer.Exit(EXIT_USER_ERROR) from error
        except (KeyboardInterrupt, typer.Abort) as error:
            print(f"interrupted: {_interruption_hint(ctx.invoked_subcommand)}", file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from error
        except BrokenPipeError as error:
            # Python flushes stdout once more as it exits: give it somewhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_BROKEN_PIPE) from error


class DefaultVerbGroup(TyperGroup):
    """A group whose first verb is meant where none is named: `eval TASKS` runs, `eval compare` compares.

    What was typed is kept in the context, under TYPED.
    """

    has_default_verb = True

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Everything that is no verb is an argument of the first one."""
        ctx.meta[TYPED] = shlex.join(["epic-search", ctx.info_name, *args])
        if not args or args[0] not in self.commands:
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


def _interruption_hint(verb: str | None) -> str:
    """One sentence for a person who pressed Ctrl-C: what became of the work."""
    match verb:
        case "index" | "demo":
            return "what was stored is kept; run the same command again to continue."
        case "eval":
            return "finished tasks are kept; run the same command again to continue."
        case "train":
            return "add --resume to continue from the last checkpoint."
        case _:
            return "run the same command again."


def printable(text: str) -> str:
    """`text` on one line: white space becomes one space, and what a terminal would obey becomes U+FFFD."""
    return " ".join(_safe(text).split())


def printable_lines(text: str) -> list[str]:
    """The lines of `text`, indented as they are, and otherwise as `printable`."""
    return ["".join(" " if c.isspace() else c for c in _safe(line.expandtabs(4))) for line in text.splitlines()]


def _safe(text: str) -> str:
    return "".join("\ufffd" if _is_unprintable(c) else c for c in text)


def pointed(text: str, position: int) -> str:
    """Two lines: `text` on the first, or as much of it as fits around the character, and a caret under that."""
    safe = "".join("\ufffd" if _is_unprintable(c) else " " if c.isspace() else c for c in text)
    first = max(0, position - POINTED_BEFORE)
    return f"{safe[first : first + 2 * POINTED_BEFORE]}\n{' ' * (position - first)}^"


def _is_unprintable(character: str) -> bool:
    if character.isspace() or character in _NEEDED:
        return False
    return unicodedata.category(character) in _UNPRINTABLE


def excerpt(text: str, *, query: str, length: int) -> str:
    """About `length` characters of `text`: the stretch that holds the most different words of `query`.

    Cut between words, with "…" where something was left out. The beginning wins a tie.
    """
    line = printable(text)
    if len(line) <= length:
        return line
    words = line.split()
    wanted = {_stem(word) for word in query.split()} - {""}
    starts, position = [], 0
    for word in words:
        starts.append(position)
        position += len(word) + 1
    best_start, best_end, best_score = 0, 0, -1
    last, counts = 0, dict.fromkeys(wanted, 0)
    for first, start in enumerate(starts):
        while last < len(words) and (last == first or starts[last] + len(words[last]) - start <= length):
            if (stem := _stem(words[last])) in counts:
                counts[stem] += 1
            last += 1
        if (score := sum(count > 0 for count in counts.values())) > best_score:
            best_start, best_end, best_score = first, last, score
        if (stem := _stem(words[first])) in counts:
            counts[stem] -= 1
        if last == len(words):
            break
    head = "… " if best_start else ""
    tail = " …" if best_end < len(words) else ""
    return head + " ".join(words[best_start:best_end])[:length] + tail


def _stem(word: str) -> str:
    """A word for comparing: lower case, letters and digits only, without a plural s."""
    kept = "".join(c for c in word.lower() if c.isalnum())
    return kept[:-1] if len(kept) > 3 and kept.endswith("s") else kept


def print_json(value: Any) -> None:
    """One JSON value on stdout. Characters outside ASCII are escaped, so no terminal can be steered by it."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_jsonl(value: Any) -> None:
    """As `print_json`, on one line that a reader at the other end of a pipe gets at once."""
    print(json.dumps(value, allow_nan=False), flush=True)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = (), header: bool = False
) -> None:
    """A table on a terminal, tab-separated lines in a pipe; with `header`, the first of them names the columns.

    `numbers` names the right-aligned columns, which are never broken. On a terminal too narrow for the table, each row
    is a block of fields.
    """
    if not sys.stdout.isatty():
        for row in [columns, *rows] if header else rows:
            print("\t".join(printable(cell) for cell in row))
        return
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    console = _stdout()
    whole = [max(cell_len(printable(row[i])) for row in [columns, *rows]) for i in range(len(columns))]
    needed = [
        length if name in numbers or name == columns[0] else min(length, READABLE)
        for name, length in zip(columns, whole, strict=True)
    ]
    if sum(needed) + len(columns) > console.width:
        for row in rows:
            print_fields([(name, cell) for name, cell in zip(columns, row, strict=True) if cell])
            print()
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, least in zip(columns, needed, strict=True):
        table.add_column(column, justify="right" if column in numbers else "left", min_width=least, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def print_fields(fields: Sequence[tuple[str, str]], *, width: int = 0) -> None:
    """Names and values, one a line: wrapped and aligned on a terminal, tab-separated in a pipe.

    `width`: how far the values are indented, where fields that are printed apart are to stand in line.
    """
    if not sys.stdout.isatty():
        for name, value in fields:
            print(f"{name}\t{printable(value)}")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=width)
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(Text(printable(name)), Text(printable(value)))
    _stdout().print(table)


def print_hits(hits: Sequence[Any], *, query: str, offset: int = 0, lead: str | None = None) -> None:
    """Hits, best first: cards that fit the terminal, or `rank, score, id, title, excerpt` lines in a pipe.

    `offset`: how many better ones were left out. Explained hits have a line, or a cell in a pipe, more. `lead` goes
    before all of them: a heading on a terminal, a first cell of every line in a pipe.
    """
    if not sys.stdout.isatty():
        first = [] if lead is None else [lead]
        for rank, hit in enumerate(hits, offset + 1):
            shown = excerpt(hit.text, query=query, length=PLAIN_EXCERPT)
            cells = [*first, str(rank), f"{hit.score:.4f}", hit.id, hit.title, shown]
            cells += [] if hit.explanation is None else [_explanation(hit.explanation)]
            print("\t".join(printable(cell) for cell in cells))
        return
    from rich.text import Text

    console = _stdout()
    width = min(console.width, 100)
    if lead is not None:
        console.print(Text(f"? {printable(lead)}"))
    for rank, hit in enumerate(hits, offset + 1):
        title = printable(hit.title or hit.id)
        identity = "" if title == printable(hit.id) else f"  {printable(hit.id)}"
        head = Text.assemble(
            (f"{rank:>2}  ", "dim"), (f"{hit.score:.3f}  ", "cyan"), (title, "bold"), (identity, "dim")
        )
        head.truncate(width, overflow="ellipsis")
        console.print(head)
        body = excerpt(hit.text, query=query, length=EXCERPT_LINES * (width - 12))
        for line in textwrap.wrap(body, width - 11):
            console.print(Text(" " * 11 + line))
        if hit.explanation is not None:
            for line in textwrap.wrap(printable(_explanation(hit.explanation)), width - 11):
                console.print(Text(" " * 11 + line, style="dim"))


def _explanation(explanation: Any) -> str:
    places = [
        f"{name}: rank {place.rank}, score {place.score:.3f}"
        for name, place in (("dense", explanation.dense), ("lexical", explanation.lexical))
        if place is not None
    ]
    return "; ".join([*places, f"words: {', '.join(explanation.words) or 'none'}"])


def print_facets(facets: Mapping[str, Sequence[tuple[Any, int]]]) -> None:
    """How many documents have each value of a field: a line a field, or `facet, field, value, documents` in a pipe."""
    for field, counts in facets.items():
        shown = [(json.dumps(value) if isinstance(value, bool) else str(value), count) for value, count in counts]
        if sys.stdout.isatty():
            print(f"{printable(field)}: " + ", ".join(f"{printable(value)} ({count:,})" for value, count in shown))
        else:
            for value, count in shown:
                print(f"facet\t{printable(field)}\t{printable(value)}\t{count}")


def need_extra(extra: str, *modules: str) -> None:
    """Raise UserError where a part of this package was left out that these modules belong to."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UserError(f"this needs {' and '.join(missing)}; install: pip install 'epic-search[{extra}]'")


def print_whole(hit: Any) -> None:
    """All of a hit: its passage line by line, then the payload."""
    for name, value in [("id", hit.id), ("score", f"{hit.score:.4f}"), ("title", hit.title)]:
        if value:
            print(f"{name}: {printable(value)}")
    print("", *printable_lines(hit.text), sep="\n")
    if hit.payload:
        print("", *printable_lines(json.dumps(hit.payload, indent=2, ensure_ascii=False)), sep="\n")


def note(sentence: str) -> None:
    """A remark for a person, on stderr, so that it never mixes with an answer."""
    print(printable(sentence), file=sys.stderr)


def next_command(command: str) -> None:
    """What to type next; only where a person reads along."""
    if sys.stderr.isatty():
        print(f"next: {command}", file=sys.stderr)


@contextmanager
def working(sentence: str) -> Iterator[None]:
    """A spinner on stderr while something without a measure runs; nothing where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(printable(sentence))):
        yield


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with the time left on stderr; gives `report(done, total, text)` with what stands beside the bar.

    Shows nothing where stderr is not a terminal.
    """
    if not sys.stderr.isatty():
        yield lambda done, total, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}", markup=False),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=60) as progress:
        task = progress.add_task(description, total=None, text="")
        yield lambda done, total, text: progress.update(task, completed=done, total=total or None, text=text)


class Rate:
    """Things per second over the last half minute, from their count at successive moments."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, count: int) -> float:
        """Take note of the count now; returns the rate (0.0 while there is nothing to tell)."""
        now = time.monotonic()
        self._seen.append((now, count))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_SECONDS:
            self._seen.popleft()
        then, before = self._seen[0]
        return (count - before) / (now - then) if now > then else 0.0


def size_text(size: int) -> str:
    """Bytes for a person: `812 B`, `4.2 MiB`."""
    value = float(size)
    for suffix in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {suffix}" if suffix == "B" else f"{value:.1f} {suffix}"
        value /= 1024
    return f"{value:.1f} GiB"


def _stdout() -> "Console":
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)
