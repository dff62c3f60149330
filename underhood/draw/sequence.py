"""Sequence diagrams: who said what to whom, in order, one arrow per message.

Strategy: lay out in three steps, none of which needs a second look. First every message becomes
a row, with pauses, notes and the heads of groups as rows of their own. Then the lifelines are
spread so that the labels between two neighbours have room, and labels are wrapped to the room
that they got, by measured width. Then rows are stacked by the height of what they hold. A label
always lies in the free space between two neighbouring lifelines, above its arrow, so it can meet
neither a lifeline nor another label. An arrow between far lifelines is cut where it passes behind
one. Nothing depends on a colour: channels differ by line and head as well.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from underhood.dissect.jupyter import Signature
from underhood.draw.page import Picture
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
    Title,
    attributes,
    fragment,
    measure,
    wrap,
)
from underhood.draw.words import (
    Clock,
    in_words,
    joined,
    messages,
    milliseconds,
    plain,
    round_step,
    tint,
)

if TYPE_CHECKING:
    from underhood.trace import Message, Trace

Scale: TypeAlias = Literal["order", "time"]
Fate: TypeAlias = Literal["", "lost", "refused"]

# Distances, in CSS pixels.
_TOP: Final = 12  # above the heads of the lifelines
_HEAD: Final = 30  # height of a head with a one-line name
_LINE: Final = 15  # from one line of text to the next
_ROW: Final = 18  # a row without its text
_RISE: Final = 7  # from an arrow up to the baseline of its label
_PAD: Final = 9  # between a label and the lifelines beside it
_BAR: Final = 5  # half the width of an activation bar
_NEST: Final = 4  # how far a bar inside another stands out
_TIP: Final = 8  # length of an arrowhead
_LOOP: Final = 26  # how far a message to oneself swings out
_PAUSE: Final = 34  # height of a pause
_BANNER: Final = 38  # height of the head of a group
_NOTE: Final = 260  # width of a note
_BRACKET: Final = 58  # room at the right for the count of a folded run
_LEADERS: Final = 40  # room between a true axis of time and the rows
_GAP: Final = (112, 272)  # least and most room between two lifelines
_EASE: Final = 232  # the room between them that looks right
_LINES: Final = 3  # at most so many lines of a label, and of its detail
_PERIOD: Final = 4  # the longest pattern that is folded


@dataclass(slots=True)
class _Row:
    """One row of the diagram: a message, or something between messages."""

    kind: Literal["message", "pause", "note", "group"]
    message: Message
    folded: tuple[Message, ...] = ()  # further messages that this row's arrow stands for
    counted: bool = False  # whether the label says how many they are
    text: str = ""
    group: int = -1  # which band lies behind it
    said: tuple[str, str] = ("", "")
    lines: tuple[str, ...] = ()
    more: str = ""  # follows the last line, in the type of a detail
    below: int = 0  # how many of the lines, at the end, are detail
    segment: int = 0  # the space between lifelines n and n + 1 that holds the label
    raised: float = 0.0  # how much higher than others its label is, above a cross
    height: float = 0.0
    top: float = 0.0
    y: float = 0.0  # where the arrow is

    def label(self) -> tuple[str, str]:
        """Return what the arrow says: its label, and the detail that follows it."""
        if not self.said[0]:
            detail = plain(self.message.detail)
            count = f" ×{len(self.folded) + 1}" if self.counted else ""
            said = plain(self.message.label) or "message"
            self.said = said, (f": {detail}" if detail else "") + count
        return self.said


@dataclass(slots=True)
class _Plan:
    """What is to be drawn, and where."""

    parties: tuple[str, ...]
    clock: Clock
    fates: Mapping[int, Fate]
    time: bool
    scale: Scale
    links: Mapping[int, str]
    rows: list[_Row] = field(default_factory=list)
    runs: list[tuple[int, int, int]] = field(default_factory=list)  # first row, last row, times
    columns: dict[str, int] = field(default_factory=dict)
    x: list[float] = field(default_factory=list)
    gutter: float = 0.0
    width: float = 0.0
    height: float = 0.0
    head: float = _HEAD
    axis: tuple[float, float] = (0.0, 0.0)  # where a true axis of time begins and ends

    @property
    def arrows(self) -> Iterator[_Row]:
        """The rows that hold an arrow."""
        return (row for row in self.rows if row.kind == "message")


def sequence_diagram(
    trace: Trace,
    *,
    title: str | None = None,
    caption: str | None = None,
    parties: Sequence[str] | None = None,
    time: bool = True,
    scale: Scale = "order",
    groups: bool = False,
    fold: bool = False,
    notes: Mapping[int, str] | None = None,
    lost: Collection[int] = (),
    refused: Collection[int] = (),
    links: Mapping[int, str] | None = None,
    width: float = 668,
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
        Whether to show when each message passed, in milliseconds since the first.
    scale
        ``"order"`` gives each message a row, and says where time passes. ``"time"`` draws a true
        axis of time at the left and ties each message to its moment.
    groups
        Whether to lay a band behind the messages of each request.
    fold
        Whether to draw a run of equal messages, or of an equal pattern of up to four, once, with
        the number of times. Its first arrow stands for all of them.
    notes
        Texts to show below messages, by the messages' numbers.
    lost, refused
        Numbers of messages that never arrived, and of messages that arrived and were ignored.
        A message whose signature is wrong is drawn as refused in any case.
    links
        Addresses that arrows lead to, by the messages' numbers; any other arrow opens its message.
    width
        The widest that the diagram should be, in CSS pixels; many lifelines may need more.

    Returns
    -------
    Picture
        A rich output, whose arrows carry the numbers of their messages.

    Raises
    ------
    ValueError
        If ``parties`` leaves out a sender or receiver of the trace, or if a note, a fate or a link
        is given for a message that is not in it.

    Notes
    -----
    Drawing takes about 0.1 ms for a message. A page carries up to 250 messages whole; of more, it
    has the arrows and a table. Browsers take their time over more than about a thousand: filter,
    slice (``trace[:1000]``) or fold such a trace.
    """
    order = tuple(parties) if parties is not None else trace.parties
    if missing := [p for p in trace.parties if p not in order]:
        raise ValueError(
            f"parties={order!r} leaves out {joined(map(repr, missing))}, which messages of the "
            "trace name; add them, or filter the trace first"
        )
    notes, links = notes or {}, links or {}
    known = {m.number for m in trace}
    given = {"notes": notes, "lost": lost, "refused": refused, "links": links}
    for name, numbers in given.items():
        if strangers := sorted(set(numbers) - known):
            raise ValueError(
                f"{name} names {joined(map(str, strangers))}, but no message of this trace has "
                "that number; message.number gives it"
            )
    fates: dict[int, Fate] = {
        m.number: "refused" for m in trace if m.signature is Signature.INVALID
    }
    fates |= dict.fromkeys(refused, "refused")
    fates |= dict.fromkeys(lost, "lost")

    clock = Clock(trace)
    plan = _Plan(order, clock, fates, time, scale, links)
    _fill(plan, trace, notes, groups=groups, fold=fold)
    _spread(plan, width)
    _stack(plan)
    return Picture(
        kind="sequence",
        title=title or _title(trace),
        description=_description(trace, order, clock, fates),
        scene=Scene(plan.width, plan.height, _Marks(plan)),
        trace=trace,
        caption=caption or "",
        fates=fates,
    )


