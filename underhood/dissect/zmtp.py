"""ZMTP 3.0 and 3.1: the protocol that ZeroMQ sockets speak over TCP.

Strategy: one scan per direction reads nothing but flags and sizes and notes where each frame
begins; bodies are skipped. A message or command is then two indexes into that list, and reads its
bytes when somebody asks. ZMTP has no mark to find its place again: what breaks the grammar ends
the direction in one ``undecoded`` span.

Sources: https://rfc.zeromq.org/spec/37/ (ZMTP 3.1), https://rfc.zeromq.org/spec/23/ (3.0),
https://rfc.zeromq.org/spec/24/ (PLAIN), https://rfc.zeromq.org/spec/25/ and /26/ (CURVE).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final, NamedTuple

from underhood.capture.store import DIRECTIONS, Direction
from underhood.dissect.jupyter import DELIMITER, JSON_PARTS, JupyterMessage, message_key, part_spans
from underhood.dissect.spans import Span, preview, text, undecoded

GREETING: Final = 64
MORE, LONG, COMMAND = 1, 2, 4

_size8 = struct.Struct(">Q").unpack_from
_SUBSCRIBERS: Final = (b"SUB", b"XSUB")
_PUBLISHERS: Final = (b"PUB", b"XPUB")
_SEALED: Final = b"\x07MESSAGE"
# How libzmq 4.3 writes ERROR under PLAIN: its source says "\\x5ERROR", where the compiler takes
# the digits 5 and E for one byte. Its own clients expect just this.
_MISSPELT: Final = b"\x5eRROR"


def is_greeting(data: bytes) -> bool:
    """Tell whether a stream starts like a ZMTP greeting (RFC 37, "greeting")."""
    return data[:1] == b"\xff" and data[9:10] in (b"", b"\x7f")


# ---- the scan


def _scan(data: bytes, offset: int) -> tuple[list[int], list[int], str]:
    """Find the frames from ``offset`` on.

    Returns
    -------
    frames
        Where each frame begins, and where the last one ends.
    firsts
        Which frames begin a message or command, as indexes; last, the number of frames in
        complete ones.
    why
        Why the scan ended before the end of the stream; empty if it did not.
    """
    frames: list[int] = []
    firsts = [0]
    end = len(data)
    why = ""
    add, complete = frames.append, firsts.append
    try:
        while offset < end:
            flags = data[offset]
            if flags < LONG:
                after = offset + 2 + data[offset + 1]
            elif flags == LONG or flags == LONG | MORE:
                after = offset + 9 + _size8(data, offset + 1)[0]
            elif flags != COMMAND and flags != COMMAND | LONG:
                why = f"no ZMTP frame begins with the flags 0x{flags:02x}"
                break
            elif firsts[-1] != len(frames):
                why = "a command between the frames of one message"
                break
            elif flags & LONG:
                after = offset + 9 + _size8(data, offset + 1)[0]
            else:
                after = offset + 2 + data[offset + 1]
            if after > end:
                break
            add(offset)
            if not flags & MORE:
                complete(len(frames))
            offset = after
    except (IndexError, struct.error):
        pass  # the size of the last frame is not all there
    if not why and offset < end:
        why = f"the capture ends inside the frame at {offset}"
    elif not why and firsts[-1] != len(frames):
        why = "the capture ends between the frames of one message"
    frames.append(offset)
    return frames, firsts, why


class Side:
    """One direction of a ZMTP connection."""

    __slots__ = (
        "_metadata", "_role", "data", "direction", "frames", "peer", "units", "unread", "why",
    )  # fmt: skip

    def __init__(self, direction: Direction, data: bytes) -> None:
        self.direction, self.data = direction, data
        self.peer: Side | None = None
        self._metadata: dict[str, bytes] | None = None
        self._role: str | None = None
        self.units: list[Greeting | Traffic] = []
        self.unread, self.why = 0, ""
        self.frames: list[int] = []
        if not data:
            return
        if not is_greeting(data):
            self.why = "a ZMTP stream begins with a greeting (FF, 8 bytes, 7F), and this does not"
            return
        self.unread = min(len(data), GREETING)
        if len(data) > 10 and data[10] < 3:
            self.unread = 10
            self.why = f"ZMTP before 3.0 (this peer announces {data[10]}) is not read here"
        self.units.append(Greeting(self))
        if self.unread == GREETING:
            self.frames, firsts, self.why = _scan(data, GREETING)
            self.units += [Traffic(self, first, stop) for first, stop in pairwise(firsts)]
            self.unread = self.frames[firsts[-1]]

    @property
    def spans(self) -> tuple[Span, ...]:
        """The top-level spans, which tile the direction."""
        spans = [unit.span for unit in self.units]
        if self.unread < len(self.data):
            spans.append(undecoded(self.unread, len(self.data), self.why))
        return tuple(spans)

    @property
    def mechanism(self) -> str:
        """The security mechanism that the greeting names; empty before it is complete."""
        return text(self.data[12:32].rstrip(b"\0")) if self.unread >= 32 else ""

    @property
    def metadata(self) -> Mapping[str, bytes]:
        """The properties of the handshake: ``Socket-Type``, ``Identity`` …, where readable."""
        if self._metadata is None:
            self._metadata = {}
            for unit in self.units[1:4]:  # PLAIN's client says HELLO before
                if isinstance(unit, Traffic) and unit.command in ("READY", "INITIATE"):
                    found, _ = _properties(unit.command_data, 0)
                    self._metadata = {p.name: p.value for p in found}
                    break
        return self._metadata

    @property
    def socket_type(self) -> bytes:
        """What the handshake says this end is; empty where it cannot be read."""
        return self.metadata.get("socket-type", b"")

    @property
    def role(self) -> str:
        """``"publisher"`` or ``"subscriber"`` if this end is one, by its own word or its peer's.

        A subscriber may send its subscriptions as messages (RFC 23); the first frame of a
        publisher's message is its topic.
        """
        if self._role is None:
            mine, theirs = self.socket_type, self.peer.socket_type if self.peer else b""
            if mine in _PUBLISHERS or (not mine and theirs in _SUBSCRIBERS):
                self._role = "publisher"
            elif mine in _SUBSCRIBERS or (not mine and theirs in _PUBLISHERS):
                self._role = "subscriber"
            else:
                self._role = ""
        return self._role


def connection(streams: Mapping[Direction, bytes]) -> dict[Direction, Side]:
    """Read both directions of one connection."""
    sides = {d: Side(d, streams.get(d, b"")) for d in DIRECTIONS}
    one, other = sides.values()
    one.peer, other.peer = other, one
    return sides


# ---- the greeting


class Greeting:
    """The greeting; it may be cut short where a handshake was left half-open."""

    __slots__ = ("_side",)

    protocol: Final = "zmtp"
    label: Final = "greeting"
    jupyter: Final = None
    start: Final = 0

    def __init__(self, side: Side) -> None:
        self._side = side

    @property
    def direction(self) -> Direction:
        """Which way it went."""
        return self._side.direction

    @property
    def end(self) -> int:
        """The offset after its last byte."""
        side = self._side
        return side.unread if len(side.units) == 1 else GREETING

    @property
    def detail(self) -> str:
        """The version and mechanism, or how far it came."""
        data = self._side.data
        if self.end < GREETING:
            return f"only {self.end} bytes"
        return f"{data[10]}.{data[11]} {self._side.mechanism}"

    @property
    def span(self) -> Span:
        """Its fields."""
        return Span(0, self.end, "greeting", None, "zmtp.greeting", self._fields)

    def _fields(self) -> Iterator[Span]:
        data, end = self._side.data, self.end
        yield from _fixed(data, 0, min(end, 10), "zmtp.greeting", _SIGNATURE)
        if end > 10:
            yield from _fixed(data, 10, end, "zmtp.greeting", _VERSION_AND_SECURITY)


_Field = tuple[str, int, Any]


def _plain_text(data: bytes) -> str:
    return text(data.rstrip(b"\0"))


_SIGNATURE: Final[tuple[_Field, ...]] = (
    ("signature_start", 1, None),
    ("signature_padding", 8, None),
    ("signature_end", 1, None),
)
_VERSION_AND_SECURITY: Final[tuple[_Field, ...]] = (
    ("version_major", 1, ord),
    ("version_minor", 1, ord),
    ("mechanism", 20, _plain_text),
    ("as_server", 1, ord),
    ("filler", 31, None),
)


def _fixed(
    data: bytes, start: int, end: int, prefix: str, fields: Sequence[_Field]
) -> Iterator[Span]:
    """Yield fields of fixed length; a length of 0 stands for all that is left."""
    for name, length, decode in fields:
        length = length or end - start
        if start + length > end:
            if start < end:
                yield undecoded(start, end, f"ends inside {name} ({length} bytes)")
            return
        if not length:
            return
        value = data[start : start + length]
        yield Span(
            start, length, name.replace("_", " "), decode(value) if decode else value,
            f"{prefix}.{name}",
        )  # fmt: skip
        start += length
    if start < end:
        yield undecoded(start, end, "more bytes than the specification has fields")


# ---- messages and commands


class Traffic:
    """One message (of one or more frames) or one command."""

    __slots__ = ("_delimiter", "_first", "_jupyter", "_side", "_stop")

    def __init__(self, side: Side, first: int, stop: int) -> None:
        self._side, self._first, self._stop = side, first, stop
        self._delimiter: int | None = None  # -1: there is none
        self._jupyter: JupyterMessage | None = None

    @property
    def direction(self) -> Direction:
        """Which way it went."""
        return self._side.direction

    @property
    def start(self) -> int:
        """The offset of its first byte."""
        return self._side.frames[self._first]

    @property
    def end(self) -> int:
        """The offset after its last byte."""
        return self._side.frames[self._stop]

    # -- what it is

    def _body(self, frame: int) -> tuple[int, int]:
        """Return where the body of a frame begins and ends."""
        frames = self._side.frames
        start = frames[frame]
        return start + (9 if self._side.data[start] & LONG else 2), frames[frame + 1]

    @property
    def parts(self) -> list[bytes]:
        """The bodies of its frames."""
        data, frames = self._side.data, self._side.frames
        ends = frames[self._first : self._stop + 1]
        return [
            data[start + (9 if data[start] & LONG else 2) : end] for start, end in pairwise(ends)
        ]

    @property
    def _is_command(self) -> bool:
        return bool(self._side.data[self.start] & COMMAND)

    @property
    def _is_sealed(self) -> bool:
        """Whether it is CurveZMQ traffic: libzmq sends it in message frames (RFC 26: commands)."""
        data, (start, end) = self._side.data, self._body(self._first)
        return (
            self._stop == self._first + 1
            and end - start >= 33  # name, nonce and the smallest box
            and data.startswith(_SEALED, start)
            and self._side.mechanism == "CURVE"
        )

    @property
    def command(self) -> str:
        """The name of the command; empty if it is a message or the name cannot be read."""
        if not self._is_command:
            return ""
        data, (start, end) = self._side.data, self._body(self._first)
        if self._side.mechanism == "PLAIN" and data.startswith(_MISSPELT, start, end):
            return "ERROR"
        if start == end or start + 1 + data[start] > end:
            return ""
        name = text(data[start + 1 : start + 1 + data[start]])
        return name if name.isascii() and name.isprintable() else ""

    @property
    def command_data(self) -> bytes:
        """What follows the name of the command."""
        data, (start, end) = self._side.data, self._body(self._first)
        misspelt = data.startswith(_MISSPELT, start, end)
        return data[start + (len(_MISSPELT) if misspelt else 1 + data[start]) : end]

    @property
    def _subscription(self) -> str:
        """``"SUBSCRIBE"`` or ``"CANCEL"`` for a ZMTP 3.0 message that is one; else empty."""
        if self._stop != self._first + 1 or self._is_command:
            return ""
        start, end = self._body(self._first)
        if start == end or self._side.data[start] > 1 or self._side.role != "subscriber":
            return ""
        return "SUBSCRIBE" if self._side.data[start] else "CANCEL"

    def _delimiter_frame(self) -> int:
        """Return which frame is the delimiter of a Jupyter message; -1 if it is none."""
        if self._delimiter is None:
            self._delimiter = -1
            data, frames = self._side.data, self._side.frames
            # A signature and four JSON parts must follow it.
            for n in range(self._first, self._stop - 5):
                end = frames[n + 1]
                if data.endswith(DELIMITER, frames[n], end):
                    start, end = self._body(n)
                    if end - start == len(DELIMITER):
                        self._delimiter = n
                        break
        return self._delimiter

    @property
    def jupyter(self) -> JupyterMessage | None:
        """The Jupyter message that it carries, if it does."""
        if self._jupyter is None and (delimiter := self._delimiter_frame()) >= 0:
            parts = self.parts
            n = delimiter - self._first
            before = tuple(parts[:n])
            topic = before[-1] if before and self._side.role == "publisher" else b""
            self._jupyter = JupyterMessage(
                tuple(parts[n + 2 : n + 6]),
                identities=() if topic else before,
                topic=topic,
                signature=parts[n + 1],
                buffers=tuple(parts[n + 6 :]),
            )
        return self._jupyter

    @property
    def protocol(self) -> str:
        """``"jupyter"`` for a Jupyter message, else ``"zmtp"``."""
        return "jupyter" if self._delimiter_frame() >= 0 else "zmtp"

    @property
    def label(self) -> str:
        """The message type, the command's name, or what a plain message is."""
        if self._is_sealed:
            return "sealed"
        if self._is_command:
            return self.command or "command"
        if (message := self.jupyter) is not None:
            return message.msg_type or "message"
        return self._subscription or self._beat or "message"

    @property
    def _beat(self) -> str:
        """The text of a heartbeat: a REQ socket's empty frame, then one short word."""
        if self._stop != self._first + 2:
            return ""
        empty, last = self.parts
        return "" if empty or not last.isalnum() else preview(last, 16)

    @property
    def detail(self) -> str:
        """The socket type of READY, the topic of SUBSCRIBE …."""
        if self._is_sealed:
            return ""
        if self._is_command:
            return self._command_detail()
        if (message := self.jupyter) is not None:
            return message.detail
        if self._subscription:
            return self._topic(self.parts[0][1:])
        return "" if self._beat else preview(self.parts[-1])

    def _topic(self, topic: bytes) -> str:
        return (preview(topic, 60) or topic[:24].hex(" ")) if topic else "everything"

    def _command_detail(self) -> str:
        name, mechanism = self.command, self._side.mechanism
        if name in ("READY", "INITIATE") and mechanism != "CURVE":
            return text(self._side.socket_type)
        if name in ("SUBSCRIBE", "CANCEL"):
            return self._topic(self.command_data)
        if name == "ERROR":
            return preview(self.command_data[1:], 60)
        if name in ("PING", "PONG"):
            return preview(self.command_data[2 if name == "PING" else 0 :])
        return ""

    # -- its bytes

    @property
    def span(self) -> Span:
        """The tree of its bytes."""
        start = self.start
        if self._is_command:
            label, key, spans = self.command or "command", self._command_key(), self._command_spans
        elif (message := self.jupyter) is not None:
            label, key, spans = self.label, message_key(message.msg_type), self._frame_spans
        else:
            key = "zmtp.curve.message" if self._is_sealed else "zmtp.message"
            label, spans = self.label, self._frame_spans
        return Span(start, self.end - start, label, None, key, spans)

    def _command_key(self) -> str:
        name, mechanism = self.command, self._side.mechanism
        if mechanism == "CURVE" and name in _CURVE:
            return f"zmtp.curve.{name.lower()}"
        if mechanism == "PLAIN" and name in ("HELLO", "WELCOME", "INITIATE"):
            return f"zmtp.plain.{name.lower()}"
        return f"zmtp.{name.lower()}" if name in _COMMANDS else "zmtp.command"

    def _envelope(self, frame: int) -> list[Span]:
        data = self._side.data
        start = self._side.frames[frame]
        body, end = self._body(frame)
        flags = data[start]
        said = [word for bit, word in _FLAGS if flags & bit]
        return [
            Span(start, 1, "flags", ", ".join(said) or "none", "zmtp.frame.flags"),
            Span(start + 1, body - start - 1, "size", end - body, "zmtp.frame.size"),
        ]

    def _frame_spans(self) -> Iterator[Span]:
        roles = self._roles()
        for n in range(self._first, self._stop):
            start = self._side.frames[n]
            role, key = roles[n - self._first]
            yield Span(
                start, self._side.frames[n + 1] - start, f"{role} frame", None, "zmtp.frame",
                partial(self._frame_fields, n, role, key),
            )  # fmt: skip

    def _roles(self) -> list[tuple[str, str]]:
        """Say what each frame is for, and the key of its body."""
        frames = self._stop - self._first
        delimiter = self._delimiter_frame()
        if delimiter < 0:
            if self._is_sealed:
                return [("sealed", "")]
            if self._subscription:
                return [("subscription", "")]
            return [("body", "zmtp.frame.body")] * frames
        before = delimiter - self._first
        roles = ["identity"] * before + ["delimiter", "signature", *JSON_PARTS]
        if before and self._side.role == "publisher":
            roles[before - 1] = "topic"
        roles += ["buffer"] * (frames - len(roles))
        return [(role, f"jupyter.{role}") for role in roles]

    def _frame_fields(self, frame: int, role: str, key: str) -> Iterator[Span]:
        yield from self._envelope(frame)
        start, end = self._body(frame)
        if start == end:
            return
        body = self._side.data[start:end]
        if role == "sealed":
            yield from _named(self._side.data, start, end, "message", _CURVE["MESSAGE"])
        elif role == "subscription":
            yield Span(start, 1, "subscription", self._subscription, "zmtp.message.subscription")
            if end > start + 1:
                yield Span(start + 1, end - start - 1, "topic", text(body[1:]), "zmtp.topic")
        elif role in JSON_PARTS:
            message = self.jupyter
            assert message is not None
            yield Span(
                start, end - start, role, getattr(message, role), key,
                lambda: part_spans(role, body, start, message.msg_type),
            )  # fmt: skip
        elif role in ("topic", "delimiter", "signature"):
            yield Span(start, end - start, role, text(body), key)
        else:
            yield Span(start, end - start, role, body, key)

    def _command_spans(self) -> Iterator[Span]:
        yield from self._envelope(self._first)
        data, (start, end) = self._side.data, self._body(self._first)
        if start == end:
            return
        yield from _named(data, start, end, self._side.mechanism, None)


