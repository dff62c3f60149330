"""Bytes explained: every byte of a message, what it is part of, and what that is for.

Strategy: on a page, the tree of fields is a tree of ``<details>``, each row with its label, its
bytes in hexadecimal and as text, shaded by the part it belongs to, and opening to one sentence and
a link into the specification. It needs no script. The drawing, for slides and files, shows the same
rows, opened as far as they fit. Several messages side by side are drawn as columns of parts, with
a ribbon where two wrappings carry the same part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from underhood.capture.store import Capture, Connection
from underhood.dissect.spans import Span
from underhood.draw import words
from underhood.draw.fields import Field, as_hex, as_html, as_text, field
from underhood.draw.page import Picture
from underhood.draw.palette import SHADES
from underhood.draw.scene import Box, Line, Mark, Scene, Text, measure, wrap

if TYPE_CHECKING:
    from underhood.trace import Message, Trace

_PARTS: Final = (
    "channel", "signature", "header", "parent_header", "metadata", "content", "buffer", "buffers",
)  # fmt: skip
_ACROSS: Final = 16  # bytes in a line of the drawing
_LINES: Final = 4  # lines of one row of the drawing; the bytes after them are counted only
_ROWS: Final = 60  # rows of the drawing of one message

# Distances in the drawing, in CSS pixels.
_LEFT: Final = 10
_HEX: Final = 190  # where hexadecimal begins
_LINE: Final = 16
_COLUMN: Final = 160  # least width of one of several messages
_BETWEEN: Final = 42  # room for ribbons


def octets(
    *subjects: Message | Trace | Connection,
    title: str | None = None,
    caption: str | None = None,
) -> Picture:
    """Show bytes in hexadecimal and as text, with every field labelled and explained.

    Parameters
    ----------
    subjects
        One message; or several, to compare how one content is wrapped in each; or a trace, for all
        of its messages; or a connection, for everything that passed on it.
    title
        The heading; made from the subjects if not given.
    caption
        What to look for.

    Raises
    ------
    ValueError
        If there is nothing to show.
    """
    from underhood.trace import Trace

    found: list[Message] = []
    rest: list[_Leftover] = []
    trace: Trace | None = None
    for subject in subjects:
        if isinstance(subject, Connection):
            trace = Trace.of(Capture((subject,)))
            found += trace
            rest += _leftovers(subject)
        elif isinstance(subject, Trace):
            trace = subject
            found += subject
        else:
            found.append(subject)
    if not found and not rest:
        raise ValueError("there is nothing to show: give a message, a trace or a connection")
    if trace is None or len(subjects) > 1:
        trace = Trace(found)
    compared = len(subjects) > 1 and len(found) == len(subjects)
    clock = words.Clock(found)
    blocks = [
        _block(
            clock.sentence(m) if len(found) > 1 else _sentence(m),
            field(m.span, m.data),
            m.data,
            level=1 if len(found) <= len(subjects) else 0,
        )
        for m in found
    ]
    blocks += [_block(left.what, field(left.span, left.data), left.data, level=0) for left in rest]
    heading = title or _title(found, compared)
    return Picture(
        kind="octets",
        title=heading,
        description=_description(found, rest),
        scene=_compared(found) if compared else _dump(found, rest),
        trace=trace,
        caption=caption or "",
        body=f'<div class="uh-octets">{"".join(blocks)}</div>',
        text="\n\n".join(_plain(field(m.span, m.data), m.data) for m in found),
        draws=compared,
        lists=False,
    )


@dataclass(frozen=True, slots=True)
class _Leftover:
    """Bytes of a connection that belong to no message."""

    what: str
    span: Span
    data: bytes


def _leftovers(connection: Connection) -> Iterator[_Leftover]:
    from underhood.capture.store import DIRECTIONS
    from underhood.dissect import dissect

    streams = {d: connection.stream(d) for d in DIRECTIONS}
    dissection = dissect(streams)
    for direction in DIRECTIONS:
        units = {unit.start for unit in dissection.units(direction)}
        link = connection.link
        ends = (link.client, link.server) if direction == ">" else (link.server, link.client)
        for span in dissection.spans(direction):
            if span.start not in units:
                said = f"{link.channel}, {ends[0]} to {ends[1]}, {span.label}"
                yield _Leftover(said, span, streams[direction][span.start : span.end])


def _sentence(message: Message) -> str:
    return (
        f"{words.channel(message)}, {message.sender} to {message.receiver}, {words.says(message)}"
    )


def _title(found: Sequence[Message], compared: bool) -> str:
    if compared:
        return f"{words.says(found[0])}, in {len(found)} wrappings"
    if len(found) == 1:
        return f"{words.says(found[0])}, byte by byte"
    return f"{words.messages(len(found))}, byte by byte"


def _description(found: Sequence[Message], rest: Sequence[_Leftover]) -> str:
    said = [f"{_sentence(m)}, {words.octets(m.size)}" for m in found[:6]]
    said += [f"{left.what}, {words.octets(left.span.length)}" for left in rest]
    more = f"; and {len(found) - 6} more" if len(found) > 6 else ""
    return f"The bytes of {'; '.join(said)}{more}."


# ---- HTML and text


def _block(heading: str, found: Field, data: bytes, *, level: int) -> str:
    return (
        f'<div class="uh-block"><p class="uh-what">{escape(heading)}, '
        f"{words.octets(found.length)}</p>{as_html(found, data, level=level)}</div>"
    )


def _plain(found: Field, data: bytes) -> str:
    """Set a message in plain text: offset, bytes, text, label."""
    lines = []
    for row in _rows(found):
        label = f"{row.label} {row.value}".rstrip()
        for n in range(0, min(row.length, _LINES * _ACROSS), _ACROSS):
            part = data[row.start + n : min(row.start + n + _ACROSS, row.end)]
            lines.append(
                f"{row.start + n:6}  {as_hex(part):{3 * _ACROSS}}  {as_text(part):{_ACROSS}}  "
                f"{label if not n else ''}".rstrip()
            )
        if row.length > _LINES * _ACROSS:
            lines.append(f"        … {words.octets(row.length - _LINES * _ACROSS)} more")
    return "\n".join(lines)


def _rows(found: Field) -> list[Field]:
    """Return the rows to show at once: opened level by level, as long as they are few enough."""
    rows = [found]
    while True:
        opened = [child for row in rows for child in (row.children or (row,))]
        if len(opened) == len(rows) or len(opened) > _ROWS:
            return rows
        rows = opened


# ---- the drawing of messages, byte by byte


def _dump(found: Sequence[Message], rest: Sequence[_Leftover]) -> Scene:
    """Draw the bytes of messages, row by row."""
    marks: list[Mark] = []
    y = 10.0
    size = measure("0", "code")
    text_at = _HEX + size * (3 * _ACROSS - 1) + 14
    width = text_at + size * _ACROSS + 14
    subjects: list[tuple[str, Field, bytes]] = [
        (_sentence(m), field(m.span, m.data), m.data) for m in found
    ]
    subjects += [(left.what, field(left.span, left.data), left.data) for left in rest]
    for heading, top, data in subjects:
        for line in wrap(heading, "group", width - 2 * _LEFT):
            marks.append(Text("group", _LEFT, y + 12, line))
            y += _LINE
        y += 4
        tops = [child.start for child in top.children] or [0]
        for row in _rows(top):
            shade = SHADES[sum(start <= row.start for start in tops) % len(SHADES)]
            labels = wrap(f"{row.label} {row.value}".strip(), "small", _HEX - _LEFT - 52, 3)
            shown = range(0, min(row.length, _LINES * _ACROSS), _ACROSS)
            more = row.length - _LINES * _ACROSS
            lines = max(len(labels), len(shown) + (more > 0), 1)
            marks.append(Box(shade, _LEFT, y, width - 2 * _LEFT, lines * _LINE))
            marks.append(Text("time", _LEFT + 34, y + 12, str(row.start), "end"))
            marks += [
                Text("small", _LEFT + 44, y + 12 + n * _LINE, label)
                for n, label in enumerate(labels)
            ]
            for n, offset in enumerate(shown):
                part = data[row.start + offset : min(row.start + offset + _ACROSS, row.end)]
                marks.append(Text("code", _HEX, y + 12 + n * _LINE, as_hex(part)))
                marks.append(Text("code", text_at, y + 12 + n * _LINE, as_text(part)))
            if more > 0:
                at = y + 12 + len(shown) * _LINE
                marks.append(Text("small", _HEX, at, f"… and {words.octets(more)} more"))
            y += lines * _LINE + 1
        y += 16
    return Scene(round(width), round(y - 4), tuple(marks))


# ---- the drawing of one content in several wrappings


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the parts that a wrapping consists of; ``name`` is empty for what only wraps."""

    name: str
    label: str
    value: Any
    data: bytes
    lines: tuple[str, ...]


