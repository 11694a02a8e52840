"""`epic-search serve`: answer other programs over HTTP."""

import os
import signal
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from epic_search.cli import console, options
from epic_search.cli.home import on_server_too
from epic_search.cli.index import load_encoder
from epic_search.cli.query import latest_index, made_by
from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.encoder import Encoder
    from epic_search.index.folder import Home
    from epic_search.index.manifest import Manifest


@on_server_too
def serve(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Indexes to serve; the first is the default of requests. Default: the one updated last.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at. Other than this machine's own needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="0 = any that is free.")] = 8080,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="EPIC_SEARCH_TOKEN",
            help="What requests must carry. Better given in the environment, where other users do not see it.",
            show_default=False,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="A name under which the server may be asked.", show_default=False),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", help="An origin whose pages may ask, as https://my.site", show_default=False),
    ] = None,
    max_requests: Annotated[
        int, typer.Option("--max-requests", min=1, max=1000, help="Requests answered or waiting; more are told 429.")
    ] = 64,
    request_timeout: Annotated[
        float, typer.Option("--request-timeout", min=0.1, help="Seconds until a request is told 504.")
    ] = 60.0,
    log: Annotated[Literal["text", "json", "off"], typer.Option(help="What is written to stderr for a request.")] = (
        "text"
    ),
    encoder: options.EncoderMoved = None,
    *,
    home: "Home",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Serve indexes over HTTP: a page, search, OpenAI's embeddings, demonstrations.

    'epic-search query' asks the server by itself while it runs. Ctrl-C ends
    it, after what was asked is answered.
    """
    console.need_extra("serve", "fastapi", "uvicorn")
    # Batches differ in length, and oneDNN keeps kernels for each, of a megabyte and more: 1024 of them by default. It
    # reads these variables when torch first multiplies.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
    from epic_search.serving.app import Service
    from epic_search.serving.gate import Gate
    from epic_search.serving.log import quiet_libraries
    from epic_search.serving.metrics import Metrics
    from epic_search.serving.security import Access, check_token
    from epic_search.serving.server import bind
    from epic_search.serving.server import serve as run
    from epic_search.serving.shelf import Shelf

    chosen = list(dict.fromkeys(names or [latest_index(home, choose="epic-search serve NAME ...")]))
    for name in chosen:
        made_by(name, home)
    check_token(token or None, host=host)
    if encoder is not None and len(chosen) > 1:
        raise UserError(f"--encoder is for one index, and {len(chosen)} are named; serve them one by one")

    def load(manifest: "Manifest") -> "Encoder":
        return load_encoder(encoder or manifest.encoder, device=device, dtype=dtype, dim=manifest.cut_to)

    quiet_libraries()
    # As soon as its end can be asked for, it is an end in order.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    with bind(host, port) as bound:
        metrics = Metrics()
        service = Service(
            Shelf(chosen, home=home, load=load, metrics=metrics),
            gate=Gate(places=max_requests, seconds=request_timeout),
            access=Access(token or None, [host, *(allow_host or [])], allow_origin or []),
            metrics=metrics,
            log=log,
        )
        run(service, bound, ready=lambda url: console.note(f"serving {', '.join(chosen)} at {url} (Ctrl-C ends)"))


def _leave(number: int, frame: object) -> None:
    raise typer.Exit
