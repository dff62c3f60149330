"""Sequence diagrams: who said what to whom, in order, one arrow per message.

Strategy: lay out in three steps, none of which needs a second look. First every message becomes
a row, with pauses, notes and folded repeats as rows of their own. Then the lifelines are spread
so that the labels between two neighbours have room, and labels are wrapped to the room that they
got, by measured width. Then rows are stacked by the height of what they hold. A label always lies
in the free space between two neighbouring lifelines, above its arrow, so it can meet neither a
lifeline nor another label. An arrow between far lifelines is cut where it passes behind one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from underhood.dissect.jupyter import Signature
from underhood.draw.page import Picture, in_words, milliseconds, sentence, tint
from underhood.draw.palette import CHANNELS
from underhood.draw.scene import (
    Box,
    Close,
    Line,
    Mark,
    Open,
    Point,
    Scene,
    Text,
    attributes,
    fragment,
    measure,
    wrap,
)

if TYPE_CHECKING:
    from underhood.trace import Message, Trace

Scale: TypeAlias = Literal["order", "time"]

# Distances, in CSS pixels.
_TOP: Final = 14  # above the heads of the lifelines
_HEAD: Final = 30  # height of a head with a one-line name
_LINE: Final = 15  # from one line of text to the next
_ROW: Final = 17  # a row without its text
_RISE: Final = 6  # from an arrow up to the baseline of its label
_PAD: Final = 11  # between a label and the lifelines beside it
_BAR: Final = 5  # half the width of an activation bar
_TIP: Final = 8  # length of an arrowhead
_LOOP: Final = 26  # how far a message to oneself swings out
_GAP: Final = (112, 272)  # least and most room between two lifelines
_EASE: Final = 232  # the room between them that looks right
_PAUSE: Final = 34  # height of a pause
_MAX_LINES: Final = 3


@dataclass(slots=True)
class _Row:
    """One line of the diagram: a message, or something between messages."""

    kind: Literal["message", "pause", "note", "group"]
    height: float = 0.0
    y: float = 0.0  # of the arrow, or of the top of what is not an arrow
    message: Message | None = None
    folded: tuple[Message, ...] = ()
    text: str = ""
    lines: tuple[str, ...] = ()
    more: str = ""  # what follows the last line, in the type of a detail
    segment: int = 0  # the space between lifelines n and n + 1 that holds the label


@dataclass(slots=True)
class _Plan:
    """What is to be drawn, and where."""

    parties: tuple[str, ...]
    rows: list[_Row]
    x: list[float] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0
    gutter: float = 0.0
    head: float = _HEAD


def sequence_diagram(
    trace: Trace,
    *,
    title: str | None = None,
    caption: str | None = None,
    parties: Sequence[str] | None = None,
    time: bool = True,
    scale: Scale = "order",
    lost: Collection[int] = (),
    refused: Collection[int] = (),
    width: float = 700,
) -> Picture:
    """Draw the messages of ``trace`` as a sequence diagram, one arrow each.

    Parameters
    ----------
    trace
        The messages, in the order in which they will stand.
    title
        The heading; made from the messages if not given.
    caption
        What to look for, shown below the diagram.
    parties
        The lifelines from left to right; found in the trace if not given.
    time
        Whether to show, beside each message, the milliseconds since the first.
    scale
        ``"order"`` gives each message a row; ``"time"`` keeps distances true to time as far as
        labels leave room.
    lost, refused
        Numbers of messages that never arrived, and of messages that arrived and were ignored.
        Messages whose signature is wrong are shown as refused in any case.
    width
        The widest the diagram should be, in CSS pixels; many lifelines may need more.

    Returns
    -------
    Picture
        A rich output, whose arrows carry the numbers of their messages.

    Raises
    ------
    ValueError
        If ``parties`` leaves out a sender or receiver of the trace.
    """
    order = tuple(parties) if parties is not None else trace.parties
    missing = [p for p in trace.parties if p not in order]
    if missing:
        raise ValueError(
            f"parties={order!r} leaves out {', '.join(map(repr, missing))}, which messages of the "
            "trace name; add them, or filter the trace first"
        )
    start = trace[0].time_ns if len(trace) else 0
    plan = _Plan(order, _rows(trace, scale))
    _spread(plan, width, time)
    _stack(plan, scale, start)
    fates = _fates(trace, lost, refused)
    scene = Scene(plan.width, plan.height, list(_draw(plan, start, time, fates)))
    heading = title or _title(trace)
    return Picture(
        kind="sequence",
        title=heading,
        description=_description(trace, order, start),
        scene=scene,
        trace=trace,
        caption=caption or "",
    )


# ---- rows


def _rows(trace: Trace, scale: Scale) -> list[_Row]:
    """Give each message a row, and each pause that stands out."""
    rows: list[_Row] = []
    pauses = _pauses(trace)
    for place, message in enumerate(trace):
        if place in pauses:
            rows.append(_Row("pause", text=in_words(pauses[place])))
        rows.append(_Row("message", message=message))
    return rows


def _pauses(trace: Trace) -> dict[int, int]:
    """Find where time passes: the place of the message that follows, and the nanoseconds.

    A pause stands out if it is at least 50 ms, and longer than all the messages around it take
    together: a tenth of the whole diagram's time.
    """
    if len(trace) < 3:
        return {}
    times = [m.time_ns for m in trace]
    least = max(50_000_000, (times[-1] - times[0]) // 10)
    steps = {n: b - a for n, (a, b) in enumerate(pairwise(times), 1)}
    return {n: step for n, step in steps.items() if step >= least}


def _label(message: Message) -> tuple[str, str]:
    """Return what the arrow says: its label, and the detail that follows it."""
    return message.label, f": {message.detail}" if message.detail else ""


# ---- columns


def _spread(plan: _Plan, width: float, time: bool) -> None:
    """Place the lifelines so that labels have room, then wrap labels to the room they got."""
    count = len(plan.parties)
    columns = {party: n for n, party in enumerate(plan.parties)}
    # A few lifelines stand comfortably apart, whatever is said between them.
    wanted = [min(max(width * 0.8 / max(count - 1, 1), _GAP[0]), _EASE)] * max(count - 1, 0)
    beyond = 0.0  # room needed to the right of the last lifeline
    for row in plan.rows:
        if row.message is None:
            continue
        label, more = _label(row.message)
        need = measure(label, "label") + measure(more, "detail") + 2 * (_PAD + _BAR) + 1
        low, high = sorted((columns[row.message.sender], columns[row.message.receiver]))
        if low == high:
            need += _LOOP + _PAD
            if low == count - 1:
                beyond = max(beyond, min(need, _GAP[1] * 0.75))
                continue
            high = low + 1
        if max(wanted[low:high]) < need:
            # The space next to the sender is where the eye starts.
            near = low if columns[row.message.sender] <= low else high - 1
            wanted[near] = max(wanted[near], min(need, _GAP[1]))
    plan.gutter = 48.0 if time else 10.0
    names = [max(measure(p, "name") for p in _name_lines(party)) for party in plan.parties]
    left = plan.gutter + (max(names[0] / 2 + 12, 30) if names else 0)
    right = max(max(names[-1] / 2 + 13, 30) if names else 0, beyond)
    for n in range(count - 1):
        wanted[n] = max(wanted[n], (names[n] + names[n + 1]) / 2 + 36)
    room = width - left - right
    if sum(wanted) > room:
        # Narrow the widest first; labels will wrap.
        limit = _water_level(wanted, room)
        floors = [max(_GAP[0], (names[n] + names[n + 1]) / 2 + 36) for n in range(count - 1)]
        wanted = [max(min(w, limit), floor) for w, floor in zip(wanted, floors, strict=True)]
    x = left
    for n in range(count):
        plan.x.append(round(x * 2) / 2)
        x += wanted[n] if n < count - 1 else 0
    plan.width = round(x + right) if count else 200
    plan.head = max((15 * len(_name_lines(p)) + 15 for p in plan.parties), default=_HEAD)
    for row in plan.rows:
        if row.message is not None:
            _wrap_label(plan, row, columns)


def _water_level(wanted: list[float], room: float) -> float:
    """Return the width to which the widest must shrink for all to fit into ``room``."""
    left = room
    for n, width in enumerate(sorted(wanted)):
        share = left / (len(wanted) - n)
        if width >= share:
            return share
        left -= width
    return max(wanted)


def _name_lines(party: str) -> tuple[str, ...]:
    return wrap(party, "name", 110)


def _wrap_label(plan: _Plan, row: _Row, columns: Mapping[str, int]) -> None:
    """Choose the space for a label and break it to fit."""
    message = row.message
    assert message is not None
    label, more = _label(message)
    sender, receiver = columns[message.sender], columns[message.receiver]
    if sender == receiver:
        row.segment = sender
        beyond = plan.x[sender + 1] if sender + 1 < len(plan.x) else plan.width + _PAD
        room = beyond - plan.x[sender] - _BAR - _LOOP - 2 * _PAD
    else:
        step = 1 if receiver > sender else -1
        spaces = [min(n, n + step) for n in range(sender, receiver, step)]
        # The first one that is widest enough, else the widest.
        need = measure(label, "label") + measure(more, "detail")
        rooms = [plan.x[s + 1] - plan.x[s] - 2 * (_BAR + _PAD) for s in spaces]
        best = next((n for n, r in enumerate(rooms) if r >= need), rooms.index(max(rooms)))
        row.segment, room = spaces[best], rooms[best]
    lines = wrap(label, "label", room, _MAX_LINES)
    if more and measure(lines[-1], "label") + measure(more, "detail") <= room:
        row.lines, row.more = lines, more
    elif more:
        # A detail that does not fit beside its label goes below it.
        details = wrap(more.removeprefix(": "), "detail", room, _MAX_LINES)
        row.lines = (*lines[:-1], lines[-1] + ":", *details)
        row.more = "\n" * len(details)
    else:
        row.lines = lines


# ---- heights


def _stack(plan: _Plan, scale: Scale, start: int) -> None:
    """Stack the rows below the heads."""
    y = _TOP + plan.head + 8.0
    pixels = _pixels_per_ns(plan) if scale == "time" else 0.0
    before: int | None = None
    for row in plan.rows:
        if row.message is not None:
            loop = row.message.sender == row.message.receiver
            row.height = _ROW + max(_LINE * len(row.lines), _LINE + 6 if loop else 0)
            if pixels and before is not None:
                row.height = max(row.height, min((row.message.time_ns - before) * pixels, 160))
            before = row.message.time_ns
            row.y = y + row.height - _RISE
        elif row.kind == "pause":
            row.height = _PAUSE
            row.y = y
        y += row.height
    plan.height = round(y + 22)


def _pixels_per_ns(plan: _Plan) -> float:
    """Choose the scale of time: such that half of the messages need no more than their row."""
    times = [row.message.time_ns for row in plan.rows if row.message is not None]
    steps = sorted(b - a for a, b in pairwise(times) if b > a)
    return (_ROW + _LINE) / steps[len(steps) // 2] if steps else 0.0


# ---- fates


def _fates(trace: Trace, lost: Collection[int], refused: Collection[int]) -> dict[int, str]:
    fates = {m.number: "refused" for m in trace if m.signature is Signature.INVALID}
    return fates | dict.fromkeys(refused, "refused") | dict.fromkeys(lost, "lost")


# ---- activity


@dataclass(frozen=True, slots=True)
class _Activity:
    """A party is busy from one height to another; open where the trace does not show the end."""

    party: str
    top: float
    bottom: float
    open_top: bool = False
    open_bottom: bool = False


def _activities(plan: _Plan, top: float, bottom: float) -> Iterator[_Activity]:
    """Read ``status`` messages: busy begins an activation bar, idle ends it.

    Only the party that a status is about counts: a server that passes it on has heard it first.
    """
    heard: set[tuple[str, str]] = set()
    busy: dict[str, list[float]] = {}
    known: set[str] = set()
    for row in plan.rows:
        message = row.message
        if message is None or message.label != "status":
            continue
        about = (message.sender, message.msg_id)
        heard.add((message.receiver, message.msg_id))
        if about in heard:
            continue
        party = message.sender
        if message.detail == "busy":
            busy.setdefault(party, []).append(row.y)
        elif message.detail == "idle":
            if busy.get(party):
                begun = busy[party].pop()
                yield _Activity(party, begun, row.y)
            elif party not in known:
                yield _Activity(party, top, row.y, open_top=True)
        known.add(party)
    for party, begun_at in busy.items():
        for begun in begun_at:
            yield _Activity(party, begun, bottom, open_bottom=True)


# ---- marks


def _draw(plan: _Plan, start: int, time: bool, fates: Mapping[int, str]) -> Iterator[Mark]:
    top, bottom = _TOP + plan.head, plan.height - 10.0
    columns = {party: n for n, party in enumerate(plan.parties)}
    yield from _lifelines(plan, top, bottom)
    bars = list(_activities(plan, top + 4, bottom - 4))
    for bar in bars:
        x = plan.x[columns[bar.party]]
        y, end = bar.top, max(bar.bottom, bar.top + 6)
        yield Box("busy", x - _BAR, y, 2 * _BAR, end - y, 2)
    if time:
        yield from _times(plan, start)
    for row in plan.rows:
        if row.message is not None:
            yield from _arrow(plan, row, columns, start, fates.get(row.message.number, ""))
        elif row.kind == "pause":
            yield from _pause(plan, row)
    yield from _heads(plan, _TOP)


def _heads(plan: _Plan, y: float) -> Iterator[Mark]:
    """Draw the parties' names."""
    yield Open("g", ' class="u-heads"')
    for x, party in zip(plan.x, plan.parties, strict=True):
        lines = _name_lines(party)
        half = max(max(measure(line, "name") for line in lines) / 2 + 12, 28)
        yield Box("box", x - half, y, 2 * half, plan.head, 4)
        middle = y + plan.head / 2 + 4.5 - (len(lines) - 1) * 7.5
        for n, line in enumerate(lines):
            yield Text("name", x, middle + 15 * n, line, "middle")
    yield Close("g")


