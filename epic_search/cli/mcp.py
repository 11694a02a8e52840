"""`epic-search mcp`: indexes as tools of a language model."""

from typing import TYPE_CHECKING, Annotated

import typer

from epic_search.cli import console, options
from epic_search.cli.home import on_server_too
from epic_search.cli.index import load_encoder
from epic_search.cli.query import made_by
from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.encoder import Encoder
    from epic_search.index.folder import Home
    from epic_search.index.manifest import Manifest


@on_server_too
def mcp(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Indexes to offer. Default: all.", show_default=False),
    ] = None,
    *,
    home: "Home",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Offer indexes to a language model's client, over MCP on stdin and stdout.

    Clients start this command themselves; their configuration names it. The
    tools are 'search' and 'get'.
    """
    from epic_search.index import list_indexes

    console.need_extra("mcp", "mcp")
    from epic_search.serving.mcp import Tools, server

    for name in names or []:
        made_by(name, home)
    chosen = names or [info.name for info in list_indexes(home) if info.problem is None]
    if not chosen:
        raise UserError(f"there is no index in {home}; make one with: epic-search index CORPUS.jsonl")

    def load(manifest: "Manifest") -> "Encoder":
        return load_encoder(manifest.encoder, device=device, dtype=dtype, dim=manifest.cut_to)

    server(Tools(chosen, home=home, load=load)).run("stdio")
