"""A scene: the marks that a picture is made of, and the matplotlib artist that draws them.

Strategy: a picture lays out *marks* (lines, shapes, texts) in CSS pixels, each with the role it
plays; :mod:`underhood.draw.palette` knows what a role looks like. One matplotlib artist draws the
whole scene. On matplotlib's SVG back end it writes one short element per mark, with a class
instead of a style, so that a page can colour it, and one element per message, so that a page can
address it: an artist per mark would cost seven times the time and four times the bytes. On every
other back end (Agg for PNG, PDF) it draws the same marks through the renderer's own calls.

Text is measured in DejaVu Sans, which matplotlib brings along and which is among the widest
sans-serif faces in use: what has room in it has room in the reader's font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias
from unicodedata import combining, east_asian_width

from matplotlib.artist import Artist
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import LoadFlags
from matplotlib.path import Path as MatplotlibPath
from matplotlib.transforms import Affine2D

from underhood.draw.palette import CHANNELS, PARTS, TYPES, Theme, colour, marks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point: TypeAlias = tuple[float, float]
Anchor: TypeAlias = Literal["start", "middle", "end"]

# ---- the marks


class Line(NamedTuple):
    """Straight strokes: one polyline per item of ``strokes``; closed ones make a shape."""

    part: str
    strokes: tuple[tuple[Point, ...], ...]
    tint: str = ""
    closed: bool = False


class Box(NamedTuple):
    """A rectangle with corners rounded by ``r``; a circle when it is all corner."""

    part: str
    x: float
    y: float
    width: float
    height: float
    r: float = 0
    tint: str = ""


class Text(NamedTuple):
    """A line of text; ``more`` follows on the same line, set in the type ``more_style``."""

    style: str
    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    tint: str = ""
    more: str = ""
    more_style: str = "detail"


class Open(NamedTuple):
    """Begin an element around the marks that follow (SVG only)."""

    tag: str
    attributes: str


class Title(NamedTuple):
    """What the element around it is, in words (SVG only)."""

    text: str


class Close(NamedTuple):
    """End the element that the matching :class:`Open` began."""

    tag: str


Mark: TypeAlias = Line | Box | Text | Open | Title | Close


@dataclass(frozen=True, slots=True)
class Scene:
    """Marks on a ground of ``width`` by ``height`` CSS pixels, painted in their order.

    The marks may be made each time that somebody goes through them: to keep those of a large
    picture costs Python's garbage collector more than making them.
    """

    width: float
    height: float
    marks: Iterable[Mark]


# ---- text


@cache
def _advance(character: str, bold: bool, mono: bool) -> float:
    """Return the width of one character, in em."""
    if combining(character):
        return 0.0
    if east_asian_width(character) in "WF":
        return 1.05  # not in DejaVu; such faces are set on a square
    font = _font(bold, mono)
    return float(
        font.load_char(ord(character), flags=LoadFlags.NO_HINTING).linearHoriAdvance / 65536 / _EM
    )


_EM: Final = 100  # the size at which characters are measured, in pixels


@cache
def _font(bold: bool, mono: bool) -> Any:
    family = "DejaVu Sans Mono" if mono else "DejaVu Sans"
    font = get_font(findfont(FontProperties(family=[family], weight="bold" if bold else "normal")))
    font.set_size(_EM, 72)
    return font


@cache
def measure(text: str, style: str) -> float:
    """Return the width of ``text`` in a type of the palette, in CSS pixels."""
    look = TYPES[style]
    return look.size * sum(_advance(c, look.bold, look.mono) for c in text)


_BREAKS: Final = re.compile(r"(?<=[\s/_\-.:,;=&?])")


@cache
def wrap(text: str, style: str, width: float, lines: int = 3) -> tuple[str, ...]:
    """Break ``text`` into at most ``lines`` lines no wider than ``width`` CSS pixels.

    Lines break after spaces and punctuation, inside a word only where that does not help. What
    does not fit in the last line loses its middle (``…``), since paths differ at their ends.
    """
    if measure(text, style) <= width:
        return (text,)
    found: list[str] = [""]
    for piece in _BREAKS.split(text):
        rest = piece
        while rest:
            if measure((found[-1] + rest).rstrip(), style) <= width:
                found[-1] += rest
                break
            if found[-1]:
                found.append("")
                continue
            cut = max(1, _fitting(rest, style, width))
            found[-1], rest = rest[:cut], rest[cut:]
            if rest:
                found.append("")
    if len(found) > lines:
        rest = "".join(found[lines - 1 :]).strip()
        tail = rest[::-1][: _fitting(rest[::-1], style, width * 0.55)][::-1]
        head = rest[: _fitting(rest, style, width - measure("…" + tail, style))]
        found[lines - 1 :] = [f"{head}…{tail}"]
    return tuple(line.strip() for line in found if line.strip())


def _fitting(text: str, style: str, width: float) -> int:
    """Return how many characters of ``text`` fit into ``width``."""
    used = 0.0
    for count, character in enumerate(text):
        used += measure(character, style)
        if used > width:
            return count
    return len(text)


# ---- drawing

_NO_METADATA: Final = {"Date": None, "Creator": None, "Format": None, "Type": None}
_PLACE: Final = "underhood-scene"
_EMPTY_GROUP: Final = re.compile(rf'<g id="{_PLACE}"\s*/>|<g id="{_PLACE}">\s*</g>')


class SceneArtist(Artist):
    """Draws a scene on any matplotlib back end."""

    def __init__(self, scene: Scene, theme: Theme = "light") -> None:
        super().__init__()
        self._scene, self._theme = scene, theme

    def draw(self, renderer: Any) -> None:
        """Draw the marks; on the SVG back end, leave a place for them."""
        is_svg: bool = isinstance(renderer, RendererSVG)
        if is_svg:
            # XML through the renderer costs more than everything else together.
            renderer.open_group(_PLACE, gid=_PLACE)
            renderer.close_group(_PLACE)
            return
        scale = renderer.points_to_pixels(1.0)
        flip = Affine2D().scale(scale, -scale).translate(0, self._scene.height * scale)
        for mark in self._scene.marks:
            if isinstance(mark, Text):
                self._draw_text(renderer, mark, scale)
            elif isinstance(mark, (Line, Box)):
                self._draw_path(renderer, mark, flip)

    def _draw_path(self, renderer: Any, mark: Line | Box, flip: Affine2D) -> None:
        part, channel = PARTS[mark.part], CHANNELS.get(mark.tint)
        fill, stroke = self._colour(part.fill, mark.tint), self._colour(part.stroke, mark.tint)
        width, dash = part.width, part.dash
        if mark.part == "line" and channel:
            width, dash = channel.width, channel.dash
        context = renderer.new_gc()
        context.set_foreground(stroke or "none")
        context.set_linewidth(width if stroke else 0)
        if dash:
            context.set_dashes(0, dash)
        context.set_joinstyle("round")
        rgb = _rgb(fill) if fill else None
        renderer.draw_path(context, _outline(mark), flip, rgb)
        context.restore()

    def _draw_text(self, renderer: Any, mark: Text, scale: float) -> None:
        pieces = [(mark.style, mark.text)] + ([(mark.more_style, mark.more)] if mark.more else [])
        widths = [measure(text, style) for style, text in pieces]
        x = mark.x - {"start": 0.0, "middle": 0.5, "end": 1.0}[mark.anchor] * sum(widths)
        y = renderer.height - mark.y * scale if renderer.flipy() is False else mark.y * scale
        for (style, text), width in zip(pieces, widths, strict=True):
            look = TYPES[style]
            font = FontProperties(
                family=["DejaVu Sans Mono" if look.mono else "DejaVu Sans"],
                size=look.size,
                weight="bold" if look.bold else "normal",
                style="italic" if look.italic else "normal",
            )
            context = renderer.new_gc()
            context.set_foreground(self._colour(look.colour, mark.tint))
            renderer.draw_text(context, x * scale, y, text, font, 0)
            context.restore()
            x += width

    def _colour(self, name: str, tint: str) -> str:
        if name in ("", "none"):
            return ""
        return colour(tint or "other" if name == "tint" else name, self._theme)


def _rgb(colour: str) -> tuple[float, float, float]:
    return (int(colour[1:3], 16) / 255, int(colour[3:5], 16) / 255, int(colour[5:7], 16) / 255)


def _outline(mark: Line | Box) -> MatplotlibPath:
    """Return the mark as a matplotlib path, in CSS pixels with y downwards."""
    if isinstance(mark, Box):
        x, y, w, h, r = mark.x, mark.y, mark.width, mark.height, mark.r
        k = r * 0.44772  # control points of a quarter circle
        move, line, curve = MatplotlibPath.MOVETO, MatplotlibPath.LINETO, MatplotlibPath.CURVE4
        corners = [
            ((x + r, y), move), ((x + w - r, y), line),
            ((x + w - k, y), curve), ((x + w, y + k), curve), ((x + w, y + r), curve),
            ((x + w, y + h - r), line),
            ((x + w, y + h - k), curve), ((x + w - k, y + h), curve), ((x + w - r, y + h), curve),
            ((x + r, y + h), line),
            ((x + k, y + h), curve), ((x, y + h - k), curve), ((x, y + h - r), curve),
            ((x, y + r), line),
            ((x, y + k), curve), ((x + k, y), curve), ((x + r, y), curve),
            ((x + r, y), MatplotlibPath.CLOSEPOLY),
        ]  # fmt: skip
        return MatplotlibPath([p for p, _ in corners], [c for _, c in corners])
    vertices: list[Point] = []
    codes: list[Any] = []
    for stroke in mark.strokes:
        vertices += stroke
        codes += [MatplotlibPath.MOVETO] + [MatplotlibPath.LINETO] * (len(stroke) - 1)
        if mark.closed:
            vertices.append(stroke[0])
            codes.append(MatplotlibPath.CLOSEPOLY)
    return MatplotlibPath(vertices, codes)


def figure(scene: Scene, theme: Theme = "light", *, ground: bool = False) -> Figure:
    """Return a matplotlib figure that shows the scene, one point to the CSS pixel."""
    # Here, because importing it takes longer than drawing a hundred messages, and SVG needs none.
    from matplotlib.figure import Figure

    made = Figure(figsize=(scene.width / 72, scene.height / 72), dpi=72)
    made.patch.set_visible(ground)
    made.patch.set_facecolor(colour("paper", theme))
    made.add_artist(SceneArtist(scene, theme))
    return made


def svg(scene: Scene, *, title: str, description: str) -> str:
    """Return the scene as an ``<svg>`` element without colours of its own.

    Parameters
    ----------
    title, description
        What a screen reader says.
    """
    buffer = io.StringIO()
    svg_renderer: Any = RendererSVG
    renderer = svg_renderer(scene.width, scene.height, buffer, metadata=_NO_METADATA)
    SceneArtist(scene).draw(renderer)
    renderer.finalize()
    drawn = buffer.getvalue()
    # Matplotlib's own <style> would reach the whole page, and points are not pixels in one.
    shell = drawn[drawn.index(">", drawn.index("<svg")) + 1 :]
    shell = re.sub(r"\s*<(defs|metadata)>.*?</\1>", "", shell, flags=re.DOTALL)
    inside = _EMPTY_GROUP.sub(lambda _: "".join(_elements(scene.marks)), shell, count=1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_n(scene.width)}" '
        f'height="{_n(scene.height)}" viewBox="0 0 {_n(scene.width)} {_n(scene.height)}" '
        'role="group">'
        f"<title>{escape(title, False)}</title><desc>{escape(description, False)}</desc>"
        f"{inside.strip()}"
    )


def fragment(width: float, height: float, found: Iterable[Mark]) -> str:
    """Return a small drawing that says nothing which the text beside it does not say."""
    return (
        f'<svg width="{_n(width)}" height="{_n(height)}" aria-hidden="true">'
        f"{''.join(_elements(found))}</svg>"
    )


def styled(drawn: str, theme: Theme) -> str:
    """Give an ``<svg>`` made by :func:`svg` colours of its own, for a file that stands alone."""
    ground = f'<rect width="100%" height="100%" fill="{colour("paper", theme)}"/>'
    end = drawn.index("</desc>") + len("</desc>")
    return f"{drawn[:end]}<style>{marks('', theme)}</style>{ground}{drawn[end:]}\n"


def _n(value: float) -> str:
    """Write a coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def _elements(found: Iterable[Mark]) -> Iterable[str]:
    """Write each mark as an SVG element."""
    for mark in found:
        if isinstance(mark, Text):
            anchor = "" if mark.anchor == "start" else f" u-{mark.anchor}"
            more = (
                f'<tspan class="u-{mark.more_style}">{escape(mark.more, False)}</tspan>'
                if mark.more
                else ""
            )
            yield (
                f'<text class="u-{mark.style}{anchor}" x="{_n(mark.x)}" y="{_n(mark.y)}">'
                f"{escape(mark.text, False)}{more}</text>"
            )
        elif isinstance(mark, Line):
            yield f'<path class="u-{mark.part}" d="{_path_data(mark)}"/>'
        elif isinstance(mark, Box):
            r = f' rx="{_n(mark.r)}"' if mark.r else ""
            yield (
                f'<rect class="u-{mark.part}" x="{_n(mark.x)}" y="{_n(mark.y)}" '
                f'width="{_n(mark.width)}" height="{_n(mark.height)}"{r}/>'
            )
        elif isinstance(mark, Title):
            yield f"<title>{escape(mark.text, False)}</title>"
        elif isinstance(mark, Open):
            yield f"<{mark.tag}{mark.attributes}>"
        else:
            yield f"</{mark.tag}>\n"


def _path_data(mark: Line) -> str:
    """Write strokes in SVG's path language."""
    out: list[str] = []
    for stroke in mark.strokes:
        x, y = stroke[0]
        out.append(f"M{_n(x)} {_n(y)}")
        for to_x, to_y in stroke[1:]:
            if to_y == y:
                out.append(f"H{_n(to_x)}")
            elif to_x == x:
                out.append(f"V{_n(to_y)}")
            else:
                out.append(f"L{_n(to_x)} {_n(to_y)}")
            x, y = to_x, to_y
        if mark.closed:
            out.append("z")
    return "".join(out)


def attributes(**values: str | int | None) -> str:
    """Write attributes of an element, each with a space before it; ``_`` stands for ``-``."""
    return "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for name, value in values.items()
        if value is not None
    )