def _lifelines(plan: _Plan, top: float, bottom: float) -> Iterator[Mark]:
    """Draw the lines down, loosened where time passes."""
    pauses = [row.y for row in plan.rows if row.kind == "pause"]
    edges = [top, *(e for y in pauses for e in (y + 6, y + _PAUSE - 6)), bottom]
    solid = list(zip(edges[::2], edges[1::2], strict=True))
    if not plan.x:
        return
    yield Line("life", tuple(((x, a), (x, b)) for x in plan.x for a, b in solid))
    if pauses:
        loose = zip(edges[1:-1:2], edges[2:-1:2], strict=True)
        yield Line("pause", tuple(((x, a), (x, b)) for a, b in loose for x in plan.x))


def _times(plan: _Plan, start: int) -> Iterator[Mark]:
    """Write the time of each message, in milliseconds since the first, down the left side."""
    x = plan.gutter - 6
    yield Text("time", x, _TOP + plan.head - 10, "ms", "end")
    for row in plan.rows:
        if row.message is not None:
            text = milliseconds(row.message.time_ns - start)
            yield Text("time", x, row.y + 3.5, text, "end")


def _pause(plan: _Plan, row: _Row) -> Iterator[Mark]:
    yield Text("pausing", plan.gutter - 6, row.y + _PAUSE / 2 + 4, f"+{row.text}", "end")