def _parts(message: Message, room: float) -> Iterator[_Part]:
    """Tile a message with the parts that other wrappings have too, and what lies between."""
    found = sorted(_named(message.span), key=lambda item: item[1].start)
    data, base = message.data, message.span.start
    place = message.span.start
    for name, span in [*found, ("", Span(message.span.end, 0, ""))]:
        if span.start > place:
            part = data[place - base : span.start - base]
            yield _Part("", "framing", None, part, (_ellipsis(as_hex(part), room),))
        if span.length:
            part = data[span.start - base : span.end - base]
            yield _Part(name, name.replace("_", " "), span.value, part, _preview(span, part, room))
        place = max(place, span.end)


def _named(span: Span) -> Iterator[tuple[str, Span]]:
    """Find the outermost spans that are a part of a Jupyter message."""
    name = span.key.rpartition(".")[2]
    prefix = span.key.rpartition(".")[0]
    if name in _PARTS and prefix in ("jupyter", "jupyter.websocket", "jupyter.v1"):
        yield name, span
    else:
        for child in span.children:
            yield from _named(child)


def _preview(span: Span, data: bytes, room: float) -> tuple[str, ...]:
    """Return the first lines of a part, decoded."""
    import json

    value = span.value
    if isinstance(value, (dict, list)):
        text = json.dumps(value, ensure_ascii=False)
    elif isinstance(value, str):
        text = value
    else:
        text = as_hex(data)
    return wrap(words.plain(text), "code", room, 3)


