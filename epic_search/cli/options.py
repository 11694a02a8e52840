"""Options that several verbs share, declared once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from epic_search.cli.completion import complete_index

Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar="EPIC_SEARCH_HOME",
        help="Folder that holds the indexes. Default: ./indexes",
        show_default=False,
        file_okay=False,
    ),
]
Quantize = Annotated[
    Literal["int8"] | None,
    typer.Option(
        "--quantize",
        help="Search a new, large index by codes of one byte a number, then compare the nearest whole: less memory.",
        show_default=False,
    ),
]
FirstStage = Annotated[
    int | None,
    typer.Option(
        "--first-stage",
        min=2,
        metavar="DIM",
        help="Search a new, large index by the vectors' first dimensions, as many as the encoder was trained for, then "
        "compare the nearest whole: a smaller search graph, faster to build.",
        show_default=False,
    ),
]
Shards = Annotated[
    int | None,
    typer.Option("--shards", min=1, help="On a server: parts that a new index is cut into.", show_default=False),
]
Replicas = Annotated[
    int | None,
    typer.Option("--replicas", min=1, help="On a server: copies of each part of a new index.", show_default=False),
]
WriteConsistency = Annotated[
    int | None,
    typer.Option(
        "--write-consistency",
        min=1,
        help="On a server: copies that must have a write before it counts.",
        show_default=False,
    ),
]
IndexName = Annotated[str, typer.Argument(help="Name of the index.", autocompletion=complete_index)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout.")]
JsonLines = Annotated[bool, typer.Option("--jsonl", help="Print one line of JSON a query, as soon as it is there.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option("--device", envvar="EPIC_SEARCH_DEVICE", help="auto = CUDA where there is one."),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "int8"],
    typer.Option(
        "--dtype",
        envvar="EPIC_SEARCH_DTYPE",
        help="auto = bfloat16 where the hardware is fast at it. int8 (CPU with AMX): faster, a little coarser.",
    ),
]
Dim = Annotated[
    int | None,
    typer.Option(
        "--dim",
        min=2,
        help="Cut vectors to their first dimensions, as many as the encoder was trained for. Default: all.",
        show_default=False,
    ),
]
Task = Annotated[
    str | None,
    typer.Option("--task", "-t", help="What a query asks for, in one sentence.", show_default=False),
]
Demonstrations = Annotated[
    Path | None,
    typer.Option(
        "--demos",
        "-d",
        help='Demonstrations: a file with {"query": ..., "passage": ...} a line.',
        show_default=False,
        dir_okay=False,
    ),
]
NoDemonstrations = Annotated[bool, typer.Option("--no-demos", help="Use no demonstrations, whatever the index has.")]
Index = Annotated[
    str | None,
    typer.Option(
        "--index",
        "-i",
        envvar="EPIC_SEARCH_INDEX",
        help="Name of the index. Default: the only one, or the one updated last.",
        show_default=False,
    ),
]
EncoderMoved = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        "-e",
        help="Where the encoder that made the index is now. Default: where it was.",
        show_default=False,
    ),
]
Demos = Annotated[
    str | None,
    typer.Option(
        "--demos",
        "-d",
        metavar="fixed|nearest|none|FILE",
        help="fixed: the index's own demonstrations. nearest: the taught pairs most like the query. "
        'FILE: {"query": ..., "passage": ...} a line. Default: as the index says.',
        show_default=False,
    ),
]
DemosK = Annotated[
    int | None,
    typer.Option("--demos-k", min=1, help="How many pairs 'nearest' takes. Default: 4.", show_default=False),
]
Boost = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="How strongly a query moves towards what was taught for queries like it. Default: 1; 0: not at all.",
        show_default=False,
    ),
]
