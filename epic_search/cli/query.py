"""`epic-search query`: ask an index a question."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from epic_search.cli import console, options
from epic_search.cli.completion import complete_encoder, complete_index
from epic_search.cli.converse import Answer, answer_lines, converse
from epic_search.cli.demonstrations import chosen_demos
from epic_search.cli.home import on_server_too
from epic_search.cli.index import load_encoder
from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.encoder.device import Device, Dtype
    from epic_search.index.answer import Answer as Found
    from epic_search.index.answer import Facets, Question
    from epic_search.index.folder import Home
    from epic_search.index.manifest import Manifest


@on_server_too
def query(
    text: Annotated[
        str | None,
        typer.Argument(
            help="What to search for. Default: ask on a terminal, or read one query a line from a pipe.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            "--index",
            "-i",
            envvar="EPIC_SEARCH_INDEX",
            help="Name of the index. Default: the only one, or the one updated last.",
            show_default=False,
            autocompletion=complete_index,
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--top", min=1, help="How many documents to show.")] = 10,
    offset: Annotated[int, typer.Option(min=0, help="Leave out so many of the best: 10 is the second page of 10.")] = 0,
    mode: Annotated[
        Literal["hybrid", "dense", "lexical"] | None,
        typer.Option(
            "--mode",
            "-m",
            help="Rank by meaning (dense), by words (lexical: BM25, no model is loaded), or fuse both rankings. "
            "Default: hybrid where the index has words.",
            show_default=False,
        ),
    ] = None,
    filter: Annotated[
        str | None,
        typer.Option(
            "--filter", "-f", help="Only documents that pass: 'year>=2020 and lang in (en, de)'.", show_default=False
        ),
    ] = None,
    facet: Annotated[
        list[str] | None,
        typer.Option(
            "--facet",
            help="Count the documents that pass the filter by their value of a field; may be repeated.",
            show_default=False,
        ),
    ] = None,
    group_by: Annotated[
        str,
        typer.Option("--group-by", metavar="document|FIELD", help="The best hit of each document, or of each value."),
    ] = "document",
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score",
            help="Leave out hits of a lower score: the cosine (dense), BM25 (lexical), or the sum of reciprocal ranks "
            "(hybrid: 1.17 for the first of both rankings, 0.67 for the first of the dense one alone).",
            show_default=False,
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Say where each ranking has a hit, which words it matches, and what was changed by what was taught.",
        ),
    ] = False,
    task: options.Task = None,
    demos: options.Demos = None,
    no_demos: options.NoDemonstrations = False,
    demos_k: options.DemosK = None,
    boost: options.Boost = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            "-e",
            help="Where the encoder that made the index is now. Default: where it was.",
            show_default=False,
            autocompletion=complete_encoder,
        ),
    ] = None,
    *,
    home: "Home",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    jsonl: options.JsonLines = False,
) -> None:
    """Find the documents that answer a query, best first.

    The index's own task and demonstrations are used, and what it was taught;
    --task, --demos, --no-demos and --boost say otherwise this once.
    """
    from epic_search.index.answer import Question
    from epic_search.index.filter_parser import parse
    from epic_search.index.searcher import SCORES

    if text is not None and not text.strip():
        raise UserError("the query is empty; give some words to search for")
    if json and text is None and not sys.stdin.isatty():
        raise UserError("--json prints one value and stdin may hold many queries; use --jsonl")
    demos_mode, demonstrations = chosen_demos(demos, none=no_demos)
    name = index or latest_index(home)
    manifest = made_by(name, home)
    if filter is not None:
        parse(filter, manifest.filter_types)  # a mistake is told before the encoder takes its seconds to load
    question = Question(
        offset=offset,
        mode=mode,
        filter=filter,
        facets=facet or [],
        group_by=group_by,
        min_score=min_score,
        task=task,
        demonstrations=demonstrations,
        demos=demos_mode,
        demos_k=demos_k,
        boost=boost,
        explain=explain,
    )
    with _opened(manifest, question, home=home, encoder=encoder, device=device, dtype=dtype) as index_answers:

        def ask(text: str, k: int) -> Answer:
            if any("\ud800" <= c <= "\udfff" for c in text):
                raise UserError(f"the query {text!r} is not UTF-8; type or save it in that encoding")
            (found,), facets = index_answers([text], replace(question, k=k))
            if found.remark is not None:
                console.note(found.remark)
            asked = {"index": name, "query": text, "mode": found.mode, "score": SCORES[found.mode], "offset": offset}
            return Answer(asked, text, found.hits, offset, facets, found.taught)

        if text is None:
            if sys.stdin.isatty() and not jsonl:
                converse(ask, k=k, json=json)
            elif answer_lines(ask, k=k, jsonl=jsonl):
                raise typer.Exit(console.EXIT_USER_ERROR)
            return
        answer = ask(text, k)
    if jsonl:
        console.print_jsonl(answer.json)
    elif json:
        console.print_json(answer.json)
    else:
        answer.print()


@contextmanager
def _opened(
    manifest: "Manifest",
    question: "Question",
    *,
    home: "Home",
    encoder: str | None,
    device: "Device",
    dtype: "Dtype",
) -> "Iterator[Callable[[list[str], Question], tuple[list[Found], Facets]]]":
    """What answers questions like this one: the server that has the index open, if one has, else the index itself."""
    from epic_search.index import Searcher
    from epic_search.index.answer import ask, prompt_of
    from epic_search.serving.client import server_of

    server = server_of(home / manifest.name) if isinstance(home, Path) else None
    if server is not None:
        yield partial(server.ask, manifest.name)
        return
    loaded = None
    if question.mode != "lexical":
        loaded = load_encoder(encoder or manifest.encoder, device=device, dtype=dtype, dim=manifest.cut_to)
    with Searcher.open(manifest.name, home=home, encoder=loaded, lexical_only=loaded is None) as searcher:
        yield partial(ask, searcher, prompt=prompt_of(searcher, question))


def latest_index(home: "Home", *, choose: str = "--index NAME") -> str:
    """The only index in `home`, or the one updated last (said on stderr); UserError when there is none.

    One without a document, which a failed run leaves, is only taken where all are so.
    `choose`: how to name another one.
    """
    from epic_search.index import list_indexes

    found = [info for info in list_indexes(home) if info.problem is None]
    if not found:
        raise UserError(f"there is no index in {home}; make one with: epic-search index CORPUS.jsonl")
    latest = max(found, key=lambda info: (info.documents > 0, info.updated))
    if len(found) > 1:
        console.note(f"taking {latest.name!r}, of {len(found)} indexes the one updated last; choose with {choose}")
    return latest.name


def made_by(name: str, home: "Home") -> "Manifest":
    """The manifest of an index, which names its encoder; raises UserError when there is no such index."""
    from epic_search.index.place import manifest_of

    return manifest_of(name, home)
