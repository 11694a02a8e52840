"""What a report says, before it becomes HTML or Markdown: grids of values, sentences, and the prompts used."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from epic_search.evaluation.compare import Pair, pair
from epic_search.evaluation.kinds import MTEB_TYPES
from epic_search.evaluation.results import Result
from epic_search.evaluation.statistics import Estimate
from epic_search.evaluation.table import MEAN_TASK, MISSING, Cell, Entry, Table, overall_means, percent, signed

LONGEST_TEXT = 400  # characters of a demonstration; the result files hold all of it


@dataclass(frozen=True)
class Value:
    """One cell: `within` is its interval, `strong` sets it apart (among the best; a difference that is clear)."""

    text: str
    within: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Line:
    """One row; `entry` gives it the colour that the figures use, `group` begins a new block of rows,
    and `note` is small print below the name.
    """

    name: str
    values: list[Value]
    entry: Entry | None = None
    group: str = ""
    note: str = ""


@dataclass(frozen=True)
class Grid:
    """A table: the columns' names, the first of them that of the rows."""

    columns: list[str]
    lines: list[Line]


@dataclass(frozen=True)
class Demonstrations:
    """One prompt's demonstrations, as (query, passage), and the results that used it."""

    title: str
    source: str
    pairs: list[tuple[str, str]]


@dataclass(frozen=True)
class TaskPrompts:
    """The prompts of one task: (instruction, labels of the models that got it), and the sets of demonstrations."""

    task: str
    instructions: list[tuple[str | None, str]]
    demonstrations: list[Demonstrations] = field(default_factory=list)


def summary(table: Table) -> Grid:
    """An entry a row: means by kind and overall; the best and those that cannot be told from it are strong."""
    columns = {name: {entry: table.column(entry, name) for entry in table.entries} for name in table.columns}
    best = {name: among_the_best(table, values) for name, values in columns.items()}
    lines = [
        Line(entry.label, [_score(columns[name][entry], strong=entry in best[name]) for name in columns], entry)
        for entry in table.entries
    ]
    return Grid(["model", *(_with_count(table, name) for name in columns)], lines)


def by_task(table: Table, entries: Sequence[Entry]) -> Grid:
    """A task a row, grouped by kind: metric, number of items, and every entry's score."""
    lines: list[Line] = []
    for task in table.tasks:
        cells = {entry: table.cells.get((entry, task)) for entry in entries}
        present = [cell for cell in cells.values() if cell]
        if not present:
            continue
        values = {entry: cell.estimate if cell else None for entry, cell in cells.items()}
        best = among_the_best(table, values)
        about = [Value(present[0].metric or MISSING), Value(f"{present[0].items:,}" if present[0].items else MISSING)]
        scores = [_score(value, strong=entry in best) for entry, value in values.items()]
        kind = MTEB_TYPES[table.kinds[task]]
        lines.append(Line(task, [*about, *scores], group="" if lines and _group(lines) == kind else kind))
    return Grid(["task", "metric", "items", *(entry.label for entry in entries)], lines)


def _group(lines: Sequence[Line]) -> str:
    return next(line.group for line in reversed(lines) if line.group)


def among_the_best(table: Table, values: dict[Entry, Estimate | None]) -> set[Entry]:
    """The best entry that is no control, and those whose paired difference to it has an interval with zero in it."""
    rivals = {entry: value for entry, value in values.items() if value and entry.control is None}
    if len(rivals) < 2:
        return set()
    best = max(rivals.values(), key=lambda value: value.score)
    return {entry for entry, value in rivals.items() if value is best or _tied(value - best)}


def _tied(difference: Estimate) -> bool:
    return difference.interval is not None and not difference.excludes_zero


def pairs_of_interest(table: Table) -> list[Pair]:
    """The comparisons that a reader asks for first, each as "b against a".

    Demonstrations against none; true demonstrations against each control; the first model against each other one, with
    as many demonstrations where the other takes them, else with any number.
    """
    wanted: list[tuple[Entry, Entry]] = []
    for entry in table.plain_entries:
        if entry.demos:
            wanted.append((Entry(entry.model, 0), entry))
            wanted += [(each, entry) for each in table.entries if each.is_control_of(entry)]
    first = table.entries[0].model
    takes_demonstrations = {entry.model for entry in table.entries if entry.demos}
    for own in [entry for entry in table.plain_entries if entry.model == first]:
        for other in [entry for entry in table.plain_entries if entry.model != first]:
            if other.demos == own.demos or other.model not in takes_demonstrations:
                wanted.append((other, own))
    possible = dict.fromkeys((a, b) for a, b in wanted if a != b and table.common_tasks([a, b]))
    return [pair(table, a, table, b) for a, b in possible if a in table.entries and b in table.entries]


