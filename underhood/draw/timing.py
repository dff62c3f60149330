"""Timing: where the milliseconds go.

Strategy: four pictures over one true axis of time, made of the same few marks. Rows stand for
messages (hop by hop), for requests (the waterfall), for parties (busy and idle) or for repeated
measurements (distributions); what a row says is written at its left, durations where they belong.
A row that stands for a message is a link to it, as an arrow is in a sequence diagram.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, quantiles
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from underhood.draw import words
from underhood.draw.page import Picture
from underhood.draw.scene import (
    Box,
    Close,
    Line,
    Mark,
    Open,
    Scene,
    Text,
    Title,
    attributes,
    measure,
    wrap,
)

if TYPE_CHECKING:
    from underhood.trace import Message, Trace

Show: TypeAlias = Literal["hops", "waterfall", "busy"]

# Distances, in CSS pixels.
_WIDTH: Final = 668
_AXIS: Final = 30  # height of the axis
_ROW: Final = 26
_LABEL: Final = 190  # the widest that labels at the left may be
_EDGE: Final = 8
_DOTS: Final = 120  # runs that are drawn as a dot each; more are counted
_TAIL: Final = 64  # room at the right for a duration


def timing(
    trace: Trace,
    *,
    show: Show | None = None,
    title: str | None = None,
    caption: str | None = None,
) -> Picture:
    """Draw where the time goes between the messages of ``trace``.

    Parameters
    ----------
    trace
        The messages.
    show
        ``"hops"``: each message on its way, hop by hop. ``"waterfall"``: HTTP requests and their
        responses. ``"busy"``: when each kernel was busy. Chosen by what the trace holds if not
        given: a waterfall for HTTP only, busy and idle for several kernels, else hops.
    title, caption
        The heading, made from the messages if not given, and what to look for.

    Raises
    ------
    ValueError
        If the trace holds nothing of the kind.
    """
    if show is None:
        if len(trace) and all(m.protocol == "http" for m in trace):
            show = "waterfall"
        else:
            show = "busy" if len(busy_times(trace)) > 1 else "hops"
    return {"hops": _hops, "waterfall": _waterfall, "busy": _busy}[show](trace, title, caption)


# ---- the axis


@dataclass(frozen=True, slots=True)
class _Axis:
    """Places times between two edges."""

    start: int
    end: int
    left: float
    right: float

    def x(self, time_ns: float) -> float:
        """Return where a time lies."""
        whole = max(self.end - self.start, 1)
        return self.left + (self.right - self.left) * (time_ns - self.start) / whole

    def marks(self, y: float, bottom: float) -> Iterator[Mark]:
        """Draw ticks with their milliseconds at ``y``, and their lines down to ``bottom``."""
        whole = (self.end - self.start) / 1e6
        step = words.round_step(whole / max((self.right - self.left) / 80, 1))
        ticks = [n * step for n in range(int(whole / step + 1e-9) + 1)] if step else [0.0]
        lines = []
        for tick in ticks:
            x = self.x(self.start + tick * 1e6)
            lines.append(((x, y + 6), (x, bottom)))
            yield Text("time", x, y, f"{tick:,g}".replace(",", " "), "middle")
        yield Line("grid", tuple(lines))
        if ticks and self.x(self.start + ticks[-1] * 1e6) < self.right - 22:
            yield Text("time", self.right + 4, y, "ms")


def _labels(texts: Sequence[str], style: str = "row") -> tuple[list[str], float]:
    """Shorten labels to the room at the left; return them and how wide they are."""
    shown = [wrap(words.plain(text), style, _LABEL, 1)[0] for text in texts]
    return shown, max((measure(text, style) for text in shown), default=0.0)


def _link(messages: Sequence[Message], says: str) -> Iterator[Mark]:
    """Begin a row that stands for messages."""
    first, *more = messages
    yield Open(
        "a",
        attributes(
            class_=f"u-m u-{words.tint(first)}",
            data_message=first.number,
            data_folded=" ".join(str(m.number) for m in more) or None,
            href=f"#@-m{first.number}",
        ),
    )
    yield Title(says)


def _hit(y: float, height: float = _ROW) -> Mark:
    return Box("hit", _EDGE - 4, y, _WIDTH - 2 * _EDGE + 8, height, 4)


# ---- hop by hop


def _hops(trace: Trace, title: str | None, caption: str | None) -> Picture:
    """Draw each message on its way: a mark for each hop, and who held it in between."""
    ways: dict[str, list[Message]] = defaultdict(list)
    for message in trace:
        if message.msg_id:
            way = ways[message.msg_id]
            # A publisher tells each subscriber: only the first copy on a link is the way.
            if all(message.link != before.link for before in way):
                way.append(message)
    if not ways:
        raise ValueError("no message of this trace has a msg_id to follow from hop to hop")
    clock = words.Clock(trace)
    labels, widest = _labels([words.says(way[0]) for way in ways.values()])
    left = _EDGE + widest + 16
    end = max(m.time_ns for way in ways.values() for m in way)
    axis = _Axis(clock.start, end, left, _WIDTH - _TAIL)
    marks: list[Mark] = []
    shares = _shares(list(ways.values()))
    y = 14.0
    if shares:
        marks += _share_bar(shares, y)
        y += 62
    top = y + 4
    bottom = y + _AXIS + _ROW * len(ways)
    marks += axis.marks(top + 6, bottom)
    y += _AXIS
    for label, way in zip(labels, ways.values(), strict=True):
        marks += _way(clock, axis, label, way, y)
        y += _ROW
    total = words.in_words(end - clock.start)
    parts = words.joined(f"{party} {words.in_words(ns)}" for party, ns in shares)
    return Picture(
        kind="timing",
        title=title or f"{words.says(trace[0])}, hop by hop",
        description=(
            f"{words.messages(len(ways))} on their way, hop by hop, over {total}."
            + (f" From the request to the last word: {parts}." if shares else "")
        ),
        scene=Scene(_WIDTH, round(bottom + 14), tuple(marks)),
        trace=trace,
        caption=caption or "",
    )


def _way(
    clock: words.Clock, axis: _Axis, label: str, way: Sequence[Message], y: float
) -> Iterator[Mark]:
    """Draw one message from hop to hop."""
    own, middle = words.tint(way[0]), y + _ROW / 2
    taken = [b.time_ns - a.time_ns for a, b in pairwise(way)]
    held = [f"{words.in_words(ns)} at {m.sender}" for ns, m in zip(taken, way[1:], strict=True)]
    says = clock.sentence(way[0]) + (f"; {words.joined(held)}" if held else "")
    yield from _link(way, says)
    yield _hit(y)
    yield Text("row", axis.left - 16, middle + 4, label, "end", own)
    xs = [axis.x(m.time_ns) for m in way]
    for a, b in pairwise(xs):
        yield Line("line", (((a, middle), (b, middle)),), own)
    for x in xs:
        yield Box("head", x - 3.5, middle - 3.5, 7, 7, 3.5, own)
    if taken:
        yield Text("small", xs[-1] + 8, middle + 4, words.in_words(sum(taken)))
    yield Close("a")


def _shares(ways: Sequence[Sequence[Message]]) -> list[tuple[str, int]]:
    """Say who held the conversation, from the first request to the last word that answers it.

    The request is held by whoever passes it on; then by whoever received it last, until the last
    message that belongs to it is sent; then by whoever passes that on.
    """
    asked = next((way for way in ways if way[0].label.endswith("_request")), None)
    if asked is None:
        return []
    answers = [way for way in ways if way[0].parent_id == asked[0].msg_id]
    if not answers:
        return []
    last = max(answers, key=lambda way: (way[-1].time_ns, way[0].time_ns))
    shares = [(a.receiver, b.time_ns - a.time_ns) for a, b in pairwise(asked)]
    shares.append((asked[-1].receiver, max(last[0].time_ns - asked[-1].time_ns, 0)))
    shares += [(a.receiver, b.time_ns - a.time_ns) for a, b in pairwise(last)]
    return shares


def _share_bar(shares: Sequence[tuple[str, int]], y: float) -> Iterator[Mark]:
    """Draw who held the conversation as one bar, with a label for each piece."""
    whole = sum(ns for _, ns in shares) or 1
    left, right = float(_EDGE), float(_WIDTH - _EDGE)
    yield Text("group", left, y, f"{words.in_words(whole)} in all")
    x, text_end = left, 0.0
    colours = dict(zip(dict(shares), ("share-1", "share-2", "share-3") * len(shares), strict=False))
    for party, ns in shares:
        width = (right - left) * ns / whole
        yield Box(colours[party], x, y + 8, max(width, 1), 18)
        text = f"{party} {words.in_words(ns)}"
        start = min(max(x, text_end), right - measure(text, "small"))
        if start >= text_end:
            yield Text("small", start, y + 40, text)
            text_end = start + measure(text, "small") + 12
        x += width


# ---- the waterfall


def _waterfall(trace: Trace, title: str | None, caption: str | None) -> Picture:
    """Draw HTTP requests as bars from the request to the end of its response."""
    pairs = exchanges(trace)
    if not pairs:
        raise ValueError("no HTTP request is in this trace")
    clock = words.Clock(trace)
    end = max(m.time_ns for pair in pairs for m in pair if m is not None)
    labels, widest = _labels([request.label for request, _ in pairs])
    axis = _Axis(clock.start, end, _EDGE + widest + 14, _WIDTH - _TAIL - 34)
    row = 20 if len(pairs) > 12 else _ROW
    bottom = 12 + _AXIS + row * len(pairs)
    marks: list[Mark] = [*axis.marks(18, bottom)]
    y = 12.0 + _AXIS
    failed = 0
    for label, (request, response) in zip(labels, pairs, strict=True):
        status = int(response.status) if response is not None else 0
        failed += status >= 400 or not status
        last = response.time_ns if response is not None else end
        taken = words.in_words(last - request.time_ns)
        outcome = f"{status} in {taken}" if status else "no response"
        says = f"{request.label}, {outcome}, sent {clock.when(request)}"
        a, b = axis.x(request.time_ns), axis.x(last)
        middle = y + row / 2
        marks += [
            *_link([m for m in (request, response) if m is not None], says),
            _hit(y, row),
            Text("row", axis.left - 14, middle + 4, label, "end", "http"),
            Box("bar" if 0 < status < 400 else "bar-failed", a, middle - 5, max(b - a, 2), 10, 2,
                "http"),
            Text("small", b + 6, middle + 4, f"{status} · {taken}" if status else "✕ no response"),
            Close("a"),
        ]  # fmt: skip
        y += row
    count = "One request" if len(pairs) == 1 else f"{len(pairs)} requests"
    slowest = max(pairs, key=lambda p: (p[1].time_ns if p[1] else end) - p[0].time_ns)
    return Picture(
        kind="timing",
        title=title or f"{count} over HTTP",
        description=(
            f"Waterfall of {count.lower()} over HTTP within {words.in_words(end - clock.start)}; "
            f"{failed} without success. The slowest: {slowest[0].label}."
        ),
        scene=Scene(_WIDTH, round(bottom + 12), tuple(marks)),
        trace=trace,
        caption=caption or "",
    )


def exchanges(trace: Trace) -> list[tuple[Message, Message | None]]:
    """Pair each HTTP request of ``trace`` with its response, if it has one.

    On one connection responses come in the order of their requests (RFC 9112, section 9.3);
    interim responses (1xx but for 101) do not count.
    """
    waiting: dict[int, list[int]] = defaultdict(list)
    pairs: list[tuple[Message, Message | None]] = []
    for message in trace:
        if message.protocol != "http":
            continue
        if message.direction == ">":
            waiting[message.connection].append(len(pairs))
            pairs.append((message, None))
        elif waiting[message.connection] and (message.status >= 200 or message.status == 101):
            place = waiting[message.connection].pop(0)
            pairs[place] = (pairs[place][0], message)
    return pairs


# ---- busy and idle


def _busy(trace: Trace, title: str | None, caption: str | None) -> Picture:
    """Draw a lane for each kernel, with a bar while it is busy."""
    if not len(trace):
        raise ValueError("no kernel says in this trace whether it is busy")
    clock = words.Clock(trace)
    lanes = busy_times(trace)
    statuses = trace.types("status")
    if not lanes:
        raise ValueError("no kernel says in this trace whether it is busy")
    labels, widest = _labels(list(lanes), "name-row")
    axis = _Axis(clock.start, clock.end, _EDGE + widest + 16, _WIDTH - _TAIL)
    height = 34
    bottom = 12 + _AXIS + height * len(lanes)
    marks: list[Mark] = [*axis.marks(18, bottom)]
    y = 12.0 + _AXIS
    said = []
    for label, (party, bars) in zip(labels, lanes.items(), strict=True):
        middle = y + height / 2
        total = sum(b - a for a, b in _union(bars))
        share = 100 * total / max(clock.end - clock.start, 1)
        said.append(f"{party} for {words.in_words(total)} ({share:.0f} %)")
        marks.append(Text("name-row", axis.left - 16, middle + 4, label, "end"))
        marks.append(Line("life", (((axis.left, middle), (axis.right, middle)),)))
        marks += [
            Box("busy", axis.x(a), middle - 8, max(axis.x(b) - axis.x(a), 1.5), 16, 2)
            for a, b in bars
        ]
        marks.append(Text("small", axis.right + 8, middle + 4, f"{share:.0f} % busy"))
        y += height
    return Picture(
        kind="timing",
        title=title or f"Busy and idle: {words.joined(lanes)}",
        description=(
            f"Within {words.in_words(clock.end - clock.start)} these were busy: "
            f"{words.joined(said)}."
        ),
        scene=Scene(_WIDTH, round(bottom + 12), tuple(marks)),
        trace=statuses,
        caption=caption or "",
    )


def busy_times(trace: Trace) -> dict[str, list[tuple[int, int]]]:
    """Return when each party said that it was busy, as pairs of nanoseconds.

    A party that passes on what another one said about itself has no entry.
    """
    known: set[tuple[str, str]] = set()
    begun: dict[str, dict[str, int]] = defaultdict(dict)
    found: dict[str, list[tuple[int, int]]] = {}
    for message in trace:
        if message.label != "status":
            continue
        news = (message.sender, message.msg_id) not in known
        known |= {(message.sender, message.msg_id), (message.receiver, message.msg_id)}
        if not news:
            continue
        party, request = message.sender, message.parent_id
        bars = found.setdefault(party, [])
        if message.detail == "busy":
            begun[party][request] = message.time_ns
        elif message.detail == "idle":
            since = begun[party].pop(request, None if bars or begun[party] else trace[0].time_ns)
            if since is not None:
                bars.append((since, message.time_ns))
    for party, bars in found.items():
        bars += [(since, trace[-1].time_ns) for since in begun[party].values()]
        bars.sort()
    return found


def _union(bars: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Merge bars that overlap."""
    now: tuple[int, int] | None = None
    for a, b in sorted(bars):
        if now is None:
            now = (a, b)
        elif a <= now[1]:
            now = (now[0], max(now[1], b))
        else:
            yield now
            now = (a, b)
    if now is not None:
        yield now