def _arrow(
    plan: _Plan, row: _Row, columns: Mapping[str, int], start: int, fate: str
) -> Iterator[Mark]:
    """Draw one message: its line, its head, its label, all in one element that can be chosen."""
    message = row.message
    assert message is not None
    colour = tint(message)
    says = sentence(message, start, fate)
    yield Open(
        "a",
        attributes(
            class_=f"u-m u-{colour}" + (f" u-{fate}" if fate else ""),
            data_message=message.number,
            href=f"#@-m{message.number}",
            aria_label=says,
        ),
    )
    sender, receiver = columns[message.sender], columns[message.receiver]
    if sender == receiver:
        yield from _loop(plan, row, sender, colour)
    else:
        yield from _shaft(plan, row, sender, receiver, colour, fate)
    yield Close("a")


def _label_marks(
    row: _Row, x: float, anchor: Literal["start", "middle"], tint: str
) -> Iterator[Mark]:
    below = len(row.more) if row.more.startswith("\n") else 0
    count = len(row.lines)
    for n, line in enumerate(row.lines):
        y = row.y - _RISE - _LINE * (count - 1 - n)
        if n >= count - below:
            yield Text("detail", x, y, line, anchor, tint)
        elif n == count - 1:
            yield Text("label", x, y, line, anchor, tint, row.more)
        else:
            yield Text("label", x, y, line, anchor, tint)


