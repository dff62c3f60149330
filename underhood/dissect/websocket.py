"""WebSocket, and the kernel messages that Jupyter sends over it.

Strategy: one scan per direction reads the headers of frames and skips payloads; frames of one
message are put together, with control frames between them kept apart. A payload is unmasked,
inflated and read when somebody asks. Compressed messages share one window (RFC 7692, "context
takeover"), so asking for one inflates those before it, once.

On a kernel's socket a message is a Jupyter message in one of three forms: JSON in a text frame,
the same with buffers in a binary frame, or the parts one after another with a table of offsets
(subprotocol ``v1.kernel.websocket.jupyter.org``). None of them is signed.

Sources: RFC 6455 (WebSocket), RFC 7692 (permessage-deflate),
https://jupyter-server.readthedocs.io/en/latest/developers/websocket-protocols.html
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any, Final, Protocol

from underhood.capture.store import CLIENT_TO_SERVER, SERVER_TO_CLIENT, Direction
from underhood.dissect.jsontext import Names, json_spans, read_json
from underhood.dissect.jupyter import (
    HEADER_NAMES,
    JSON_PARTS,
    PARENT_NAMES,
    JupyterMessage,
    message_key,
    names_of,
    part_spans,
)
from underhood.dissect.spans import Span, laid_over, preview, text, undecoded

V1: Final = "v1.kernel.websocket.jupyter.org"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MOST_INFLATED: Final = 64 * 2**20
"""How many bytes one compressed message may grow to."""

_OPCODES: Final = {
    CONTINUATION: "continuation",
    TEXT: "text",
    BINARY: "binary",
    CLOSE: "close",
    PING: "ping",
    PONG: "pong",
}
_KERNEL_PATH: Final = re.compile(r"/api/kernels/[^/]+/channels$")
_FIN, _RSV1, _RSV23, _CONTROL, _MASKED = 0x80, 0x40, 0x30, 0x08, 0x80
_size2 = struct.Struct(">H").unpack_from
_size8 = struct.Struct(">Q").unpack_from


def _header(data: bytes, start: int) -> tuple[int, int] | None:
    """Return where a frame's payload begins and ends; None if its header is cut short."""
    if start + 2 > len(data):
        return None
    second = data[start + 1]
    length, offset = second & 0x7F, start + 2
    if length == 126:
        if offset + 2 > len(data):
            return None
        length, offset = _size2(data, offset)[0], offset + 2
    elif length == 127:
        if offset + 8 > len(data):
            return None
        length, offset = _size8(data, offset)[0], offset + 8
    if second & _MASKED:
        offset += 4
    return offset, offset + length


@cache
def _table(key: int) -> bytes:
    """Return what each byte becomes when combined with this one."""
    return bytes(byte ^ key for byte in range(256))