# ---- distributions


def distribution(
    samples: Mapping[str, Sequence[float]],
    *,
    title: str,
    caption: str | None = None,
    trace: Trace | None = None,
) -> Picture:
    """Draw how a duration varies over repeated runs: every run a dot, with median and quartiles.

    Parameters
    ----------
    samples
        For each row its durations, in nanoseconds; negative ones too (one thing before another).
    title, caption
        The heading, and what to look for.
    trace
        The messages that were measured, if they are at hand.

    Raises
    ------
    ValueError
        If there is nothing in ``samples``.
    """
    from underhood.trace import Trace

    rows = {name: sorted(values) for name, values in samples.items() if len(values)}
    if not rows:
        raise ValueError("there are no samples to draw")
    labels, widest = _labels(list(rows), "name-row")
    low = min(0.0, *(values[0] for values in rows.values()))
    high = max(0.0, *(values[-1] for values in rows.values()))
    axis = _Axis(round(low), round(high) or 1, _EDGE + widest + 18, _WIDTH - 96)
    height = 58
    bottom = 12 + _AXIS + height * len(rows)
    marks: list[Mark] = [*_value_axis(axis, 18, bottom)]
    y = 12.0 + _AXIS
    said, lines = [], []
    for label, (name, values) in zip(labels, rows.items(), strict=True):
        middle = y + height / 2
        mid = median(values)
        first, _, third = quantiles(values, n=4) if len(values) > 1 else (mid, mid, mid)
        first, third = max(first, values[0]), min(third, values[-1])
        marks.append(Text("name-row", axis.left - 18, middle + 4, label, "end"))
        a, b = axis.x(first), axis.x(third)
        marks.append(Box("busy", a, middle - 14, max(b - a, 1), 28, 3))
        xs = [axis.x(value) for value in values]
        marks += _swarm(xs, middle) if len(xs) <= _DOTS else _histogram(xs, middle)
        marks.append(Line("median", (((axis.x(mid), middle - 18), (axis.x(mid), middle + 18)),)))
        marks.append(Text("small", axis.right + 10, middle, f"median {_signed(mid)}"))
        runs = "1 run" if len(values) == 1 else f"{len(values)} runs"
        marks.append(Text("small", axis.right + 10, middle + 14, runs))
        said.append(
            f"{name}: {runs}, median {_signed(mid)}, half of them between "
            f"{_signed(first)} and {_signed(third)}, all between {_signed(values[0])} and "
            f"{_signed(values[-1])}"
            if len(values) > 1
            else f"{name}: {runs}, {_signed(mid)}"
        )
        lines.append(said[-1])
        y += height
    return Picture(
        kind="timing",
        title=title,
        description=f"Distributions. {'. '.join(said)}.",
        scene=Scene(_WIDTH, round(bottom + 10), tuple(marks)),
        trace=trace if trace is not None else Trace(()),
        caption=caption or "",
        text="\n".join(lines),
        lists=False,
    )


