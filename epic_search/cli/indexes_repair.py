"""`epic-search indexes repair`: put right what can be, and say what was lost."""

import shlex
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from epic_search.cli import console, options
from epic_search.cli.home import there

if TYPE_CHECKING:
    from epic_search.encoder.device import Device, Dtype
    from epic_search.index.folder import Home
    from epic_search.index.repair import Repair

EXIT_NOT_WHOLE = 1
SHOWN = 20  # ids of lost documents that are named


def repair(
    name: options.IndexName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do every step without asking.")] = False,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="Index this corpus afterwards, which brings back what was lost. (One that needs --id-field and the "
            "like: leave this out, and use epic-search index.)",
            show_default=False,
        ),
    ] = None,
    *,
    home: "Home",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Put a damaged index right, step by step, each said before it is done.

    Damaged files are set aside, never deleted (on a Qdrant server, they are its
    own matter). What cannot be brought back is named, with the command that
    indexes it again. Exit code 0 if the index is whole again, 1 if not.
    """
    from epic_search.index.repair import repair_index

    def agree(step: str) -> bool:
        if yes:
            console.note(f"- {step}")
            return True
        if not sys.stdin.isatty():
            console.note(f"- would {step}")
            return False
        return typer.confirm(f"{console.printable(step)}?", err=True)

    console.note(f"reading index {name!r}")
    done = repair_index(name, home=home, agree=agree)
    if json:
        console.print_json(asdict(done))
    elif not done.done and not done.declined:
        print(f"index {name!r}: nothing to repair")
    else:
        print(f"index {name!r}: steps done: {len(done.done)}, left undone: {len(done.declined)}")
    if done.declined and not sys.stdin.isatty():
        console.note("nothing of this was done, as it needs a yes; add --yes")
    lost = _tell_losses(done, home)
    if lost and source is not None:
        _index_again(done, source, home, device, dtype)
        lost = False
    if lost or done.declined:
        raise typer.Exit(EXIT_NOT_WHOLE)


def _tell_losses(done: "Repair", home: "Home") -> bool:
    if not done.lost and not done.lost_all:
        return False
    console.note("all documents were lost" if done.lost_all else f"documents that were lost: {len(done.lost):,}")
    for id in done.lost[:SHOWN]:
        console.note(f"  {id}")
    if (more := len(done.lost) - SHOWN) > 0:
        console.note(f"  and {more:,} more (--json names all)")
    sources = shlex.join(done.source.split(", ")) if done.source else "CORPUS"
    console.note(f"index them again with: epic-search index {sources} --name {done.name}{there(home)}")
    return True


def _index_again(done: "Repair", source: str, home: "Home", device: "Device", dtype: "Dtype") -> None:
    from epic_search.cli.index import load_encoder, print_report, run
    from epic_search.index import Corpus
    from epic_search.index.place import manifest_of

    manifest = manifest_of(done.name, home)
    with Corpus(source, tell=console.note) as corpus:
        encoder = load_encoder(manifest.encoder, device=device, dtype=dtype, dim=manifest.cut_to)
        print_report(run(corpus, name=done.name, encoder=encoder, home=home))
