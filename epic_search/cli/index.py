"""`epic-search index`: make an index of a corpus, or bring it up to date."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from epic_search.cli import console, options
from epic_search.cli.completion import complete_encoder, complete_index
from epic_search.cli.demonstrations import chosen_demonstrations
from epic_search.cli.home import chosen_layout, on_server_too
from epic_search.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from epic_search.encoder import Demonstration, Encoder
    from epic_search.encoder.device import Device, Dtype
    from epic_search.index import Corpus, IndexProgress, IndexReport
    from epic_search.index.filters import FieldType
    from epic_search.index.folder import Home
    from epic_search.index.store.collection import Layout


@on_server_too
def index(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="JSON lines, JSON, CSV, TSV, Parquet, folders or patterns of text files, hf:DATASET, - for stdin.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            "-n",
            help="Name of the index. Default: the source's name.",
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
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            metavar="NAME:TYPE",
            help="A field for filters and facets, as keyword, int, float, bool or datetime; may be repeated. "
            "Default: what a new index's first documents tell.",
            show_default=False,
        ),
    ] = None,
    id_field: Annotated[
        str | None,
        typer.Option(
            "--id-field", metavar="FIELD", help="Field with the ids. Default: a guess, else a hash of the content."
        ),
    ] = None,
    text_field: Annotated[
        list[str] | None,
        typer.Option(
            "--text-field", metavar="FIELD[,FIELD]", help="Field with the text; several are joined. Default: a guess."
        ),
    ] = None,
    title_field: Annotated[
        str | None, typer.Option("--title-field", metavar="FIELD", help="Field with the title. Default: a guess.")
    ] = None,
    format: Annotated[
        Literal["jsonl", "json", "csv", "tsv", "parquet", "text", "dataset"] | None,
        typer.Option("--format", help="What the sources are. Default: by their names.", show_default=False),
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove documents that the sources no longer hold.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be used.")] = False,
    quantize: options.Quantize = None,
    first_stage: options.FirstStage = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="On a server: make the index anew beside the old one, which answers until it is complete."
        ),
    ] = False,
    shards: options.Shards = None,
    replicas: options.Replicas = None,
    write_consistency: options.WriteConsistency = None,
    *,
    home: "Home",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Index a corpus, or bring an index up to date.

    Run it again after changes: only new and changed documents are encoded.
    Stop it at any time: the next run continues. The task and demonstrations
    are kept with the index and used by every query.
    """
    from epic_search.index import Corpus
    from epic_search.index.fields import declared
    from epic_search.index.folder import check_name
    from epic_search.index.sources.fields import Fields

    chosen = name or default_name(sources)
    demonstrations = chosen_demonstrations(demos, none=no_demos)
    texts = tuple(part.strip() for parts in text_field or [] for part in parts.split(","))
    columns = Fields(id=id_field, text=texts, title=title_field)
    types = declared(field or [])
    check_name(chosen)
    layout = chosen_layout(shards, replicas, write_consistency)
    if (rebuild or layout is not None) and isinstance(home, Path):
        raise UserError(
            "--rebuild, --shards, --replicas and --write-consistency are for a Qdrant server; name it with --url"
        )
    with Corpus(*sources, format=format, fields=columns, strict=strict, tell=console.note) as corpus:
        # A mistake in the sources is told before the encoder takes its seconds to load.
        with console.working("reading"):
            corpus.require_some()
        made_by, made_with = _encoder_of(chosen, home)
        loaded = load_encoder(encoder or made_by, device=device, dtype=dtype, dim=dim or made_with)
        report = run(
            corpus,
            name=chosen,
            encoder=loaded,
            home=home,
            task=task,
            demonstrations=demonstrations,
            fields=types,
            prune=prune,
            quantize=quantize,
            first_stage=first_stage,
            rebuild=rebuild,
            layout=layout,
        )
    if json:
        console.print_json(asdict(report))
    else:
        print_report(report)
    _require_used(report)
    if not json:
        console.next_command(f'epic-search query "..." --index {report.name}')


