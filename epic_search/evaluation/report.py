"""Writes report.md and report.html: quality with its uncertainty, cost, prompts, controls, and how it was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from textwrap import indent

from epic_search import __version__
from epic_search.errors import UserError
from epic_search.evaluation import plots, sections
from epic_search.evaluation.compare import Pair
from epic_search.evaluation.costs import cost_rows
from epic_search.evaluation.results import Result, Run
from epic_search.evaluation.sections import Grid, Line, TaskPrompts, Value
from epic_search.evaluation.statistics import LEVEL, RESAMPLES
from epic_search.evaluation.table import Table

TEMPLATE = "report.html.jinja"
LONGEST_COMMAND = 100

# Characters that a page may not hold or that would turn the text around them, as documents may contain them.
_CONTROL = [*range(9), 11, 12, *range(14, 32), *range(127, 160), *range(0xD800, 0xE000)]
_DIRECTION = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_UNWANTED = dict.fromkeys([*_CONTROL, *_DIRECTION], "\N{REPLACEMENT CHARACTER}")


@dataclass(frozen=True)
class Report:
    """All that both files show."""

    title: str
    written: str
    facts: list[tuple[str, str]]
    findings: list[str]
    summary: Grid
    differences: Grid
    seeds: Grid
    costs: Grid
    by_task: Grid
    controls: Grid | None
    settings: Grid
    versions: str
    commands: list[str]
    prompts: list[TaskPrompts]
    method: list[str]
    notes: list[str]
    unmeasured: list[str]
    failures: Grid


def write_report(folder: Path, results: Sequence[Result], *, run: Run | None = None) -> tuple[Path, Path]:
    """Write report.md and report.html into the folder; returns their paths.

    `run` (see read_run) adds the commands and the failures. Raises UserError where the results are over different
    versions of a task, and where the folder cannot be written to.
    """
    table = Table(results)
    report = _report(table, run or Run())
    markdown, page = folder / "report.md", folder / "report.html"
    try:
        markdown.write_text(_clean(_markdown(report)), encoding="utf-8")
        page.write_text(_clean(_html(report, table)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report into {folder}: {error.strerror}; choose a folder you own") from error
    return markdown, page


def _report(table: Table, run: Run) -> Report:
    pairs = sections.pairs_of_interest(table)
    controls = [entry for entry in table.entries if entry.control]
    costs, cost_lines = cost_rows(table)
    failures = [Line(f.model, [Value(f.task), Value(f.condition), Value(f.error)]) for f in run.failures]
    models = list(dict.fromkeys(entry.model for entry in table.entries))
    subject = f"{len(table.tasks)} tasks" if len(table.tasks) > 1 else table.tasks[0]
    return Report(
        title=f"{models[0] if len(models) == 1 else f'{len(models)} models'} on {subject}",
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        facts=_facts(table, models),
        findings=sections.findings(table, pairs),
        summary=sections.summary(table),
        differences=sections.differences(table, pairs),
        seeds=sections.seeds(table),
        costs=Grid(
            costs,
            [
                Line(row[0], [Value(cell) for cell in row[1:]], entry)
                for row, entry in zip(cost_lines, table.entries, strict=True)
            ],
        ),
        by_task=sections.by_task(table, table.plain_entries),
        controls=sections.by_task(table, controls) if controls else None,
        settings=sections.settings(table),
        versions=sections.versions(table.results),
        commands=[_wrapped(command) for command in run.commands],
        prompts=sections.prompts(table),
        method=_method(table, pairs),
        notes=run.notes,
        unmeasured=sections.unmeasured(table),
        failures=Grid(["model", "task", "condition", "error"], failures),
    )


def _facts(table: Table, models: Sequence[str]) -> list[tuple[str, str]]:
    seeds = sorted({result.seed for result in table.results if result.demos})
    controls = dict.fromkeys(entry.control for entry in table.entries if entry.control)
    facts = [
        ("models", ", ".join(models)),
        ("tasks", f"{len(table.tasks)}, of {len(table.kinds_present)} kinds" if len(table.tasks) > 1 else "1"),
        ("demonstrations", ", ".join(str(number) for number in sorted({entry.demos for entry in table.entries}))),
    ]
    if seeds:
        facts.append(("seeds", ", ".join(map(str, seeds))))
    if controls:
        facts.append(("controls", ", ".join(str(control) for control in controls)))
    return facts


def _wrapped(command: str) -> str:
    """A long command with an option a line, in a form that a shell takes."""
    return command if len(command) <= LONGEST_COMMAND else command.replace(" --", " \\\n    --")


def _method(table: Table, pairs: Sequence[Pair]) -> list[str]:
    paragraphs = [
        "Scores are mteb's main scores, times 100: nDCG@10 (retrieval), MAP (reranking), Spearman's correlation of "
        "cosines (STS), average precision (pair classification), accuracy (classification), V-measure (clustering), "
        "or what the table names. As MTEB does, a category is the mean of its tasks, Mean (Task) that of all tasks, "
        "and Mean (TaskType) that of the categories. A mean is given only where an entry has all of its tasks.",
        f"Intervals are {LEVEL:.0f} % percentile bootstrap intervals: {RESAMPLES:,} resamples of the test items, "
        "drawn within each task. Seeds are averaged first. An interval tells how much a score depends on the test "
        "items; it covers neither another training run of the model nor another draw of demonstrations (for that, see "
        "the table of seeds).",
        "Differences are paired: both entries are asked the same items in every resample, so a difference can be "
        "clear although the two intervals overlap. It is called clear when its interval excludes zero.",
        "Clustering has no interval, since mteb clusters the same texts again and again; nor has a mean that contains "
        "it, since that would take the clustering scores for certain.",
        "A document longer than an encoder reads is treated as the table of settings says. Throughput and the share "
        "outside encoding are taken where a model encoded a task's corpus, not where it found it indexed already.",
        "Files of pairs may be training data of the model; they show it no text of a test.",
    ]
    if any(entry.control for entry in table.entries):
        paragraphs.append(
            "Controls show as many demonstrations in the same place: shuffled pairs each query with the passage of "
            "another, wrong-task takes true pairs of another task, random puts random vectors in place of the true "
            "ones. What true demonstrations gain over shuffled and wrong-task ones is what their content is worth; "
            "random vectors are besides unlike any that the model has seen."
        )
    tests = sum(len(pair.tasks) for pair in pairs)
    if tests > 1:
        by_chance = tests * (1 - LEVEL / 100)
        paragraphs.append(
            f"This report compares {tests} times on single tasks. If nothing differed, {by_chance:.1f} of these would "
            "still come out clear on average; no correction is made for that."
        )
    return paragraphs


def _html(report: Report, table: Table) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    quality = plots.quality(table)
    demonstrated = [(entry.label, plots.demonstrations(table, entry)) for entry in table.plain_entries if entry.demos]
    against = [plots.against_cost(table, cost) for cost in plots.COSTS]
    look = plots.Look(table)
    environment = Environment(
        loader=PackageLoader("epic_search.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        report=report,
        version=__version__,
        quality=Markup(quality) if quality else None,
        demonstrated=[(label, Markup(svg)) for label, svg in demonstrated if svg],
        against=[Markup(svg) for svg in against if svg],
        colour=look.variable,
        strength=look.strength,
    )


def _markdown(report: Report) -> str:
    parts = [f"# {_escaped(report.title)}", "", *(f"- {sentence}" for sentence in map(_escaped, report.findings))]
    parts += ["", *(f"{name}: {_escaped(value)}  " for name, value in report.facts), ""]
    parts += [indent(command, "    ") for command in report.commands]
    parts += ["", "## Quality", "", "Times 100, with 95 % intervals; bold: the best and those not clearly below it."]
    parts += ["", *_markdown_grid(report.summary), "", "## Differences", ""]
    parts += ["Paired, times 100, with 95 % intervals; bold: the interval excludes zero."]
    parts += ["", *_markdown_grid(report.differences), ""]
    if report.seeds.lines:
        parts += ["## Seeds", "", *_markdown_grid(report.seeds), ""]
    parts += [
        "## Cost",
        "",
        *_markdown_grid(report.costs),
        "",
        "## Every task",
        "",
        *_markdown_grid(report.by_task),
        "",
    ]
    if report.controls:
        parts += ["Controls:", "", *_markdown_grid(report.controls), ""]
    parts += ["## Prompts", "", "The demonstrations are in report.html and in the result files.", ""]
    instructions = [
        Line(each.task, [Value(text or "none"), Value(models)])
        for each in report.prompts
        for text, models in each.instructions
    ]
    parts += _markdown_grid(Grid(["task", "instruction", "models"], instructions))
    parts += ["", "## How it was measured", "", *_markdown_grid(report.settings), "", f"Versions: {report.versions}."]
    for paragraph in (*report.notes, *report.method):
        parts += ["", _escaped(paragraph)]
    if report.unmeasured:
        parts += ["", "Without an interval:", "", *(f"- {_escaped(line)}" for line in report.unmeasured)]
    if report.failures.lines:
        parts += ["", "## Failures of the latest command", "", *_markdown_grid(report.failures)]
    return "\n".join(parts) + f"\n\nWritten by epic-search {__version__}, {report.written}.\n"


def _markdown_grid(grid: Grid) -> list[str]:
    rows = [f"| {' | '.join(map(_escaped, grid.columns))} |", f"|{'---|' * len(grid.columns)}"]
    for line in grid.lines:
        rows.append(f"| {' | '.join([_markdown_name(line), *map(_markdown_value, line.values)])} |")
    return rows


def _markdown_name(line: Line) -> str:
    return _escaped(line.name) + (f" ({_escaped(line.note)})" if line.note else "")


def _markdown_value(value: Value) -> str:
    text = f"**{_escaped(value.text)}**" if value.strong else _escaped(value.text)
    return f"{text} ({_escaped(value.within)})" if value.within else text


def _escaped(text: str) -> str:
    """On one line, with nothing that a Markdown table would obey."""
    for character in "\\`*_|[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.replace("<", "&lt;").split())


def _clean(text: str) -> str:
    return text.translate(_UNWANTED)
