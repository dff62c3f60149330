"""HTTP/1.1: requests and responses, and what the connection becomes after an upgrade.

Strategy: one regular expression reads a head and one a chunk's line; bodies are skipped by their
length. Both directions are read in step, for two reasons: a response is framed by the method of
its request (a response to HEAD has no body), and after a request that asks for another protocol
only the response tells whether the client still speaks HTTP.

A head that breaks the grammar ends its direction in one ``undecoded`` span: without a head nobody
knows where the next message begins. A body that breaks off or breaks its grammar is undecoded
from there on, and its head stays readable.

Sources: RFC 9112 (HTTP/1.1 messages), RFC 9110 (semantics),
https://html.spec.whatwg.org/multipage/server-sent-events.html (event streams).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final, Protocol
from urllib.parse import urlsplit

from underhood.capture.store import CLIENT_TO_SERVER, SERVER_TO_CLIENT, Direction
from underhood.dissect import websocket
from underhood.dissect.jsontext import json_spans, read_json
from underhood.dissect.spans import Span, laid_over, text, undecoded

MOST_INFLATED: Final = 64 * 2**20
"""How many bytes a compressed body may grow to, so that a small body cannot fill the memory."""

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
# Possessive quantifiers only on single characters: on groups, Python before 3.11.5 gets them wrong.
_FIELDS = rb"(?:" + _TOKEN + rb":[^\r\n\0]*+\r?\n(?:[ \t][^\r\n\0]*+\r?\n)*)*"
_REQUEST: Final = re.compile(
    rb"(?P<method>" + _TOKEN + rb") (?P<target>[\x21-\x7e]+) HTTP/(?P<version>1\.[0-9])\r?\n"
    rb"(?P<fields>" + _FIELDS + rb")\r?\n"
)
_RESPONSE: Final = re.compile(
    rb"HTTP/(?P<version>1\.[0-9]) (?P<status>[0-9]{3})(?: (?P<reason>[^\r\n\0]*+))?\r?\n"
    rb"(?P<fields>" + _FIELDS + rb")\r?\n"
)
_FIELD: Final = re.compile(
    rb"(?P<name>" + _TOKEN + rb"):(?P<before>[ \t]*+)(?P<value>[^\r\n]*+(?:\r?\n[ \t][^\r\n]*+)*)"
    rb"(?P<end>\r?\n)"
)
_BLOCK: Final = re.compile(rb"(?P<fields>" + _FIELDS + rb")\r?\n")
_CHUNK: Final = re.compile(rb"(?P<size>[0-9A-Fa-f]{1,16})(?P<extension>[ \t]*(?:;[^\r\n]*+)?)\r\n")
_EMPTY_LINES: Final = re.compile(rb"(?:\r?\n)+")
_FOLD: Final = re.compile(r"\s*\r?\n[ \t]+")
_START: Final = re.compile(rb"(?:\r?\n)*" + _TOKEN + rb" [\x21-\x7e]")


def is_http(client: bytes, server: bytes) -> bool:
    """Tell whether a connection begins like HTTP/1.1 does (RFC 9112, "request-line")."""
    return _START.match(client) is not None or server.startswith(b"HTTP/1.")


class Headers(Mapping[str, str]):
    """Header fields by name, whatever the case of its letters (RFC 9110 section 5).

    The values of a name that came more than once are joined by ``", "``; :meth:`all` has them
    one by one, which ``Set-Cookie`` needs.

    Attributes
    ----------
    fields : tuple
        Every name and value, as sent and in order.
    """

    __slots__ = ("fields",)

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        self.fields = tuple(fields)

    def __repr__(self) -> str:
        return f"Headers({list(self.fields)!r})"

    def __getitem__(self, name: str) -> str:
        found = self.all(name)
        if not found:
            raise KeyError(name)
        return ", ".join(found)

    def __iter__(self) -> Iterator[str]:
        names: dict[str, str] = {}  # as each was written first
        for name, _ in self.fields:
            names.setdefault(name.lower(), name)
        return iter(names.values())

    def __len__(self) -> int:
        return len({name.lower() for name, _ in self.fields})

    def all(self, name: str) -> list[str]:
        """Return every value that came under this name, in order."""
        lower = name.lower()
        return [value for known, value in self.fields if known.lower() == lower]

    def tokens(self, name: str) -> list[str]:
        """Return the members of a comma-separated list, in lower case."""
        return [t for v in self.all(name) for t in (p.strip().lower() for p in v.split(",")) if t]


def _read_fields(data: bytes, start: int, end: int) -> Headers:
    return Headers(
        [
            (m["name"].decode(), _FOLD.sub(" ", m["value"].decode("latin-1")).strip(" \t"))
            for m in _FIELD.finditer(data, start, end)
        ]
    )


# ---- messages


class HttpMessage:
    """A request or a response.

    Attributes
    ----------
    headers : Headers
        The header fields.
    """

    __slots__ = (
        "_body", "_chunks", "_data", "_match", "_trailer", "_unread", "_why",
        "direction", "end", "headers",
    )  # fmt: skip

    protocol: Final = "http"
    jupyter: Final = None
    _kind: ClassVar[str]

    def __init__(self, direction: Direction, data: bytes, match: re.Match[bytes]) -> None:
        self.direction, self._data, self._match = direction, data, match
        self.headers = _read_fields(data, *match.span("fields"))
        self.end = match.end()
        self._chunks: list[tuple[int, int, int]] | None = None
        self._trailer = self._unread = -1
        self._why = ""
        self._body: tuple[bytes, str] | None = None

    @property
    def start(self) -> int:
        """The offset of its first byte."""
        return self._match.start()

    @property
    def detail(self) -> str:
        """What an upgrade asks for; else nothing."""
        return ""

    @property
    def version(self) -> str:
        """``"1.1"`` or ``"1.0"``."""
        return self._match["version"].decode()

    # -- framing

    def frame_by_length(self, length: int) -> bool:
        """Take a body of so many bytes; return whether all of it is there."""
        start, left = self._match.end(), len(self._data) - self._match.end()
        if length > left:
            self._break(start, f"the capture has {left} of the {length} bytes of this body")
            return False
        self.end = start + length
        return True

    def frame_until_close(self) -> None:
        """Take all that is left as the body."""
        self.end = len(self._data)

    def frame_by_chunks(self) -> bool:
        """Take a chunked body (RFC 9112 section 7.1); return whether it was complete."""
        data = self._data
        self._chunks = []
        offset = self._match.end()
        while True:
            line = _CHUNK.match(data, offset)
            if line is None:
                cut = b"\n" not in data[offset : offset + 4096] and len(data) - offset < 4096
                self._break(
                    offset, _CUT if cut else "a chunk begins with its size, and this does not"
                )
                return False
            first = line.end()
            size = int(line["size"], 16)
            if size == 0:
                trailer = _BLOCK.match(data, first)
                if trailer is None:
                    self._break(offset, "the trailer of this body is cut or not a list of fields")
                    return False
                self._chunks.append((offset, first, first))
                self._trailer, self.end = first, trailer.end()
                return True
            after = first + size
            if after + 2 > len(data):
                self._break(offset, f"the capture ends inside a chunk of {size} bytes")
                return False
            if data[after : after + 2] != b"\r\n":
                self._break(offset, f"no CRLF ends this chunk of {size} bytes")
                return False
            self._chunks.append((offset, first, after))
            offset = after + 2

    def _break(self, offset: int, why: str) -> None:
        """Give up at ``offset``: the rest of the direction cannot be read."""
        self.end, self._why = len(self._data), why
        if offset < self.end:
            self._unread = offset

    def give_up(self, why: str) -> None:
        """Say why nobody can tell how long the body is."""
        self._break(self._match.end(), why)

    # -- the body

    @property
    def _segments(self) -> list[tuple[int, int]]:
        """Where the body's bytes lie: offset and length of each piece."""
        if self._chunks is not None:
            return [(first, after - first) for _, first, after in self._chunks if after > first]
        start, end = self._match.end(), self.end if self._unread < 0 else self._unread
        return [(start, end - start)] if end > start else []

    @property
    def body(self) -> bytes:
        """The body without chunks and compression; as far as it was read."""
        return self._decoded[0]

    @property
    def note(self) -> str:
        """Why the body is not all there or not decompressed; empty if it is."""
        return self._why or self._decoded[1]

    @property
    def _decoded(self) -> tuple[bytes, str]:
        if self._body is None:
            data = b"".join(self._data[start : start + length] for start, length in self._segments)
            self._body = _decompress(data, self.headers.tokens("content-encoding"))
        return self._body

    @property
    def media_type(self) -> str:
        """The media type without its parameters, as in ``"application/json"``."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    # -- its bytes

    @property
    def label(self) -> str:
        """What an arrow says."""
        raise NotImplementedError

    @property
    def span(self) -> Span:
        """The tree of its bytes."""
        return Span(
            self.start, self.end - self.start, self.label, None, f"http.{self._kind}", self._parts
        )

    def _parts(self) -> Iterator[Span]:
        match = self._match
        first, after = match.span("fields")
        yield Span(
            match.start(), first - match.start(), f"{_LINES[self._kind]} line", None,
            f"http.{self._kind}_line", self._line_spans,
        )  # fmt: skip
        yield from self._field_spans(first, after)
        yield Span(after, match.end() - after, "end of head", None, "http.head_end")
        if match.end() < self.end:
            yield Span(
                match.end(), self.end - match.end(), "body", self._value, "http.body",
                self._body_spans,
            )  # fmt: skip

    def _line_spans(self) -> Iterator[Span]:
        raise NotImplementedError

    def _line_end(self) -> Span:
        end = self._match.start("fields")
        length = 2 if self._data[end - 2] == 0x0D else 1
        return Span(end - length, length, "line end", None, "http.line_end")

    def _field_spans(self, start: int, end: int) -> Iterator[Span]:
        for match in _FIELD.finditer(self._data, start, end):
            name = match["name"].decode()
            value = _FOLD.sub(" ", match["value"].decode("latin-1")).strip(" \t")
            yield Span(
                match.start(), match.end() - match.start(), name, value,
                f"http.header.{name.lower()}", partial(_field_parts, match),
            )  # fmt: skip

    @property
    def _value(self) -> Any:
        """The body as a value: JSON, text, or bytes."""
        body = self.body
        if _is_json(self.media_type):
            value, note = read_json(body)
            if not note:
                return value
        if _is_text(self.media_type):
            return text(body)
        return body

    def _content_spans(self, data: bytes, base: int) -> tuple[Span, ...]:
        """Return the spans of the body's content, before chunks cut it to pieces."""
        value = self._value
        if self.headers.tokens("content-encoding"):
            return (Span(base, len(data), "compressed content", value, "http.body.compressed"),)
        if self._unread < 0 and _is_json(self.media_type):
            return json_spans(data, base)
        if self.media_type == "text/event-stream":
            return event_spans(data, base)
        return (Span(base, len(data), "content", value, "http.body.content"),)

    def _body_spans(self) -> Iterator[Span]:
        segments = self._segments
        data = b"".join(self._data[start : start + length] for start, length in segments)
        if self._chunks is None:
            for start, _ in segments:
                yield from self._content_spans(data, start)
        else:
            pieces = laid_over(self._content_spans(data, 0) if data else (), segments)
            for start, first, after in self._chunks:
                content = next(pieces) if after > first else ()
                end = after + 2 if after > first else after
                yield Span(
                    start, end - start, "chunk" if after > first else "last chunk", after - first,
                    "http.chunk" if after > first else "http.last_chunk",
                    partial(self._chunk_spans, start, first, after, content),
                )  # fmt: skip
            if self._trailer >= 0:
                after = self.end - (2 if self._data[self.end - 2] == 0x0D else 1)
                yield from self._field_spans(self._trailer, after)
                yield Span(after, self.end - after, "end of trailer", None, "http.trailer_end")
        if self._unread >= 0:
            yield undecoded(self._unread, self.end, self._why)

    def _chunk_spans(
        self, start: int, first: int, after: int, content: tuple[Span, ...]
    ) -> Iterator[Span]:
        line = _CHUNK.match(self._data, start)
        assert line is not None
        size_end, extension_end = line.end("size"), line.end("extension")
        yield Span(start, size_end - start, "size", after - first, "http.chunk.size")
        if extension_end > size_end:
            said = text(line["extension"])
            yield Span(
                size_end, extension_end - size_end, "extension", said, "http.chunk.extension"
            )
        yield Span(extension_end, 2, "line end", None, "http.line_end")
        if after > first:
            yield Span(first, after - first, "data", None, "http.chunk.data", content)
            yield Span(after, 2, "line end", None, "http.line_end")


