"""Matplotlib figures as inline SVG: they take text and line colours from the page, in light and in dark.

Figures are drawn with stand-in colours, each of which becomes a CSS variable; text stays text.
"""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSS_PIXELS = 1.42  # a point of the figure on the page

_STAND_IN = "#0a0b"
INK, MUTED, GRID, PAPER = (f"{_STAND_IN}0{i}" for i in range(4))
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--paper"}
SERIES = [f"{_STAND_IN}1{i}" for i in range(8)]
_VARIABLES |= {colour: f"--series-{i}" for i, colour in enumerate(SERIES)}


def css_variable(colour: str) -> str:
    """The page's name of a stand-in colour."""
    return _VARIABLES[colour]


@contextmanager
def drawing() -> Iterator[None]:
    """The settings that every figure is drawn with."""
    import matplotlib

    settings: Any = {
        "axes.axisbelow": True,
        "axes.edgecolor": MUTED,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.labelsize": 9,
        "axes.linewidth": 0.8,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": INK,
        "axes.titlesize": 9.5,
        "figure.facecolor": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "legend.labelcolor": INK,
        "lines.linewidth": 1.4,
        "svg.fonttype": "none",
        "svg.hashsalt": "epic-search",
        "text.color": INK,
        "text.parse_math": False,  # names of tasks may hold dollar signs
        "xtick.color": MUTED,
        "xtick.labelcolor": INK,
        "xtick.labelsize": 8.5,
        "ytick.color": MUTED,
        "ytick.labelcolor": INK,
        "ytick.labelsize": 8.5,
    }
    with matplotlib.rc_context(settings):
        yield


def inline_svg(figure: "Figure", *, name: str, description: str) -> str:
    """The figure as an <svg> element; `name` keeps its ids apart from those of other figures on the page."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=metadata, transparent=True, bbox_inches="tight", pad_inches=0.05)
    svg = buffer.getvalue()
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box, svg[:300]
    width = float(box[1].split()[2])
    body = svg[svg.index(">", box.end()) + 1 :]
    body = re.sub(r"<style.*?</style>", "", body, count=1, flags=re.DOTALL)  # would hold for the whole page
    body = re.sub(r'(\sid="|url\(#|href="#)', rf"\1{name}-", body)
    body = re.sub(r" font-family: [^;]*;", "", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    label = html.escape(description)
    size = f"max-width: {width * CSS_PIXELS:.0f}px"
    return f'<svg {spaces} viewBox="{box[1]}" role="img" aria-label="{label}" style="{size}">{body}'
