"""Where a verb looks for indexes: a folder, or a Qdrant server."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epic_search.cli import console, options
from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.index.folder import Home
    from epic_search.index.store.collection import Layout
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
OPTIONS = {
    "home": (options.Home, None),
    "url": (Url, None),
    "api_key": (ApiKey, None),
    "grpc": (Grpc, False),
    "timeout": (Timeout, 30),
}


def on_server_too(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options --home, --url and those of a server, in place of its keyword `home`: a `Home`.

    A --home that is typed wins over a URL in the environment or the settings.
    """
    context_parameter = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context_parameter]
    for parameter in inspect.signature(verb).parameters.values():
        if parameter.name == "home":
            for name, (annotation, default) in OPTIONS.items():
                parameters.append(
                    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
                )
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(verb)
    def with_home(
        *,
        context: typer.Context,
        home: Path | None,
        url: str | None,
        api_key: str | None,
        grpc: bool,
        timeout: int,
        **given: Any,
    ) -> None:
        if _is_typed(context, "home"):
            if _is_typed(context, "url"):
                raise UserError(f"--home {home} and --url {url} are two places; give one of them")
            url = None
        verb(home=chosen_home(home, url=url, api_key=api_key, grpc=grpc, timeout=timeout), **given)

    # What typer reads of a function.
    with_home.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_home.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_home


def _is_typed(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def there(home: "Home") -> str:
    """What a command that is shown to the user needs besides, to mean this home."""
    return "" if isinstance(home, Path) else f" --url {home}"


def chosen_home(home: Path | None, *, url: str | None, api_key: str | None, grpc: bool, timeout: int) -> "Home":
    """The server where there is a URL, else the folder, else the default one."""
    if url:
        return server_at(url, api_key=api_key, grpc=grpc, timeout=timeout)
    from epic_search.index import home as default_home

    return home or default_home()


def chosen_layout(shards: int | None, replicas: int | None, write_consistency: int | None) -> "Layout | None":
    """How a server is to keep a new index; None where nothing was said."""
    from epic_search.index.store.collection import Layout

    layout = Layout(shards, replicas, write_consistency)
    return None if layout == Layout() else layout


def server_at(url: str, *, api_key: str | None, grpc: bool, timeout: int) -> "Server":
    """The server; says on stderr when its key would travel in the open."""
    from epic_search.index.store.connection import Server

    server = Server(url, api_key=api_key or None, grpc=grpc, timeout=timeout)
    if server.key_is_exposed:
        console.note(f"the API key goes to {server} without encryption; use https")
    return server