_CUT: Final = "the capture ends here"
_LINES: Final = {"request": "request", "response": "status"}


class Request(HttpMessage):
    """A request."""

    __slots__ = ()
    _kind: ClassVar[str] = "request"

    @property
    def method(self) -> str:
        """``"GET"`` and its like."""
        return self._match["method"].decode()

    @property
    def target(self) -> str:
        """What is asked for, as sent: mostly a path and a query."""
        return self._match["target"].decode()

    @property
    def path(self) -> str:
        """The path, without query; host and port for CONNECT."""
        target = self.target
        if self.method == "CONNECT":
            return target
        if target.startswith(("http://", "https://", "ws://", "wss://")):
            try:
                return urlsplit(target).path or "/"
            except ValueError:
                return target
        return target.partition("?")[0]

    @property
    def query(self) -> str:
        """What follows the question mark; empty if nothing does."""
        return self.target.partition("?")[2]

    @property
    def label(self) -> str:
        """Method and path."""
        return f"{self.method} {self.path}"

    @property
    def detail(self) -> str:
        """The protocol that it asks to change to; else nothing."""
        return f"upgrade to {self.headers['upgrade']}" if self.asks_upgrade else ""

    @property
    def asks_upgrade(self) -> bool:
        """Whether it asks to change the protocol (RFC 9110 section 7.8)."""
        return "upgrade" in self.headers.tokens("connection") and "upgrade" in self.headers

    def frame(self) -> bool:
        """Find the end of the body (RFC 9112 section 6.3); return whether it was found."""
        codings = self.headers.tokens("transfer-encoding")
        if codings:
            if codings[-1] == "chunked":
                return self.frame_by_chunks()
            self.give_up(f"no length and not chunked: transfer-encoding {', '.join(codings)}")
            return False
        length = _length(self.headers)
        if length is None:
            self.give_up(f"content-length is not a number: {self.headers['content-length']}")
            return False
        return self.frame_by_length(max(length, 0))

    def _line_spans(self) -> Iterator[Span]:
        match = self._match
        yield Span(match.start(), len(self.method), "method", self.method, "http.method")
        start, end = match.span("target")
        yield Span(start - 1, 1, "space", None, "http.space")
        yield Span(start, end - start, "target", self.target, "http.target", self._target_spans)
        yield Span(end, 1, "space", None, "http.space")
        line_end = self._line_end()
        yield Span(end + 1, line_end.start - end - 1, "version", self.version, "http.version")
        yield line_end

    def _target_spans(self) -> Iterator[Span]:
        start, end = self._match.span("target")
        path, mark, query = self.target.partition("?")
        if not mark:
            return
        if path:
            yield Span(start, len(path), "path", path, "http.target.path")
        yield Span(start + len(path), 1, "?", None, "http.target.mark")
        if query:
            yield Span(end - len(query), len(query), "query", query, "http.target.query")


