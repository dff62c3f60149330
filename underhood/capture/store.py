"""What was captured: connections, each a sequence of chunks of bytes with time and direction.

Strategy: a capture holds nothing but what a tap saw (bytes, times, directions, ends) and who the
parties were. It knows no protocol; :mod:`underhood.dissect` reads meaning into the bytes, later
and as often as wanted. Values are immutable, so that a trace made from them never changes.

Times are nanoseconds since 1970-01-01 UTC, on one clock for all connections (see
:func:`underhood.capture.tap.now_ns`). Directions are seen from the party that opened the
connection: ``">"`` is client to server, ``"<"`` is server to client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from underhood.trace import Trace

Direction: TypeAlias = Literal[">", "<"]
Address: TypeAlias = tuple[str, int]

CLIENT_TO_SERVER: Final = ">"
SERVER_TO_CLIENT: Final = "<"
DIRECTIONS: Final[tuple[Direction, Direction]] = (CLIENT_TO_SERVER, SERVER_TO_CLIENT)


@dataclass(frozen=True, slots=True)
class Link:
    """Two parties and what runs between them.

    Parameters
    ----------
    client, server
        The parties' names, as a diagram's lifelines will show them: the client is the one that
        opens the connection.
    channel
        ``"shell"``, ``"iopub"``, ``"stdin"``, ``"control"`` or ``"heartbeat"`` for a kernel's
        sockets, ``"http"`` for a server's port.
    kernel_id
        For a kernel's sockets, the id its kernel manager gave it (it keeps the five together).
    """

    client: str
    server: str
    channel: str
    kernel_id: str = ""

    @property
    def label(self) -> str:
        """The link in words, as in ``"server → kernel, shell"``."""
        return f"{self.client} → {self.server}, {self.channel}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes as one read at the tap returned them: when (nanoseconds), which way, and what."""

    time_ns: int
    direction: Direction
    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The end of one direction: ``"fin"`` (an orderly half-close) or ``"reset"``."""

    time_ns: int
    direction: Direction
    kind: Literal["fin", "reset"]


@dataclass(frozen=True, slots=True)
class Connection:
    """One TCP connection (or Unix-domain socket connection) through a tap.

    Parameters
    ----------
    link
        Whose connection it is.
    id
        A number, unique in its capture, in the order in which connections opened.
    client_address, server_address
        ``(host, port)`` of both ends as the client saw them; made up for Unix-domain sockets.
    opened
        When the tap had accepted it and reached the server, in nanoseconds.
    chunks
        The bytes, ordered by time.
    ends
        How each direction ended, as far as it did.
    """

    link: Link
    id: int
    client_address: Address
    server_address: Address
    opened: int
    chunks: tuple[Chunk, ...] = ()
    ends: tuple[End, ...] = ()

    @property
    def closed(self) -> int | None:
        """When both directions had ended, in nanoseconds; None while one is open."""
        resets = [end.time_ns for end in self.ends if end.kind == "reset"]
        if resets:
            return resets[0]
        if {end.direction for end in self.ends} == set(DIRECTIONS):
            return max(end.time_ns for end in self.ends)
        return None

    def stream(self, direction: Direction) -> bytes:
        """All bytes of one direction, joined."""
        return b"".join(chunk.data for chunk in self.chunks if chunk.direction == direction)


DEFAULT_SCHEME: Final = "hmac-sha256"
"""The signature scheme of a kernel whose connection file names no other."""


class SigningKey(bytes):
    """A kernel's key, with the scheme by which messages are signed with it.

    Both stand in the kernel's connection file. Where plain bytes are given for a key, the scheme
    is :data:`DEFAULT_SCHEME`.

    Parameters
    ----------
    key
        The key.
    scheme
        ``"hmac-"`` and the name of a digest, as in the connection file.
    """

    scheme: str

    def __new__(cls, key: bytes, scheme: str = DEFAULT_SCHEME) -> SigningKey:
        """Make it of a key and the name of a scheme."""
        made = super().__new__(cls, key)
        made.scheme = scheme
        return made


def scheme_of(key: bytes) -> str:
    """Return the scheme by which messages are signed with a key."""
    return key.scheme if isinstance(key, SigningKey) else DEFAULT_SCHEME


@dataclass(frozen=True, slots=True)
class Capture:
    """The connections of one recording.

    Parameters
    ----------
    connections
        In the order in which they opened.
    keys
        For each kernel id, the key that its messages are signed with (a :class:`SigningKey` if
        not by the default scheme). They let the dissector check signatures, and are saved to a
        file only when asked for.
    notes
        What a reader of the file should know: date, versions, what was done.
    name
        A short name, unique within one page or program; pictures carry it.
    """

    connections: tuple[Connection, ...] = ()
    keys: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    notes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    name: str = "capture"

    def __add__(self, other: Capture) -> Capture:
        """Merge captures taken on one host, ordered by time; connections are numbered anew."""
        return Capture(
            merge(self.connections + other.connections),
            {**self.keys, **other.keys},
            {**self.notes, **other.notes},
            self.name,
        )

    @classmethod
    def load(cls, path: str | Path, *, links: Mapping[int, Link] | None = None) -> Capture:
        """Read a pcapng or pcap file; see :func:`underhood.capture.pcapng.load`."""
        from underhood.capture import pcapng

        return pcapng.load(path, links=links)

    def save(self, path: str | Path, *, keys: bool = False) -> Path:
        """Write a pcapng file; see :func:`underhood.capture.pcapng.save`."""
        from underhood.capture import pcapng

        return pcapng.save(self, path, keys=keys)

    def trace(self) -> Trace:
        """Dissect the bytes: the messages of all connections, ordered by time."""
        from underhood.trace import Trace

        return Trace.of(self)


def merge(connections: Iterable[Connection]) -> tuple[Connection, ...]:
    """Order connections by the time they opened and number them from 1."""
    ordered = sorted(connections, key=lambda connection: connection.opened)
    return tuple(replace(connection, id=n) for n, connection in enumerate(ordered, 1))
