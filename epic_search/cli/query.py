"""`epic-search query`: ask an index a question."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epic_search.cli import console, options
from epic_search.cli.completion import complete_encoder, complete_index
from epic_search.cli.converse import answer_lines, converse
from epic_search.cli.demonstrations import chosen_demonstrations
from epic_search.cli.index import load_encoder
from epic_search.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from epic_search.index import Hit
    from epic_search.index.manifest import Manifest


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
    task: options.Task = None,
    demos: options.Demonstrations = None,
    no_demos: options.NoDemonstrations = False,
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
    home: options.Home = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    jsonl: options.JsonLines = False,
) -> None:
    """Find the documents that answer a query, best first.

    The index's own task and demonstrations are used; --task, --demos and
    --no-demos replace them this once.
    """
    from epic_search.index import Searcher
    from epic_search.index import home as default_home
    from epic_search.index.prompts import new_prompt

    if text is not None and not text.strip():
        raise UserError("the query is empty; give some words to search for")
    if json and text is None and not sys.stdin.isatty():
        raise UserError("--json prints one value and stdin may hold many queries; use --jsonl")
    folder = home or default_home()
    demonstrations = chosen_demonstrations(demos, none=no_demos)
    name = index or latest_index(folder)
    manifest = made_by(name, folder)
    loaded = load_encoder(encoder or manifest.encoder, device=device, dtype=dtype, dim=manifest.cut_to)
    with Searcher.open(name, home=folder, encoder=loaded) as searcher:
        prompt = new_prompt(searcher.manifest, encoder=searcher.encoder, task=task, demonstrations=demonstrations)

        def search(text: str, k: int) -> "list[Hit]":
            if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
                raise UserError(f"the query {text!r} is not UTF-8; type or save it in that encoding")
            return searcher.search([text], k=k, prompt=prompt)[0]

        def answer(text: str, hits: "Sequence[Hit]") -> dict[str, Any]:
            return {"index": name, "query": text, "hits": as_json(hits)}

        if text is None:
            if sys.stdin.isatty() and not jsonl:
                converse(search, as_json=answer, k=k, json=json)
            elif answer_lines(search, as_json=answer, k=k, jsonl=jsonl):
                raise typer.Exit(console.EXIT_USER_ERROR)
            return
        hits = search(text, k)
    if jsonl:
        console.print_jsonl(answer(text, hits))
    elif json:
        console.print_json(answer(text, hits))
    else:
        console.print_hits(hits, query=text)


def as_json(hits: "Sequence[Hit]") -> list[dict[str, Any]]:
    """Hits as `{"id", "score", "title", "text", "payload"}`, best first."""
    return [asdict(hit) for hit in hits]


def latest_index(folder: Path) -> str:
    """The only index in `folder`, or the one updated last (said on stderr); UserError when there is none."""
    from epic_search.index import list_indexes

    found = [info for info in list_indexes(folder) if info.problem is None]
    if not found:
        raise UserError(f"there is no index in {folder}; make one with: epic-search index CORPUS.jsonl")
    latest = max(found, key=lambda info: info.updated)
    if len(found) > 1:
        console.note(f"asking {latest.name!r}, of {len(found)} indexes the one updated last; choose with --index NAME")
    return latest.name


def made_by(name: str, folder: Path) -> "Manifest":
    """The manifest of an index, which names its encoder; raises UserError when there is no such index."""
    from epic_search.index.folder import existing_index
    from epic_search.index.manifest import Manifest

    return Manifest.load(existing_index(name, folder))
