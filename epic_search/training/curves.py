"""The curves of a run as figures, by step: what it logs (losses, accuracies, speed, ...) and its dev suite."""

import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epic_search.errors import UserError
from epic_search.training.alarms import Row
from epic_search.training.status import read_dev, read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SVG, PAGE = "curves.svg", "curves.html"
# Okabe and Ito's, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
LINES = ("-", "--", ":")  # for more lines than colours
COLUMNS = 3
INK, PALE = "#333333", 0.22
MOST_SHAPES = 1000  # points that are drawn one by one; more become a picture inside the figure
SMOOTHED = 20  # steps to the mean that a strong line shows


@dataclass(frozen=True)
class Panel:
    """One figure of the page: columns of the log with their names in the legend.

    `scattered`: steps differ by what they drew, so that a mean is needed to see anything. `from_zero`: whether the axis
    shows 0, else what the values need.
    """

    title: str
    columns: dict[str, str]
    logarithmic: bool = False
    scattered: bool = True
    from_zero: bool = True


PANELS = (
    Panel(
        "losses",
        {
            "without": "without demonstrations",
            "with_demonstrations": "with demonstrations",
            "distillation": "distance from the teacher",
            "text_distillation": "distance from text demonstrations",
        },
    ),
    Panel(
        "share of queries whose positive is first in the batch",
        {"accuracy_without": "without demonstrations", "accuracy_with": "with demonstrations"},
    ),
    Panel("gradient norm", {"gradient_norm": "before clipping"}, logarithmic=True),
    Panel("learning rate", {"learning_rate": "LoRA"}, scattered=False),
    Panel("tokens per second", {"tokens_per_second": "tokens of all passes"}),
    Panel("loss that is minimised", {"loss": "total"}),
    Panel("mean cosine between different passages of a batch", {"passage_cosine": "passages"}, from_zero=False),
    Panel("share of input positions without a token", {"padding": "padding"}),
    Panel("peak memory in MB", {"memory_mb": "so far"}, scattered=False),
)


def write_curves(folder: Path) -> tuple[Path, Path]:
    """Draw the log of the run in `folder` into it; returns the paths of the SVG file and of the page.

    Raises UserError where there is no run or no step yet, and where matplotlib is not installed.
    """
    recipe, rows = read_run(folder)
    if not rows:
        raise UserError(f"the run in {folder} has no step to draw yet; try again when it has taken some")
    if find_spec("matplotlib") is None:
        raise UserError("drawing curves needs matplotlib; install it with: pip install 'epic-search[eval]'")
    svg = _draw([*((panel, rows) for panel in PANELS), *dev_panels(read_dev(folder))])
    steps = f"{rows[-1]['step']} of {recipe.optimizer.steps} steps"
    page = _PAGE.format(name=html.escape(recipe.name), steps=steps, smoothed=SMOOTHED, svg=svg[svg.index("<svg") :])
    try:
        (folder / SVG).write_text(svg, encoding="utf-8")
        (folder / PAGE).write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"the curves cannot be written into {folder}: {error.strerror}") from error
    return folder / SVG, folder / PAGE


def dev_panels(rows: Sequence[Row]) -> list[tuple[Panel, list[Row]]]:
    """The scores of the dev suite, and what true demonstrations gain over shuffled ones, with their values by step."""
    scores: list[Row] = []
    gains: list[Row] = []
    for row in rows:
        found: dict[str, Any] = row["scores"]
        both = {name: task for name, task in found.items() if "shuffled" in task}
        scores.append({"step": row["step"]} | {name: task["without"] for name, task in found.items()})
        gains.append({"step": row["step"]} | {n: t["with_demonstrations"] - t["shuffled"] for n, t in both.items()})
    titles = ("dev suite, without demonstrations", "dev suite: true over shuffled demonstrations")
    panels = []
    for title, points in zip(titles, (scores, gains), strict=True):
        names = list(dict.fromkeys(name for point in points for name in point if name != "step"))
        panels.append((Panel(title, {name: name for name in names}, scattered=False, from_zero=False), points))
    return panels


def _draw(panels: Sequence[tuple[Panel, Sequence[Row]]]) -> str:
    """The panels that have values, in rows of COLUMNS."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {
        "axes.edgecolor": INK,
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "font.size": 9,
        "grid.color": "#e4e4e4",
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "epic-search",
    }
    drawn = [(panel, rows) for panel, rows in panels if any(_points(rows, column) for column in panel.columns)]
    high = -(-len(drawn) // COLUMNS)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5 * COLUMNS, 3 * high), layout="constrained")
        grid = list(figure.subplots(high, COLUMNS, sharex=True, squeeze=False).flat)
        for axes, (panel, rows) in zip(grid, drawn, strict=False):
            _draw_panel(axes, panel, rows)
        for axes in grid[len(drawn) :]:
            axes.remove()
        for axes in grid[max(0, len(drawn) - COLUMNS) : len(drawn)]:
            axes.set_xlabel("step")
            axes.tick_params(labelbottom=True)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _draw_panel(axes: "Axes", panel: Panel, rows: Sequence[Row]) -> None:
    axes.set_title(panel.title)
    for (column, name), (line, colour) in zip(panel.columns.items(), cycle(product(LINES, COLOURS)), strict=False):
        points = _points(rows, column)
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        if panel.scattered:
            many = len(points) > MOST_SHAPES
            axes.plot(steps, values, ".", color=colour, alpha=PALE, markersize=4, rasterized=many)
        strong = smoothed(values) if panel.scattered else values
        axes.plot(steps, strong, line, color=colour, label=name, marker="o" if len(points) == 1 else None)
    axes.legend()
    if panel.logarithmic and any((row.get(column) or 0) > 0 for row in rows for column in panel.columns):
        axes.set_yscale("log")
    elif panel.from_zero:
        axes.set_ylim(bottom=0)


def _points(rows: Sequence[Row], column: str) -> list[tuple[int, float]]:
    """(step, value) where the column has a number."""
    return [(row["step"], row[column]) for row in rows if row.get(column) is not None and math.isfinite(row[column])]


def smoothed(values: Sequence[float]) -> list[float]:
    """For each value the mean of it and those before it, SMOOTHED at most."""
    return [
        math.fsum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - SMOOTHED) : i + 1])
    ]


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{name}: training curves</title>
<style>
body {{ margin: 2rem auto; max-width: 70rem; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }}
body {{ background: #fff; color: #333; }}
svg {{ width: 100%; height: auto; }}
</style>
<h1>{name}</h1>
<p>{steps}. Points are steps, lines means over the last {smoothed} steps that have a value.</p>
{svg}
</html>
"""