# ---- rows


def _fill(plan: _Plan, trace: Trace, notes: Mapping[int, str], *, groups: bool, fold: bool) -> None:
    """Give each message a row, and each pause, note and group."""
    pauses = _pauses(trace) if plan.scale == "order" else {}
    roots = _roots(trace) if groups else [""] * len(trace)
    runs = _runs(trace, plan.fates, roots, notes) if fold else {}
    seen: set[str] = set()
    now, band, bands = "", -1, 0
    place = 0
    while place < len(trace):
        message, root = trace[place], roots[place]
        ends_band = root != now
        if place in pauses:
            text = in_words(pauses[place])
            plan.rows.append(_Row("pause", message, text=text, group=-1 if ends_band else band))
        if ends_band:
            now, band = root, bands if root else -1
            if root:
                bands += 1
                head = _heading(message, root in seen)
                seen.add(root)
                plan.rows.append(_Row("group", message, text=head, group=band))
        period, times = runs.get(place, (1, 1))
        first = len(plan.rows)
        for offset in range(period):
            message = trace[place + offset]
            folded = tuple(trace[place + offset + period * n] for n in range(1, times))
            counted = times > 1 and period == 1
            plan.rows.append(_Row("message", message, folded, counted, group=band))
            if message.number in notes:
                plan.rows.append(_Row("note", message, text=notes[message.number], group=band))
        if times > 1 and period > 1:
            plan.runs.append((first, len(plan.rows) - 1, times))
        place += period * times


