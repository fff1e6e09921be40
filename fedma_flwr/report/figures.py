"""Matplotlib's drawings as SVG inside a page: its colours and its letters follow the page's."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.2  # inches: a phone's width
#: Stand for the page's own colours, which differ in light and dark.
INK, LINES, PAPER = "#010203", "#040506", "#070809"
SERIES = tuple(f"#0a0b{place:02x}" for place in range(8))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
#: What stands out on light and dark alike.
GOOD, BAD = "#2a9d6f", "#d1495b"
_COLOURS = {
    INK: "currentColor",
    LINES: "var(--lines)",
    PAPER: "var(--paper)",
    **{colour: f"var(--s{place})" for place, colour in enumerate(SERIES)},
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are nobody's formulae
    "font.size": 9,
    "image.composite_image": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), LINES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}
_SALT = itertools.count()


@contextmanager
def drawing(height: float, alt: str, width: float = WIDTH) -> Iterator[Drawing]:
    """A figure in the page's style; its `svg` is there when the context has ended.

    Parameters
    ----------
    height, width : float
        In inches.
    alt : str
        What it shows, for who cannot see it.

    Raises
    ------
    ImportError
        If there is no matplotlib; says how to get it.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('a report needs matplotlib: pip install "fedma-flwr[report]"') from error
    style: Any = {**_STYLE, "svg.hashsalt": f"fedma-{next(_SALT)}"}
    with mpl.rc_context(style):
        made = Drawing(Figure(figsize=(width, height), layout="constrained"), alt)
        yield made
        made.finish()


class Drawing:
    """A figure, and the SVG that it becomes.

    Parameters
    ----------
    figure : Figure
        To be drawn on.
    alt : str
        What it shows; already escaped for an attribute.
    """

    def __init__(self, figure: Figure, alt: str) -> None:
        self.figure, self.alt, self.svg = figure, alt, ""

    def axes(self, x: str = "", y: str = "") -> Axes:
        """The one pair of axes, with a grid and labels."""
        axes = self.figure.subplots()
        axes.grid(linewidth=0.6)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        return axes

    def finish(self) -> None:
        """Make the SVG."""
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        self.figure.savefig(buffer, format="svg", metadata=nothing)
        self.svg = _inline(buffer.getvalue(), self.alt)


def _inline(svg: str, alt: str) -> str:
    """An SVG file as an element of a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[A-Za-z0-9_.]+">', "<g>", svg)  # else several elements have one id
    svg = re.sub(r"font: ((?:bold )?[0-9.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    for stands_for, colour in _COLOURS.items():
        svg = svg.replace(stands_for, colour)
    size = re.search(r'<svg[^>]*?width="([0-9.]+)pt"', svg)
    width = float(size[1]) * 4 / 3 if size else 0.0
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    label = f'<svg role="img" aria-label="{alt}" style="max-width: {width:.0f}px"'
    return svg.replace("<svg", label, 1).strip()