def _shaft(
    plan: _Plan, row: _Row, sender: int, receiver: int, tint: str, fate: str
) -> Iterator[Mark]:
    """Draw a straight arrow, cut where it passes behind a lifeline."""
    y = row.y
    step = 1 if receiver > sender else -1
    begin, end = plan.x[sender] + step * _BAR, plan.x[receiver] - step * (_BAR + 1)
    if fate == "lost":
        end = plan.x[receiver - step] + step * (
            abs(plan.x[receiver] - plan.x[receiver - step]) * 0.8
        )
    tip = _TIP if CHANNELS[tint].head not in ("open", "open-double") else 0
    if fate == "lost":
        tip = 5
    edges = [begin]
    for n in range(sender + step, receiver, step):
        edges += [plan.x[n] - step * (_BAR + 1), plan.x[n] + step * (_BAR + 1)]
    edges.append(end - step * tip)
    strokes = tuple(((a, y), (b, y)) for a, b in zip(edges[::2], edges[1::2], strict=True))
    yield Box("hit", min(begin, end), y - 22, abs(end - begin), 30)
    yield Line("line", strokes, tint)
    if fate == "lost":
        yield Box("head", end - 4 - step * 1, y - 4, 8, 8, 4, tint)
    else:
        yield from _head(CHANNELS[tint].head, end, y, step, tint)
    if fate == "refused":
        cross = end - step * 17
        yield Line(
            "barb",
            (((cross - 5, y - 5), (cross + 5, y + 5)), ((cross - 5, y + 5), (cross + 5, y - 5))),
            tint,
        )
    middle = (plan.x[row.segment] + plan.x[row.segment + 1]) / 2
    yield from _label_marks(row, middle, "middle", tint)