class Response(HttpMessage):
    """A response."""

    __slots__ = ()
    _kind: ClassVar[str] = "response"

    @property
    def status(self) -> int:
        """The status code."""
        return int(self._match["status"])

    @property
    def reason(self) -> str:
        """The reason phrase, as sent."""
        return (self._match["reason"] or b"").decode("latin-1").strip()

    @property
    def label(self) -> str:
        """Status code and reason."""
        return f"{self.status} {self.reason}".strip()

    @property
    def is_final(self) -> bool:
        """Whether it answers its request for good: 101 does, other 1xx do not."""
        return self.status >= 200 or self.status == 101

    def frame(self, method: str) -> bool:
        """Find the end of the body (RFC 9112 section 6.3); return whether it was found."""
        status = self.status
        if method == "HEAD" or status < 200 or status in (204, 304):
            return True
        if method == "CONNECT" and status < 300:
            return True
        codings = self.headers.tokens("transfer-encoding")
        if codings:
            if codings[-1] == "chunked":
                return self.frame_by_chunks()
            self.frame_until_close()
            return True
        length = _length(self.headers)
        if length is None:
            self.give_up(f"content-length is not a number: {self.headers['content-length']}")
            return False
        if length < 0:
            self.frame_until_close()
            return True
        return self.frame_by_length(length)

    def _line_spans(self) -> Iterator[Span]:
        match = self._match
        start, end = match.span("status")
        yield Span(
            match.start(), start - 1 - match.start(), "version", self.version, "http.version"
        )
        yield Span(start - 1, 1, "space", None, "http.space")
        yield Span(start, end - start, "status", self.status, "http.status")
        line_end = self._line_end()
        if line_end.start > end:
            yield Span(end, 1, "space", None, "http.space")
            end += 1
        if line_end.start > end:
            yield Span(end, line_end.start - end, "reason", self.reason, "http.reason")
        yield line_end


