"""Options that several verbs share, declared once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

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
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option("--device", envvar="EPIC_SEARCH_DEVICE", help="auto = CUDA where there is one."),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(
        "--dtype",
        envvar="EPIC_SEARCH_DTYPE",
        help="auto = bfloat16 where the hardware is fast at it.",
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
