"""`epic-search indexes export`: the documents of an index, as a corpus that can be indexed again."""

import gzip
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from epic_search.cli import console, options
from epic_search.cli.home import there
from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.index.folder import Home


def export(
    name: options.IndexName,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The file to write, .jsonl or .jsonl.gz. Default: stdout.",
            show_default=False,
            dir_okay=False,
        ),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(
            "--vectors",
            help="Write the passages' vectors, too: a .npy file, float32, a row a passage, in the order of the lines.",
            show_default=False,
            dir_okay=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    *,
    home: "Home",
) -> None:
    """Write the documents of an index as JSON lines, which `epic-search index` reads again.

    Documents come in the order of their ids, each with its title, text and
    payload. The text of a long one is put together from its passages.
    """
    from epic_search.index.export import export_index

    for path in (out, vectors):
        if path is not None and path.exists() and not overwrite:
            raise UserError(f"{path} is there already; choose another name, or add --overwrite")
    with console.progress_bar(f"exporting {name}") as bar, _opened(out) as file:
        done = export_index(
            name,
            file,
            vectors=vectors,
            home=home,
            ascii=out is None and (sys.stdout.isatty() or sys.stdout.encoding.lower() != "utf-8"),
            progress=lambda read, total: bar(read, total, f"{read:,} passages"),
        )
    console.note(f"exported {done.documents:,} documents in {done.passages:,} passages{f' to {out}' if out else ''}")
    if done.left_out:
        console.note(
            f"left out {done.left_out:,} passages of documents that are stored in part: a run was cut off; "
            "index their corpus again"
        )
    if done.others:
        console.note(
            f"left out {done.others:,} points of the collection that are no passages of this index; "
            f"see 'epic-search indexes verify {name}{there(home)}'"
        )
    if done.joined:
        console.note(
            f"the texts of {done.joined:,} documents were put together from their passages; "
            "white space and long repetitions may differ from the original"
        )


@contextmanager
def _opened(out: Path | None) -> Iterator[TextIO]:
    """The file to write, which is there under its name only when it is whole; stdout for None."""
    if out is None:
        yield sys.stdout
        return
    part = out.with_name(f"{out.name}.part")
    try:
        with (
            gzip.open(part, "wt", encoding="utf-8") if out.suffix == ".gz" else part.open("w", encoding="utf-8") as file
        ):
            yield file
        part.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose a place that you may write to") from error
    finally:
        part.unlink(missing_ok=True)