def _length(headers: Headers) -> int | None:
    """Return the content length; -1 if there is none, None if it cannot be read.

    The same number may come more than once (RFC 9112 section 6.3, case 5).
    """
    found = set(headers.tokens("content-length"))
    if not found:
        return -1 if "content-length" not in headers else None
    value = found.pop()
    return (
        int(value)
        if not found and value.isascii() and value.isdigit() and len(value) < 20
        else None
    )


def _is_json(media_type: str) -> bool:
    return media_type == "application/json" or media_type.endswith("+json")


def _is_text(media_type: str) -> bool:
    return media_type.startswith("text/") or media_type in (
        "application/javascript", "application/x-www-form-urlencoded", "image/svg+xml",
        "application/json",
    )  # fmt: skip


def _decompress(data: bytes, codings: Sequence[str]) -> tuple[bytes, str]:
    """Undo content codings, last first; return the bytes and why it stopped, if it did."""
    for coding in reversed(codings):
        if coding == "identity":
            continue
        if coding not in ("gzip", "x-gzip", "deflate"):
            return data, f"the content coding {coding!r} is not read here"
        inflated, rest = b"", data
        while rest:  # gzip content may have several members (RFC 1952, section 2.2)
            room = MOST_INFLATED - len(inflated)
            # 32: tell gzip from zlib by the first bytes.
            inflater = zlib.decompressobj(32 + zlib.MAX_WBITS)
            try:
                inflated += inflater.decompress(rest, room) if room else b""
            except zlib.error as error:
                return inflated or data, f"the content is not {coding}: {error}"
            if inflater.unconsumed_tail or not room:
                return inflated, f"only the first {MOST_INFLATED} bytes are decompressed"
            if not inflater.eof:
                return inflated, f"the {coding} content is cut short"
            rest = inflater.unused_data
        data = inflated
    return data, ""


