"""`epic-search train`: train an encoder from a recipe; its other verbs are in files of their own."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import epic_search
from epic_search.cli import console, options
from epic_search.cli.processes import as_one
from epic_search.cli.train_explain import explain as print_explanation
from epic_search.cli.train_mine import mine
from epic_search.cli.train_status import status
from epic_search.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from epic_search.training.trainer import StepReport, TrainResult

RECIPES = Path(epic_search.__file__).parent / "recipes"
DEFAULT_RECIPE = "quickstart"
LINE_SECONDS = 30.0  # between two lines of progress where no bar can be drawn


app = typer.Typer(cls=console.DefaultVerbGroup)


@app.callback()
def _train() -> None:
    """Train an encoder from a recipe, mine hard negatives for its data, and see how a run is doing."""


@app.command()
@as_one
def run(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe file, or the name of one that comes with epic-search. Default: quickstart.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder from its last checkpoint.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the run. Default: runs/NAME-OF-THE-RECIPE.",
            show_default=False,
            file_okay=False,
        ),
    ] = None,
    tracker: Annotated[
        Literal["tensorboard"] | None,
        typer.Option("--tracker", help="Write every number to a tracker, too: RUN/tensorboard.", show_default=False),
    ] = None,
    device: options.Device = "auto",
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain",
            metavar="KEY",
            help="Instead of training, say what a key of a recipe means, its default and the reason for it, as "
            "objective.temperature; of a table all keys; of 'all' every key.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Train an encoder from a recipe.

    The quickstart recipe learns from the documentation inside your own Python,
    without a download. A stopped run keeps its last checkpoint: add --resume to
    go on from there.

    See also: epic-search train mine --help, epic-search train status --help
    """
    if explain is not None:
        print_explanation(explain, json=json)
        return
    path = recipe_path(recipe or DEFAULT_RECIPE)
    with console.working("loading"):
        from epic_search.training.recipe_files import load
        from epic_search.training.trainer import train

        loaded = load(path)
    folder = out or Path("runs") / loaded.name
    with console.progress_bar(f"training {console.printable(loaded.name)}") as bar:
        result = train(
            loaded,
            out=folder,
            resume=resume,
            device=device,
            tracker=tracker,
            report=_reporter(bar),
            say=console.note,
        )
    if json:
        console.print_json(
            {
                "recipe": str(path),
                "encoder": str(result.encoder),
                "steps": result.steps,
                "seconds": result.seconds,
                "before": asdict(result.before) if result.before else None,
                "after": asdict(result.after) if result.after else None,
            }
        )
        return
    _print_result(result)
    console.next_command(f"epic-search index CORPUS.jsonl --encoder {result.encoder}")


app.command(no_args_is_help=True)(mine)
app.command(no_args_is_help=True)(status)


def recipe_path(reference: str) -> Path:
    """The file that `reference` means: a path or the name of a packaged recipe; UserError if neither."""
    path = Path(reference)
    if path.is_file():
        return path
    packaged = RECIPES / f"{reference}.toml"
    if Path(reference).name == reference and packaged.is_file():
        return packaged.resolve()
    names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
    raise UserError(f"there is no recipe {reference!r}; give a TOML file, or one of {names}")


def _reporter(bar: "Callable[[int, int, str], None]") -> "Callable[[StepReport], None]":
    """Shows each step on the bar or, where there is no terminal, a line now and then."""
    last_line = time.monotonic()

    def report(step: "StepReport") -> None:
        nonlocal last_line
        text = (
            f"step {step.step}/{step.steps}  loss {step.loss:.3f}  "
            f"{step.pairs_per_second:.0f} pairs/s  {step.tokens_per_second:,.0f} tokens/s"
        )
        bar(step.step, step.steps, text)
        now = time.monotonic()
        if not sys.stderr.isatty() and (now - last_line > LINE_SECONDS or step.step == step.steps):
            left = (step.steps - step.step) * step.seconds / step.step
            console.note(f"{text}  {left / 60:.1f} min left")
            last_line = now

    return report


def _print_result(result: "TrainResult") -> None:
    print(f"trained {result.steps} steps in {result.seconds / 60:.1f} min: {result.encoder}")
    if result.before is None or result.after is None:
        return
    rows = [
        [name, f"{quality.ndcg_at_10:.3f}", f"{quality.accuracy_at_1:.3f}", f"{quality.mrr:.3f}"]
        for name, quality in [("before", result.before), ("after", result.after)]
    ]
    print(f"on {result.after.pairs} pairs that were held out:")
    console.print_table(["", "nDCG@10", "accuracy@1", "MRR"], rows, numbers=["nDCG@10", "accuracy@1", "MRR"])
