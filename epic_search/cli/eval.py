"""`epic-search eval`: measure encoders on MTEB tasks and local folders; compare runs; write reports."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from epic_search.cli import console, options
from epic_search.errors import UserError
from epic_search.evaluation.kinds import CONTROLS

if TYPE_CHECKING:
    from collections.abc import Callable

    from epic_search.evaluation.results import Result
    from epic_search.evaluation.runner import Progress, RunReport

EXIT_FAILED_TASKS = 1
MOST_DEMOS = 10_000
RESULTS = Path("results")

app = typer.Typer(cls=console.DefaultVerbGroup)


@app.callback()
def _eval() -> None:
    """Measure encoders on MTEB tasks and your own data, with and without demonstrations."""


@app.command(no_args_is_help=True)
def run(
    ctx: typer.Context,
    tasks: Annotated[
        list[str],
        typer.Argument(
            help="Suites (quick, full, or a TOML file), folders of evaluation data, MTEB tasks or benchmarks.",
            show_default=False,
        ),
    ],
    models: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            help="An encoder (name, folder or hub id), st:FOLDER or st:HUB-ID for sentence-transformers, or bm25; "
            "NAME=MODEL gives it a name. Repeat for more.",
        ),
    ] = ["epic-mini"],  # noqa: B006
    demos: Annotated[str, typer.Option(help="Numbers of demonstrations in the prompt, as 0,4.")] = "0",
    seeds: Annotated[str, typer.Option(help="Seeds that demonstrations are drawn with, as 0,1,2.")] = "0",
    controls: Annotated[
        list[str] | None,
        typer.Option(
            "--demos-control",
            help="Also measure with shuffled, wrong-task or random demonstrations, or all three. Repeat for more.",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help='Draw demonstrations from this file, {"query": ..., "passage": ...} a line, not from training splits. '
            'Lines {"text": ..., "label": ...} or {"query": ..., "label": ...} show a class by name, and lines '
            '{"label": ...} name further classes.',
            show_default=False,
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    classes: Annotated[
        Literal["examples", "names", "all-names"],
        typer.Option(
            help="What demonstrates a class: two texts of it, or a text and the class's name, or that and the names of "
            "all other classes."
        ),
    ] = "examples",
    demos_kind: Annotated[
        Literal["soft", "text"] | None,
        typer.Option(
            "--demos-kind",
            help="Show demonstrations as soft tokens or as texts. Default: as each encoder was trained.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the results. Default: results/NAMES-OF-THE-TASKS.",
            show_default=False,
            file_okay=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Run again what is already in the folder.")] = False,
    search: Annotated[
        Literal["index", "exact"],
        typer.Option(help="index = retrieval through an index, as users search; exact = by one matrix product."),
    ] = "index",
    max_length: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Let encoders read at most so many tokens at once. Default: each model's own.",
            show_default=False,
        ),
    ] = None,
    dim: options.Dim = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Measure encoders on MTEB tasks and your own data, with and without demonstrations.

    Results are stored task by task: a stopped run goes on where it was when the same command is given again. They are
    mteb's own files, beside a report (report.html).

    epic-search eval quick --model epic-mini --model bm25 --demos 0,4
    epic-search eval my-data/ --demos 4 --pairs pairs.jsonl
    epic-search eval SciFact STSBenchmark

    See also: epic-search eval compare --help, epic-search eval report --help
    """
    numbers = _numbers(demos, "--demos", most=MOST_DEMOS)
    wanted_seeds = _numbers(seeds, "--seeds", most=2**32)
    wanted_controls = _controls(controls or [], numbers)
    if pairs is not None and not any(numbers):
        raise UserError(f"--pairs {pairs} needs a number of demonstrations; add --demos 4")
    if demos_kind is not None and not any(numbers):
        raise UserError(f"--demos-kind {demos_kind} needs a number of demonstrations; add --demos 4")
    if blank := [task for task in tasks if not task.strip()]:
        raise UserError(f"{blank[0]!r} names no task; give a suite, a folder, or the name of an MTEB task")
    folder = out or RESULTS / _folder_name(tasks)
    with console.working("loading"):
        _require_mteb()
        from epic_search.evaluation.demonstrations import file_pool
        from epic_search.evaluation.models import Settings, find_model
        from epic_search.evaluation.report import write_report
        from epic_search.evaluation.results import read_results, read_run
        from epic_search.evaluation.runner import Plan
        from epic_search.evaluation.runner import run as evaluate
        from epic_search.evaluation.suite import find_tasks
        from epic_search.evaluation.tasks import PairFile

        if pairs is not None:
            file_pool(PairFile(pairs))  # what is wrong with it is told now, not after the first task

        notes: list[str] = []
        settings = Settings(search=search, max_length=max_length, dim=dim, device=device, dtype=dtype)
        found = [find_model(model, settings=settings) for model in dict.fromkeys(models)]
        texts = [model.label for model in found if model.demos_kind and (demos_kind or model.demos_kind) == "text"]
        if texts and "random" in wanted_controls:
            notes.append(f"no random demonstrations for {', '.join(texts)}: they are vectors, and these are texts")
        plan = Plan(
            tasks=find_tasks(tasks, say=notes.append),
            models=found,
            demos=numbers,
            seeds=wanted_seeds,
            controls=wanted_controls,
            pairs=pairs,
            classes=classes,
            demos_kind=demos_kind,
            command=ctx.meta[console.TYPED],
            notes=notes,
        )
    for remark in notes:
        console.note(remark)
    with console.progress_bar("evaluating") as bar:
        done = evaluate(plan, out=folder, overwrite=overwrite, report=_reporter(bar))
    _print_failures(done, folder)
    results = read_results(folder) if done.done or done.kept else []
    if results:
        markdown, page = write_report(folder, results, run=read_run(folder))
        console.note(f"results in {folder}: {page.name}, {markdown.name}")
    _print_results(results, as_json=json, done=done, folder=folder)
    if done.failures:
        mistakes_alone = all(failure.mistake for failure in done.failures)
        raise typer.Exit(console.EXIT_USER_ERROR if mistakes_alone else EXIT_FAILED_TASKS)


