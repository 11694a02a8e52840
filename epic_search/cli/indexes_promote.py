"""`epic-search indexes promote|pull`: an index moved to a Qdrant server, or from one, as it is."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from epic_search.cli import console, options
from epic_search.cli.home import ApiKey, Grpc, Timeout, Url, chosen_layout, server_at
from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.index.promote import Progress, PromoteReport

As = Annotated[
    str | None, typer.Option("--as", help="Its name there. Default: the same.", show_default=False, metavar="NAME")
]


def promote(
    name: Annotated[str, typer.Argument(help="An index of this machine.")],
    url: Url = None,
    api_key: ApiKey = None,
    grpc: Grpc = False,
    timeout: Timeout = 30,
    target: As = None,
    quantize: options.Quantize = None,
    shards: options.Shards = None,
    replicas: options.Replicas = None,
    write_consistency: options.WriteConsistency = None,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Copy an index to a Qdrant server, without encoding it again.

    It can be asked there once it is whole and checked, in place of an older
    one of that name. Stop it at any time: the same command goes on.
    """
    from epic_search.index.promote import promote

    server = server_at(_required(url, "promote"), api_key=api_key, grpc=grpc, timeout=timeout)
    layout = chosen_layout(shards, replicas, write_consistency)
    report = _shown(
        f"sending {name}",
        lambda progress: promote(
            name, home=home, server=server, target=target, layout=layout, quantize=quantize, progress=progress
        ),
    )
    _print(report, json=json, where=str(server), sent=f"{report.sent:,} sent")
    console.next_command(f'epic-search query "..." --index {report.name} --url {server}')


def pull(
    name: Annotated[str, typer.Argument(help="An index of the server.")],
    url: Url = None,
    api_key: ApiKey = None,
    grpc: Grpc = False,
    timeout: Timeout = 30,
    target: As = None,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Copy an index of a Qdrant server to this machine."""
    from epic_search.index import home as default_home
    from epic_search.index.promote import pull

    server = server_at(_required(url, "pull"), api_key=api_key, grpc=grpc, timeout=timeout)
    report = _shown(
        f"fetching {name}", lambda progress: pull(name, home=home, server=server, target=target, progress=progress)
    )
    _print(report, json=json, where=str(home or default_home()), sent=f"{report.sent:,} fetched")
    console.next_command(f'epic-search query "..." --index {report.name}')


def _required(url: str | None, verb: str) -> str:
    if not url:
        raise UserError(f"{verb} needs the server's address; give it with --url or EPIC_SEARCH_QDRANT_URL")
    return url


def _shown(what: str, work: "Callable[[Progress], PromoteReport]") -> "PromoteReport":
    with console.progress_bar(console.printable(what)) as bar:
        return work(lambda done, total: bar(done, total, f"{done:,} passages"))


def _print(report: "PromoteReport", *, json: bool, where: str, sent: str) -> None:
    if json:
        console.print_json(asdict(report))
        return
    print(
        f"index {report.name!r} at {where}: {report.documents:,} documents in {report.passages:,} passages "
        f"({sent}, {report.checked:,} compared) after {report.seconds:.1f} s"
    )
    if report.taught:
        console.note(f"taught pairs that are there, too: {report.taught:,}")
