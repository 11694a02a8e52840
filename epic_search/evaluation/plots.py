"""The figures of a report: quality by category, with and without demonstrations, and quality against cost.

Colour and shape say which model it is, and the strength of the colour the number of demonstrations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from epic_search.evaluation.costs import spending
from epic_search.evaluation.kinds import MTEB_TYPES
from epic_search.evaluation.statistics import Estimate
from epic_search.evaluation.svg import GRID, INK, MUTED, PAPER, SERIES, css_variable, drawing, inline_svg
from epic_search.evaluation.table import Entry, Table, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 10.2  # inches
SHAPES = "osD^vPX*"
CONTROL_SHAPES = {"random": "s", "wrong-task": "^", "shuffled": "D"}
LONGEST_NAME = 26
NUMBERED_BARS = 16
TIMES = "\N{MULTIPLICATION SIGN} 100"
COSTS = {"tokens_per_query": "tokens per query, with its prompt", "query_ms": "milliseconds for one query alone"}


class Look:
    """How each entry is drawn, the same in all figures."""

    def __init__(self, table: Table) -> None:
        self._models = list(dict.fromkeys(entry.model for entry in table.entries))
        self._demos = {
            model: sorted({entry.demos for entry in table.entries if entry.model == model}) for model in self._models
        }

    def colour(self, entry: Entry) -> str:
        """One of the page's series colours."""
        return SERIES[self._models.index(entry.model) % len(SERIES)]

    def variable(self, entry: Entry) -> str:
        """The same colour, as the name of a CSS variable."""
        return css_variable(self.colour(entry))

    def shape(self, entry: Entry) -> str:
        """A marker."""
        return SHAPES[self._models.index(entry.model) % len(SHAPES)]

    def strength(self, entry: Entry) -> float:
        """An opacity: 1 for the most demonstrations of the model, weaker for fewer."""
        steps = self._demos[entry.model]
        return 1.0 if len(steps) == 1 else 0.5 + 0.5 * steps.index(entry.demos) / (len(steps) - 1)


def quality(table: Table) -> str | None:
    """Bars by category (by task, where there is only one category), with 95 % intervals; controls are left out.

    None where it would be a single bar.
    """
    entries, look = table.plain_entries, Look(table)
    groups = {name: [table.column(entry, name) for entry in entries] for name in table.columns}
    if len(table.kinds_present) == 1:
        tasks = {shortened(task): [table.mean(entry, [task]) for entry in entries] for task in table.tasks}
        groups = tasks | (groups if len(tasks) > 1 else {})
    bars = len(groups) * len(entries)
    if bars < 2:
        return None
    with drawing():
        figure = _figure(min(WIDTH, 1.2 + 0.24 * bars + 0.3 * len(groups)), 3.4)
        figure.subplots_adjust(left=0, right=1)
        axes = figure.subplots()
        step = 0.84 / len(entries)
        for i, entry in enumerate(entries):
            values = [group[i] for group in groups.values()]
            places = [place - 0.42 + step * (i + 0.5) for place in range(len(groups))]
            style: dict[str, Any] = {"width": 0.86 * step, "color": look.colour(entry), "alpha": look.strength(entry)}
            heights = [100 * value.score if value else 0.0 for value in values]
            axes.bar(places, heights, width=style["width"], color=PAPER)  # no grid behind a pale bar
            axes.bar(places, heights, label=entry.label, **style)
            for place, value in zip(places, values, strict=True):
                _top_of_bar(axes, place, value, numbered=bars <= NUMBERED_BARS)
        slanted = len(groups) > 9
        names = [name.replace("Classification", "\nClassification").replace(" (", "\n(").strip() for name in groups]
        axes.set_xticks(range(len(groups)), names, rotation=35 if slanted else 0, ha="right" if slanted else "center")
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=False, axis="x")
        axes.set_xlim(-0.55, len(groups) - 0.45)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"main score {TIMES}")
        if len(table.columns) > 1:
            first_mean = len(groups) - 2
            axes.axvline(first_mean - 0.5, color=GRID, linewidth=1)
        _legend_above(axes, columns=min(len(entries), 5))
        return inline_svg(figure, name="quality", description="Bars: the score of each entry by category")


