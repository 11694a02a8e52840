"""Entries by tasks: scores averaged over seeds, and means as MTEB forms them.

An entry is (model, number of demonstrations, control). Means over several tasks are given only where the entry has all
of them, so that no two means are over different tasks.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from epic_search.errors import UserError
from epic_search.evaluation.kinds import KINDS, MTEB_TYPES, Control, Kind
from epic_search.evaluation.results import Result, entry_label
from epic_search.evaluation.statistics import Estimate, estimate, mean, require_same_items

MEAN_TASK = "Mean (Task)"
MEAN_TYPE = "Mean (TaskType)"
MISSING = "-"


@dataclass(frozen=True)
class Entry:
    """What stands in one row of the table."""

    model: str
    demos: int
    control: Control | None = None
    variant: str | None = None

    @property
    def label(self) -> str:
        """As "epic-mini", "epic-mini@4", "epic-mini@4-shuffled"."""
        return entry_label(self.model, demos=self.demos, control=self.control, variant=self.variant)

    def is_control_of(self, entry: "Entry") -> bool:
        """Whether this shows as many demonstrations of the same sort, and they must not help."""
        same = (self.model, self.demos, self.variant) == (entry.model, entry.demos, entry.variant)
        return same and self.control is not None and entry.control is None


@dataclass(frozen=True, eq=False)
class Cell:
    """One entry on one task: its results, a seed each, and their mean."""

    results: tuple[Result, ...]
    estimate: Estimate

    @property
    def metric(self) -> str:
        """The main score's name; empty where no items were written."""
        return self.results[0].items.metric if self.results[0].items else ""

    @property
    def items(self) -> int | None:
        """How many items the score is over."""
        return len(self.results[0].items.ids) if self.results[0].items else None

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest score of the seeds."""
        scores = [result.score for result in self.results]
        return min(scores), max(scores)


@dataclass(eq=False)
class Table:
    """All cells of an evaluation. Raises UserError where entries ran on different versions of a task."""

    results: Sequence[Result]
    entries: list[Entry] = field(init=False)
    tasks: list[str] = field(init=False)
    kinds: dict[str, Kind] = field(init=False)
    cells: dict[tuple[Entry, str], Cell] = field(init=False)

    def __post_init__(self) -> None:
        groups: defaultdict[tuple[Entry, str], list[Result]] = defaultdict(list)
        by_task: defaultdict[str, list[Result]] = defaultdict(list)
        for result in self.results:
            groups[Entry(result.model, result.demos, result.control, result.variant), result.task].append(result)
            by_task[result.task].append(result)
        for same_task in by_task.values():
            require_same_items(same_task)
        for group in groups.values():
            _require_same_prompt(group)
        self.kinds = {task: same_task[0].kind for task, same_task in by_task.items()}
        self.tasks = sorted(by_task, key=lambda task: KINDS.index(self.kinds[task]))
        self.entries = list(dict.fromkeys(entry for entry, _ in groups))
        self.cells = {key: Cell(tuple(group), estimate(group)) for key, group in groups.items()}

    @property
    def kinds_present(self) -> list[Kind]:
        """The kinds that have a task, in the usual order."""
        return [kind for kind in KINDS if kind in self.kinds.values()]

    @property
    def plain_entries(self) -> list[Entry]:
        """The entries that are no controls."""
        return [entry for entry in self.entries if entry.control is None]

    def of_kind(self, kind: Kind) -> list[str]:
        """The tasks of a kind."""
        return [task for task in self.tasks if self.kinds[task] == kind]

    def common_tasks(self, entries: Sequence[Entry]) -> list[str]:
        """The tasks that all these entries have."""
        return [task for task in self.tasks if all((entry, task) in self.cells for entry in entries)]

    def mean(self, entry: Entry, tasks: Sequence[str]) -> Estimate | None:
        """The mean over the tasks; None unless the entry has them all."""
        if not tasks or any((entry, task) not in self.cells for task in tasks):
            return None
        return mean([self.cells[entry, task].estimate for task in tasks])

    def column(self, entry: Entry, column: str) -> Estimate | None:
        """The value of one of `columns`: a kind's mean, MEAN_TASK (over tasks) or MEAN_TYPE (over the kinds' means)."""
        if column == MEAN_TASK:
            return self.mean(entry, self.tasks)
        if column == MEAN_TYPE:
            means = [self.mean(entry, self.of_kind(kind)) for kind in self.kinds_present]
            complete = [each for each in means if each is not None]
            return mean(complete) if len(complete) == len(means) else None
        return self.mean(entry, self.of_kind(kind_of(column)))

    @property
    def columns(self) -> list[str]:
        """Names for `column`: the kinds by mteb's names, then the two overall means where they say more."""
        kinds = [MTEB_TYPES[kind] for kind in self.kinds_present]
        return [*kinds, *overall_means(kinds)]


def overall_means(kinds: Sequence[str]) -> list[str]:
    """The overall means that differ from a kind's mean: none where there is only one kind."""
    return [MEAN_TASK, MEAN_TYPE] if len(kinds) > 1 else []


def kind_of(name: str) -> Kind:
    """Our name of a kind, from mteb's."""
    return next(kind for kind, mteb_name in MTEB_TYPES.items() if mteb_name == name)


def _require_same_prompt(seeds: Sequence[Result]) -> None:
    """Raise UserError unless the results of one entry on one task differ in nothing but their seed."""
    first = seeds[0]
    for other in seeds[1:]:
        for key in ("instruction", "source", "classes"):
            if first.prompt.get(key) != other.prompt.get(key):
                raise UserError(
                    f"{first.path} and {other.path} differ in the {key} of their prompt and cannot be averaged; "
                    "run the older of them again"
                )


def summary_rows(table: Table) -> tuple[list[str], list[list[str]]]:
    """An entry a row: the means by kind and overall, times 100 with half the width of the 95 % interval.

    Returns (columns, rows); all columns but the first are numbers.
    """
    columns = table.columns
    rows = [[entry.label, *(with_margin(table.column(entry, column)) for column in columns)] for entry in table.entries]
    return ["model", *columns], rows


def task_rows(table: Table) -> tuple[list[str], list[list[str]]]:
    """A task a row: its metric, number of items and every entry's score times 100, with half the interval's width.

    Returns (columns, rows); all columns but task and metric are numbers.
    """
    rows = []
    for task in table.tasks:
        cells = [table.cells.get((entry, task)) for entry in table.entries]
        first = next(cell for cell in cells if cell is not None)
        scores = [with_margin(cell.estimate if cell else None) for cell in cells]
        rows.append([task, first.metric or MISSING, MISSING if first.items is None else f"{first.items:,}", *scores])
    return ["task", "metric", "items", *(entry.label for entry in table.entries)], rows


def percent(score: float) -> str:
    """A score as it is shown: times 100, two decimals."""
    return f"{100 * score:.2f}"


def signed(difference: float) -> str:
    """A difference of scores as it is shown: times 100, two decimals, with its sign."""
    return f"{round(100 * difference, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")


def with_margin(value: Estimate | None) -> str:
    """ "61.23 ±0.45" (half the width of the interval), "61.23" without an interval, "-" without a score."""
    if value is None:
        return MISSING
    if value.interval is None:
        return percent(value.score)
    low, high = value.interval
    return f"{percent(value.score)} ±{100 * (high - low) / 2:.2f}"
