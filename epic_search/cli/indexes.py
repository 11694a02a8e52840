"""`epic-search indexes`: what is indexed, and how to remove it; its other verbs are in files of their own."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from epic_search.cli import console, options
from epic_search.cli.home import on_server_too
from epic_search.cli.indexes_export import export
from epic_search.cli.indexes_promote import promote, pull
from epic_search.cli.indexes_repair import repair
from epic_search.cli.indexes_show import show
from epic_search.cli.indexes_verify import verify
from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.index.folder import Home

app = typer.Typer(no_args_is_help=True, help="List, show, verify, repair, export, move or delete indexes.")


@app.command("list")
@on_server_too
def list_(*, home: "Home", json: options.Json = False) -> None:
    """List the indexes: documents, passages, encoder, task, demonstrations and size."""
    from epic_search.index import list_indexes

    found = list_indexes(home)
    if json:
        console.print_json(
            [
                {
                    "name": info.name,
                    "documents": info.documents,
                    "passages": info.passages,
                    "encoder": info.encoder,
                    "task": info.task,
                    "demonstrations": info.demonstrations,
                    "size": info.size,
                    "status": info.status,
                    "updated": info.updated,
                    "problem": info.problem,
                }
                for info in found
            ]
        )
        return
    if not found:
        console.note(f"no index in {home} yet")
        console.next_command("epic-search index CORPUS.jsonl")
        return
    columns = ["name", "documents", "passages", "encoder", "demonstrations", "size", "task"]
    rows = [
        [
            info.name,
            str(info.documents),
            str(info.passages),
            info.encoder,
            str(info.demonstrations),
            "" if info.size is None else console.size_text(info.size),
            info.problem or info.task or "",
        ]
        for info in found
    ]
    console.print_table(columns, rows, numbers=["documents", "passages", "demonstrations", "size"])


for verb in (on_server_too(show), on_server_too(verify), on_server_too(repair), on_server_too(export), promote, pull):
    app.command(no_args_is_help=True)(verb)


@app.command(no_args_is_help=True)
@on_server_too
def delete(
    name: options.IndexName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    *,
    home: "Home",
) -> None:
    """Delete an index with all its passages. Your documents are not touched."""
    from epic_search.index import delete_index

    if not yes:
        if not sys.stdin.isatty():
            raise UserError(f"deleting {name!r} needs a yes and stdin is no terminal; add --yes")
        if not typer.confirm(f"Delete index {name!r} in {home}?", err=True):
            console.note("kept")
            return
    delete_index(name, home)
    console.note(f"deleted index {name!r}")
