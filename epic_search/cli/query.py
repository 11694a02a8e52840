"""`epic-search query`: ask an index a question."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from epic_search.cli import console, options
from epic_search.cli.demonstrations import chosen_demos
from epic_search.cli.explanation import print_taught
from epic_search.cli.index import load_encoder
from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.encoder.encoder import Device, Dtype
    from epic_search.index.answer import Answer, Facets, Question
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
        ),
    ] = None,
    home: options.Home = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Find the documents that answer a query, best first.

    The index's own task and demonstrations are used, and what it was taught;
    --task, --demos, --no-demos and --boost say otherwise this once.
    """
    from epic_search.index import home as default_home
    from epic_search.index.answer import Question

    if not text.strip():
        raise UserError("the query is empty; give some words to search for")
    folder = home or default_home()
    demos_mode, demonstrations = chosen_demos(demos, none=no_demos)
    name = index or latest_index(folder)
    question = Question(
        k=k,
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
    answer, facets = _answer(text, question, name=name, home=folder, encoder=encoder, device=device, dtype=dtype)
    if answer.remark:
        console.note(answer.remark)
    if json:
        counted = {
            field: [{"value": value, "documents": count} for value, count in counts] for field, counts in facets.items()
        }
        asked = {"index": name, "offset": offset}
        console.print_json(asked | answer.as_json() | ({"facets": counted} if facet else {}))
        return
    console.print_hits(answer.hits, query=text, offset=offset)
    console.print_facets(facets)
    if answer.taught is not None:
        print_taught(answer.taught)


def _answer(
    text: str, question: "Question", *, name: str, home: Path, encoder: str | None, device: "Device", dtype: "Dtype"
) -> "tuple[Answer, Facets]":
    """From the server that has the index open, if one has, else from the index itself."""
    from epic_search.index import Searcher
    from epic_search.index.answer import ask
    from epic_search.serving.client import server_of

    manifest = made_by(name, home)
    server = server_of(home / name)
    if server is not None:
        (answer,), facets = server.ask(name, [text], question)
        return answer, facets
    loaded = None
    if question.mode != "lexical":
        loaded = load_encoder(encoder or manifest.encoder, device=device, dtype=dtype, dim=manifest.cut_to)
    with Searcher.open(name, home=home, encoder=loaded, lexical_only=loaded is None) as searcher:
        (answer,), facets = ask(searcher, [text], question)
        return answer, facets


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
