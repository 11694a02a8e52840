"""Paired differences between entries: the same tasks and items, asked of both."""

from collections.abc import Sequence
from dataclasses import dataclass

from epic_search.errors import UserError
from epic_search.evaluation.kinds import KINDS, MTEB_TYPES, Kind
from epic_search.evaluation.results import Result, labels
from epic_search.evaluation.statistics import Estimate, mean, require_same_items
from epic_search.evaluation.table import MEAN_TASK, MEAN_TYPE, MISSING, Entry, Table, overall_means, percent, signed


@dataclass(frozen=True, eq=False)
class Line:
    """One task, one kind or one overall mean. `difference` is b - a with its interval; scores are fractions."""

    name: str
    kind: Kind | None
    a: Estimate
    b: Estimate
    difference: Estimate


@dataclass(frozen=True, eq=False)
class Pair:
    """Entry b against entry a, over the tasks that both have; `left_out` names the tasks that only one has."""

    a: str
    b: str
    tasks: list[Line]
    kinds: list[Line]
    overall: list[Line]
    left_out: list[str]


@dataclass(frozen=True, eq=False)
class Comparison:
    """All pairs of two sides; `only_a` and `only_b` are the entries that have no partner."""

    pairs: list[Pair]
    only_a: list[str]
    only_b: list[str]


def compare(a: Sequence[Result], b: Sequence[Result]) -> Comparison:
    """Compare entries of the same label; or, where no label is in common and each side has one entry, those two.

    Raises UserError where it is unclear what to pair, where both sides are the same results, where a pair has no task
    in common, and where a task's data or items differ.
    """
    if {result.path.resolve() for result in a} == {result.path.resolve() for result in b}:
        raise UserError(f"both sides are the same results ({', '.join(labels(a))}); {_how_to_choose(a)}")
    left, right = Table(a), Table(b)
    of_a, of_b = ({entry.label: entry for entry in table.entries} for table in (left, right))
    common = [label for label in of_a if label in of_b]
    if common:
        pairs = [(of_a[label], of_b[label]) for label in common]
    elif len(of_a) == len(of_b) == 1:
        pairs = [(left.entries[0], right.entries[0])]
    else:
        raise UserError(
            f"no label is on both sides: the first has {', '.join(of_a)}, the second {', '.join(of_b)}; "
            f"{_how_to_choose(a)}"
        )
    paired_a, paired_b = ({entry.label for entry in side} for side in zip(*pairs, strict=True))
    return Comparison(
        pairs=[pair(left, entry_a, right, entry_b) for entry_a, entry_b in pairs],
        only_a=[label for label in of_a if label not in paired_a],
        only_b=[label for label in of_b if label not in paired_b],
    )


def pair(left: Table, a: Entry, right: Table, b: Entry) -> Pair:
    """Entry b of one table against entry a of another (or of the same). Raises UserError as `compare` does."""
    own_a = [task for task in left.tasks if (a, task) in left.cells]
    own_b = [task for task in right.tasks if (b, task) in right.cells]
    common = [task for task in own_a if task in own_b]
    if not common:
        raise UserError(
            f"{a.label} and {b.label} have no task in common: {', '.join(own_a)} against {', '.join(own_b)}; "
            "evaluate both on the same tasks"
        )
    lines = []
    for task in common:
        cell_a, cell_b = left.cells[a, task], right.cells[b, task]
        require_same_items([*cell_a.results, *cell_b.results])
        lines.append(_line(task, left.kinds[task], cell_a.estimate, cell_b.estimate))
    kinds = [
        _mean_line(MTEB_TYPES[kind], kind, of_kind)
        for kind in KINDS
        if (of_kind := [line for line in lines if line.kind == kind])
    ]
    means = {MEAN_TASK: lines, MEAN_TYPE: kinds}
    return Pair(
        a=a.label,
        b=b.label,
        tasks=lines,
        kinds=kinds,
        overall=[_mean_line(name, None, means[name]) for name in overall_means([line.name for line in kinds])],
        left_out=[task for task in dict.fromkeys([*own_a, *own_b]) if task not in common],
    )


def _how_to_choose(results: Sequence[Result]) -> str:
    return f"choose one entry a side with PATH:LABEL, as results/A:{labels(results)[0]}"


def _line(name: str, kind: Kind | None, a: Estimate, b: Estimate) -> Line:
    return Line(name=name, kind=kind, a=a, b=b, difference=b - a)


def _mean_line(name: str, kind: Kind | None, lines: Sequence[Line]) -> Line:
    return _line(name, kind, mean([line.a for line in lines]), mean([line.b for line in lines]))


def pair_rows(pair: Pair) -> tuple[list[str], list[list[str]]]:
    """A task a row, then kinds and overall means: both scores, the difference, its 95 % interval, and "*" or "".

    "*" marks an interval that excludes zero. Returns (columns, rows); task and the last column are no numbers.
    """
    many = [line for line in pair.kinds if sum(task.kind == line.kind for task in pair.tasks) > 1]
    means = [*many, *pair.overall]
    rows = [_row(line.name, line) for line in pair.tasks]
    rows += [_row(line.name if line.kind is None else f"mean of {line.name}", line) for line in means]
    names = [pair.a, pair.b] if pair.a != pair.b else [f"{pair.a} (first)", f"{pair.b} (second)"]
    return ["task", *names, "difference", "95% interval", ""], rows


def _row(name: str, line: Line) -> list[str]:
    within = line.difference.interval
    return [
        name,
        percent(line.a.score),
        percent(line.b.score),
        signed(line.difference.score),
        MISSING if within is None else f"{signed(within[0])} to {signed(within[1])}",
        "*" if line.difference.excludes_zero else "",
    ]
