"""A chart of numbers, drawn by matplotlib in the colours of the course.

Strategy: what a chart shows is matplotlib's business, so a chapter gets plain axes to draw on. How
it looks is the palette's: the axes are set up in its light colours, and in the SVG that matplotlib
writes each of them is replaced by the CSS variable of its name, so the chart follows the page's
theme like every other picture. Text stays text.

>>> chart = Chart("Squares", description="The squares of 0 to 3: 0, 1, 4 and 9.")
>>> chart.axes.plot([0, 1, 2, 3], [0, 1, 4, 9])
>>> chart
"""

from __future__ import annotations

import io
import re
from functools import cached_property
from html import escape
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from underhood.draw.page import Picture
from underhood.draw.palette import CHANNELS, COLOURS, SANS, Theme, colour
from underhood.draw.scene import Scene, attributes
from underhood.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH: Final = 668
"""How wide a chart is, in CSS pixels."""

_CYCLE: Final = ("shell", "iopub", "http", "stdin", "control", "websocket", "heartbeat")

# Of two names for one colour, either will do: they agree in the dark, too. What is drawn later, a
# legend or a note, comes in matplotlib's own black, white and grey, unless it is told otherwise.
_NAMES: Final = {
    **{colour(name, "light"): name for name in (*COLOURS, *CHANNELS)},
    "#000000": "ink",
    "#cccccc": "rule",
    "#ffffff": "paper",
}

_numbers = count()  # of charts, so that no two on a page share an id


class Chart(Picture):
    """Numbers on axes.

    Parameters
    ----------
    title, caption
        The heading, and what to look for.
    description
        What the chart shows, for readers who cannot see it.
    height
        In CSS pixels; the width is :data:`WIDTH`.

    Attributes
    ----------
    axes : matplotlib.axes.Axes
        Where to draw, until the chart is shown. Lines and areas take the palette's colours in
        turn; for another, see :func:`underhood.draw.palette.colour` (light).
    """

    axes: Axes

    def __init__(
        self, title: str, *, description: str, caption: str = "", height: float = 320
    ) -> None:
        import matplotlib
        from matplotlib.figure import Figure

        super().__init__(
            kind="chart",
            title=title,
            description=description,
            caption=caption,
            scene=Scene(WIDTH, height, ()),
            trace=Trace(()),
            text=description,
            lists=False,
        )
        with matplotlib.rc_context(_settings()):
            self._figure = Figure(
                figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained", frameon=False
            )
            self.axes = self._figure.add_subplot()

    @cached_property
    def svg(self) -> str:
        """The drawing as an ``<svg>`` element that takes its colours from the page."""
        import matplotlib

        buffer = io.StringIO()
        with matplotlib.rc_context(_settings()):
            self._figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
        written = buffer.getvalue()
        inside = written[written.index(">", written.index("<svg")) + 1 :]
        # Matplotlib's own <style> would reach the whole page, and its ids repeat in every figure.
        inside = re.sub(r"\s*<(style|metadata)\b.*?</\1>", "", inside, flags=re.DOTALL)
        own = f"uh-chart-{next(_numbers)}-"
        inside = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{own}", inside)
        sans = SANS.replace('"', "'")
        inside = re.sub(r"(font: [^;\"]*?px |font-family: )[^;\"]*", rf"\g<1>{sans}", inside)
        inside = re.sub(r"#[0-9a-f]{6}\b", _variable, inside)
        assert self._scene is not None
        size = attributes(
            width=f"{self._scene.width:g}",
            height=f"{self._scene.height:g}",
            viewBox=f"0 0 {self._scene.width:g} {self._scene.height:g}",
            role="img",
            style="fill:var(--uh-ink)",  # matplotlib leaves out what is black
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg"{size}><title>{escape(self.title, False)}'
            f"</title><desc>{escape(self.description, False)}</desc>{inside.strip()}"
        )

    def save(self, path: str | Path, *, theme: Theme = "light", scale: float = 2) -> Path:
        """Write the drawing to a file, as SVG, or in light colours as PNG or PDF.

        Raises
        ------
        ValueError
            If the suffix is none of these, or the colours cannot be had.
        """
        path = Path(path)
        if path.suffix == ".svg":
            drawn = re.sub(r"var\(--uh-([\w-]+)\)", lambda m: colour(m[1], theme), self.svg)
            path.write_text(drawn, encoding="utf-8")
        elif path.suffix in (".png", ".pdf") and theme == "light":
            self._figure.savefig(path, dpi=72 * scale, facecolor=colour("paper", "light"))
        else:
            raise ValueError(f"cannot save as {theme} {path.suffix!r}; use .svg, .png or .pdf")
        return path


_NO_METADATA: Final = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def _settings() -> Any:
    """Return the settings of matplotlib that make a chart look like the other pictures."""
    from cycler import cycler

    def light(name: str) -> str:
        return colour(name, "light")

    return {
        "axes.axisbelow": True,
        "axes.edgecolor": light("line"),
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": light("ink"),
        "axes.labelsize": 12.5,
        "axes.prop_cycle": cycler(color=[light(name) for name in _CYCLE]),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": light("paper"),
        "font.size": 12,
        "grid.color": light("rule"),
        "svg.fonttype": "none",
        "svg.hashsalt": "underhood",
        "xtick.color": light("line"),
        "xtick.labelcolor": light("muted"),
        "ytick.color": light("line"),
        "ytick.labelcolor": light("muted"),
    }


def _variable(found: re.Match[str]) -> str:
    name = _NAMES.get(found[0])
    return f"var(--uh-{name})" if name else found[0]
