"""`epic-search train status`: how a run is doing."""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epic_search.cli import console, options
from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.training.status import DevTrend, RunStatus

WATCH_SECONDS = 5.0
NAMES = {
    "loss": "loss",
    "without": "loss without demonstrations",
    "with_demonstrations": "loss with demonstrations",
    "distillation": "distance from the teacher",
    "text_distillation": "distance from text demonstrations",
    "accuracy_without": "accuracy without demonstrations",
    "accuracy_with": "accuracy with demonstrations",
    "passage_cosine": "cosine between passages",
    "gradient_norm": "gradient norm",
}
QUALITIES = {"nDCG@10": "ndcg_at_10", "accuracy@1": "accuracy_at_1", "MRR": "mrr"}


def status(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as runs/quickstart.", show_default=False)],
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it again every few seconds until the run ends (or Ctrl-C).")
    ] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw curves.svg and curves.html into the folder.")] = False,
    json: options.Json = False,
) -> None:
    """Show how a training run is doing: progress, trends, data, and warnings.

    It reads the folder alone, so it also works for a run on another machine.

    epic-search train status runs/quickstart
    epic-search train status runs/quickstart --watch --plot
    """
    from epic_search.training.status import read_status

    if watch and json:
        raise UserError("--watch and --json contradict each other; repeat the command with --json instead")
    try:
        while True:
            found = read_status(run)
            if watch and sys.stdout.isatty():
                _clear()
            if json:
                console.print_json(asdict(found))
            else:
                _print(found)
            if not watch or found.state in ("finished", "stopped"):
                break
            sys.stdout.flush()
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        if not watch:
            raise
    if plot:
        with console.working("drawing"):
            from epic_search.training.curves import write_curves

            drawn = write_curves(run)
        console.note(f"drew {' and '.join(map(str, drawn))}")


def duration(seconds: float) -> str:
    """Seconds for a person: `40 s`, `23.2 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _print(status: "RunStatus") -> None:
    console.print_fields(list(_fields(status)))
    if status.trends and status.step:
        _heading(f"means over {status.window} steps")
        rows = [
            [NAMES[trend.name], _number(trend.start), _number(trend.now)]
            for trend in status.trends
            if trend.start is not None or trend.now is not None
        ]
        console.print_table(["", "start", "now"], rows, numbers=["start", "now"], header=True)
    if status.dev:
        _heading("")
        numbers = ["start", "now", "with demonstrations", "shuffled", "gain"]
        rows = [[f"{task.name} ({task.metric})", *_dev_cells(task)] for task in status.dev]
        console.print_table(
            [f"dev suite, step {status.dev[0].steps[-1]}", *numbers], rows, numbers=numbers, header=True
        )
    if status.before:
        _heading(f"on {status.before['pairs']} pairs that were held out")
        after = status.after or {}
        rows = [[name, _number(status.before[key]), _number(after.get(key))] for name, key in QUALITIES.items()]
        console.print_table(["", "before", "after"], rows, numbers=["before", "after"], header=True)
    if status.drawn:
        _heading("")
        rows = [[name, f"{count}", f"{count / status.step:.1%}"] for name, count in status.drawn.items()]
        rows += [[name, "0", "0.0%"] for name in status.never_drawn or []]
        console.print_table(["source", "steps", "share"], rows, numbers=["steps", "share"], header=True)
    if status.never_drawn is None:
        console.note("sources never drawn are unknown: the files of the recipe are not here")
    for sentence in status.warnings:
        print(f"warning: {console.printable(sentence)}")


def _fields(status: "RunStatus") -> Iterator[tuple[str, str]]:
    yield "run", status.name
    yield "state", status.state
    yield "step", f"{status.step} of {status.steps}"
    if status.seconds_left is None:
        return
    left = f", {duration(status.seconds_left)} left" if status.step < status.steps else ""
    yield "time", f"{duration(status.seconds)}{left}"
    yield "rate", f"{status.tokens_per_second:,.0f} tokens/s, {status.pairs_per_second:.1f} pairs/s"
    yield "learning rate", f"{status.learning_rate:.2g}"
    if status.memory_mb is not None:
        yield "peak memory", f"{status.memory_mb:,.0f} MB"
    if status.padding is not None:
        yield "padding", f"{status.padding:.1%} of input positions"
    yield "checkpoint", f"step {status.checkpoint_step}" if status.checkpoint_step is not None else "none yet"
    if status.state == "running" and status.quiet_seconds is not None:
        yield "last line", f"{duration(status.quiet_seconds)} ago"


def _dev_cells(task: "DevTrend") -> Iterator[str]:
    """Scores without demonstrations then and now, and now with true and with shuffled ones and their difference."""
    true, shuffled = task.now.get("with_demonstrations"), task.now.get("shuffled")
    gain = true - shuffled if true is not None and shuffled is not None else None
    return map(_number, (task.start["without"], task.now["without"], true, shuffled, gain))


def _clear() -> None:
    from rich.console import Console

    Console().clear()


def _heading(text: str) -> None:
    """A line above a table, where a person reads."""
    if sys.stdout.isatty():
        print(f"\n{text}" if text else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
