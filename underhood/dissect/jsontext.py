"""JSON texts as spans: every member, value, comma and blank has its place (RFC 8259).

Strategy: the standard library decides whether a text is JSON; it is the reference that Jupyter
itself uses. Only then does one pass over the tokens build the tree, with a stack of its own, so
that depth costs nothing. It need not check the grammar again. A text that is not JSON is one
``undecoded`` span that repeats the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from underhood.dissect.spans import Span, undecoded

_TOKEN: Final = re.compile(
    rb'[ \t\n\r]+|"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^ \t\n\r"{}\[\],:]+', re.DOTALL
)
_decode: Final = json.JSONDecoder().raw_decode
_LITERALS: Final = {b"true": "boolean", b"false": "boolean", b"null": "null"}


@dataclass(frozen=True, slots=True)
class Names:
    """Which keys of ``explanations.yml`` the members of an object have.

    A member ``name`` gets the key ``prefix.name``, unless ``keys`` has another for it; ``below``
    names the members of its value.
    """

    prefix: str
    below: Mapping[str, Names] = field(default_factory=lambda: MappingProxyType({}))
    keys: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def key(self, name: str) -> str:
        """Return the key of a member."""
        return self.keys.get(name) or f"{self.prefix}.{name}"


def read_json(data: bytes) -> tuple[Any, str]:
    """Decode a JSON text as Jupyter does: UTF-8, with a replacement for bytes that are not.

    Returns
    -------
    value, note
        The note is empty, or says why the text is not JSON; then the value is None.
    """
    text = data.decode("utf-8", "replace")
    try:
        # Without the search for blanks around the text: what Jupyter sends has none, and small
        # messages are read much faster.
        value, end = _decode(text)
        if end == len(text):
            return value, ""
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(text), ""
    except RecursionError:
        return None, "not JSON that can be read: nested too deeply"
    except ValueError as error:
        return None, f"not JSON: {error}"


class _Open:
    """An object, array or member whose end has not come yet."""

    __slots__ = ("children", "name", "names", "start", "value")

    def __init__(self, start: int, value: Any, names: Names | None, name: str | None) -> None:
        self.start, self.value, self.names, self.name = start, value, names, name
        self.children: list[Span] = []


def json_spans(data: bytes, base: int = 0, names: Names | None = None) -> tuple[Span, ...]:
    """Return the spans of one JSON text.

    Parameters
    ----------
    data
        The whole text.
    base
        The offset of its first byte in the stream.
    names
        The keys of the members of the outermost object; members have ``"json.member"`` without.
    """
    if not data:
        return ()
    note = read_json(data)[1]
    if note:
        return (undecoded(base, base + len(data), note),)
    root = top = _Open(base, None, names, None)
    stack = [root]

    for match in _TOKEN.finditer(data):
        start, token = base + match.start(), match[0]
        first = token[0]
        if first in b" \t\n\r":
            top.children.append(Span(start, len(token), "blank", None, "json.whitespace"))
            continue
        if first in b",:":
            top.children.append(Span(start, 1, token.decode(), None, "json.punctuation"))
            continue
        if first in b"{[":
            if top.name is None:
                inside = top.names if top is root else None
            else:
                inside = top.names.below.get(top.name) if top.names else None
            top = _Open(start, {} if first == 0x7B else [], inside, None)
            top.children.append(Span(start, 1, token.decode(), None, "json.punctuation"))
            stack.append(top)
            continue
        if first in b"}]":
            top.children.append(Span(start, 1, token.decode(), None, "json.punctuation"))
            stack.pop()
            kind = "object" if first == 0x7D else "array"
            made = Span(
                top.start, start + 1 - top.start, kind, top.value, f"json.{kind}",
                tuple(top.children),
            )  # fmt: skip
            top = stack[-1]
        else:
            value = json.loads(token.decode("utf-8", "replace"))
            if first == 0x22 and isinstance(top.value, dict):
                top = _Open(start, None, top.names, value)
                top.children.append(Span(start, len(token), "name", value, "json.name"))
                stack.append(top)
                continue
            kind = "string" if first == 0x22 else _LITERALS.get(token, "number")
            made = Span(start, len(token), kind, value, f"json.{kind}")

        # A value is complete: it belongs to a member, an array, or is the whole text.
        top.children.append(made)
        if top.name is not None:
            key = top.names.key(top.name) if top.names else "json.member"
            member = Span(
                top.start, made.end - top.start, top.name or "(no name)", made.value, key,
                tuple(top.children),
            )  # fmt: skip
            stack.pop()
            stack[-1].value[top.name] = made.value
            top = stack[-1]
            top.children.append(member)
        elif isinstance(top.value, list):
            top.value.append(made.value)
    return tuple(root.children)