def default_name(sources: "Sequence[str]") -> str:
    """The name of an index that was given none: the source's, or the folder's that holds all of them.

    Without its endings and odd characters. Raises UserError for sources that have no folder in common.
    """
    first = sources[0]
    if len(sources) == 1:
        plain = re.sub(r"^hf:|@[^/]*$", "", first)
        plain = (
            re.sub(r"(?<=.):[^/]*$", "", plain) if first.startswith("hf:") else re.sub(r"/?[^/]*[*?\[].*$", "", first)
        )
        stem = Path(plain).resolve().name
    else:
        folders = {Path(source).resolve().parent for source in sources}
        if len(folders) > 1 or "-" in sources or any(source.startswith("hf:") for source in sources):
            raise UserError(f"{len(sources)} sources from several places make one index; name it with --name")
        stem = folders.pop().name
    stem = re.sub(r"(\.jsonl|\.ndjson|\.json|\.csv|\.tsv|\.parquet|\.gz|\.zst)+$", "", stem, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-_.")[:100] or "corpus"


def load_encoder(reference: str, *, device: "Device", dtype: "Dtype", dim: int | None = None) -> "Encoder":
    """The encoder, with a spinner while it loads."""
    with console.working(f"loading the encoder {reference}"):
        from epic_search.encoder import Encoder

        return Encoder.load(reference, device=device, dtype=dtype, dim=dim)


def run(
    corpus: "Corpus | Path",
    *,
    name: str,
    encoder: "Encoder",
    home: "Home",
    task: str | None = None,
    demonstrations: "Sequence[Demonstration] | None" = None,
    fields: "Mapping[str, FieldType] | None" = None,
    prune: bool = False,
    quantize: Literal["int8"] | None = None,
    first_stage: int | None = None,
    rebuild: bool = False,
    layout: "Layout | None" = None,
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
            fields=fields,
            prune=prune,
            quantize=quantize,
            first_stage=first_stage,
            rebuild=rebuild,
            layout=layout,
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
    if report.inferred:
        found = ", ".join(f"{name} ({kind})" for name, kind in report.inferred.items())
        console.note(
            f"fields for filters, inferred from the first documents: {found}; change one with --field NAME:TYPE"
        )
    for name, count in report.unfit.items():
        console.note(
            f"{count:,} documents have another type of value in field '{name}', and filters on it do not find them; "
            f"declare its type with --field {name}:TYPE"
        )
    if report.absent and report.documents:
        console.note(
            f"no document has {' or '.join(map(repr, report.absent))}, which --field declares; correct the name and "
            "run this again"
        )
    if report.prune_withheld:
        console.note("nothing was removed: rows that cannot be used may hold documents that are stored; correct them")
    if report.skipped:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.problem_counts.items())
        console.note(f"skipped {report.skipped:,} rows or files: {kinds}")
        for problem in report.problems:
            console.note(f"- {problem}")
        if (more := report.skipped - len(report.problems)) > 0:
            console.note(f"- and {more:,} more")


def _require_used(report: "IndexReport") -> None:
    """Raise UserError where nothing of the sources could be used; say so where that is most of them."""
    used = report.added + report.changed + report.unchanged
    rows = used + report.skipped
    if report.skipped and not used:
        raise UserError(
            f"none of the {rows:,} rows or files could be used, the first is {report.problems[0]}; "
            "correct them and run this again"
        )
    if report.skipped > used:
        console.note(
            f"most rows or files were skipped ({report.skipped:,} of {rows:,}), and no search finds what they hold; "
            "correct them and run this again, or stop at the first one with --strict"
        )


def _encoder_of(name: str, home: "Home") -> tuple[str, int | None]:
    """The encoder of an index that is there already and what its vectors are cut to, else the default."""
    from epic_search.encoder.checkpoint import DEFAULT_MODEL
    from epic_search.index import list_indexes

    found = (info for info in list_indexes(home) if info.name == name and info.encoder)
    return next(((info.encoder, info.cut_to) for info in found), (DEFAULT_MODEL, None))