def differences(table: Table, pairs: Sequence[Pair]) -> Grid:
    """A pair a row: mean differences overall and by kind, and on how many single tasks there is a clear one."""
    overall = overall_means(table.kinds_present)
    names = [*overall, *(name for name in table.columns if name not in overall)]
    lines = []
    for each in pairs:
        means = {line.name: line.difference for line in [*each.kinds, *each.overall]}
        values = [_difference(means.get(name)) for name in names]
        lines.append(Line(f"{each.b} \N{MINUS SIGN} {each.a}", values, note=_by_single_tasks(each)))
    return Grid(["difference", *names], lines)


def _by_single_tasks(pair: Pair) -> str:
    up, down = clear_tasks(pair)
    return f"clearly up on {up} of {len(pair.tasks)} tasks, down on {down}" if len(pair.tasks) > 1 else ""


def clear_tasks(pair: Pair) -> tuple[int, int]:
    """On how many tasks the interval of the difference lies above zero, and below it."""
    clear = [line.difference.score for line in pair.tasks if line.difference.excludes_zero]
    return sum(score > 0 for score in clear), sum(score < 0 for score in clear)


def seeds(table: Table) -> Grid:
    """What the draw of demonstrations changes: the mean over tasks by seed, and the largest spread on one task."""
    lines = []
    for entry in table.entries:
        cells = {task: cell for task in table.tasks if (cell := table.cells.get((entry, task)))}
        numbers = sorted({result.seed for cell in cells.values() for result in cell.results})
        if len(numbers) < 2:
            continue
        complete = [cell for cell in cells.values() if len(cell.results) == len(numbers)]
        means = [_mean_of_seed(complete, seed) for seed in numbers]
        task, widest = max(cells.items(), key=lambda item: item[1].spread[1] - item[1].spread[0])
        low, high = widest.spread
        values = [
            Value(", ".join(map(str, numbers))),
            Value(f"{len(complete)} of {len(cells)}"),
            Value(", ".join(means) or MISSING),
            Value(f"{100 * (high - low):.2f}", f"{percent(low)} to {percent(high)}, {task}"),
        ]
        lines.append(Line(entry.label, values, entry))
    return Grid(["model", "seeds", "tasks with all", "mean of these, by seed", "largest spread on a task"], lines)


def _mean_of_seed(cells: Sequence[Cell], seed: int) -> str:
    scores = [result.score for cell in cells for result in cell.results if result.seed == seed]
    return percent(sum(scores) / len(scores)) if scores else MISSING


def settings(table: Table) -> Grid:
    """How each model ran; a value that was not the same in all its results is shown with the others."""
    lines = []
    for model in dict.fromkeys(entry.model for entry in table.entries):
        own = [result for result in table.results if result.model == model]
        values = [
            _distinct([result.name for result in own]),
            _distinct([result.revision for result in own]),
            _distinct([str(result.settings["search"]) for result in own]),
            _distinct([str(result.settings["max_length"] or MISSING) for result in own]),
            _distinct([result.settings.get("long_documents", MISSING) for result in own]),
            _distinct([result.settings["dtype"] for result in own]),
            _distinct([result.settings["device"] for result in own]),
            _distinct([result.settings["machine"] for result in own]),
        ]
        most = max((entry for entry in table.entries if entry.model == model), key=lambda entry: entry.demos)
        lines.append(Line(model, [Value(value) for value in values], most))
    return Grid(
        [
            "model",
            "name",
            "revision",
            "search",
            "tokens read at once",
            "longer documents",
            "dtype",
            "device",
            "machine",
        ],
        lines,
    )


def versions(results: Sequence[Result]) -> str:
    """The packages that were at work, each with every version that occurs."""
    found = [result.settings.get("versions", {}) for result in results]
    packages = sorted({name for each in found for name in each})
    return ", ".join(f"{name} {_distinct([each[name] for each in found if name in each])}" for name in packages)