def _pauses(trace: Trace) -> dict[int, int]:
    """Find where time passes: the place of the message that follows, and the nanoseconds.

    A pause stands out if it takes at least 50 ms and at least a tenth of the whole time.
    """
    times = [m.time_ns for m in trace]
    if len(times) < 3:
        return {}
    least = max(50_000_000, (times[-1] - times[0]) // 10)
    return {n: b - a for n, (a, b) in enumerate(pairwise(times), 1) if b - a >= least}


def _roots(trace: Trace) -> list[str]:
    """Find, for each message, the request that it belongs to (its ``msg_id``), if any."""
    parents = {m.msg_id: m.parent_id for m in trace if m.msg_id}
    found = []
    for message in trace:
        root = message.parent_id or (message.msg_id if message.label.endswith("_request") else "")
        for _ in range(8):  # an input_reply answers an input_request, which answers a cell
            if not parents.get(root):
                break
            root = parents[root]
        found.append(root)
    shares = Counter(found)
    return [root if shares[root] > 1 else "" for root in found]


def _heading(message: Message, again: bool) -> str:
    """Return what stands at the head of a group: the request, and the code that it brings."""
    jupyter = message.jupyter
    if again or jupyter is None or not message.label.endswith("_request"):
        asked = str(jupyter.parent_header.get("msg_type", "")) if jupyter is not None else ""
        return f"{asked or 'request'}, {'continued' if again else 'sent before'}"
    code = str(jupyter.content.get("code", "")).strip().split("\n", 1)[0]
    return f"{message.label} · {code}" if code else message.label


def _runs(
    trace: Trace,
    fates: Mapping[int, Fate],
    roots: Sequence[str],
    notes: Mapping[int, str],
) -> dict[int, tuple[int, int]]:
    """Find what to fold: for the place of a first message, the period and how many times.

    Nothing is folded across a note or the border of a group.
    """
    looks = [(m.sender, m.receiver, tint(m), m.label, m.detail, fates.get(m.number)) for m in trace]
    noted = {n + after for n, m in enumerate(trace) if m.number in notes for after in (0, 1)}
    turns = {n for n, (a, b) in enumerate(pairwise(roots), 1) if a != b}
    borders = sorted(noted | turns | {len(looks)})
    found: dict[int, tuple[int, int]] = {}
    place = 0
    while place < len(looks):
        end = borders[bisect_left(borders, place + 1)]
        best, saved = (1, 1), 0
        for period in range(1, _PERIOD + 1):
            pattern = looks[place : place + period]
            times = 1
            while (
                place + period * (times + 1) <= end
                and looks[place + period * times : place + period * (times + 1)] == pattern
            ):
                times += 1
            if times > 2 and period * (times - 1) > saved:
                best, saved = (period, times), period * (times - 1)
        if saved:
            found[place] = best
        place += best[0] * best[1]
    return found


# ---- columns


def _spread(plan: _Plan, width: float) -> None:
    """Place the lifelines so that labels have room, then wrap labels to the room they got."""
    count = len(plan.parties)
    plan.columns = {party: n for n, party in enumerate(plan.parties)}
    if not count:
        plan.width = 240
        return
    # A few lifelines stand comfortably apart, whatever is said between them.
    ease = min(max(width * 0.8 / max(count - 1, 1), _GAP[0]), _EASE)
    wanted = [ease] * (count - 1)
    beyond = 0.0  # room needed to the right of the last lifeline
    for row in plan.arrows:
        label, more = row.label()
        need = measure(label, "label") + measure(more, "detail") + 2 * (_PAD + _BAR) + 1
        sender = plan.columns[row.message.sender]
        receiver = plan.columns[row.message.receiver]
        low, high = sorted((sender, receiver))
        if low == high:
            need += _LOOP
            if low == count - 1:
                beyond = max(beyond, min(need, _GAP[1] * 0.75))
                continue
            high = low + 1
        if max(wanted[low:high]) < need:
            near = low if sender <= low else high - 1  # the eye starts at the sender
            wanted[near] = max(wanted[near], min(need, _GAP[1]))
    if plan.time:
        longest = milliseconds(plan.clock.end - plan.clock.start)
        pauses = (measure(f"+{r.text}", "pausing") for r in plan.rows if r.kind == "pause")
        plan.gutter = max(measure(longest, "time"), 30, *pauses) + 8
    halves = [max(max(measure(p, "name") for p in _name(party)) / 2 + 12, 28)
              for party in plan.parties]  # fmt: skip
    rows_from = plan.gutter + (_LEADERS if plan.scale == "time" and plan.time else 12)
    left = max(rows_from, halves[0] + 2)
    right = max(halves[-1] + 2, beyond) + (_BRACKET if plan.runs else 0)
    floors = [max(_GAP[0], a + b + 12) for a, b in pairwise(halves)]
    wanted = [max(w, floor) for w, floor in zip(wanted, floors, strict=True)]
    if sum(wanted) > width - left - right:
        limit = _water_level(wanted, width - left - right)  # narrow the widest first
        wanted = [max(min(w, limit), floor) for w, floor in zip(wanted, floors, strict=True)]
    plan.x = [left]
    for step in wanted:
        plan.x.append(plan.x[-1] + round(step))
    plan.width = round(plan.x[-1] + right)
    plan.head = max(_LINE * len(_name(p)) + 15 for p in plan.parties)
    for row in plan.rows:
        if row.kind == "message":
            _wrap_label(plan, row)
        elif row.kind == "note":
            row.lines = wrap(row.text, "remark", min(_NOTE, plan.width - plan.gutter - 34), 12)
        elif row.kind == "group":
            row.lines = wrap(plain(row.text), "group", plan.width - plan.gutter - 60, 1)


def _water_level(wanted: Sequence[float], room: float) -> float:
    """Return the width to which the widest must shrink for all to fit into ``room``."""
    left = room
    for n, width in enumerate(sorted(wanted)):
        share = left / (len(wanted) - n)
        if width >= share:
            return share
        left -= width
    return max(wanted)


def _name(party: str) -> tuple[str, ...]:
    return wrap(party, "name", 110)


def _wrap_label(plan: _Plan, row: _Row) -> None:
    """Choose the space for a label and break it to fit."""
    label, more = row.label()
    need = measure(label, "label") + measure(more, "detail")
    sender, receiver = plan.columns[row.message.sender], plan.columns[row.message.receiver]
    if sender == receiver:
        row.segment = sender
        end = plan.x[sender + 1] if sender + 1 < len(plan.x) else plan.width + _PAD
        room = end - plan.x[sender] - 2 * _BAR - _LOOP - 2 * _PAD
    else:
        step = 1 if receiver > sender else -1
        spaces = [min(n, n + step) for n in range(sender, receiver, step)]
        rooms = [plan.x[s + 1] - plan.x[s] - 2 * (_BAR + _PAD) for s in spaces]
        # The first space that is wide enough, else the widest.
        best = next((n for n, r in enumerate(rooms) if r >= need), rooms.index(max(rooms)))
        row.segment, room = spaces[best], rooms[best]
    lines = wrap(label, "label", room, _LINES)
    if not more or measure(lines[-1], "label") + measure(more, "detail") <= room:
        row.lines, row.more = lines, more
        return
    if more.startswith(":") and measure(lines[-1] + ":", "label") <= room:
        lines, more = (*lines[:-1], lines[-1] + ":"), more[1:]
    details = wrap(more.strip(), "detail", room, _LINES)
    row.lines, row.below = (*lines, *details), len(details)


# ---- heights


def _stack(plan: _Plan) -> None:
    """Stack the rows below the heads; for a true axis, move them towards their moments."""
    y = _TOP + plan.head + 10.0
    for row in plan.rows:
        row.top = y
        if row.kind == "message":
            loop = row.message.sender == row.message.receiver
            row.raised = 5 if plan.fates.get(row.message.number) == "refused" else 0
            row.height = _ROW + row.raised + max(_LINE * len(row.lines), _LINE + 6 if loop else 0)
            row.y = y + row.height - 7
        elif row.kind == "note":
            row.height = _LINE * len(row.lines) + 22
        else:
            row.height = _PAUSE if row.kind == "pause" else _BANNER
        y += row.height
        if row.group >= 0 and row is plan.rows[-1]:
            y += 6
    if plan.scale == "time":
        y = max(y, _move_to_moments(plan))
    plan.height = round(y + 20)


def _move_to_moments(plan: _Plan) -> float:
    """Move rows so that they lie as near to their moment on the axis as their heights allow.

    Returns
    -------
    float
        Where the last row ends.
    """
    arrows = list(plan.arrows)
    if not arrows:
        return 0.0
    stacked = [row.y for row in arrows]
    # Half as long again as the rows need, so that there is something to show.
    plan.axis = (stacked[0], stacked[0] + max((stacked[-1] - stacked[0]) * 1.5, 60))
    targets = [_moment(plan, row.message.time_ns) for row in arrows]
    # Least squares under "each at least so far below the one before": with the distances taken
    # away, this is isotonic regression, solved by pooling neighbours that violate the order.
    pools: list[list[float]] = []  # sum, count
    for target, place in zip(targets, stacked, strict=True):
        pools.append([target - place, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1] = [pools[-1][0] + total, pools[-1][1] + count]
    shifts = [max(total / count, 0.0) for total, count in pools for _ in range(int(count))]
    moved = dict(zip((row.message.number for row in arrows), shifts, strict=True))
    for row in plan.rows:  # notes go with the message above them, groups with the one below
        row.top += moved[row.message.number]
        row.y += moved[row.message.number]
    return plan.rows[-1].top + plan.rows[-1].height


def _moment(plan: _Plan, time_ns: int) -> float:
    """Return where on the axis a time lies."""
    top, bottom = plan.axis
    return top + (bottom - top) * (time_ns - plan.clock.start) / max(
        plan.clock.end - plan.clock.start, 1
    )


# ---- activity


@dataclass(frozen=True, slots=True)
class _Activity:
    """A party is busy from one height to another; ``depth`` bars lie around this one."""

    party: str
    top: float
    bottom: float
    depth: int = 0


def _activities(plan: _Plan, top: float, bottom: float) -> Iterator[_Activity]:
    """Read ``status`` messages: busy begins an activation bar, the idle that answers it ends one.

    Only the party that a status is about counts, and only once: a server that passes it on has
    heard it before.
    What the trace does not show the beginning or the end of reaches to the edge.
    """
    known: set[tuple[str, str]] = set()
    busy: dict[str, list[tuple[str, float]]] = {}
    begun: set[str] = set()
    for row in plan.arrows:
        message = row.message
        if message.label != "status":
            continue
        told = (message.sender, message.msg_id)
        news = told not in known
        # The receiver knows it too now; and a publisher tells each subscriber the same.
        known |= {told, (message.receiver, message.msg_id)}
        if not news:
            continue
        party, request = message.sender, message.parent_id
        open_bars = busy.setdefault(party, [])
        if message.detail == "busy":
            open_bars.append((request, row.y))
        elif message.detail == "idle":
            mine = next((bar for bar in reversed(open_bars) if bar[0] == request), None)
            if mine is not None:
                depth = open_bars.index(mine)
                open_bars.remove(mine)
                yield _Activity(party, mine[1], row.y, depth)
            elif party not in begun:
                yield _Activity(party, top, row.y)
        begun.add(party)
    for party, open_bars in busy.items():
        for depth, (_, since) in enumerate(open_bars):
            yield _Activity(party, since, bottom, depth)


# ---- marks


@dataclass(frozen=True, slots=True)
class _Marks:
    """The marks of a plan, made whenever somebody goes through them."""

    plan: _Plan

    def __iter__(self) -> Iterator[Mark]:
        return _draw(self.plan)


def _draw(plan: _Plan) -> Iterator[Mark]:
    """Draw everything, from what lies furthest back."""
    top, bottom = _TOP + plan.head, plan.height - 8.0
    yield Open("g", ' aria-hidden="true"')
    yield from _bands(plan)
    yield from _lifelines(plan, top, bottom)
    for bar in sorted(_activities(plan, top + 4, bottom - 4), key=lambda bar: bar.depth):
        x = plan.x[plan.columns[bar.party]] + _NEST * bar.depth
        yield Box("busy", x - _BAR, bar.top, 2 * _BAR, max(bar.bottom - bar.top, 6), 2)
    if plan.time:
        yield from _times(plan)
    yield Close("g")
    for row in plan.rows:
        if row.kind == "message":
            yield from _arrow(plan, row)
        elif row.kind == "note":
            yield from _note(plan, row)
        elif row.kind == "group":
            yield from _banner(plan, row)
        elif row.kind == "pause" and plan.time:
            y = row.top + _PAUSE / 2 + 4
            yield Text("pausing", plan.gutter - 4, y, f"+{row.text}", "end")
    for first, last, times in plan.runs:
        yield from _bracket(plan, plan.rows[first], plan.rows[last], times)
    yield from _heads(plan)


def _heads(plan: _Plan) -> Iterator[Mark]:
    """Draw the parties' names."""
    yield Open("g", ' class="u-heads"')
    yield Box("veil", 0, -40, plan.width, _TOP + plan.head + 48)  # behind heads that stay in sight
    for x, party in zip(plan.x, plan.parties, strict=True):
        lines = _name(party)
        half = max(max(measure(line, "name") for line in lines) / 2 + 12, 28)
        yield Box("name-box", x - half, _TOP, 2 * half, plan.head, 4)
        y = _TOP + plan.head / 2 + 4.5 - (len(lines) - 1) * _LINE / 2
        for n, line in enumerate(lines):
            yield Text("name", x, y + _LINE * n, line, "middle")
    yield Close("g")


def _lifelines(plan: _Plan, top: float, bottom: float) -> Iterator[Mark]:
    """Draw the lines down, loosened where time passes."""
    if not plan.x:
        return
    pauses = [row.top for row in plan.rows if row.kind == "pause"]
    edges = [top, *(edge for y in pauses for edge in (y + 8, y + _PAUSE - 4)), bottom]
    pieces = list(pairwise(edges))
    yield Line("life", tuple(((x, a), (x, b)) for x in plan.x for a, b in pieces[::2]))
    if pauses:
        yield Line("pause", tuple(((x, a), (x, b)) for x in plan.x for a, b in pieces[1::2]))


def _times(plan: _Plan) -> Iterator[Mark]:
    """Write down the left side when each message passed, in milliseconds since the first."""
    edge = plan.gutter - 4
    if plan.scale == "time":
        yield from _true_axis(plan)
        return
    yield Text("time", edge, _TOP + plan.head + 14, "ms", "end")
    for row in plan.arrows:
        since = milliseconds(plan.clock.since_start(row.message))
        yield Text("time", edge, row.y + 3.5, since, "end")


def _true_axis(plan: _Plan) -> Iterator[Mark]:
    """Draw an axis of time, and tie each row to its moment on it."""
    top, bottom = plan.axis
    x = plan.gutter + 2
    whole = plan.clock.end - plan.clock.start
    step = round_step(whole / 1e6 / max((bottom - top) / 60, 1))
    count = int(whole / 1e6 / step + 1e-9) if step else 0
    yield Line("life", (((x, top), (x, bottom)),))
    yield Text("time", x - 6, _TOP + plan.head + 14, "ms", "end")
    for n in range(count + 1):
        y = _moment(plan, plan.clock.start + round(n * step * 1e6))
        yield Line("life", (((x - 3, y), (x, y)),))
        yield Text("time", x - 6, y + 3.5, f"{n * step:,g}".replace(",", " "), "end")
    ties = []
    for row in plan.arrows:
        at = _moment(plan, row.message.time_ns)
        ties.append(((x, at), (x + _LEADERS - 16, row.y), (x + _LEADERS - 10, row.y)))
    yield Line("tie", tuple(ties))


def _bands(plan: _Plan) -> Iterator[Mark]:
    """Lay a band behind the rows of each group, with what it is at its head."""
    left, right = plan.gutter + (_LEADERS - 6 if plan.scale == "time" else 2), plan.width - 1
    edges: dict[int, tuple[_Row, _Row]] = {}
    for row in plan.rows:
        if row.group >= 0:
            edges[row.group] = (edges.get(row.group, (row, row))[0], row)
    for first, last in edges.values():
        top, bottom = first.top + 10, last.top + last.height + 3
        yield Box("band", left, top, right - left, bottom - top, 5)


def _banner(plan: _Plan, row: _Row) -> Iterator[Mark]:
    """Write the head of a group, in a tab that covers the lifelines."""
    left = plan.gutter + (_LEADERS - 6 if plan.scale == "time" else 2)
    text = row.lines[0]
    yield Box("tab", left, row.top + 10, measure(text, "group") + 20, 20, 5)
    yield Text("group", left + 10, row.top + 24, text)


def _bracket(plan: _Plan, first: _Row, last: _Row, times: int) -> Iterator[Mark]:
    """Draw how many times a pattern was folded, beside its rows."""
    x, top, bottom = plan.width - _BRACKET + 10, first.top + 6, last.top + last.height - 1
    yield Line("fold", (((x - 5, top), (x, top), (x, bottom), (x - 5, bottom)),))
    middle = (top + bottom) / 2
    yield Text("count", x + 5, middle - 2, f"×{times}")
    yield Text(
        "small", x + 5, middle + 12, in_words(last.folded[-1].time_ns - first.message.time_ns)
    )


def _note(plan: _Plan, row: _Row) -> Iterator[Mark]:
    """Draw a note below its message; it covers the lifelines behind it."""
    x = [plan.x[plan.columns[p]] for p in (row.message.sender, row.message.receiver)]
    width = max(measure(line, "remark") for line in row.lines) + 26
    left = (x[0] + x[1]) / 2 - width / 2
    left = max(min(left, plan.width - width - 2), plan.gutter + 2, 2)
    top, bottom, fold = row.top + 5, row.top + row.height - 5, 8
    right = left + width
    outline: tuple[Point, ...] = (
        (left, top), (right - fold, top), (right, top + fold), (right, bottom), (left, bottom),
    )  # fmt: skip
    yield Open("g", "")
    yield Line("note", (outline,), closed=True)
    yield Line("crease", (((right - fold, top), (right - fold, top + fold), (right, top + fold)),))
    for n, line in enumerate(row.lines):
        yield Text("remark", left + 10, top + 16 + _LINE * n, line)
    yield Close("g")


def _arrow(plan: _Plan, row: _Row) -> Iterator[Mark]:
    """Draw one message: its line, its head, its label, in one element that can be chosen."""
    message = row.message
    own, fate = tint(message), plan.fates.get(message.number, "")
    says = plan.clock.sentence(message, fate)
    if row.folded:
        until = in_words(row.folded[-1].time_ns - message.time_ns)
        says += f", {len(row.folded) + 1} times within {until}"
    yield Open(
        "a",
        attributes(
            class_=f"u-m u-{own}",
            data_message=message.number,
            data_folded=" ".join(str(m.number) for m in row.folded) or None,
            href=plan.links.get(message.number, f"#@-m{message.number}"),
        ),
    )
    yield Title(says)
    sender, receiver = plan.columns[message.sender], plan.columns[message.receiver]
    if sender == receiver:
        yield from _loop(plan, row, sender, own, fate)
    else:
        yield from _shaft(plan, row, sender, receiver, own, fate)
    yield Close("a")


def _shaft(
    plan: _Plan, row: _Row, sender: int, receiver: int, own: str, fate: Fate
) -> Iterator[Mark]:
    """Draw a straight arrow, cut where it passes behind a lifeline."""
    y, step = row.y, 1 if receiver > sender else -1
    begin, end = plan.x[sender] + step * _BAR, plan.x[receiver] - step * (_BAR + 1)
    if fate == "lost":
        begun = plan.x[receiver - step]
        end = begun + (plan.x[receiver] - begun) * 0.82
    edges = [begin]
    for n in range(sender + step, receiver, step):
        edges += [plan.x[n] - step * (_BAR + 1), plan.x[n] + step * (_BAR + 1)]
    edges.append(end)
    pieces = list(pairwise(edges))[::2]
    top = row.top + 2
    # What can be pointed at leaves out the lifelines, which a tint would cover.
    yield Line(
        "hit",
        tuple(((a + step, top), (b, top), (b, y + 7), (a + step, y + 7)) for a, b in pieces),
        own,
        closed=True,
    )
    tip = 4 if fate == "lost" else _tip(own)
    pieces[-1] = (pieces[-1][0], end - step * tip)
    yield Line("line", tuple(((a, y), (b, y)) for a, b in pieces), own)
    if fate == "lost":
        yield Box("head", end - 4, y - 4, 8, 8, 4, own)
    else:
        yield from _head(CHANNELS[own].head, end, y, step, own)
    if fate == "refused":
        yield _cross(end - step * 20, y, own)
    middle = (plan.x[row.segment] + plan.x[row.segment + 1]) / 2
    yield from _texts(row, middle, "middle", own)


def _loop(plan: _Plan, row: _Row, column: int, own: str, fate: Fate) -> Iterator[Mark]:
    """Draw a message to oneself: out to the right, down, and back."""
    x, y = plan.x[column] + _BAR, row.y
    up, out = y - 16, x + _LOOP
    yield Line("hit", (((x, up - 5), (out + 4, up - 5), (out + 4, y + 7), (x, y + 7)),), own, True)
    end = x + (8 if fate == "lost" else 1)
    tip = 4 if fate == "lost" else _tip(own)
    yield Line("line", (((x, up), (out, up), (out, y), (end + tip, y)),), own)
    if fate == "lost":
        yield Box("head", end - 1, y - 4, 8, 8, 4, own)
    else:
        yield from _head(CHANNELS[own].head, end, y, -1, own)
    if fate == "refused":
        yield _cross(end + 17, y, own)
    yield from _texts(row, out + _PAD - 3, "start", own)


def _texts(row: _Row, x: float, anchor: Literal["start", "middle"], own: str) -> Iterator[Mark]:
    """Write the label above an arrow, the last line nearest to it."""
    count, rise = len(row.lines), _RISE + row.raised
    for n, line in enumerate(row.lines):
        y = row.y - rise - _LINE * (count - 1 - n)
        if n >= count - row.below:
            yield Text("detail", x, y, line, anchor, own)
        else:
            yield Text("label", x, y, line, anchor, own, row.more if n == count - 1 else "")


def _tip(channel: str) -> float:
    """Return how far before the tip of a head its line ends."""
    return 0.0 if CHANNELS[channel].head in ("open", "chevrons") else _TIP


def _cross(x: float, y: float, own: str) -> Mark:
    return Line("barb", (((x - 5, y - 5), (x + 5, y + 5)), ((x - 5, y + 5), (x + 5, y - 5))), own)


def _head(shape: str, x: float, y: float, step: int, own: str) -> Iterator[Mark]:
    """Draw an arrowhead whose tip is at ``x``, pointing right (``step`` 1) or left (-1)."""

    def at(back: float, aside: float) -> Point:
        return (x - step * back, y + aside)

    if shape in ("filled", "hollow"):
        part = "head" if shape == "filled" else "hollow"
        yield Line(part, ((at(0, 0), at(_TIP, -3.8), at(_TIP, 3.8)),), own, closed=True)
    elif shape == "double":
        for back in (0.0, 7.0):
            points = (at(back, 0), at(back + _TIP, -3.8), at(back + _TIP, 3.8))
            yield Line("head", (points,), own, closed=True)
    elif shape == "diamond":
        corners = (at(0, 0), at(5, -3.8), at(10, 0), at(5, 3.8))
        yield Line("head", (corners,), own, closed=True)
    elif shape == "dot":
        yield Box("head", x - step * 4 - 3.4, y - 3.4, 6.8, 6.8, 3.4, own)
    else:
        backs = (0.0, 5.0) if shape == "chevrons" else (0.0,)
        strokes = tuple((at(back + 7, -4.6), at(back, 0), at(back + 7, 4.6)) for back in backs)
        yield Line("barb", strokes, own)


def swatch(channel: str) -> str:
    """Return a small drawing of a channel's line and head, for the key."""
    drawn = [
        Line("line", (((1.0, 6.0), (33.0 - _tip(channel), 6.0)),), channel),
        *_head(CHANNELS[channel].head, 33.0, 6.0, 1, channel),
    ]
    return fragment(34, 12, drawn)


# ---- words


def _title(trace: Trace) -> str:
    count = messages(len(trace))
    request = next((m for m in trace if m.label.endswith("_request")), None)
    name = request.label if request else ""
    return f"{name}: {count}" if name else count[0].upper() + count[1:]


def _description(
    trace: Trace, parties: Sequence[str], clock: Clock, fates: Mapping[int, Fate]
) -> str:
    """Say in words what the diagram shows: every message if they are few, else a summary."""
    if not len(trace):
        return "An empty sequence diagram."
    text = (
        f"Sequence diagram of {messages(len(trace))} between {joined(parties)}, "
        f"over {in_words(clock.end - clock.start)}."
    )
    if len(trace) <= 20:
        steps = (
            f"{n}. {clock.sentence(m, fates.get(m.number, ''))}." for n, m in enumerate(trace, 1)
        )
        return f"{text} {' '.join(steps)}"
    shares = joined(f"{n} {name}" for name, n in Counter(tint(m) for m in trace).most_common())
    return (
        f"{text} By channel: {shares}. First: {clock.sentence(trace[0])}. "
        f"Last: {clock.sentence(trace[-1])}."
    )
