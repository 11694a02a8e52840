"""`epic-search train mine`: hard negatives for training pairs."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epic_search.cli import console, options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from epic_search.training.mining import Mined, MiningProgress


def mine(
    pairs: Annotated[
        list[str],
        typer.Argument(
            help='Files (or globs) of pairs, {"task", "query", "positive", "negatives"} a line.', show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="File to write: .jsonl or .jsonl.gz.", show_default=False, dir_okay=False),
    ],
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder",
            "-e",
            envvar="EPIC_SEARCH_ENCODER",
            help="What searches for candidates: name, folder or hub id.",
        ),
    ] = "epic-mini",
    teacher: Annotated[
        str | None,
        typer.Option(
            help="What judges them: an encoder, or st:FOLDER or st:HUB-ID for sentence-transformers. "
            "Default: the encoder.",
            show_default=False,
        ),
    ] = None,
    negatives: Annotated[int, typer.Option("--negatives", "-n", min=1, help="At most so many new ones a pair.")] = 7,
    depth: Annotated[int, typer.Option(min=1, help="So many of the nearest passages are candidates.")] = 100,
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="Keep what scores at most this share of the positive's score.")
    ] = 0.95,
    skip: Annotated[int, typer.Option(min=0, help="Leave out so many of the nearest candidates.")] = 0,
    replace: Annotated[
        bool, typer.Option("--replace", help="Drop the negatives that pairs have; else new ones come after them.")
    ] = False,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Mine hard negatives for pairs with an index of their own passages.

    The passages of each task are indexed and searched with its queries. What is near and no answer becomes a
    negative, unless the teacher finds it about as good as the positive: that is likely an answer, too.

    epic-search train mine pairs.jsonl --out mined.jsonl.gz
    epic-search train mine 'data/*.jsonl.gz' --out mined.jsonl.gz --teacher st:all-minilm-l6-v2
    """
    try:
        with console.working("loading"):
            from epic_search.encoder import Encoder
            from epic_search.training.mining import Rules, check_output
            from epic_search.training.mining import mine as run
            from epic_search.training.recipe_files import expand
            from epic_search.training.teachers import find_teacher

            # Mistakes are told before the models take their seconds to load.
            rules = Rules(negatives=negatives, depth=depth, margin=margin, skip=skip, replace=replace)
            files = expand(pairs)
            check_output(out, files=files)
            loaded = Encoder.load(encoder, device=device)
            judge = find_teacher(teacher, device=device) if teacher is not None else None
        with console.progress_bar("mining") as bar:
            mined = run(files, out=out, encoder=loaded, teacher=judge, rules=rules, progress=_reporter(bar))
    except KeyboardInterrupt:
        console.note(f"interrupted: {out} was not written; run the same command again.")
        raise typer.Exit(console.EXIT_INTERRUPTED) from None
    if json:
        console.print_json({"out": str(out), "rules": asdict(rules), "tasks": [_as_json(each) for each in mined]})
        return
    _print(mined, wanted=negatives)
    new, total = sum(each.negatives for each in mined), sum(each.pairs for each in mined)
    console.note(f"wrote {total:,} pairs with {new:,} new negatives to {out}")


def _reporter(bar: "Callable[[int, int, str], None]") -> "Callable[[MiningProgress], None]":
    """Shows the stage under way on the bar or, where there is no terminal, a line for each stage of each task."""
    told: set[tuple[int, str]] = set()

    def report(progress: "MiningProgress") -> None:
        text = f"task {progress.task}/{progress.tasks}  {progress.stage}"
        bar(progress.done, progress.total, f"{text}  {progress.done:,}/{progress.total:,}")
        if not sys.stderr.isatty() and (progress.task, progress.stage) not in told:
            told.add((progress.task, progress.stage))
            console.note(text)

    return report


def _as_json(mined: "Mined") -> dict[str, Any]:
    counts = {str(count): pairs for count, pairs in sorted(mined.counts.items())}
    return asdict(mined) | {"counts": counts, "negatives": mined.negatives, "dropped_share": mined.dropped_share}


def _print(mined: "Sequence[Mined]", *, wanted: int) -> None:
    columns = ["task", "pairs", "passages", "negatives", "all", "some", "none", "positive found", "dropped by the rule"]
    rows = [
        [
            each.task or "",
            f"{each.pairs}",
            f"{each.passages}",
            f"{each.negatives}",
            f"{each.counts[wanted]}",
            f"{each.pairs - each.counts[wanted] - each.counts[0]}",
            f"{each.counts[0]}",
            f"{each.found / each.pairs:.1%}",
            f"{each.dropped_share:.1%}",
        ]
        for each in mined
    ]
    console.print_table(columns, rows, numbers=columns[1:], header=True)
    if lost := sum(each.unindexed for each in mined):
        console.note(
            f"{lost:,} passages were no candidates, as an index cannot hold them (NUL characters, for example)"
        )