_COMMANDS: Final = ("READY", "ERROR", "SUBSCRIBE", "CANCEL", "PING", "PONG")
_FLAGS: Final = ((COMMAND, "COMMAND"), (LONG, "LONG"), (MORE, "MORE"))

# Fields of CurveZMQ's commands (RFC 26): name, length (0: the rest), decoder.
_CURVE: Final[dict[str, tuple[_Field, ...]]] = {
    "HELLO": (
        ("version", 2, lambda v: f"{v[0]}.{v[1]}"),
        ("padding", 72, None),
        ("client_transient_key", 32, None),
        ("nonce", 8, None),
        ("signature_box", 80, None),
    ),
    "WELCOME": (("nonce", 16, None), ("box", 144, None)),
    "INITIATE": (
        ("cookie_nonce", 16, None),
        ("cookie_box", 80, None),
        ("nonce", 8, None),
        ("box", 0, None),
    ),
    "READY": (("nonce", 8, None), ("box", 0, None)),
    "MESSAGE": (("nonce", 8, None), ("box", 0, None)),
}


def _named(
    data: bytes, start: int, end: int, mechanism: str, fields: Sequence[_Field] | None
) -> Iterator[Span]:
    """Yield the spans of a command's body: the length of its name, the name, its data."""
    if mechanism == "PLAIN" and data.startswith(_MISSPELT, start, end):
        after = start + len(_MISSPELT)
        yield Span(start, len(_MISSPELT), "name", "ERROR", "zmtp.plain.misspelt_error")
        yield from _sized(data, after, end, "zmtp.error", ("reason",))
        return
    length = data[start]
    yield Span(start, 1, "name length", length, "zmtp.command.name_length")
    start += 1
    if start + length > end:
        if start < end:
            yield undecoded(start, end, f"a name of {length} bytes is longer than the command")
        return
    name = text(data[start : start + length])
    if length:
        yield Span(start, length, "name", name, "zmtp.command.name")
    start += length
    if start == end:
        return
    if fields is None and mechanism == "CURVE":
        fields = _CURVE.get(name)
    if fields is not None:
        yield from _fixed(data, start, end, f"zmtp.curve.{name.lower()}", fields)
    elif name in ("READY", "INITIATE"):
        found, stop = _properties(data[start:end], start)
        for p in found:
            yield p.span
        if stop < end:
            yield undecoded(stop, end, "not a property: sizes reach beyond the command")
    elif name in ("SUBSCRIBE", "CANCEL"):
        yield Span(start, end - start, "topic", text(data[start:end]), "zmtp.topic")
    elif name == "ERROR":
        yield from _sized(data, start, end, "zmtp.error", ("reason",))
    elif name == "HELLO" and mechanism == "PLAIN":
        yield from _sized(data, start, end, "zmtp.plain", ("username", "password"))
    elif name == "PING" and end - start >= 2:
        ttl = int.from_bytes(data[start : start + 2], "big")
        yield Span(start, 2, "TTL", ttl, "zmtp.ping.ttl")
        if end > start + 2:
            yield Span(
                start + 2, end - start - 2, "context", data[start + 2 : end], "zmtp.ping.context"
            )
    elif name == "PONG":
        yield Span(start, end - start, "context", data[start:end], "zmtp.ping.context")
    else:
        yield Span(start, end - start, "data", data[start:end], "zmtp.command.data")