@app.command(no_args_is_help=True)
def compare(
    a: Annotated[str, typer.Argument(help="Results: a folder, or FOLDER:MODEL for one model in it.", metavar="A")],
    b: Annotated[str, typer.Argument(help="Results to set against them.", metavar="B")],
    json: options.Json = False,
) -> None:
    """Paired differences between two sets of results, with 95 % confidence intervals.

    Both must be over the same data: differences are taken query by query.

    epic-search eval compare results/before results/after
    epic-search eval compare results/quick:bm25 results/quick:epic-mini@4
    """
    from epic_search.evaluation.compare import compare as compared
    from epic_search.evaluation.compare import pair_rows
    from epic_search.evaluation.results import choose

    comparison = compared(choose(a), choose(b))
    if json:
        console.print_json([_pair_json(pair) for pair in comparison.pairs])
        return
    for pair in comparison.pairs:
        columns, rows = pair_rows(pair)
        if sys.stdout.isatty():
            print(f"{pair.b} - {pair.a}")
        console.print_table(columns, rows, numbers=columns[1:-1], header=True)
        if pair.left_out:
            console.note(f"not compared, as only one side has them: {', '.join(pair.left_out)}")
    for side, alone in ((a, comparison.only_a), (b, comparison.only_b)):
        if alone:
            console.note(f"only in {side}: {', '.join(alone)}")


@app.command(no_args_is_help=True)
def report(
    folder: Annotated[Path, typer.Argument(help="A folder of results.", file_okay=False)],
    json: options.Json = False,
) -> None:
    """Write report.md and report.html of stored results again, and show the table."""
    from epic_search.evaluation.report import write_report
    from epic_search.evaluation.results import read_results, read_run

    results = read_results(folder)
    markdown, page = write_report(folder, results, run=read_run(folder))
    _print_results(results, as_json=json, done=None, folder=folder)
    if not json:
        console.note(f"wrote {page} and {markdown}")


