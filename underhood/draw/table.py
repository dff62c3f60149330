"""Tables: the messages of a trace in rows, for the terminal and for a page.

Strategy: one list of cells, set twice: as an HTML table, and as plain text in columns of measured
width, so that the two can never say different things.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final
from unicodedata import east_asian_width

from underhood.draw.page import Picture
from underhood.draw.scene import attributes
from underhood.draw.words import channel, messages, milliseconds, says, tint

if TYPE_CHECKING:
    from underhood.trace import Message, Trace

HEADINGS: Final = ("no.", "ms", "from", "to", "channel", "message", "bytes")
_RIGHT: Final = frozenset({0, 1, 6})  # columns of numbers
_WIDEST: Final = 60  # characters of a cell in plain text


def table(trace: Trace, *, title: str | None = None, caption: str | None = None) -> Picture:
    """Show the messages of ``trace`` as a table, with times in milliseconds since the first.

    Parameters
    ----------
    trace
        The messages.
    title
        The heading; made from the messages if not given.
    caption
        What to look for.
    """
    count = messages(len(trace))
    return Picture(
        kind="table",
        title=title or count[0].upper() + count[1:],
        description=f"Table of {count}.",
        scene=None,
        trace=trace,
        caption=caption or "",
    )


def cells(trace: Trace) -> list[tuple[str, ...]]:
    """Return what each row says, one tuple per message, in the order of :data:`HEADINGS`."""
    start = trace[0].time_ns if len(trace) else 0
    return [_row(message, start) for message in trace]


def _row(message: Message, start: int) -> tuple[str, ...]:
    return (
        str(message.number),
        milliseconds(message.time_ns - start),
        message.sender,
        message.receiver,
        channel(message),
        says(message),
        f"{message.size}",
    )


def as_text(trace: Trace) -> str:
    """Set the table in plain text, for a terminal."""
    rows = [HEADINGS, *(tuple(_shortened(c) for c in row) for row in cells(trace))]
    widths = [max(map(_columns, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = (
            _padded(cell, width, n in _RIGHT)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def as_html(trace: Trace, anchor: str = "") -> str:
    """Set the table in HTML; ``anchor`` and a message's number make the id of its row."""
    head = "".join(
        f'<th scope="col"{_number(n)}>{escape(heading)}</th>' for n, heading in enumerate(HEADINGS)
    )
    body = "".join(
        f"<tr{attributes(id=anchor + row[0] if anchor else None, data_channel=tint(message))}>"
        + "".join(f"<td{_number(n)}>{escape(cell)}</td>" for n, cell in enumerate(row))
        + "</tr>\n"
        for message, row in zip(trace, cells(trace), strict=True)
    )
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _number(column: int) -> str:
    return ' class="uh-n"' if column in _RIGHT else ""


def _shortened(cell: str) -> str:
    return cell if len(cell) <= _WIDEST else f"{cell[: _WIDEST - 21]}…{cell[-20:]}"


def _padded(cell: str, width: int, right: bool) -> str:
    space = " " * (width - _columns(cell))
    return space + cell if right else cell + space


def _columns(text: str) -> int:
    """Return how many columns of a terminal the text takes."""
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)
