"""Where a verb looks for indexes: a folder, or a Qdrant server."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epic_search.cli import console

if TYPE_CHECKING:
    from epic_search.index.place import Home
    from epic_search.index.store.connection import Server

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="EPIC_SEARCH_QDRANT_URL",
        help="A Qdrant server that holds the indexes, instead of a folder: http://localhost:6333",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="EPIC_SEARCH_QDRANT_API_KEY",
        help="The server's key. Better given in the environment, where other users do not see it.",
        show_default=False,
    ),
]
Grpc = Annotated[
    bool,
    typer.Option(
        "--grpc", envvar="EPIC_SEARCH_QDRANT_GRPC", help="Talk gRPC, on the port after the URL's (6334 after 6333)."
    ),
]
Timeout = Annotated[
    int,
    typer.Option(
        "--timeout", envvar="EPIC_SEARCH_QDRANT_TIMEOUT", min=1, help="Seconds that the server has for one answer."
    ),
]
SERVER_OPTIONS = {"url": (Url, None), "api_key": (ApiKey, None), "grpc": (Grpc, False), "timeout": (Timeout, 30)}


def on_server_too(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb with the option --home the options of a server, too: its `home` is then a folder or a `Server`."""
    signature = inspect.signature(verb)
    parameters = list(signature.parameters.values())
    place = next(number for number, parameter in enumerate(parameters) if parameter.name == "home") + 1
    parameters[place:place] = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)
        for name, (annotation, default) in SERVER_OPTIONS.items()
    ]

    @functools.wraps(verb)
    def with_server(
        *, home: Path | None, url: str | None, api_key: str | None, grpc: bool, timeout: int, **options: Any
    ) -> None:
        verb(home=chosen_home(home, url=url, api_key=api_key, grpc=grpc, timeout=timeout), **options)

    with_server.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return with_server


def chosen_home(home: Path | None, *, url: str | None, api_key: str | None, grpc: bool, timeout: int) -> "Home":
    """The server where there is a URL, else the folder, else the default one."""
    if url:
        return server_at(url, api_key=api_key, grpc=grpc, timeout=timeout)
    from epic_search.index import home as default_home

    return home or default_home()


def server_at(url: str, *, api_key: str | None, grpc: bool, timeout: int) -> "Server":
    """The server; says on stderr when its key would travel in the open."""
    from epic_search.index.store.connection import Server

    server = Server(url, api_key=api_key or None, grpc=grpc, timeout=timeout)
    if server.key_is_exposed:
        console.note(f"the API key goes to {server} without encryption; use https")
    return server