def _field_parts(match: re.Match[bytes]) -> Iterator[Span]:
    """Yield name, colon, blanks, value and line end of a header field."""
    start, end = match.span("name")
    yield Span(start, end - start, "name", match["name"].decode(), "http.field.name")
    yield Span(end, 1, "colon", None, "http.field.colon")
    start, end = match.span("before")
    if end > start:
        yield Span(start, end - start, "blank", None, "http.field.blank")
    start, end = match.span("value")
    value = match["value"].rstrip(b" \t")
    if value:
        said = _FOLD.sub(" ", value.decode("latin-1"))
        yield Span(start, len(value), "value", said, "http.field.value")
    if start + len(value) < end:
        yield Span(start + len(value), end - start - len(value), "blank", None, "http.field.blank")
    start, end = match.span("end")
    yield Span(start, end - start, "line end", None, "http.line_end")


# ---- server-sent events

_EVENT_LINE: Final = re.compile(
    rb"(?P<name>[^:\r\n]*+)(?P<colon>:(?P<space> ?))?(?P<value>[^\r\n]*+)(?P<end>\r\n|\r|\n|\Z)"
)
_EVENT_FIELDS: Final = ("data", "event", "id", "retry")


def event_spans(data: bytes, base: int) -> tuple[Span, ...]:
    """Return the events of a ``text/event-stream`` (HTML standard, "Server-sent events")."""
    spans: list[Span] = []
    lines: list[Span] = []
    said: list[str] = []
    offset = 0
    if data.startswith(b"\xef\xbb\xbf"):
        spans.append(Span(base, 3, "byte order mark", None, "sse.bom"))
        offset = 3
    while offset < len(data):
        match = _EVENT_LINE.match(data, offset)
        assert match is not None  # the expression matches any line
        offset = match.end()
        if match.start("end") > match.start():
            lines.append(_event_line(match, base))
            if lines[-1].key == "sse.field.data":
                said.append(lines[-1].value)
            continue
        lines.append(
            Span(base + match.start(), offset - match.start(), "end of event", None, "sse.end")
        )
        spans.append(_event(lines, "event", said))
        lines, said = [], []
    if lines:
        spans.append(_event(lines, "unfinished event", said))
    return tuple(spans)