def _distinct(values: Sequence[str]) -> str:
    return " / ".join(dict.fromkeys(values))


def findings(table: Table, pairs: Sequence[Pair]) -> list[str]:
    """What the figures say, in sentences; nothing that is not in a table below."""
    sentences = []
    overall = table.columns[-2] if MEAN_TASK in table.columns else table.columns[0]
    means = {entry: mean for entry in table.plain_entries if (mean := table.column(entry, overall))}
    if means:
        best = max(means, key=lambda entry: means[entry].score)
        over = f"Mean over {len(table.tasks)} tasks" if len(table.tasks) > 1 else f"Score on {table.tasks[0]}"
        over += ", the highest" if len(means) > 1 else ""
        interval = _range(means[best])
        within = f" (95 % interval {interval})" if interval else ""
        sentence = f"{over}: {best.label}, {percent(means[best].score)}{within}."
        tied = [entry.label for entry in means if entry in among_the_best(table, dict(means)) and entry != best]
        sentences.append(sentence + (f" It cannot be told from that of {' and '.join(tied)}." if tied else ""))
    for each in pairs:
        change = (each.overall or each.kinds)[0].difference
        over = f"{len(each.tasks)} tasks" if len(each.tasks) > 1 else each.tasks[0].name
        verdict = "clear" if change.excludes_zero else "not clear" if change.interval else "no interval"
        within = f" ({_range(change, sign=True)})" if change.interval else ""
        single = f"; {_by_single_tasks(each)}" if len(each.tasks) > 1 else ""
        sentences.append(f"{each.b} against {each.a}, {over}: {signed(change.score)}{within}, {verdict}{single}.")
    return sentences


def prompts(table: Table) -> list[TaskPrompts]:
    """Every instruction and every set of demonstrations, by task; equal ones once, with all who used them."""
    found = []
    for task in table.tasks:
        own = [result for result in table.results if result.task == task]
        instructions: dict[str | None, list[str]] = {}
        sets: dict[tuple[tuple[str, str], ...], list[Result]] = {}
        for result in own:
            instructions.setdefault(result.prompt["instruction"], []).append(result.model)
            if result.prompt["demonstrations"]:
                sets.setdefault(tuple(result.prompt["demonstrations"]), []).append(result)
        told = [(text, ", ".join(dict.fromkeys(models))) for text, models in instructions.items()]
        shown = [_demonstrations(pairs, users) for pairs, users in sets.items()]
        found.append(TaskPrompts(task, told, shown))
    return found


def _demonstrations(pairs: Sequence[tuple[str, str]], users: Sequence[Result]) -> Demonstrations:
    title = ", ".join(dict.fromkeys(f"{user.label} (seed {user.seed})" for user in users))
    prompt = users[0].prompt
    about = [
        prompt.get("source"),
        prompt["classes"] and f"classes as {prompt['classes']}",
        "as texts" if prompt.get("kind") == "text" else None,
    ]
    cut = [(_cut(query), _cut(passage)) for query, passage in pairs]
    return Demonstrations(title, "; ".join(text for text in about if text), cut)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def unmeasured(table: Table) -> list[str]:
    """The tasks and entries that have no interval, with the reason."""
    cells = [(f"{entry.label} on {task}", cell) for (entry, task), cell in table.cells.items()]
    return [
        f"{name}: {'its items do not add up to its score' if cell.items and cell.items > 1 else 'no items'}"
        for name, cell in cells
        if cell.estimate.resamples_R is None and cell.results[0].kind != "clustering"
    ]


def _with_count(table: Table, column: str) -> str:
    counts = {MTEB_TYPES[kind]: len(table.of_kind(kind)) for kind in table.kinds_present}
    return f"{column} ({counts[column]})" if column in counts else column


def _score(value: Estimate | None, *, strong: bool) -> Value:
    return Value(percent(value.score), _range(value), strong) if value else Value(MISSING)


def _difference(value: Estimate | None) -> Value:
    if value is None:
        return Value(MISSING)
    return Value(signed(value.score), _range(value, sign=True), value.excludes_zero)


def _range(value: Estimate, *, sign: bool = False) -> str:
    if value.interval is None:
        return ""
    low, high = value.interval
    return f"{signed(low)} to {signed(high)}" if sign else f"{percent(low)}\N{EN DASH}{percent(high)}"