def _ellipsis(text: str, room: float) -> str:
    return wrap(text, "code", room, 1)[0] if text else ""


def _compared(found: Sequence[Message]) -> Scene:
    """Draw messages as columns of parts, with ribbons between equal ones."""
    width = max(_COLUMN, (666 - _BETWEEN * (len(found) - 1)) / len(found))
    marks: list[Mark] = []
    columns: list[dict[str, tuple[_Part, float, float]]] = []
    bottom = 0.0
    for n, message in enumerate(found):
        x, y = 1 + n * (width + _BETWEEN), 10.0
        for line in wrap(_wrapping(message), "count", width, 3):
            marks.append(Text("count", x, y + 12, line))
            y += _LINE
        marks.append(Text("small", x, y + 12, words.octets(message.size)))
        y += 24
        places: dict[str, tuple[_Part, float, float]] = {}
        for part in _parts(message, width - 20):
            height = (22 if part.name else 8) + 15.0 * len(part.lines)
            shade = SHADES[_PARTS.index(part.name) % len(SHADES)] if part.name else "wrap"
            marks.append(Box(shade, x, y, width, height, 3))
            if part.name:
                marks.append(Text("group", x + 8, y + 15, part.label))
                size = words.octets(len(part.data))
                marks.append(Text("small", x + width - 8, y + 15, size, "end"))
                places.setdefault(part.name, (part, y, height))
            top = y + (30 if part.name else 15)
            marks += [
                Text("code" if part.name else "faint", x + 8, top + 15 * k, line)
                for k, line in enumerate(part.lines)
            ]
            y += height + 3
        columns.append(places)
        bottom = max(bottom, y)
    ribbons: list[Mark] = []
    for n, (left, right) in enumerate(pairwise(columns)):
        x = 1 + n * (width + _BETWEEN) + width
        for name in left.keys() & right.keys():
            (one, y1, h1), (other, y2, h2) = left[name], right[name]
            same = one.value == other.value if one.value is not None else one.data == other.data
            ends = (
                (x + 2, y1),
                (x + _BETWEEN - 2, y2),
                (x + _BETWEEN - 2, y2 + h2),
                (x + 2, y1 + h1),
            )
            ribbons.append(Line("ribbon" if same else "break", (ends,), closed=True))
            middle = (y1 + y2 + (h1 + h2) / 2) / 2 + 4
            ribbons.append(Text("small", x + _BETWEEN / 2, middle, "=" if same else "≠", "middle"))
    return Scene(round(len(found) * (width + _BETWEEN) - _BETWEEN) + 2, round(bottom + 4),
                 (*ribbons, *marks))  # fmt: skip


def _wrapping(message: Message) -> str:
    """Name the protocol that a message travels in."""
    top = {span.key for span in message.span.walk()} if message.jupyter else set()
    how = {
        "jupyter.v1.count": "WebSocket, v1 subprotocol",
        "jupyter.binary.count": "WebSocket, with buffers",
        "websocket.frame": "WebSocket, JSON",
        "zmtp.frame": "ZeroMQ",
    }
    name = next((name for key, name in how.items() if key in top), message.protocol)
    return f"{name}: {message.sender} to {message.receiver}"