def _unmask(data: bytes, mask: bytes) -> bytes:
    """Undo the masking (RFC 6455 section 5.3): XOR with four bytes, over and over."""
    size = len(data)
    if size < 4096:
        # One XOR of two long integers: the least work to set up.
        long_mask = (mask * (size // 4 + 1))[:size]
        found = int.from_bytes(data, "little") ^ int.from_bytes(long_mask, "little")
        return found.to_bytes(size, "little")
    # Every fourth byte meets the same byte of the mask.
    unmasked = bytearray(data)
    for n in range(4):
        unmasked[n::4] = data[n::4].translate(_table(mask[n]))
    return bytes(unmasked)


class _Item(Protocol):
    @property
    def span(self) -> Span: ...


class _Inflater:
    """Inflates the compressed messages of one direction, in their order."""

    __slots__ = ("_done", "_messages", "_takeover", "_window")

    def __init__(self, takeover: bool) -> None:
        self._takeover = takeover
        self._messages: list[WebSocketMessage] = []
        self._done: list[tuple[bytes, str]] = []
        self._window = zlib.decompressobj(-zlib.MAX_WBITS)

    def add(self, message: WebSocketMessage) -> int:
        self._messages.append(message)
        return len(self._messages) - 1

    def inflated(self, place: int) -> tuple[bytes, str]:
        """Return a message's payload, and why it could not be inflated."""
        while len(self._done) <= place:
            self._done.append(self._inflate(self._messages[len(self._done)].raw))
        return self._done[place]

    def _inflate(self, data: bytes) -> tuple[bytes, str]:
        if self._takeover and self._done and self._done[-1][1]:
            return b"", "an earlier message could not be inflated, and they share one window"
        if not self._takeover or self._window.eof:
            self._window = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # The sender leaves out these four bytes (RFC 7692 section 7.2.1).
            found = self._window.decompress(data + b"\x00\x00\xff\xff", MOST_INFLATED)
        except zlib.error as error:
            return b"", f"cannot be inflated: {error}"
        if self._window.unconsumed_tail:
            return b"", f"inflates to more than {MOST_INFLATED} bytes"
        return found, ""


class Frames:
    """One direction of a connection after the upgrade.

    Attributes
    ----------
    units : list of WebSocketMessage
        Complete messages, in the order in which they were complete.
    items : list
        What has a place at the top level: messages, and frames of an unfinished one.
    offset, why
        Where reading ended, and why it did if that is not the end of the stream.
    """

    __slots__ = (
        "_inflater", "data", "direction", "is_kernel", "items", "offset", "subprotocol", "units",
        "why",
    )  # fmt: skip

    def __init__(
        self,
        direction: Direction,
        data: bytes,
        offset: int,
        is_kernel: bool,
        subprotocol: str,
        inflater: _Inflater | None,
    ) -> None:
        self.direction, self.data, self.offset = direction, data, offset
        self.is_kernel, self.subprotocol, self._inflater = is_kernel, subprotocol, inflater
        self.units: list[WebSocketMessage] = []
        self.items: list[_Item] = []
        self.why = ""
        self._scan()

    def _scan(self) -> None:
        data, size = self.data, len(self.data)
        # The message that is not finished: its frames, and the control frames between them.
        open_frames: list[int] = []
        between: list[WebSocketMessage] = []
        while self.offset < size:
            start = self.offset
            self.why = self._fault(start, bool(open_frames))
            if self.why:
                break
            found = _header(data, start)
            if found is None or found[1] > size:
                self.why = "the capture ends inside a frame"
                break
            end = self.offset = found[1]
            opcode, fin = data[start] & 0x0F, data[start] & _FIN
            if opcode & _CONTROL:
                unit = WebSocketMessage(self, start, end)
                self.units.append(unit)
                if open_frames:
                    between.append(unit)
                else:
                    self.items.append(unit)
                continue
            open_frames.append(start)
            if fin:
                first = open_frames[0]
                unit = WebSocketMessage(self, first, end)
                if len(open_frames) > 1:
                    unit.fragments, unit.between = tuple(open_frames), tuple(between)
                if data[first] & _RSV1 and self._inflater:
                    unit.place = self._inflater.add(unit)
                self.units.append(unit)
                self.items.append(unit)
                open_frames, between = [], []
        # An unfinished message has no unit, but its frames can be read.
        self.items += (_Frame(self, start) for start in open_frames)
        self.items += between
        if open_frames:
            self.items.sort(key=lambda item: item.span.start)

    def _fault(self, start: int, inside: bool) -> str:
        """Say how a frame's first byte breaks the rules (RFC 6455 section 5.2)."""
        first = self.data[start]
        opcode = first & 0x0F
        if opcode not in _OPCODES:
            return f"opcode {opcode} is reserved"
        if first & _RSV23:
            return "RSV2 or RSV3 is set, and no extension uses them"
        if first & _RSV1 and (self._inflater is None or opcode not in (TEXT, BINARY)):
            return "RSV1 is set where no compressed message can begin"
        if opcode & _CONTROL:
            if not first & _FIN:
                return "a control frame in fragments"
            if self.data[start + 1 : start + 2] and self.data[start + 1] & 0x7F > 125:
                return "a control frame with more than 125 bytes"
        elif inside != (opcode == CONTINUATION):
            return "a new message inside another" if inside else "a continuation of no message"
        return ""

    # -- frames

    def payload_at(self, start: int) -> tuple[int, int]:
        """Return where the payload of the frame at ``start`` begins and ends."""
        found = _header(self.data, start)
        assert found is not None  # the scan has read it
        return found

    def unmasked(self, start: int) -> bytes:
        """Return the payload of the frame at ``start``, without its mask."""
        first, end = self.payload_at(start)
        payload = self.data[first:end]
        if self.data[start + 1] & _MASKED:
            return _unmask(payload, self.data[first - 4 : first])
        return payload

    def inflated(self, place: int) -> tuple[bytes, str]:
        """Return the payload of a compressed message, and why it is not there."""
        assert self._inflater is not None
        return self._inflater.inflated(place)

    def frame_span(self, start: int, content: Sequence[Span]) -> Span:
        """Return the span of the frame at ``start``; ``content`` tiles its payload."""
        first, end = self.payload_at(start)
        opcode = self.data[start] & 0x0F
        return Span(
            start, end - start, f"{_OPCODES[opcode]} frame", None, "websocket.frame",
            partial(self._frame_fields, start, first, end, content),
        )  # fmt: skip

    def _frame_fields(
        self, start: int, first: int, end: int, content: Sequence[Span]
    ) -> Iterator[Span]:
        data = self.data
        bits = [name for bit, name in ((_FIN, "FIN"), (_RSV1, "RSV1")) if data[start] & bit]
        said = ", ".join([*bits, _OPCODES[data[start] & 0x0F]])
        yield Span(start, 1, "flags and opcode", said, "websocket.frame.opcode")
        short, masked = data[start + 1] & 0x7F, bool(data[start + 1] & _MASKED)
        said = f"{'masked, ' if masked else ''}{short}"
        yield Span(start + 1, 1, "mask bit and length", said, "websocket.frame.length")
        key = first - 4 if masked else first
        if key > start + 2:
            yield Span(
                start + 2, key - start - 2, "extended length", end - first,
                "websocket.frame.extended_length",
            )  # fmt: skip
        if masked:
            yield Span(key, 4, "masking key", data[key:first], "websocket.frame.masking_key")
        if end > first:
            yield Span(first, end - first, "payload", None, "websocket.payload", content)


class _Frame:
    """A frame of a message that is not finished."""

    __slots__ = ("_frames", "_start")

    def __init__(self, frames: Frames, start: int) -> None:
        self._frames, self._start = frames, start

    @property
    def span(self) -> Span:
        """The tree of its bytes."""
        first, end = self._frames.payload_at(self._start)
        part = Span(first, end - first, "part of a message", None, "websocket.payload.part")
        return self._frames.frame_span(self._start, (part,))


class WebSocketMessage:
    """One message, of one or more frames, or one control frame.

    Attributes
    ----------
    start, end : int
        Offsets of the first byte of its first frame, and after its last.
    """

    __slots__ = ("_frames", "_kernel", "between", "end", "fragments", "place", "start")

    def __init__(self, frames: Frames, start: int, end: int) -> None:
        self._frames, self.start, self.end = frames, start, end
        self.fragments: tuple[int, ...] = ()  # where its frames begin, if there are several
        self.between: tuple[WebSocketMessage, ...] = ()  # control frames between them
        self.place = -1  # among the compressed messages of the direction; -1: not compressed
        self._kernel: tuple[JupyterMessage | None, _Form | None] | None = None

    @property
    def direction(self) -> Direction:
        """Which way it went."""
        return self._frames.direction

    @property
    def opcode(self) -> int:
        """The opcode of its first frame."""
        return self._frames.data[self.start] & 0x0F

    @property
    def raw(self) -> bytes:
        """The payloads of its frames, unmasked, but not inflated."""
        starts = self.fragments or (self.start,)
        return b"".join(self._frames.unmasked(start) for start in starts)

    @property
    def payload(self) -> bytes:
        """What it carries, unmasked and inflated."""
        return self.raw if self.place < 0 else self._frames.inflated(self.place)[0]

    @property
    def note(self) -> str:
        """Why the payload could not be inflated; empty if it could."""
        return "" if self.place < 0 else self._frames.inflated(self.place)[1]

    @property
    def close_code(self) -> int | None:
        """The status code of a close frame; None if it has none or is no close frame."""
        payload = self.raw if self.opcode == CLOSE else b""
        return int.from_bytes(payload[:2], "big") if len(payload) >= 2 else None

    @property
    def close_reason(self) -> str:
        """The reason that a close frame gives; empty if it gives none."""
        return text(self.raw[2:]) if self.opcode == CLOSE else ""

    def _read(self) -> tuple[JupyterMessage | None, _Form | None]:
        if self._kernel is None:
            form: _Form | None = None
            if self._frames.is_kernel and not self.note:
                if self.opcode == TEXT:
                    form = _JsonForm.read(self.payload)
                elif self.opcode == BINARY and self._frames.subprotocol == V1:
                    form = _V1Form.read(self.payload)
                elif self.opcode == BINARY:
                    form = _BinaryForm.read(self.payload)
            self._kernel = (form.message if form else None, form)
        return self._kernel

    @property
    def jupyter(self) -> JupyterMessage | None:
        """The Jupyter message that it carries, if it does."""
        return self._read()[0]

    @property
    def protocol(self) -> str:
        """``"jupyter"`` for a kernel message, else ``"websocket"``."""
        return "websocket" if self.jupyter is None else "jupyter"

    @property
    def label(self) -> str:
        """The message type, or the kind of frame."""
        message = self.jupyter
        return (message.msg_type if message else "") or _OPCODES[self.opcode]

    @property
    def detail(self) -> str:
        """The close code and reason, or the start of a text."""
        if (message := self.jupyter) is not None:
            return message.detail
        if self.opcode == CLOSE:
            return f"{self.close_code or ''} {self.close_reason}".strip()
        return preview(self.payload)

    # -- its bytes

    @property
    def span(self) -> Span:
        """The tree of its bytes."""
        message = self.jupyter
        if message is not None:
            key = message_key(message.msg_type)
        else:
            key = f"websocket.{self.label if self.opcode & _CONTROL else 'message'}"
        return Span(self.start, self.end - self.start, self.label, None, key, self._frame_spans)

    def _frame_spans(self) -> Iterator[Span]:
        starts = self.fragments or (self.start,)
        places = [self._frames.payload_at(start) for start in starts]
        segments = [(first, end - first) for first, end in places]
        if len(starts) == 1:
            first, length = segments[0]
            content = self._content(self.raw, first) if length else ()
            yield self._frames.frame_span(self.start, content)
            return
        raw = self.raw
        pieces = laid_over(self._content(raw, 0) if raw else (), segments)
        spans = [
            self._frames.frame_span(start, content)
            for start, content in zip(starts, pieces, strict=True)
        ]
        spans += (unit.span for unit in self.between)
        yield from sorted(spans, key=lambda span: span.start)

    def _content(self, raw: bytes, base: int) -> tuple[Span, ...]:
        """Return the spans of the payload; its first byte is at ``base``."""
        if self.place >= 0:
            if self.note:
                return (undecoded(base, base + len(raw), self.note),)
            value: Any = text(self.payload) if self.opcode == TEXT else self.payload
            key = "websocket.payload.compressed"
            return (Span(base, len(raw), "compressed payload", value, key),)
        form = self._read()[1]
        if form is not None:
            return tuple(form.spans(raw, base))
        if self.opcode == CLOSE and len(raw) >= 2:
            code = Span(base, 2, "code", self.close_code, "websocket.close.code")
            said = self.close_reason
            reason = Span(base + 2, len(raw) - 2, "reason", said, "websocket.close.reason")
            return (code, reason) if reason.length else (code,)
        if self.opcode == CLOSE:
            return (undecoded(base, base + 1, "a close code has two bytes"),)
        if self.opcode == TEXT:
            if not read_json(raw)[1]:
                return json_spans(raw, base)
            return (Span(base, len(raw), "text", text(raw), "websocket.payload.text"),)
        kind = _OPCODES[self.opcode]
        return (Span(base, len(raw), kind, raw, f"websocket.payload.{kind}"),)


# ---- the three forms of a kernel message


class _Form(Protocol):
    """How a kernel message is written into one WebSocket message."""

    message: JupyterMessage

    def spans(self, data: bytes, base: int) -> Iterator[Span]: ...


def _message_of(data: bytes, buffers: tuple[bytes, ...]) -> JupyterMessage | None:
    """Read the JSON of the default form; None if it is not a kernel message."""
    value, _ = read_json(data)
    if not isinstance(value, dict) or not isinstance(value.get("header"), dict):
        return None
    channel = value.get("channel")
    return JupyterMessage.of_values(
        [value.get(part) for part in JSON_PARTS],
        buffers=buffers,
        channel=channel if isinstance(channel, str) else "",
    )


def _json_names(message: JupyterMessage) -> Names:
    content = names_of("content", message.msg_type)
    below = {"header": HEADER_NAMES, "parent_header": PARENT_NAMES}
    return Names("jupyter.websocket", {**below, "content": content} if content else below)


class _JsonForm:
    """One JSON object with the parts and the channel as members (text frame)."""

    __slots__ = ("message",)

    def __init__(self, message: JupyterMessage) -> None:
        self.message = message

    @classmethod
    def read(cls, data: bytes) -> _JsonForm | None:
        message = _message_of(data, ())
        return cls(message) if message else None

    def spans(self, data: bytes, base: int) -> Iterator[Span]:
        yield from json_spans(data, base, _json_names(self.message))


class _BinaryForm:
    """A table of offsets (32 bits, big endian), that JSON object, and buffers (binary frame)."""

    __slots__ = ("_offsets", "message")

    def __init__(self, message: JupyterMessage, offsets: Sequence[int]) -> None:
        self.message, self._offsets = message, offsets

    @classmethod
    def read(cls, data: bytes) -> _BinaryForm | None:
        count = int.from_bytes(data[:4], "big")
        table = 4 * (count + 1)
        if not count or table > len(data):
            return None
        offsets = [*struct.unpack_from(f">{count}I", data, 4), len(data)]
        if not _is_table(offsets, table, len(data)):
            return None
        buffers = tuple(data[start:end] for start, end in pairwise(offsets[1:]))
        message = _message_of(data[offsets[0] : offsets[1]], buffers)
        return cls(message, offsets) if message else None

    def spans(self, data: bytes, base: int) -> Iterator[Span]:
        offsets = self._offsets
        yield Span(base, 4, "count", len(offsets) - 1, "jupyter.binary.count")
        for n, offset in enumerate(offsets[:-1], 1):
            yield Span(base + 4 * n, 4, "offset", offset, "jupyter.binary.offset")
        start, end = offsets[:2]
        yield Span(
            base + start, end - start, "message", None, "jupyter.binary.message",
            lambda: json_spans(data[start:end], base + start, _json_names(self.message)),
        )  # fmt: skip
        yield from _buffer_spans(data, base, offsets[1:])


class _V1Form:
    """A table of offsets (64 bits, little endian), channel, four JSON parts, buffers."""

    __slots__ = ("_offsets", "message")

    def __init__(self, message: JupyterMessage, offsets: Sequence[int]) -> None:
        self.message, self._offsets = message, offsets

    @classmethod
    def read(cls, data: bytes) -> _V1Form | None:
        count = int.from_bytes(data[:8], "little")
        table = 8 * (count + 1)
        # The channel, four parts and the end of the last one have an offset each.
        if count < 2 + len(JSON_PARTS) or table > len(data):
            return None
        offsets = struct.unpack_from(f"<{count}Q", data, 8)
        if not _is_table(offsets, table, len(data)):
            return None
        parts = [data[start:end] for start, end in pairwise(offsets)]
        message = JupyterMessage(
            parts[1:5], buffers=tuple(parts[5:]), channel=text(parts[0]), signed_hop=False
        )
        return cls(message, offsets) if message.msg_type else None

    def spans(self, data: bytes, base: int) -> Iterator[Span]:
        offsets = self._offsets
        yield Span(base, 8, "count", len(offsets), "jupyter.v1.count")
        for n, offset in enumerate(offsets, 1):
            yield Span(base + 8 * n, 8, "offset", offset, "jupyter.v1.offset")
        start, end = offsets[:2]
        if end > start:
            yield Span(
                base + start, end - start, "channel", self.message.channel, "jupyter.v1.channel"
            )
        for n, part in enumerate(JSON_PARTS, 1):
            start, end = offsets[n : n + 2]
            if end > start:
                yield Span(
                    base + start, end - start, part, getattr(self.message, part),
                    f"jupyter.{part}",
                    partial(
                        part_spans, part, data[start:end], base + start, self.message.msg_type
                    ),
                )  # fmt: skip
        yield from _buffer_spans(data, base, offsets[1 + len(JSON_PARTS) :])


def _is_table(offsets: Sequence[int], first: int, end: int) -> bool:
    """Tell whether offsets begin after their table, never go back, and end with the data."""
    return offsets[0] == first and offsets[-1] == end and list(offsets) == sorted(offsets)


def _buffer_spans(data: bytes, base: int, offsets: Sequence[int]) -> Iterator[Span]:
    for start, end in pairwise(offsets):
        if end > start:
            yield Span(base + start, end - start, "buffer", data[start:end], "jupyter.buffer")


# ---- a connection


def _takeover(extensions: str, side: str) -> bool | None:
    """Return whether a side keeps its window from message to message.

    None if the server did not accept permessage-deflate (RFC 7692 section 7.1).
    """
    for extension in extensions.lower().split(","):
        name, *parameters = (part.strip() for part in extension.split(";"))
        if name == "permessage-deflate":
            return f"{side}_no_context_takeover" not in parameters
    return None


def connection(
    client: tuple[bytes, int],
    server: tuple[bytes, int],
    path: str,
    subprotocol: str,
    extensions: str,
) -> dict[Direction, Frames]:
    """Read both directions after an upgrade.

    Parameters
    ----------
    client, server
        The bytes of each direction, and the offset at which HTTP ends.
    path
        What the upgrade asked for; it tells a kernel's socket from others.
    subprotocol, extensions
        What the server agreed to.
    """
    is_kernel = _KERNEL_PATH.search(path) is not None
    found = {}
    directions: tuple[tuple[Direction, str, tuple[bytes, int]], ...] = (
        (CLIENT_TO_SERVER, "client", client),
        (SERVER_TO_CLIENT, "server", server),
    )
    for direction, side, (data, offset) in directions:
        takeover = _takeover(extensions, side)
        inflater = None if takeover is None else _Inflater(takeover)
        found[direction] = Frames(direction, data, offset, is_kernel, subprotocol.strip(), inflater)
    return found