def _value_axis(axis: _Axis, y: float, bottom: float) -> Iterator[Mark]:
    """Draw an axis of durations, which may be negative."""
    whole = (axis.end - axis.start) / 1e6
    step = words.round_step(whole / 6)
    tick = -(-axis.start / 1e6 // step) * step
    lines = []
    while tick <= axis.end / 1e6 + 1e-9:
        tick = round(tick, 9) + 0.0  # no "−0"
        x = axis.x(tick * 1e6)
        lines.append(((x, y + 6), (x, bottom)))
        yield Text("time", x, y, f"{tick:,.6g}".replace(",", " ").replace("-", "−"), "middle")
        tick += step
    yield Line("grid", tuple(lines))
    yield Text("time", axis.right + 10, y, "ms")


def _signed(ns: float) -> str:
    return ("−" if ns < 0 else "") + words.in_words(round(abs(ns)))


def _histogram(xs: Sequence[float], middle: float) -> Iterator[Mark]:
    """Draw many runs as bars, four pixels wide, that count them."""
    counts = Counter(int(x // 4) for x in xs)
    most = max(counts.values())
    for place, count in sorted(counts.items()):
        height = max(40 * count / most, 1)
        yield Box("dot", place * 4, middle + 18 - height, 3, height)


def _swarm(xs: Sequence[float], middle: float) -> Iterator[Mark]:
    """Draw each run as a dot, moved up or down until none lies on another."""
    ends: list[float] = []
    for x in xs:
        lane = next((n for n, end in enumerate(ends) if x - end >= 5.5), len(ends))
        if lane == 9:  # more than fit: let them lie on each other
            lane = min(range(9), key=ends.__getitem__)
        if lane == len(ends):
            ends.append(x)
        ends[lane] = x
        rise = (lane + 1) // 2 * (5.5 if lane % 2 else -5.5)
        yield Box("dot", x - 2.5, middle + rise - 2.5, 5, 5, 2.5)
