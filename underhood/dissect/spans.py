"""Spans: a tree over one direction of one connection, in which every byte has its place.

Strategy: the children of a span tile it exactly, and the top-level spans tile the stream exactly:
no gap, no overlap, whatever the bytes. What cannot be read becomes an ``undecoded`` span that says
why, never an exception. Children are computed when first asked for, so that a long stream costs
one cheap scan and nobody pays for values that nobody looks at.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

UNDECODED: Final = "undecoded"

Children = Iterable["Span"] | Callable[[], Iterable["Span"]]


class Span:
    """A run of bytes with a meaning.

    Parameters
    ----------
    start, length
        Offset into the stream of its direction, and length, in bytes.
    label
        The field's name in its specification.
    value
        The decoded value, if the field has one.
    key
        Where ``explanations.yml`` explains the field, as in ``"zmtp.greeting.mechanism"``.
    children
        Spans that tile this one, or a function that makes them when they are first asked for.
    """

    __slots__ = ("_children", "key", "label", "length", "start", "value")

    def __init__(
        self,
        start: int,
        length: int,
        label: str,
        value: Any = None,
        key: str = "",
        children: Children = (),
    ) -> None:
        self.start, self.length, self.label = start, length, label
        self.value, self.key, self._children = value, key, children

    def __repr__(self) -> str:
        return f"<Span {self.start}+{self.length} {self.label} {self.value!r:.40}>"

    @property
    def end(self) -> int:
        """The offset of the first byte after the span."""
        return self.start + self.length

    @property
    def children(self) -> tuple[Span, ...]:
        """The spans that tile this one; empty for a leaf."""
        if not isinstance(self._children, tuple):
            made = self._children() if callable(self._children) else self._children
            self._children = tuple(made)
        return self._children

    def walk(self) -> Iterator[Span]:
        """Yield this span and all below it, parents first."""
        # A stack of its own: JSON may nest deeper than Python calls may.
        stack = [self]
        while stack:
            span = stack.pop()
            yield span
            stack.extend(reversed(span.children))

    def leaves(self) -> Iterator[Span]:
        """Yield the spans without children, in order: they tile this one."""
        return (span for span in self.walk() if not span.children)

    def at(self, offset: int) -> list[Span]:
        """Return the path of spans, outermost first, that cover the byte at ``offset``."""
        path = [self]
        while path[-1].children:
            path.append(next(c for c in path[-1].children if c.start <= offset < c.end))
        return path


def undecoded(start: int, end: int, why: str) -> Span:
    """Return the span of bytes that could not be read; its value says why."""
    return Span(start, end - start, UNDECODED, why, UNDECODED)


def laid_over(
    spans: Sequence[Span], segments: Iterable[tuple[int, int]]
) -> Iterator[tuple[Span, ...]]:
    """Lay spans over the pieces in which their bytes travelled.

    A body in chunks or a message in fragments is one text in several places of the stream. Where
    a span crosses from one piece into the next it is cut, and both parts keep its value.

    Parameters
    ----------
    spans
        Spans that tile the joined text from offset 0.
    segments
        Where each piece lies in the stream: the offset of its first byte, and its length.

    Yields
    ------
    tuple of Span
        For each piece, the spans that tile it.
    """
    start = 0
    for place, length in segments:
        yield _window(spans, start, start + length, place - start)
        start += length


def _window(spans: Sequence[Span], start: int, end: int, shift: int) -> tuple[Span, ...]:
    """Return what ``spans`` have between two offsets, moved by ``shift``."""
    found = []
    for span in spans[bisect_right(spans, start, key=lambda s: s.end) :]:
        if span.start >= end:
            break
        left, right = max(span.start, start), min(span.end, end)
        found.append(
            Span(
                left + shift, right - left, span.label, span.value, span.key,
                partial(_children_in, span, left, right, shift),
            )
        )  # fmt: skip
    return tuple(found)


def _children_in(span: Span, start: int, end: int, shift: int) -> tuple[Span, ...]:
    return _window(span.children, start, end, shift)


# ---- values for people to read


def text(data: bytes) -> str:
    """Decode bytes that are most probably UTF-8."""
    return data.decode("utf-8", "replace")


def preview(data: bytes, most: int = 24) -> str:
    """Return the start of a printable text, at most so many characters; empty for other bytes."""
    # A character has at most four bytes, and the cut may leave the last one incomplete.
    found = text(data[: 4 * most + 4])[: most + 1]
    if not found.isprintable() or "\ufffd" in found:
        return ""
    return found if len(found) <= most else found[: most - 1] + "…"
