"""One connection: both directions, dissected by the protocol that its first bytes show.

Strategy: the first bytes decide. A ZMTP peer begins with its greeting; an HTTP/1.1 client begins
with a request line. Anything else is one ``undecoded`` span per direction. Both directions are
read together, since a response cannot be framed without its request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, Protocol, TypeAlias

from underhood.capture.store import CLIENT_TO_SERVER, DIRECTIONS, Direction
from underhood.dissect import http, zmtp
from underhood.dissect.jupyter import JupyterMessage
from underhood.dissect.spans import Span, undecoded

ProtocolName: TypeAlias = Literal["zmtp", "http", "unknown"]

# A record of the type "handshake", as both sides of TLS send first (RFC 8446, section 5.1).
_TLS: Final = b"\x16\x03"


class Unit(Protocol):
    """A message in one direction: where it lies, and what it is once somebody asks."""

    @property
    def direction(self) -> Direction:
        """Which way it went."""

    @property
    def start(self) -> int:
        """The offset of its first byte in the stream of its direction."""

    @property
    def end(self) -> int:
        """The offset after its last byte."""

    @property
    def protocol(self) -> str:
        """``"zmtp"``, ``"jupyter"``, ``"http"`` or ``"websocket"``."""

    @property
    def label(self) -> str:
        """What an arrow in a diagram says."""

    @property
    def detail(self) -> str:
        """A few words more; often empty."""

    @property
    def jupyter(self) -> JupyterMessage | None:
        """The Jupyter message that it carries, if it does."""

    @property
    def span(self) -> Span:
        """The tree of its bytes."""


class Side(Protocol):
    """One direction of a connection, as each protocol's dissector reads it."""

    @property
    def units(self) -> Sequence[Unit]:
        """Its messages, in the order in which they were complete."""

    @property
    def spans(self) -> tuple[Span, ...]:
        """Its top-level spans, which tile the direction."""


class Unknown:
    """A direction in no protocol that is read here."""

    __slots__ = ("_data",)

    units: Final[Sequence[Unit]] = ()

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def spans(self) -> tuple[Span, ...]:
        """All of it, undecoded."""
        why = "neither a ZMTP greeting nor an HTTP/1.1 request begins this connection"
        if self._data.startswith(_TLS):
            why = "it is encrypted (TLS); put the tap where it is not, behind what decrypts it"
        return (undecoded(0, len(self._data), why),) if self._data else ()


class Dissection:
    """What the bytes of one connection mean.

    Attributes
    ----------
    streams : dict
        The bytes of each direction.
    protocol : str
        ``"zmtp"``, ``"http"`` (which may have become WebSocket on the way) or ``"unknown"``.
    """

    __slots__ = ("_sides", "_spans", "protocol", "streams")

    def __init__(
        self,
        streams: Mapping[Direction, bytes],
        protocol: ProtocolName,
        sides: Mapping[Direction, Side],
    ) -> None:
        self.streams: dict[str, bytes] = {d: streams.get(d, b"") for d in DIRECTIONS}
        self.protocol = protocol
        self._sides = sides
        self._spans: dict[Direction, tuple[Span, ...]] = {}

    @property
    def identity(self) -> bytes:
        """The ``Identity`` that the client announces in its ZMTP handshake; empty if none."""
        side = self._sides[CLIENT_TO_SERVER]
        return side.metadata.get("identity", b"") if isinstance(side, zmtp.Side) else b""

    def units(self, direction: Direction) -> Sequence[Unit]:
        """Return the messages of a direction, in the order in which they were complete."""
        return self._sides[direction].units

    def spans(self, direction: Direction) -> tuple[Span, ...]:
        """Return the top-level spans of a direction; they tile its stream exactly."""
        if direction not in self._spans:
            self._spans[direction] = self._sides[direction].spans
        return self._spans[direction]

    def span(self, unit: Unit) -> Span:
        """Return the tree of a message's bytes; offsets count from the start of its stream."""
        return unit.span


def dissect(streams: Mapping[Direction, bytes]) -> Dissection:
    """Find out what a connection speaks, and where its messages begin and end.

    Parameters
    ----------
    streams
        All bytes of each direction: ``">"`` from the client, ``"<"`` from the server. A missing
        direction is empty.

    Notes
    -----
    Nothing is raised, whatever the bytes.
    """
    if any(zmtp.is_greeting(streams.get(d, b"")) for d in DIRECTIONS):
        return Dissection(streams, "zmtp", zmtp.connection(streams))
    if http.is_http(streams.get(">", b""), streams.get("<", b"")):
        return Dissection(streams, "http", http.connection(streams))
    return Dissection(streams, "unknown", {d: Unknown(streams.get(d, b"")) for d in DIRECTIONS})
