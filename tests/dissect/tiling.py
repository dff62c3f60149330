"""What holds for every dissection, whatever the bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from underhood.capture.store import DIRECTIONS, Direction
from underhood.dissect import Dissection, Span, Unit, dissect
from underhood.dissect.explanations import explain
from underhood.dissect.jupyter import Signature
from underhood.dissect.spans import UNDECODED


def assert_tiles(spans: Iterable[Span], start: int, end: int) -> None:
    """Each level tiles the one above exactly, and every field can be explained."""
    work = [(tuple(spans), start, end)]
    while work:
        row, offset, stop = work.pop()
        for span in row:
            assert span.start == offset, f"{span} does not begin at {offset}"
            assert span.length > 0, f"{span} is empty"
            assert explain(span.key).sentence
            offset = span.end
            if span.children:
                work.append((span.children, span.start, span.end))
        assert offset == stop, f"tiled up to {offset}, not up to {stop}"


def assert_readable(unit: Unit) -> None:
    """Whatever one can ask of a message has an answer."""
    assert unit.protocol in ("zmtp", "jupyter", "http", "websocket")
    assert isinstance(unit.label, str)
    assert unit.label
    assert isinstance(unit.detail, str)
    for name in ("body", "headers", "path", "payload", "close_code", "close_reason", "note"):
        getattr(unit, name, None)
    assert (unit.jupyter is not None) == (unit.protocol == "jupyter")
    if (message := unit.jupyter) is not None:
        for part in (message.header, message.parent_header, message.metadata, message.content):
            assert isinstance(part, dict)
        assert isinstance(message.note, str)
        assert message.verdict(b"key") in Signature


def examine(streams: Mapping[Direction, bytes]) -> Dissection:
    """Dissect, and check what holds for every dissection."""
    dissection = dissect(streams)
    for direction in DIRECTIONS:
        stream = dissection.streams[direction]
        assert stream == streams.get(direction, b"")
        assert_tiles(dissection.spans(direction), 0, len(stream))
        ends = [unit.end for unit in dissection.units(direction)]
        assert ends == sorted(ends), "messages come in the order in which they were complete"
        for unit in dissection.units(direction):
            assert unit.direction == direction
            assert 0 <= unit.start < unit.end <= len(stream)
            span = dissection.span(unit)
            assert (span.start, span.end) == (unit.start, unit.end)
            assert_readable(unit)
    return dissection


def flat(spans: Iterable[Span]) -> list[tuple[Any, ...]]:
    """All that spans say, to compare."""
    return [(s.start, s.length, s.label, s.key, repr(s.value)) for top in spans for s in top.walk()]


def holes(spans: Iterable[Span]) -> list[str]:
    """Why bytes are undecoded."""
    return [str(s.value) for top in spans for s in top.walk() if s.key == UNDECODED]


def keys(dissection: Dissection) -> set[str]:
    """The keys of all fields."""
    return {s.key for d in DIRECTIONS for top in dissection.spans(d) for s in top.walk()}


def fields(span: Span) -> list[tuple[str, Any]]:
    """The leaves that have a value, as labels and values."""
    return [(leaf.label, leaf.value) for leaf in span.leaves() if leaf.value is not None]


def labels(dissection: Dissection, direction: Direction) -> list[str]:
    return [unit.label for unit in dissection.units(direction)]