def _sized(data: bytes, start: int, end: int, prefix: str, fields: Sequence[str]) -> Iterator[Span]:
    """Yield texts that each follow one byte with their length."""
    for name in fields:
        if start == end:
            return
        length = data[start]
        yield Span(start, 1, f"{name} length", length, f"{prefix}.{name}_length")
        start += 1
        if start + length > end:
            if start < end:
                yield undecoded(
                    start, end, f"a {name} of {length} bytes is longer than the command"
                )
            return
        if length:
            said = text(data[start : start + length])
            yield Span(start, length, name, said, f"{prefix}.{name}")
        start += length
    if start < end:
        yield undecoded(start, end, "more bytes than the specification has fields")


class _Property(NamedTuple):
    """One property of the handshake's metadata (RFC 37, "property")."""

    name: str
    value: bytes
    span: Span


_PROPERTIES: Final = frozenset(("socket-type", "identity", "resource"))


def _properties(data: bytes, base: int) -> tuple[list[_Property], int]:
    """Read properties; return them and the offset where they end.

    The case of a name means nothing (RFC 37), so :attr:`_Property.name` is in lower case.
    """
    found = []
    start = 0
    while start < len(data):
        name_end = start + 1 + data[start]
        if name_end == start + 1 or name_end + 4 > len(data):
            break
        length = int.from_bytes(data[name_end : name_end + 4], "big")
        end = name_end + 4 + length
        if end > len(data):
            break
        name, value = text(data[start + 1 : name_end]), data[name_end + 4 : end]
        lower = name.lower()
        known = lower.replace("-", "_") if lower in _PROPERTIES else "other"
        spans = [
            Span(base + start, 1, "name length", data[start], "zmtp.property.name_length"),
            Span(base + start + 1, data[start], "name", name, "zmtp.property.name"),
            Span(base + name_end, 4, "value length", length, "zmtp.property.value_length"),
        ]
        if length:
            said: Any = value if lower == "identity" else text(value)
            spans.append(Span(base + name_end + 4, length, "value", said, "zmtp.property.value"))
        key = f"zmtp.property.{known}"
        span = Span(base + start, end - start, name, text(value), key, tuple(spans))
        found.append(_Property(lower, value, span))
        start = end
    return found, base + start
