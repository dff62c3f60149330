"""Fields: the span tree of a message, as readers see it.

Strategy: spans tile a message down to single commas, which is more than anybody wants to open one
by one. A *field* is a row to look at: a span, together with the punctuation that follows it, and
without levels that say nothing new (a part that is one JSON object, a member that is one string).
The rows of every level still tile it, so each byte of the message is in sight exactly once.

Two programs set fields in HTML, this module and ``page.js``, because a page with many messages
holds them as numbers until somebody asks (see :func:`packed`). A test holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any, Final

from underhood.dissect.explanations import explain
from underhood.draw.words import octets, plain

if TYPE_CHECKING:
    from underhood.dissect.spans import Span

_GLUE: Final = frozenset(
    {
        "json.punctuation", "json.whitespace", "http.space", "http.line_end", "http.field.colon",
        "http.field.blank", "http.target.mark",
    }
)  # fmt: skip
_NAMES: Final = frozenset({"json.name", "http.field.name"})
_SHOWN: Final = 192  # bytes of one row that are shown as hex and text
_FIELDS: Final = 800  # rows of one message; a larger one is opened less deeply
_DEEPEST: Final = 40  # levels of rows; whoever nests deeper wants to be found out, not read
_VALUE: Final = 80  # characters of a value that are shown


@dataclass(frozen=True, slots=True)
class Field:
    """A row: a label, a run of bytes, and the rows inside it, which tile it.

    ``value`` is the decoded value where the bytes do not show it; ``start`` counts from the
    beginning of the message.
    """

    label: str
    key: str
    start: int
    length: int
    value: str = ""
    children: tuple[Field, ...] = ()

    @property
    def end(self) -> int:
        """The offset of the first byte after the field."""
        return self.start + self.length

    def walk(self) -> Iterator[Field]:
        """Yield this field and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


def field(span: Span, data: bytes, base: int | None = None) -> Field:
    """Return the field that a span is; ``data`` are the bytes from ``base`` on."""
    base = span.start if base is None else base
    return _field(span, data, base, span.start, span.end, [_FIELDS], 0)


def _field(
    span: Span, data: bytes, base: int, start: int, end: int, left: list[int], level: int
) -> Field:
    children = list(_inside(span)) if left[0] > 0 and level < _DEEPEST else []
    left[0] -= len(children)
    value = "" if children else _value(span, data[span.start - base : span.end - base])
    return Field(
        span.label, span.key, start - base, end - start, value,
        tuple(
            _field(child, data, base, low, high, left, level + 1)
            for child, low, high in _with_glue(children, start, end)
        ),
    )  # fmt: skip


def _inside(span: Span) -> Sequence[Span]:
    """Return the spans inside that say something new."""
    children = span.children
    while len(children) == 1:
        children = children[0].children
    if children and children[0].key in _NAMES:
        value = children[-1] if children[-1].key not in _GLUE else None
        return [c for c in _inside(value) if c.key not in _GLUE] if value is not None else ()
    told = [child for child in children if child.key not in _GLUE]
    return told if len(told) > 1 or (told and told[0].children) else ()


def _with_glue(children: Sequence[Span], start: int, end: int) -> Iterator[tuple[Span, int, int]]:
    """Yield each child with the bytes up to the next, so that the rows tile the level."""
    starts = [start, *(child.start for child in children[1:]), end]
    yield from zip(children, starts, starts[1:], strict=False)


def _value(span: Span, data: bytes) -> str:
    """Return the value as text, where it is not what the bytes say as text."""
    value: Any = span.value
    if value is None or isinstance(value, (bytes, dict, list)):
        return ""
    shown = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    text = plain(shown or str(value))
    return "" if text in data.decode("utf-8", "replace") else text[:_VALUE]


@cache
def explanation(key: str) -> tuple[str, str]:
    """Return the sentence about a field and the link into its specification, as far as known."""
    try:
        found = explain(key)
    except KeyError:
        return "", ""
    return found.sentence, found.link


# ---- HTML


def as_html(found: Field, data: bytes, *, level: int = 2) -> str:
    """Set a field as rows to open, the first ``level`` levels open.

    Parameters
    ----------
    found
        The field.
    data
        The bytes of the message; may be fewer than the field says.
    level
        How many levels are open at first.
    """
    sentence, link = explanation(found.key)
    about = escape(sentence)
    if link:
        about += f' <a href="{escape(link)}">Specification</a>'
    inner = "".join(as_html(child, data, level=level - 1) for child in found.children)
    part = data[found.start : found.end]
    value = f" <b>{escape(found.value)}</b>" if found.value else ""
    kind = "uh-f uh-in" if found.children else "uh-f"
    is_open = " open" if found.children and level > 0 else ""
    return (
        f'<details class="{kind}"{is_open}><summary><span class="uh-fl">{escape(found.label)}'
        f'{value}</span><code class="uh-fh">{as_hex(part)}</code>'
        f'<code class="uh-ft">{escape(as_text(part))}</code></summary>'
        f"<p>{about} {place(found)}</p>{inner}</details>"
    )


def place(found: Field) -> str:
    """Say how long a field is and where it begins."""
    return f"{octets(found.length)}, from byte {found.start}."


def as_hex(data: bytes) -> str:
    """Write bytes in hexadecimal; of many, the first."""
    return data[:_SHOWN].hex(" ") + (" …" if len(data) > _SHOWN else "")


def as_text(data: bytes) -> str:
    """Write bytes as text, one character each, ``·`` where a byte is no ASCII character."""
    return "".join(chr(b) if 32 <= b < 127 else "·" for b in data[:_SHOWN])


# ---- packed


def packed(found: Field, kinds: dict[tuple[str, str], int], limit: int) -> list[Any]:
    """Return a field as nested lists of numbers, for the script of a page to set in HTML.

    A field becomes ``[kind, length]``, ``[kind, length, value]`` or
    ``[kind, length, value, children]``; where it begins follows from what stands before it.

    Parameters
    ----------
    kinds
        Numbers the pairs of label and key that occur; new ones are added.
    limit
        Fields that begin at or after this offset are left out.
    """
    kind = kinds.setdefault((found.label, found.key), len(kinds))
    inner = [packed(child, kinds, limit) for child in found.children if child.start < limit]
    if inner:
        return [kind, found.length, found.value, inner]
    return [kind, found.length, found.value] if found.value else [kind, found.length]
