"""The curves of a run as figures: losses, accuracies, gradient norm, learning rate and speed, by step."""

import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epic_search.errors import UserError
from epic_search.training.alarms import Row
from epic_search.training.status import read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SVG, PAGE = "curves.svg", "curves.html"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's, which colour-blind readers can tell apart
INK, PALE = "#333333", 0.22
MOST_SHAPES = 1000  # points that are drawn one by one; more become a picture inside the figure
SMOOTHED = 20  # steps to the mean that a strong line shows


@dataclass(frozen=True)
class Panel:
    """One figure of the page: columns of the log with their names in the legend.

    `scattered`: steps differ by what they drew, so that a mean is needed to see anything.
    """

    title: str
    columns: dict[str, str]
    logarithmic: bool = False
    scattered: bool = True


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
    svg = _draw(rows)
    steps = f"{rows[-1]['step']} of {recipe.optimizer.steps} steps"
    page = _PAGE.format(name=html.escape(recipe.name), steps=steps, smoothed=SMOOTHED, svg=svg[svg.index("<svg") :])
    try:
        (folder / SVG).write_text(svg, encoding="utf-8")
        (folder / PAGE).write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"the curves cannot be written into {folder}: {error.strerror}") from error
    return folder / SVG, folder / PAGE


def _draw(rows: Sequence[Row]) -> str:
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
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(11, 9), layout="constrained")
        for axes, panel in zip(figure.subplots(3, 2, sharex=True).flat, PANELS, strict=True):
            _draw_panel(axes, panel, rows)
        for axes in figure.axes[-2:]:
            axes.set_xlabel("step")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _draw_panel(axes: "Axes", panel: Panel, rows: Sequence[Row]) -> None:
    axes.set_title(panel.title)
    for (column, name), colour in zip(panel.columns.items(), COLOURS, strict=False):
        points = [
            (row["step"], row[column]) for row in rows if row.get(column) is not None and math.isfinite(row[column])
        ]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        if panel.scattered:
            many = len(points) > MOST_SHAPES
            axes.plot(steps, values, ".", color=colour, alpha=PALE, markersize=4, rasterized=many)
        axes.plot(steps, smoothed(values) if panel.scattered else values, color=colour, label=name)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend()
    if panel.logarithmic and any((row.get(column) or 0) > 0 for row in rows for column in panel.columns):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


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
