"""Colours and strokes: one palette for diagrams, byte views, timings and slides.

Strategy: a picture names *roles* ("the line of an iopub arrow"), never colours. This module says
how each role looks, in light and in dark, and writes the style sheet for it: with CSS variables
for a picture inside a page, which follows the page's theme, and with plain colours for a file.

A channel is never told by its colour alone: each has its own line and its own arrowhead too.
Every colour that text is set in has a contrast of at least 4.5 : 1 on every surface that it may
stand on (WCAG 2.2, success criterion 1.4.3); the tests compute it from the tables below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Theme: TypeAlias = Literal["light", "dark"]
Head: TypeAlias = Literal["filled", "open", "diamond", "double", "dot", "hollow", "chevrons"]


@dataclass(frozen=True, slots=True)
class Channel:
    """How the messages of one channel look.

    Parameters
    ----------
    light, dark
        Its colour in both themes, as ``"#rrggbb"``.
    dash
        Lengths of dashes and gaps along the line, in CSS pixels; empty for a solid line.
    head
        The shape of the arrowhead.
    width
        The width of the line, in CSS pixels.
    looks
        Line and head in words, for the key and for readers who cannot see it.
    """

    light: str
    dark: str
    dash: tuple[float, ...]
    head: Head
    width: float
    looks: str


CHANNELS: Final[dict[str, Channel]] = {
    "shell": Channel("#1257a6", "#86bdf8", (), "filled", 1.7, "solid line, filled head"),
    "iopub": Channel("#9c4300", "#f2a766", (6, 3), "open", 1.7, "dashed line, open head"),
    "stdin": Channel("#6a3fb5", "#c6aaf9", (9, 3, 2, 3), "diamond", 1.7, "dash-dot line, diamond"),
    "control": Channel("#b0123f", "#ff95a8", (), "double", 1.7, "solid line, double head"),
    "heartbeat": Channel("#59616d", "#aab3c0", (1.6, 3.2), "dot", 1.7, "dotted line, round head"),
    "http": Channel("#2a681c", "#8ccf7e", (), "hollow", 1.3, "thin line, hollow head"),
    "websocket": Channel("#9b2777", "#f19ad4", (13, 3), "chevrons", 1.7, "long dashes, two tips"),
    "other": Channel("#3c424d", "#c9ced6", (3, 3), "open", 1.3, "short dashes, open head"),
}  # fmt: skip

# Surfaces and inks. "paper" is what a picture stands on, "wash" and "busy" are tints laid on it.
COLOURS: Final[dict[str, tuple[str, str]]] = {
    "paper": ("#fdfcf9", "#16191f"),
    "wash": ("#f3f1ea", "#20242c"),
    "busy": ("#ffe3ad", "#5a4310"),
    "ink": ("#1d2027", "#eceae4"),
    "muted": ("#5b606b", "#a9adb7"),
    "line": ("#a6a99f", "#5c626e"),
    "rule": ("#dedbd1", "#343a45"),
    "edge": ("#b4820f", "#c99a36"),
    "hover": ("#ebe7da", "#2c323d"),
    # Who holds a conversation, one after another.
    "share-1": ("#1257a6", "#86bdf8"),
    "share-2": ("#b4820f", "#c99a36"),
    "share-3": ("#6a3fb5", "#c6aaf9"),
    # Tints that tell the parts of a message from each other.
    "shade-1": ("#e6eefa", "#1c2940"),
    "shade-2": ("#fbeed8", "#3a2d14"),
    "shade-3": ("#e6f2e2", "#1d2f1b"),
    "shade-4": ("#f7e6ee", "#37202c"),
    "focus": ("#0b57d0", "#a8c7fa"),
}

SHADES: Final = ("shade-1", "shade-2", "shade-3", "shade-4")

_TINT: Final = "tint"  # stands for the colour of the channel that a mark belongs to


@dataclass(frozen=True, slots=True)
class Part:
    """How one kind of mark is stroked and filled; colours by name, ``"tint"`` by channel."""

    stroke: str = ""
    fill: str = ""
    width: float = 1.0
    dash: tuple[float, ...] = ()


# Marks that are lines and shapes. An arrow's line takes dash and width from its channel.
PARTS: Final[dict[str, Part]] = {
    "line": Part(stroke=_TINT, width=1.7),
    "head": Part(fill=_TINT, stroke=_TINT, width=1),
    "barb": Part(stroke=_TINT, width=1.7),
    "hollow": Part(stroke=_TINT, fill="paper", width=1.3),
    "life": Part(stroke="line", width=1),
    "pause": Part(stroke="line", width=1, dash=(1.5, 4)),
    "busy": Part(stroke="edge", fill="busy", width=1),
    "name-box": Part(fill="ink"),
    "veil": Part(fill="none"),
    "band": Part(stroke="rule", fill="wash", width=1),
    "tab": Part(stroke="rule", fill="paper", width=1),
    "note": Part(stroke="edge", fill="paper", width=1),
    "crease": Part(stroke="edge", width=1),
    "tie": Part(stroke="line", width=0.8),
    "wrap": Part(stroke="rule", fill="wash", width=1),
    "ribbon": Part(fill="hover"),
    "break": Part(stroke="line", width=1, dash=(3, 3)),
    **{name: Part(fill=name) for name in ("shade-1", "shade-2", "shade-3", "shade-4")},
    "grid": Part(stroke="rule", width=1),
    "bar": Part(fill=_TINT),
    "bar-failed": Part(stroke=_TINT, fill="paper", width=1.6),
    "share-1": Part(fill="share-1"),
    "share-2": Part(fill="share-2"),
    "share-3": Part(fill="share-3"),
    "dot": Part(fill="ink"),
    "median": Part(stroke="ink", width=2),
    "fold": Part(stroke="muted", width=1.2),
    "hit": Part(fill="none"),
}


@dataclass(frozen=True, slots=True)
class Type:
    """How one kind of text is set: size in CSS pixels, colour by name."""

    size: float
    colour: str = "ink"
    bold: bool = False
    italic: bool = False
    mono: bool = False


TYPES: Final[dict[str, Type]] = {
    "name": Type(13, "paper", bold=True),
    "label": Type(12.5, _TINT, bold=True),
    "detail": Type(12.5, _TINT),
    "time": Type(10.5, "muted"),
    "group": Type(11, "muted", bold=True),
    "remark": Type(12, "ink", italic=True),
    "pausing": Type(11, "muted", italic=True),
    "count": Type(12, "ink", bold=True),
    "title": Type(15, "ink", bold=True),
    "small": Type(11, "muted"),
    "row": Type(12, _TINT),
    "name-row": Type(12.5, "ink", bold=True),
    "code": Type(11.5, "ink", mono=True),
    "faint": Type(11.5, "muted", mono=True),
}

SANS: Final = (
    '-apple-system,BlinkMacSystemFont,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans",'
    "Arial,sans-serif"
)
MONO: Final = 'ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace'


def colour(name: str, theme: Theme) -> str:
    """Return a colour of the palette, channel or surface, as ``"#rrggbb"``."""
    if name in CHANNELS:
        channel = CHANNELS[name]
        return channel.light if theme == "light" else channel.dark
    return COLOURS[name][theme == "dark"]


def luminance(colour: str) -> float:
    """Return the relative luminance of ``"#rrggbb"``, 0 to 1 (WCAG 2.2, "relative luminance")."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, 1 to 21 (WCAG 2.2, "contrast ratio")."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def variables() -> str:
    """Write every colour as a CSS variable that follows the element's ``color-scheme``."""
    names = (*COLOURS, *CHANNELS)
    both = (f"--uh-{n}:light-dark({colour(n, 'light')},{colour(n, 'dark')})" for n in names)
    return ".underhood{" + ";".join(both) + "}"


