"""`epic-search index`: make an index of a corpus, or bring it up to date."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epic_search.cli import console, options
from epic_search.cli.completion import complete_encoder, complete_index
from epic_search.cli.demonstrations import chosen_demonstrations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from epic_search.encoder import Demonstration, Encoder
    from epic_search.encoder.encoder import Device, Dtype
    from epic_search.index import IndexProgress, IndexReport


def index(
    corpus: Annotated[
        Path,
        typer.Argument(
            help="JSON lines file (.jsonl or .jsonl.gz): _id, text, title and anything else.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            "-n",
            help="Name of the index. Default: the file's name.",
            show_default=False,
            autocompletion=complete_index,
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            "-e",
            envvar="EPIC_SEARCH_ENCODER",
            help="Name, folder or hub id of the encoder. Default: the index's own, else epic-mini.",
            show_default=False,
            autocompletion=complete_encoder,
        ),
    ] = None,
    dim: options.Dim = None,
    task: options.Task = None,
    demos: options.Demonstrations = None,
    no_demos: options.NoDemonstrations = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove documents that the file no longer holds.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first line that cannot be used.")] = False,
    home: options.Home = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Index a corpus, or bring an index up to date.

    Run it again after changes: only new and changed documents are encoded.
    Stop it at any time: the next run continues. The task and demonstrations
    are kept with the index and used by every query.
    """
    from epic_search.index import home as default_home
    from epic_search.index.corpus import Corpus
    from epic_search.index.folder import index_folder

    folder = home or default_home()
    chosen = name or default_name(corpus)
    demonstrations = chosen_demonstrations(demos, none=no_demos)
    # A mistake in the file or the name is told before the encoder takes its seconds to load.
    Corpus(corpus).close()
    index_folder(chosen, folder)
    made_by, made_with = _encoder_of(chosen, folder)
    loaded = load_encoder(encoder or made_by, device=device, dtype=dtype, dim=dim or made_with)
    report = run(
        corpus,
        name=chosen,
        encoder=loaded,
        home=folder,
        task=task,
        demonstrations=demonstrations,
        prune=prune,
        strict=strict,
    )
    if json:
        console.print_json(asdict(report))
        return
    print_report(report)
    console.next_command(f'epic-search query "..." --index {report.name}')


def default_name(corpus: Path) -> str:
    """The name of an index that was given none: the file's name without its endings and odd characters."""
    stem = re.sub(r"(\.jsonl|\.json|\.gz)+$", "", corpus.name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-_.")[:100] or "corpus"


def load_encoder(reference: str, *, device: "Device", dtype: "Dtype", dim: int | None = None) -> "Encoder":
    """The encoder, with a spinner while it loads."""
    with console.working(f"loading the encoder {reference}"):
        from epic_search.encoder import Encoder

        return Encoder.load(reference, device=device, dtype=dtype, dim=dim)


def run(
    corpus: Path,
    *,
    name: str,
    encoder: "Encoder",
    home: Path,
    task: str | None = None,
    demonstrations: "Sequence[Demonstration] | None" = None,
    prune: bool = False,
    strict: bool = False,
) -> "IndexReport":
    """Index with a progress bar: documents, documents/s and time left."""
    from epic_search.index import index_corpus

    rate = console.Rate()
    with console.progress_bar(f"indexing {console.printable(name)}") as bar:

        def show(progress: "IndexProgress") -> None:
            if progress.stage == "optimize":
                bar(progress.bytes_total, progress.bytes_total, "building the search graph")
                return
            speed = rate(progress.documents)
            bar(progress.bytes_done, progress.bytes_total, f"{progress.documents:,} documents  {speed:.1f}/s")

        return index_corpus(
            corpus,
            name=name,
            encoder=encoder,
            home=home,
            task=task,
            demonstrations=demonstrations,
            prune=prune,
            strict=strict,
            progress=show,
        )


def print_report(report: "IndexReport") -> None:
    """What a run did, in one line on stdout; what it could not use, on stderr."""
    changes = [
        f"{count:,} {word}"
        for count, word in [
            (report.added, "new"),
            (report.changed, "changed"),
            (report.unchanged, "unchanged"),
            (report.removed, "removed"),
        ]
        if count
    ]
    print(
        f"index {report.name!r}: {report.documents:,} documents in {report.passages:,} passages "
        f"({', '.join(changes) or 'nothing new'}) after {report.seconds:.1f} s"
    )
    if report.prune_withheld:
        console.note("nothing was removed: lines that cannot be used may hold documents that are stored; correct them")
    if report.skipped:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.problem_counts.items())
        console.note(f"skipped {report.skipped:,} of the lines: {kinds}")
        for problem in report.problems:
            console.note(f"- {problem}")
        if (more := report.skipped - len(report.problems)) > 0:
            console.note(f"- and {more:,} more")


def _encoder_of(name: str, home: Path) -> tuple[str, int | None]:
    """The encoder of an index that is there already and what its vectors are cut to, else the default."""
    from epic_search.encoder.checkpoint import DEFAULT_MODEL
    from epic_search.index import list_indexes

    found = (info for info in list_indexes(home) if info.name == name and info.encoder)
    return next(((info.encoder, info.cut_to) for info in found), (DEFAULT_MODEL, None))