def _top_of_bar(axes: "Axes", place: float, value: Estimate | None, *, numbered: bool) -> None:
    """The interval, and a dash where there is no score."""
    above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
    if value is None:
        axes.annotate("\N{EN DASH}", (place, 0), (0, 2), color=MUTED, **above)
        return
    top = 100 * value.score
    if value.interval:
        low, high = (100 * end for end in value.interval)
        axes.plot([place, place], [low, high], color=INK, linewidth=1.1)
        top = max(top, high)
    if numbered:
        axes.annotate(percent(value.score), (place, top), (0, 3), **above)


@dataclass(frozen=True)
class _Row:
    """A line of the demonstrations figure: `entries` on the mean over `tasks`; a heading has neither."""

    name: str
    tasks: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)


def demonstrations(table: Table, entry: Entry) -> str | None:
    """An entry with demonstrations against its model without: scores by task, differences, and the controls.

    None where no task was evaluated both ways.
    """
    base = Entry(entry.model, 0)
    tasks = table.common_tasks([base, entry])
    if not tasks:
        return None
    shown = [entry, *(each for each in table.entries if each.is_control_of(entry))]
    rows = _rows(table, tasks, shown)
    look = Look(table)
    with drawing():
        figure = _figure(WIDTH, 1.1 + 0.27 * len(rows))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.4])
        right.axvline(0, color=MUTED, linewidth=1)
        for y, row in enumerate(rows):
            without = table.mean(base, row.tasks)
            for each in row.entries:
                value = table.mean(each, row.tasks)
                if not value or not without:
                    continue
                colour = MUTED if each.control else look.colour(entry)
                alone = len(row.entries) == 1
                if alone or each is entry:
                    _draw_change(left, y, without, value, colour=colour)
                _draw_difference(right, y, value - without, each, colour=colour, alone=alone)
        _name_rows(left, rows)
        left.set_xlabel(f"main score {TIMES}")
        right.set_xlabel(f"difference from no demonstrations, {TIMES}")
        for axes in (left, right):
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.set_ylim(len(rows) - 0.3, -0.7)
            _legend_above(axes, columns=4)
        figure.subplots_adjust(left=0.1, right=1, wspace=0.05)
        name = f"demos-{table.entries.index(entry)}"
        return inline_svg(figure, name=name, description=f"Dots: scores of {entry.label} and {base.label} by task")


def _rows(table: Table, tasks: list[str], entries: list[Entry]) -> list[_Row]:
    """All tasks by kind; then, where there are several, the mean over those that an entry has, an entry a row."""
    if len(tasks) == 1:
        return [_Row(shortened(tasks[0]), tasks, [each]) for each in entries]
    rows = []
    for kind in table.kinds_present:
        own = [task for task in tasks if table.kinds[task] == kind]
        if own:
            rows += [_Row(MTEB_TYPES[kind]), *(_Row(shortened(task), [task], entries) for task in own)]
    complete = [each for each in entries if table.mean(each, tasks)]
    means = [_Row(f"mean, {each.control or 'true'}", tasks, [each]) for each in complete]
    return [*rows, _Row(""), *means]


def _name_rows(axes: "Axes", rows: Sequence[_Row]) -> None:
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(INK if row.tasks else MUTED)
        label.set_fontweight("bold" if row.name == "mean, true" else "normal")


def _draw_change(axes: "Axes", y: float, without: Estimate, value: Estimate, *, colour: str) -> None:
    names = ("no demonstrations", "with") if not axes.collections else (None, None)
    a, b = 100 * without.score, 100 * value.score
    axes.plot([a, b], [y, y], color=colour, zorder=1)
    axes.scatter([a], [y], s=30, facecolor=PAPER, edgecolor=colour, zorder=2, label=names[0])
    axes.scatter([b], [y], s=30, color=colour, zorder=3, label=names[1])


