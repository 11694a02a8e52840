"""What an entry costs beside its quality: tokens and time a query, encoding speed, time spent on other things."""

from collections.abc import Sequence
from dataclasses import dataclass

from epic_search.evaluation.kinds import SEARCH_KINDS
from epic_search.evaluation.table import MISSING, Entry, Table


@dataclass(frozen=True)
class Spending:
    """One entry over some tasks. Query figures are means over those tasks that have them; the rest are sums or rates.

    `tokens_per_query` counts the prompt; `query_ms` is a query alone, its median within a task. `outside` is the share
    of the wall time that was not spent encoding. Rates and times leave out rankings whose corpus was already indexed.
    """

    tasks: int
    tokens_per_query: float | None
    query_ms: float | None
    texts_per_second: float | None
    tokens_per_second: float | None
    outside: float | None
    wall_seconds: float


def spending(table: Table, entry: Entry, tasks: Sequence[str]) -> Spending:
    """The cost of an entry over those of the tasks that it has; seeds count like tasks."""
    costs = [[result.cost for result in cell.results] for task in tasks if (cell := table.cells.get((entry, task)))]
    every = [cost for seeds in costs for cost in seeds]
    whole = [
        result.cost
        for task in tasks
        if (cell := table.cells.get((entry, task)))
        for result in cell.results
        if result.kind not in SEARCH_KINDS or result.cost["texts"] > result.cost["queries"]
    ]
    encode = sum(cost["encode_seconds"] for cost in whole)
    wall = sum(cost["wall_seconds"] for cost in whole)
    return Spending(
        tasks=len(costs),
        tokens_per_query=_mean([cost["query_tokens"] for cost in every]),
        query_ms=_mean([cost["query_ms"] for cost in every]),
        texts_per_second=sum(cost["texts"] for cost in whole) / encode if encode else None,
        tokens_per_second=sum(cost["tokens"] for cost in whole) / encode if encode else None,
        outside=1 - encode / wall if encode and wall else None,
        wall_seconds=wall,
    )


def cost_rows(table: Table) -> tuple[list[str], list[list[str]]]:
    """An entry a row. Returns (columns, rows); all columns but the first are numbers."""
    columns = ["model", "tasks", "tokens/query", "ms/query", "texts/s", "tokens/s", "outside encoding", "total"]
    return columns, [[entry.label, *_shown(spending(table, entry, table.tasks))] for entry in table.entries]


def _shown(spent: Spending) -> list[str]:
    return [
        str(spent.tasks),
        _number(spent.tokens_per_query, "{:.1f}"),
        _number(spent.query_ms, "{:.1f}"),
        _number(spent.texts_per_second, "{:,.0f}"),
        _number(spent.tokens_per_second, "{:,.0f}"),
        MISSING if spent.outside is None else f"{100 * spent.outside:.0f} %",
        duration(spent.wall_seconds),
    ]


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else form.format(value)


def duration(seconds: float) -> str:
    """As "42 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
