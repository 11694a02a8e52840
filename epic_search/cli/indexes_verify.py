"""`epic-search indexes verify`: read a whole index and say whether it is sound."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from epic_search.cli import console, options
from epic_search.cli.home import there

if TYPE_CHECKING:
    from epic_search.encoder import Encoder
    from epic_search.index.folder import Home
    from epic_search.index.manifest import Manifest

EXIT_DAMAGED = 1
SHOWN = 10  # ids of documents named for each fault


def verify(
    name: options.IndexName,
    encode: Annotated[
        int,
        typer.Option("--encode", min=0, help="Encode so many passages again and compare; 0 loads no encoder."),
    ] = 16,
    *,
    home: "Home",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Read a whole index and say whether it is sound: exit code 0 if it is, 1 if it is damaged.

    Every passage must be listed and every listed one there, with the vector and
    the payload that were stored, found by its own vector, and, for a few, with
    the vector that the encoder makes of it now.
    """
    from epic_search.cli.index import load_encoder
    from epic_search.index.verify import verify_index

    def load(manifest: "Manifest") -> "Encoder":
        return load_encoder(manifest.encoder, device=device, dtype=dtype, dim=manifest.cut_to)

    with console.progress_bar(f"reading {name}") as bar:
        found = verify_index(
            name,
            home=home,
            load=load,
            encode=encode,
            progress=lambda read, total: bar(read, total, f"{read:,} passages"),
        )
    if json:
        console.print_json(asdict(found) | {"sound": found.is_sound})
    else:
        print(f"index {name!r}: {'sound' if found.is_sound else 'damaged'}; {found.read:,} passages read", end="")
        print(f", {found.searched:,} searched for, {found.encoded:,} encoded again", end="")
        print(f" (lowest cosine {found.lowest_cosine:.5f})" if found.lowest_cosine is not None else "")
        for fault in found.faults:
            print(f"- {console.printable(fault.what)}")
            for id in fault.documents[:SHOWN]:
                print(f"    {console.printable(id)}")
            if (more := len(fault.documents) - SHOWN) > 0:
                print(f"    and {more:,} more")
    if found.without_checksum:
        console.note(
            f"{found.without_checksum:,} documents have no checksum, as an older epic-search stored them: "
            "their ids, counts and norms were checked, and not every bit"
        )
    if not found.is_sound:
        console.note(f"see what can be put right with: epic-search indexes repair {name}{there(home)}")
        raise typer.Exit(EXIT_DAMAGED)
