"""`epic-search query`: ask an index a question."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epic_search.cli import console, options
from epic_search.cli.demonstrations import chosen_demonstrations
from epic_search.cli.home import on_server_too
from epic_search.cli.index import load_encoder
from epic_search.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from epic_search.index import Hit
    from epic_search.index.folder import Home
    from epic_search.index.manifest import Manifest


@on_server_too
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
    *,
    home: "Home",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Find the documents that answer a query, best first.

    The index's own task and demonstrations are used; --task, --demos and
    --no-demos replace them this once.
    """
    from epic_search.index import Searcher
    from epic_search.index.prompts import new_prompt

    if not text.strip():
        raise UserError("the query is empty; give some words to search for")
    demonstrations = chosen_demonstrations(demos, none=no_demos)
    name = index or latest_index(home)
    manifest = made_by(name, home)
    loaded = load_encoder(encoder or manifest.encoder, device=device, dtype=dtype, dim=manifest.cut_to)
    with Searcher.open(name, home=home, encoder=loaded) as searcher:
        prompt = new_prompt(searcher.manifest, encoder=searcher.encoder, task=task, demonstrations=demonstrations)
        hits = searcher.search([text], k=k, prompt=prompt)[0]
    if json:
        console.print_json({"index": name, "query": text, "hits": as_json(hits)})
    else:
        console.print_hits(hits, query=text)


def as_json(hits: "Sequence[Hit]") -> list[dict[str, Any]]:
    """Hits as `{"id", "score", "title", "text", "payload"}`, best first."""
    return [asdict(hit) for hit in hits]


def latest_index(home: "Home") -> str:
    """The only index in `home`, or the one updated last (said on stderr); UserError when there is none."""
    from epic_search.index import list_indexes

    found = [info for info in list_indexes(home) if info.problem is None]
    if not found:
        raise UserError(f"there is no index in {home}; make one with: epic-search index CORPUS.jsonl")
    latest = max(found, key=lambda info: info.updated)
    if len(found) > 1:
        console.note(f"asking {latest.name!r}, of {len(found)} indexes the one updated last; choose with --index NAME")
    return latest.name


def made_by(name: str, home: "Home") -> "Manifest":
    """The manifest of an index, which names its encoder; raises UserError when there is no such index."""
    from contextlib import closing

    from epic_search.index.place import place_of, stored_manifest

    with closing(place_of(name, home)) as place:
        return stored_manifest(place)