def _event(lines: Sequence[Span], label: str, said: Sequence[str]) -> Span:
    start = lines[0].start
    return Span(start, lines[-1].end - start, label, "\n".join(said), "sse.event", tuple(lines))


def _event_line(match: re.Match[bytes], base: int) -> Span:
    name, value = text(match["name"]), text(match["value"])
    if not name:
        label, key = "comment", "sse.comment"
    else:
        label, key = name, f"sse.field.{name}" if name in _EVENT_FIELDS else "sse.field.other"
    parts = []
    for group, part in (("name", name), ("colon", None), ("value", value), ("end", None)):
        start, end = match.span(group)
        if start < 0 or start == end:
            continue
        if group == "colon":
            parts.append(Span(base + start, 1, "colon", None, "sse.colon"))
            if end > start + 1:
                parts.append(Span(base + start + 1, 1, "space", None, "sse.space"))
        else:
            shown = {"end": "line end"}.get(group, group)
            parts.append(
                Span(base + start, end - start, shown, part, f"sse.{shown.replace(' ', '_')}")
            )
    return Span(base + match.start(), match.end() - match.start(), label, value, key, tuple(parts))


# ---- a connection


class _Item(Protocol):
    @property
    def span(self) -> Span: ...


class _Piece:
    """Bytes that are no message, but have a meaning."""

    __slots__ = ("span",)

    def __init__(self, span: Span) -> None:
        self.span = span