def _numbers(text: str, option: str, *, most: int) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{option} {text!r} is not a list of whole numbers; write them as 0,4") from error
    if min(numbers) < 0 or max(numbers) > most:
        raise UserError(f"{option} {text!r}: the numbers must be from 0 to {most:,}; write them as 0,4")
    return list(dict.fromkeys(numbers))


def _controls(given: list[str], demos: list[int]) -> list[Any]:
    names = [name for part in given for name in part.split(",")]
    if unknown := [name for name in names if name not in (*CONTROLS, "all")]:
        raise UserError(f"--demos-control {unknown[0]!r} is not one of {', '.join(CONTROLS)}, all")
    if names and not any(demos):
        raise UserError("--demos-control needs demonstrations; add --demos 4")
    return list(CONTROLS) if "all" in names else list(dict.fromkeys(names))


def _folder_name(tasks: list[str]) -> str:
    names = [Path(task).stem if task.endswith(".toml") else Path(task).resolve().name for task in tasks]
    return "+".join(names)[:80]


def _require_mteb() -> None:
    from importlib.util import find_spec

    if missing := [name for name in ("mteb", "matplotlib") if find_spec(name) is None]:
        raise UserError(f"evaluation needs {' and '.join(missing)}; install it with: pip install 'epic-search[eval]'")


def _reporter(bar: "Callable[[int, int, str], None]") -> "Callable[[Progress], None]":
    """Shows the job under way on the bar, and a line for each that ended."""

    def report(progress: "Progress") -> None:
        what = f"{progress.model} on {progress.task}, {progress.condition}"
        match progress.state:
            case "running":
                bar(progress.number - 1, progress.total, f"{progress.number}/{progress.total} {what}")
            case "done":
                assert progress.score is not None
                console.note(f"{what}: {100 * progress.score:.2f} ({progress.seconds:.0f} s)")
            case "failed":
                console.note(f"{what}: failed ({progress.seconds:.0f} s)")
            case "kept":
                assert progress.score is not None
                console.note(f"{what}: {100 * progress.score:.2f} (already there)")

    return report


def _print_results(results: "list[Result]", *, as_json: bool, done: "RunReport | None", folder: Path) -> None:
    from epic_search.evaluation.table import Table, summary_rows, task_rows

    if as_json:
        console.print_json(
            {
                "folder": str(folder),
                "results": [
                    {
                        "model": result.model,
                        "task": result.task,
                        "kind": result.kind,
                        "demos": result.demos,
                        "seed": result.seed if result.demos else None,
                        "control": result.control,
                        "demos_kind": result.prompt.get("kind"),
                        "score": result.score,
                    }
                    for result in results
                ],
                "failures": [failure.model_dump(exclude={"mistake"}) for failure in done.failures] if done else [],
            }
        )
        return
    if not results:
        return
    table = Table(results)
    columns, rows = task_rows(table)
    console.print_table(columns, rows, numbers=columns[2:], header=True)
    if len(table.tasks) > 1 and sys.stdout.isatty():
        print()
        columns, rows = summary_rows(table)
        console.print_table(columns, rows, numbers=columns[1:])


def _print_failures(done: "RunReport", folder: Path) -> None:
    if not done.failures:
        return
    from epic_search.evaluation.runner import LOG_FILE

    bugs = not all(failure.mistake for failure in done.failures)
    console.note(f"{len(done.failures)} failed{f', see also {folder / LOG_FILE}' if bugs else ''}:")
    for failure in done.failures:
        console.note(f"  {failure.model} on {failure.task}, {failure.condition}: {failure.error}")


def _pair_json(pair: Any) -> dict[str, Any]:
    lines = [*pair.tasks, *pair.kinds, *pair.overall]
    return {
        "a": pair.a,
        "b": pair.b,
        "rows": [
            {
                "name": line.name,
                "a": line.a.score,
                "b": line.b.score,
                "difference": line.difference.score,
                "interval": line.difference.interval,
                "excludes_zero": line.difference.excludes_zero,
            }
            for line in lines
        ],
        "not_compared": pair.left_out,
    }