def _draw_difference(axes: "Axes", y: float, change: Estimate, entry: Entry, *, colour: str, alone: bool) -> None:
    """A difference with its interval; a control that shares its row with others stands lower, without one."""
    name = entry.control or "true demonstrations"
    place = y if alone else y + (0.26 if entry.control else -0.1)
    style: dict[str, Any] = {"marker": "o", "s": 30, "color": colour, "zorder": 4}
    if entry.control:
        style = {"marker": CONTROL_SHAPES[entry.control], "s": 16, "facecolor": PAPER, "edgecolor": colour, "zorder": 3}
    new = name not in axes.get_legend_handles_labels()[1]
    axes.scatter([100 * change.score], [place], label=name if new else None, **style)
    if change.interval and (alone or not entry.control):
        ends = [100 * end for end in change.interval]
        axes.plot(ends, [place, place], color=colour, linewidth=1.8, zorder=2)


def against_cost(table: Table, cost: str) -> str | None:
    """Quality against one of COSTS, as dots with intervals; entries of one model are joined.

    A panel for the mean over all tasks, and one for the tasks that every entry with this cost has, where that is not
    the same. None where fewer than two entries can be compared.
    """
    costed = [entry for entry in table.plain_entries if getattr(spending(table, entry, table.tasks), cost) is not None]
    whole = [entry for entry in costed if table.mean(entry, table.tasks)]
    panels = [(whole, table.tasks, f"all tasks ({len(table.tasks)})")] if len(whole) > 1 else []
    common = table.common_tasks(costed)
    if len(costed) > 1 and common and len(common) < len(table.tasks):
        kinds = ", ".join(MTEB_TYPES[kind] for kind in table.kinds_present if set(table.of_kind(kind)) & set(common))
        panels.append((costed, common, f"tasks that all have ({len(common)}: {kinds})"))
    if not panels:
        return None
    look = Look(table)
    with drawing():
        figure = _figure(WIDTH if len(panels) == 2 else 5.6, 3.3)
        for axes, (entries, tasks, title) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            _scatter(axes, table, entries, tasks, cost, look)
            axes.set_title(title, loc="left", color=MUTED)
            axes.set_xlabel(COSTS[cost])
            axes.set_ylabel(f"mean score {TIMES}")
        most = max(figure.axes, key=lambda axes: len(axes.get_legend_handles_labels()[1]))
        handles, names = most.get_legend_handles_labels()
        figure.legend(handles, names, loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=min(len(names), 5))
        figure.tight_layout(w_pad=2.5)
        return inline_svg(figure, name=cost, description=f"Dots: mean score against {COSTS[cost]}")


def _scatter(axes: "Axes", table: Table, entries: Sequence[Entry], tasks: Sequence[str], cost: str, look: Look) -> None:
    places: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        value, x = table.mean(entry, tasks), getattr(spending(table, entry, tasks), cost)
        if value is None or x is None:
            continue
        y = 100 * value.score
        colour, alpha = look.colour(entry), look.strength(entry)
        if value.interval:
            axes.plot([x, x], [100 * end for end in value.interval], color=colour, alpha=alpha, linewidth=1.2)
        axes.scatter([x], [y], s=46, marker=look.shape(entry), color=PAPER, zorder=3)
        axes.scatter([x], [y], s=46, marker=look.shape(entry), color=colour, alpha=alpha, zorder=4, label=entry.label)
        places.setdefault(entry.model, []).append((x, y))
    for model, points in places.items():
        colour = look.colour(Entry(model, 0))
        axes.plot([x for x, _ in points], [y for _, y in points], color=colour, alpha=0.5, linewidth=0.9, zorder=1)
    every = [x for points in places.values() for x, _ in points]
    if min(every) > 0 and max(every) > 8 * min(every):
        axes.set_xscale("log")
        _plain_log_ticks(axes)
    else:
        axes.set_xlim(0, 1.15 * max(every))
    axes.margins(y=0.2)


def _plain_log_ticks(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def shortened(name: str) -> str:
    """A task's name that leaves room for the figure."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _legend_above(axes: "Axes", *, columns: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.4, handlelength=1.2, columnspacing=1.4
    )