def _loop(plan: _Plan, row: _Row, column: int, tint: str) -> Iterator[Mark]:
    """Draw a message to oneself: out to the right, down, and back."""
    x, y = plan.x[column] + _BAR, row.y
    up = y - 15
    tip = _TIP if CHANNELS[tint].head not in ("open", "open-double") else 0
    yield Box("hit", x, up - 4, _LOOP + 6, 24)
    yield Line("line", (((x, up), (x + _LOOP, up), (x + _LOOP, y), (x + tip, y)),), tint)
    yield from _head(CHANNELS[tint].head, x + 1, y, -1, tint)
    yield from _label_marks(row, x + _LOOP + _PAD - 3, "start", tint)


def _head(shape: str, x: float, y: float, step: int, tint: str) -> Iterator[Mark]:
    """Draw an arrowhead whose tip is at ``x``, pointing right (``step`` 1) or left (-1)."""

    def at(back: float, aside: float) -> Point:
        return (x - step * back, y + aside)

    if shape in ("filled", "hollow"):
        part = "head" if shape == "filled" else "hollow"
        yield Line(part, ((at(0, 0), at(_TIP, -3.8), at(_TIP, 3.8)),), tint, closed=True)
    elif shape == "double":
        for back in (0.0, 7.0):
            points = (at(back, 0), at(back + _TIP, -3.8), at(back + _TIP, 3.8))
            yield Line("head", (points,), tint, closed=True)
    elif shape == "diamond":
        corners = (at(0, 0), at(5, -3.8), at(10, 0), at(5, 3.8))
        yield Line("head", (corners,), tint, closed=True)
    elif shape == "dot":
        yield Box("head", x - step * 4 - 3.4, y - 3.4, 6.8, 6.8, 3.4, tint)
    else:
        backs = (0.0, 5.0) if shape == "open-double" else (0.0,)
        strokes = tuple((at(back + 7, -4.6), at(back, 0), at(back + 7, 4.6)) for back in backs)
        yield Line("barb", strokes, tint)


def swatch(channel: str) -> str:
    """Return a small drawing of a channel's line and head, for the key."""
    tip = 0 if CHANNELS[channel].head in ("open", "open-double") else _TIP
    drawn = [
        Line("line", (((1.0, 6.0), (33.0 - tip, 6.0)),), channel),
        *_head(CHANNELS[channel].head, 33.0, 6.0, 1, channel),
    ]
    return fragment(34, 12, drawn)


# ---- words


def _title(trace: Trace) -> str:
    if not len(trace):
        return "No messages"
    request = next((m for m in trace if m.label.endswith("_request")), trace[0])
    count = "One message" if len(trace) == 1 else f"{len(trace)} messages"
    return f"{request.label}: {count.lower()}" if request.label else count


def _description(trace: Trace, parties: Sequence[str], start: int) -> str:
    """Say in words what the diagram shows: every message if they are few, else a summary."""
    if not len(trace):
        return "An empty sequence diagram."
    span = in_words(trace[-1].time_ns - start)
    count = "one message" if len(trace) == 1 else f"{len(trace)} messages"
    text = f"Sequence diagram of {count} between {_and(parties)}, over {span}."
    if len(trace) <= 20:
        steps = (f"{n}. {sentence(m, start)}." for n, m in enumerate(trace, 1))
        return f"{text} {' '.join(steps)}"
    channels = Counter(tint(m) for m in trace)
    shares = _and([f"{n} on {name}" for name, n in channels.most_common()])
    first, last = sentence(trace[0], start), sentence(trace[-1], start)
    return f"{text} {shares}. First: {first}. Last: {last}."


def _and(words: Iterable[str]) -> str:
    """Join words as in "a, b and c"."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
