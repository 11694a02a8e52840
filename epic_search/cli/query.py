"""`epic-search query`: ask an index a question."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from epic_search.cli import console, options
from epic_search.cli.demonstrations import chosen_demonstrations
from epic_search.cli.index import load_encoder
from epic_search.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from epic_search.index import Hit
    from epic_search.index.manifest import Manifest


def query(
    text: Annotated[str, typer.Argument(help="What to search for.", show_default=False)],
    index: Annotated[
        str | None,
        typer.Option(
            "--index",
            "-i",
            envvar="EPIC_SEARCH_INDEX",
            help="Name of the index. Default: the only one, or the one updated last.",
            show_default=False,
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
            help="Leave out hits of a lower score: the cosine (dense), BM25 (lexical), or the sum of reciprocal ranks, "
            "about 0.03 at most (hybrid).",
            show_default=False,
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say where each ranking has a hit, and which words it matches.")
    ] = False,
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
        ),
    ] = None,
    home: options.Home = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Find the documents that answer a query, best first.

    The index's own task and demonstrations are used; --task, --demos and
    --no-demos replace them this once.
    """
    from epic_search.index import Searcher
    from epic_search.index import home as default_home
    from epic_search.index.filter_parser import parse
    from epic_search.index.prompts import new_prompt
    from epic_search.index.searcher import SCORES

    if not text.strip():
        raise UserError("the query is empty; give some words to search for")
    folder = home or default_home()
    demonstrations = chosen_demonstrations(demos, none=no_demos)
    name = index or latest_index(folder)
    manifest = made_by(name, folder)
    if filter is not None:
        parse(filter, manifest.filter_types)  # a mistake is told before the encoder takes its seconds to load
    loaded = None
    if mode != "lexical":
        loaded = load_encoder(encoder or manifest.encoder, device=device, dtype=dtype, dim=manifest.cut_to)
    elif task is not None or demonstrations is not None:
        raise UserError("a lexical search reads no task and no demonstrations; leave them out, or use --mode hybrid")
    with Searcher.open(name, home=folder, encoder=loaded, lexical_only=loaded is None) as searcher:
        chosen = searcher.mode(mode)
        if chosen == "hybrid" and not searcher.has_words(text):
            console.note("the query has only stop words: its hits are ranked by meaning alone")
            chosen = "dense"
        prompt = None
        if loaded is not None:
            prompt = new_prompt(searcher.manifest, encoder=loaded, task=task, demonstrations=demonstrations)
        hits = searcher.search(
            [text],
            k=k,
            offset=offset,
            mode=chosen,
            prompt=prompt,
            filter=filter,
            min_score=min_score,
            group_by=group_by,
            explained=explain,
        )[0]
        facets = searcher.facets(facet or [], filter=filter)
    if json:
        answer = {"index": name, "query": text, "mode": chosen, "score": SCORES[chosen], "offset": offset}
        counted = {
            field: [{"value": value, "documents": count} for value, count in counts] for field, counts in facets.items()
        }
        console.print_json(answer | {"hits": as_json(hits)} | ({"facets": counted} if facet else {}))
    else:
        console.print_hits(hits, query=text, offset=offset)
        console.print_facets(facets)


def as_json(hits: "Sequence[Hit]") -> list[dict[str, Any]]:
    """Hits as `{"id", "score", "title", "text", "payload"}`, with an "explanation" where asked for, best first."""
    return [
        {name: value for name, value in asdict(hit).items() if name != "explanation" or value is not None}
        for hit in hits
    ]


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
