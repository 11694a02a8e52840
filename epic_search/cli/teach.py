"""`epic-search teach`: say which documents are right for a query, and related queries are answered accordingly."""

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from epic_search.cli import console, options
from epic_search.cli.demonstrations import read_lessons, read_queries
from epic_search.cli.home import on_server_too, there
from epic_search.cli.index import load_encoder
from epic_search.cli.query import latest_index, made_by
from epic_search.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from epic_search.encoder.device import Device, Dtype
    from epic_search.index import Searcher
    from epic_search.index.folder import Home
    from epic_search.index.taught_pair import TaughtPair
    from epic_search.serving.client import ServedTeaching

app = typer.Typer(cls=console.DefaultVerbGroup)

PairFields = ("query", "document", "title", "passage", "taught", "stale")


@app.callback()
def _teach() -> None:
    """Teach an index what is right for a query, and related queries get better at once."""


@app.command(no_args_is_help=True)
@on_server_too
def add(
    query: Annotated[str | None, typer.Argument(help="A query, as you ask it.", show_default=False)] = None,
    documents: Annotated[
        list[str] | None,
        typer.Argument(metavar="DOC_ID...", help="The ids of the documents that are right for it.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help='Teach many pairs: {"query": ..., "id": ...} or {"query": ..., "passage": ...} a line.',
            show_default=False,
            dir_okay=False,
        ),
    ] = None,
    index: options.Index = None,
    encoder: options.EncoderMoved = None,
    *,
    home: "Home",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Teach that documents are right for a query.

    Nothing is trained or indexed again. The next query already uses it.

    Also: teach list, teach rm, teach clear, teach suggest, teach mode.
    """
    from epic_search.index.taught_pair import Lesson

    if file is not None and query is not None:
        raise UserError(f"--file {file} and the query '{query}' are two ways to say what to teach; give one of them")
    if file is not None:
        lessons = read_lessons(file)
    elif query is not None and documents:
        lessons = [Lesson(query, document=id) for id in documents]
    else:
        raise UserError(f"which document is right for '{query}'? give its id after the query, as 'query' shows it")
    with _open(index, home, encoder, device=device, dtype=dtype) as searcher:
        new = searcher.teach_all(lessons)
        name, total = searcher.manifest.name, searcher.manifest.taught
    asked = len({(lesson.query.strip(), lesson.document, lesson.passage) for lesson in lessons})
    if json:
        console.print_json({"index": name, "taught": _as_json(new), "known": asked - len(new), "total": total})
        return
    for pair in new:
        print(f"{console.printable(pair.query)} -> {console.printable(_right(pair))}")
    if known := asked - len(new):
        console.note(f"{known:,} of {asked:,} pairs were taught before and are stored once")
    console.note(f"pairs taught to index {name!r}: {total:,}")
    if query is not None:
        console.next_command(f'epic-search query "..." --index {name} --explain{there(home)}')


@app.command("list")
@on_server_too
def list_(
    index: options.Index = None,
    encoder: options.EncoderMoved = None,
    *,
    home: "Home",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Print what 'teach --file' reads, a pair a line.")] = False,
) -> None:
    """List what is taught, oldest first."""
    with _open(index, home, encoder, device=device, dtype=dtype) as searcher:
        pairs = searcher.taught()
        name = searcher.manifest.name
    if jsonl:
        for pair in pairs:
            right = {"passage": pair.passage} if pair.document is None else {"id": pair.document}
            print(jsonlib.dumps({"query": pair.query, **right}))
    elif json:
        console.print_json(_as_json(pairs))
    elif not pairs:
        console.note(f"index {name!r} is taught nothing yet")
        console.next_command('epic-search teach "QUERY" DOC_ID')
    else:
        rows = [
            [pair.query, _label(pair), pair.title or pair.passage[:60], pair.taught, "stale" if pair.stale else ""]
            for pair in pairs
        ]
        console.print_table(["query", "document", "title", "taught", ""], rows)
        if any(pair.stale for pair in pairs):
            console.note("stale pairs are not used: their documents are not in the index; remove them with 'teach rm'")


@app.command(no_args_is_help=True)
@on_server_too
def rm(
    query: Annotated[str, typer.Argument(help="The query, as it was taught.")],
    documents: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DOC_ID...", help="Only its pairs with these. Default: all of them.", show_default=False
        ),
    ] = None,
    index: options.Index = None,
    encoder: options.EncoderMoved = None,
    *,
    home: "Home",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Take back what was taught for a query."""
    with _open(index, home, encoder, device=device, dtype=dtype) as searcher:
        gone = searcher.forget(query, documents or [])
    for pair in gone:
        console.note(f"removed {pair.query} -> {_right(pair)}")


@app.command()
@on_server_too
def clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    index: options.Index = None,
    encoder: options.EncoderMoved = None,
    *,
    home: "Home",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Take back everything that was taught."""
    with _open(index, home, encoder, device=device, dtype=dtype) as searcher:
        name, total = searcher.manifest.name, len(searcher.taught())
        if not yes:
            if not sys.stdin.isatty():
                raise UserError(
                    f"removing all {total:,} pairs of {name!r} needs a yes and stdin is no terminal; add --yes"
                )
            if not typer.confirm(f"Remove all {total:,} pairs taught to index {name!r}?", err=True):
                console.note("kept")
                return
        console.note(f"removed {searcher.forget_all():,} pairs from index {name!r}")


@app.command()
@on_server_too
def suggest(
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries",
            "-q",
            help='Choose from a file: a query a line, or {"query": ...} or {"text": ...}. Default: documents\' titles.',
            show_default=False,
            dir_okay=False,
        ),
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many to suggest.")] = 10,
    by: Annotated[
        Literal["margin", "coverage"] | None,
        typer.Option(
            help="margin: the two best documents score most alike. coverage: least like any taught query. "
            "Default: margin for --queries, coverage for titles.",
            show_default=False,
        ),
    ] = None,
    index: options.Index = None,
    encoder: options.EncoderMoved = None,
    *,
    home: "Home",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Propose queries worth judging, each with its best document.

    Teach the pair if it is right, or another document if it is not.
    """
    from epic_search.index.suggest import suggest as choose
    from epic_search.serving.client import ServedTeaching

    asked = read_queries(queries) if queries is not None else None
    with _open(index, home, encoder, device=device, dtype=dtype) as searcher:
        if isinstance(searcher, ServedTeaching):
            found = searcher.suggest(asked, count=count, by=by)
        else:
            found = choose(searcher, asked, count=count, by=by)
    if json:
        console.print_json(
            [
                {
                    "query": one.query,
                    "id": one.hit.id,
                    "title": one.hit.title,
                    "text": one.hit.text,
                    "score": one.hit.score,
                    "margin": one.margin,
                    "similarity": one.similarity,
                }
                for one in found
            ]
        )
        return
    rows = [
        [
            one.query,
            one.hit.id,
            one.hit.title or console.excerpt(one.hit.text, query=one.query, length=60),
            f"{one.margin:.3f}",
            "" if one.similarity is None else f"{one.similarity:.2f}",
        ]
        for one in found
    ]
    console.print_table(["query", "document", "title", "margin", "nearest"], rows, numbers=["margin", "nearest"])
    console.next_command('epic-search teach "QUERY" DOC_ID')


@app.command()
@on_server_too
def mode(
    demos: Annotated[
        Literal["fixed", "nearest", "none"] | None,
        typer.Argument(help="Which demonstrations queries get.", show_default=False),
    ] = None,
    demos_k: options.DemosK = None,
    boost: options.Boost = None,
    index: options.Index = None,
    *,
    home: "Home",
    json: options.Json = False,
) -> None:
    """Show or set how an index uses what it is taught.

    fixed: the demonstrations stored with the index. nearest: the taught pairs
    most like the query. none: no demonstrations. --boost: how strongly a query
    is moved towards the passages taught for queries like it (0: not at all).
    """
    from epic_search.index.ways import set_ways

    ways = set_ways(index or latest_index(home), home=home, demos=demos, demos_k=demos_k, boost=boost)
    if json:
        console.print_json({"demos": ways.demos, "demos_k": ways.demos_k, "boost": ways.boost})
    else:
        console.print_fields([("demos", ways.demos), ("demos-k", str(ways.demos_k)), ("boost", f"{ways.boost:g}")])


def _open(
    index: str | None, home: "Home", encoder: str | None, *, device: "Device", dtype: "Dtype"
) -> "Searcher | ServedTeaching":
    """The server that has the index open, if one has, else the index itself."""
    from epic_search.index import Searcher
    from epic_search.serving.client import ServedTeaching, server_of

    name = index or latest_index(home)
    if isinstance(home, Path) and (server := server_of(home / name)) is not None:
        return ServedTeaching(server, home / name)
    manifest = made_by(name, home)
    loaded = load_encoder(encoder or manifest.encoder, device=device, dtype=dtype, dim=manifest.cut_to)
    return Searcher.open(name, home=home, encoder=loaded)


def _as_json(pairs: "Sequence[TaughtPair]") -> list[dict[str, Any]]:
    return [{field: getattr(pair, field) for field in PairFields} for pair in pairs]


def _label(pair: "TaughtPair") -> str:
    from epic_search.index.taught_pair import label

    return label(pair)


def _right(pair: "TaughtPair") -> str:
    """What is right, in a few words."""
    said = pair.title or console.excerpt(pair.passage, query=pair.query, length=60)
    return f"{_label(pair)} ({said})"