class Side:
    """One direction of an HTTP connection, before and after an upgrade."""

    __slots__ = ("_items", "data", "direction", "offset", "units", "why")

    def __init__(self, direction: Direction, data: bytes) -> None:
        self.direction, self.data = direction, data
        self.offset = 0
        self.why = ""
        self.units: list[HttpMessage | websocket.WebSocketMessage] = []
        self._items: list[_Item] = []

    @property
    def spans(self) -> tuple[Span, ...]:
        """The top-level spans, which tile the direction."""
        spans = [item.span for item in self._items]
        if self.offset < len(self.data):
            spans.append(undecoded(self.offset, len(self.data), self.why))
        return tuple(spans)

    @property
    def open(self) -> bool:
        """Whether there may be more messages."""
        return not self.why and self.offset < len(self.data)

    def head(self, grammar: re.Pattern[bytes], what: str) -> re.Match[bytes] | None:
        """Read the head of the next message, if there is one."""
        empty = _EMPTY_LINES.match(self.data, self.offset)
        if empty:  # RFC 9112 section 2.2: a server ignores them
            length = empty.end() - empty.start()
            self._items.append(
                _Piece(Span(self.offset, length, "empty line", None, "http.empty_line"))
            )
            self.offset = empty.end()
        if not self.open:
            return None
        match = grammar.match(self.data, self.offset)
        if match is None:
            rest = self.data[self.offset :]
            cut = not re.search(rb"\n\r?\n", rest)
            self.why = f"{_CUT}, inside a head" if cut else f"not the head of an HTTP/1.1 {what}"
        return match

    def add(self, message: HttpMessage, complete: bool) -> None:
        """Take a message; if its body is not complete, nothing can follow."""
        self.units.append(message)
        self._items.append(message)
        self.offset = message.end
        if not complete:
            self.why = message.note or _CUT

    def switch(self, frames: websocket.Frames | None, why: str) -> None:
        """Leave HTTP: what follows is WebSocket, or in no protocol that is read here."""
        self.why = why
        if frames is not None:
            self.units += frames.units
            self._items += frames.items
            self.offset, self.why = frames.offset, frames.why
            # A proxy that loses its server in the middle may say so in HTTP (JupyterHub's does).
            if self.direction == SERVER_TO_CLIENT and self.data.startswith(b"HTTP/1.", self.offset):
                self.why = ""


def connection(streams: Mapping[Direction, bytes]) -> dict[Direction, Side]:
    """Read both directions of one connection, in step."""
    client = Side(CLIENT_TO_SERVER, streams.get(CLIENT_TO_SERVER, b""))
    server = Side(SERVER_TO_CLIENT, streams.get(SERVER_TO_CLIENT, b""))
    requests: list[Request] = []
    answered = 0

    def answer(last: int | None) -> Response | None:
        """Read responses up to the final one of request ``last``, or all; return the last."""
        nonlocal answered
        response = None
        while server.open and (last is None or answered <= last):
            match = server.head(_RESPONSE, "response")
            if match is None:
                break
            response = Response(SERVER_TO_CLIENT, server.data, match)
            method = requests[answered].method if answered < len(requests) else "GET"
            server.add(response, response.frame(method))
            answered += response.is_final
            if response.status == 101 and last is None:
                server.switch(None, "a protocol that no request asked for")
        return response if last is not None and answered > last else None

    while client.open:
        match = client.head(_REQUEST, "request")
        if match is None:
            break
        request = Request(CLIENT_TO_SERVER, client.data, match)
        client.add(request, request.frame())
        requests.append(request)
        if not (request.asks_upgrade or request.method == "CONNECT"):
            continue
        response = answer(len(requests) - 1)
        if response is None:
            continue
        if request.method == "CONNECT" and 200 <= response.status < 300:
            for side in (client, server):
                side.switch(None, f"a tunnel to {request.target}")
        elif response.status == 101 and "websocket" in response.headers.tokens("upgrade"):
            both = websocket.connection(
                (client.data, client.offset),
                (server.data, server.offset),
                request.path,
                response.headers.get("sec-websocket-protocol", ""),
                response.headers.get("sec-websocket-extensions", ""),
            )
            for side in (client, server):
                side.switch(both[side.direction], "")
        elif response.status == 101:
            for side in (client, server):
                side.switch(
                    None, f"the connection changed to {response.headers.get('upgrade', '?')}"
                )
    answer(None)
    return {CLIENT_TO_SERVER: client, SERVER_TO_CLIENT: server}