def marks(scope: str, theme: Theme | None = None) -> str:
    """Write the style sheet of a picture's marks.

    Parameters
    ----------
    scope
        A selector that every rule begins with, as ``".underhood "``; empty in a file of its own.
    theme
        Write plain colours of this theme; None writes the variables that :func:`variables` sets.
    """
    write: Callable[[str], str] = (
        (lambda name: f"var(--uh-{name})") if theme is None else (lambda name: colour(name, theme))
    )
    rules = [f"{scope}svg{{font-family:{SANS};stroke-linejoin:round}}"]
    for name, part in PARTS.items():
        looks = [f"stroke-width:{part.width:g}"] if part.stroke else []
        for what, value in (("stroke", part.stroke), ("fill", part.fill or "none")):
            if value not in ("", _TINT):
                looks.append(f"{what}:{value if value == 'none' else write(value)}")
        if part.dash:
            looks.append("stroke-dasharray:" + " ".join(f"{d:g}" for d in part.dash))
        rules.append(f"{scope}.u-{name}{{{';'.join(looks)}}}")
    for name, style in TYPES.items():
        looks = [f"font-size:{style.size:g}px"]
        if style.colour != _TINT:
            looks.append(f"fill:{write(style.colour)}")
        if style.bold:
            looks.append("font-weight:600")
        if style.italic:
            looks.append("font-style:italic")
        if style.mono:
            looks.append(f"font-family:{MONO}")
        rules.append(f"{scope}.u-{name}{{{';'.join(looks)}}}")
    rules.append(f"{scope}.u-detail{{font-weight:400}}")
    for name, channel in CHANNELS.items():
        own = write(name)
        dash = " ".join(f"{d:g}" for d in channel.dash)
        at = f"{scope}.u-{name} "
        filled = ",".join(f"{at}.u-{part}" for part in ("label", "detail", "row", "head", "bar"))
        rules.append(f"{filled}{{fill:{own}}}")
        parts = ("head", "barb", "hollow", "line", "bar-failed")
        rules.append(f"{','.join(f'{at}.u-{part}' for part in parts)}{{stroke:{own}}}")
        rules.append(
            f"{at}.u-line{{stroke-width:{channel.width:g}"
            + (f";stroke-dasharray:{dash}" if dash else "")
            + "}"
        )
    for anchor in ("middle", "end"):
        rules.append(f"{scope}.u-{anchor}{{text-anchor:{anchor}}}")
    return "\n".join(rules)
