"""Connections from packets: finds TCP in packets and puts its segments together.

Strategy: each direction of a conversation keeps the sequence number that comes next. A segment that
begins there, and nearly all do, is appended at once; one that comes too early waits until the gap
is filled; what is there already is cut off. So retransmissions, overlaps, keep-alives and sequence
numbers that wrap around need no case of their own. A gap that is never filled ends its direction,
and :meth:`Reassembly.notes` says so.

Packets come from :mod:`underhood.capture.pcapng`. Those that it wrote itself have one interface per
link, numbered connections, and chunks that end with PSH; :class:`Interface` tells them apart.

Formats: TCP, RFC 9293; IPv4, RFC 791; IPv6, RFC 8200; link types, tcpdump.org/linktypes.html.
"""

from __future__ import annotations

import heapq
import socket
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from underhood.capture.store import (
    CLIENT_TO_SERVER,
    DIRECTIONS,
    SERVER_TO_CLIENT,
    Address,
    Chunk,
    Connection,
    Direction,
    End,
    Link,
)

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
TCP: Final = 6

RAW: Final = 101
_ETHERNET: Final = 1
# How many bytes stand before the IP packet, by link type.
_BEFORE_IP: Final = {
    RAW: 0, 12: 0, 14: 0, 228: 0, 229: 0,  # raw IP; 12 and 14 where a system numbers it so
    0: 4, 108: 4,  # null, loop
    _ETHERNET: 14,
    113: 16, 276: 20,  # Linux "cooked", versions 1 and 2
}  # fmt: skip
_VLAN: Final = {b"\x81\x00", b"\x88\xa8", b"\x91\x00"}
_IPV6_EXTENSIONS: Final = {0, 43, 60}  # hop-by-hop, routing, destination options

OTHER: Final[dict[Direction, Direction]] = {
    CLIENT_TO_SERVER: SERVER_TO_CLIENT,
    SERVER_TO_CLIENT: CLIENT_TO_SERVER,
}

_unpack_ipv4 = struct.Struct(">BxH2xHxB2x8s").unpack_from
_unpack_tcp = struct.Struct(">4sIIBB").unpack_from


@dataclass(slots=True)
class Interface:
    """Where packets were captured.

    Parameters
    ----------
    link_type
        Its number in the registry of link types.
    link
        The link it stands for, if this library wrote the file.
    space
        Keeps apart connections with the same addresses; only our own interfaces have one each.
    """

    link_type: int
    link: Link | None = None
    space: int = -1


class _Stream:
    """One direction of a conversation, while it is put together."""

    __slots__ = ("acknowledged", "end", "next", "offset", "pieces", "pieces_time", "waiting")

    def __init__(self) -> None:
        self.next: int | None = None  # the sequence number of the byte that comes next
        self.offset = 0  # how many bytes there are before it
        self.acknowledged: int | None = None  # the last that the receiver said it waits for
        self.end: int | None = None  # the offset of the FIN, once that has come
        # What came too early, by offset; the number keeps the order of equals.
        self.waiting: list[tuple[int, int, bytes]] = []
        # A chunk that was written as several segments, of which the last has not come yet.
        self.pieces: list[bytes] = []
        self.pieces_time = 0


class _Conversation:
    """One connection, while it is put together."""

    __slots__ = (
        "chunks",
        "client",
        "ends",
        "link",
        "number",
        "opened",
        "ours",
        "server",
        "streams",
    )

    def __init__(
        self, link: Link, client: Address, server: Address, opened: int, number: int, ours: bool
    ) -> None:
        self.link, self.client, self.server, self.opened = link, client, server, opened
        self.number, self.ours = number, ours
        self.chunks: list[Chunk] = []
        self.ends: list[End] = []
        self.streams: dict[Direction, _Stream] = {d: _Stream() for d in DIRECTIONS}


_Known = tuple[_Conversation, Direction, _Stream, _Stream]
"""Where a packet belongs: conversation and direction, that direction's stream, and the other's."""


class Reassembly:
    """Puts segments together to connections.

    Parameters
    ----------
    data
        The file that the packets are in.
    links
        What to call the connections to a server's port, where the file does not say it.
    """

    def __init__(self, data: memoryview, links: Mapping[int, Link]) -> None:
        self._data, self._links = data, links
        # By interface, addresses and ports, as they stand in a packet.
        self._known: dict[tuple[int, bytes, bytes], _Known] = {}
        self._all: list[_Conversation] = []
        self._skipped: Counter[str] = Counter()
        self._joined_late = 0
        self._arrivals = 0

    def add(
        self, time_ns: int, interface: Interface, start: int, stop: int, number_given: int = 0
    ) -> None:
        """Take a packet.

        Parameters
        ----------
        time_ns
            When it was captured, in nanoseconds.
        interface
            Where.
        start, stop
            Where in the file the captured bytes begin and end.
        number_given
            The number that its connection has been given, if it is the first of one.
        """
        found = self._find_tcp(interface, start, stop)
        if isinstance(found, str):
            self._skipped[found] += 1
            return
        addresses, tcp, stop_of_tcp = found
        data = self._data
        ports, number, acknowledged, offset, flags = _unpack_tcp(data, tcp)
        at = tcp + (offset >> 4 << 2)
        length = stop_of_tcp - at if stop_of_tcp > at else 0

        key = (interface.space, addresses, ports)
        known = self._known.get(key)
        if flags & SYN:
            known = self._synchronise(known, key, time_ns, interface, number, flags)
            number = number + 1 & 0xFFFFFFFF
            known[0].number = number_given or known[0].number
        elif known is None:
            if not length:
                return  # an acknowledgement on a connection that is not in this file
            known = self._join_late(key, time_ns, interface, number, acknowledged)
        conversation, direction, stream, other = known
        if stream.next is None:
            stream.next = number
        if flags & ACK:
            other.acknowledged = acknowledged

        push = not conversation.ours or flags & PSH
        if number == stream.next and not stream.waiting:
            if length or (conversation.ours and push):
                piece = bytes(data[at : at + length])
                self._append(conversation, direction, stream, time_ns, piece, bool(push))
        elif length:
            piece = bytes(data[at : at + length])
            self._put_in_order(conversation, direction, stream, time_ns, number, piece)
        if not flags & (FIN | RST) and stream.end is None:
            return
        if flags & FIN and stream.end is None:
            stream.end = stream.offset + _distance(number + length, stream.next)
        if stream.end == stream.offset:
            conversation.ends.append(End(time_ns, direction, "fin"))
            stream.next = stream.next + 1 & 0xFFFFFFFF
            stream.end = -1  # told
        if flags & RST and (
            conversation.ours or not any(known.kind == "reset" for known in conversation.ends)
        ):
            conversation.ends.append(End(time_ns, direction, "reset"))

    def _find_tcp(
        self, interface: Interface, start: int, stop: int
    ) -> tuple[bytes, int, int] | str:
        """Return a packet's addresses and where TCP begins and ends; or what it is instead."""
        data, at = self._data, start
        if interface.link_type != RAW:
            before = _BEFORE_IP.get(interface.link_type)
            if before is None:
                return f"packets of link type {interface.link_type}, which is not known here"
            at += before
            if interface.link_type == _ETHERNET:
                while bytes(data[at - 2 : at]) in _VLAN:
                    at += 4
        if at + 40 > stop:
            return "packets too short for TCP"
        version = data[at] >> 4
        # A length of 0 means more than 16 bits can say: the packet ends where its capture does.
        if version == 4:
            first, length, fragment, protocol, addresses = _unpack_ipv4(data, at)
            if fragment & 0x3FFF:
                return "IP fragments"
            tcp = at + ((first & 15) << 2)
            end = at + length if length else stop
        elif version == 6:
            addresses, protocol = bytes(data[at + 8 : at + 40]), data[at + 6]
            tcp = at + 40
            length = data[at + 4] << 8 | data[at + 5]
            end = tcp + length if length else stop
            while protocol in _IPV6_EXTENSIONS and tcp + 8 <= stop:
                protocol, tcp = data[tcp], tcp + 8 + 8 * data[tcp + 1]
        else:
            return "packets that are not IP"
        if protocol != TCP or tcp + 20 > stop:
            return "IP packets without TCP"
        return addresses, tcp, end if end < stop else stop

    # ---- which conversation

    def _synchronise(
        self,
        known: _Known | None,
        key: tuple[int, bytes, bytes],
        time_ns: int,
        interface: Interface,
        number: int,
        flags: int,
    ) -> _Known:
        """Return the conversation that a SYN belongs to; usually it begins one."""
        following = number + 1 & 0xFFFFFFFF
        if known is not None:
            stream = known[2]
            if stream.next is None:  # the answer to a SYN
                stream.next = following
                return known
            if _distance(following + stream.offset, stream.next) in (0, -1):  # it came twice
                return known
        first: Direction = CLIENT_TO_SERVER if not flags & ACK else SERVER_TO_CLIENT
        return self._begin(key, first, time_ns, interface, following)

    def _join_late(
        self,
        key: tuple[int, bytes, bytes],
        time_ns: int,
        interface: Interface,
        number: int,
        acknowledged: int,
    ) -> _Known:
        """Begin a conversation whose handshake is not in the file."""
        self._joined_late += 1
        source, destination = struct.unpack(">HH", key[2])
        # A server's port is one that has a name, or else the lower one: clients' are ephemeral.
        from_client = destination in self._links or (
            source not in self._links and destination <= source
        )
        first: Direction = CLIENT_TO_SERVER if from_client else SERVER_TO_CLIENT
        known = self._begin(key, first, time_ns, interface, number)
        known[3].next = acknowledged
        return known

    def _begin(
        self,
        key: tuple[int, bytes, bytes],
        direction: Direction,
        time_ns: int,
        interface: Interface,
        number: int,
    ) -> _Known:
        space, addresses, ports = key
        half = len(addresses) // 2
        family = socket.AF_INET if half == 4 else socket.AF_INET6
        source: Address = (socket.inet_ntop(family, addresses[:half]), int.from_bytes(ports[:2]))
        target: Address = (socket.inet_ntop(family, addresses[half:]), int.from_bytes(ports[2:]))
        client, server = (source, target) if direction == CLIENT_TO_SERVER else (target, source)
        link = interface.link or self._links.get(server[1])
        if link is None:
            shown = f"[{server[0]}]" if half == 16 else server[0]
            link = Link(client[0], f"{shown}:{server[1]}", "tcp")
        conversation = _Conversation(
            link, client, server, time_ns, 0, ours=interface.link is not None
        )
        stream, other = conversation.streams[direction], conversation.streams[OTHER[direction]]
        stream.next = number
        self._all.append(conversation)
        back = (space, addresses[half:] + addresses[:half], ports[2:] + ports[:2])
        self._known[back] = (conversation, OTHER[direction], other, stream)
        self._known[key] = (conversation, direction, stream, other)
        return self._known[key]

    # ---- bytes

    def _append(
        self,
        conversation: _Conversation,
        direction: Direction,
        stream: _Stream,
        time_ns: int,
        data: bytes,
        whole: bool,
    ) -> None:
        """Take the bytes that come next."""
        assert stream.next is not None
        stream.next = stream.next + len(data) & 0xFFFFFFFF
        stream.offset += len(data)
        if not whole:
            stream.pieces.append(data)
            stream.pieces_time = time_ns
            return
        if stream.pieces:
            data = b"".join((*stream.pieces, data))
            stream.pieces.clear()
        conversation.chunks.append(Chunk(time_ns, direction, data))

    def _put_in_order(
        self,
        conversation: _Conversation,
        direction: Direction,
        stream: _Stream,
        time_ns: int,
        number: int,
        data: bytes,
    ) -> None:
        """Take bytes that came too early, or before; a receiver gets them when their turn is."""
        assert stream.next is not None
        self._arrivals += 1
        offset = stream.offset + _distance(number, stream.next)
        heapq.heappush(stream.waiting, (offset, self._arrivals, data))
        while stream.waiting and stream.waiting[0][0] <= stream.offset:
            offset, _, data = heapq.heappop(stream.waiting)
            data = data[stream.offset - offset :]
            if data:
                self._append(conversation, direction, stream, time_ns, data, True)

    # ---- the result

    def connections(self) -> tuple[tuple[Connection, ...], bool]:
        """Return the connections, and whether the file numbered them all."""
        made = []
        for conversation in self._all:
            for direction, stream in conversation.streams.items():
                if stream.pieces:  # the file ends inside a chunk
                    self._append(conversation, direction, stream, stream.pieces_time, b"", True)
            made.append(
                Connection(
                    conversation.link, conversation.number,
                    conversation.client, conversation.server, conversation.opened,
                    tuple(conversation.chunks), tuple(conversation.ends),
                )
            )  # fmt: skip
        numbers = {connection.id for connection in made}
        return tuple(made), len(numbers) == len(made) and 0 not in numbers

    def notes(self) -> dict[str, str]:
        """Say what could not be read."""
        notes = {}
        missing = [
            f"{conversation.client[0]}:{conversation.client[1]} {direction}"
            f" {conversation.server[0]}:{conversation.server[1]}: {what}"
            for conversation in self._all
            for direction, stream in conversation.streams.items()
            if (what := _missing(stream))
        ]
        if self._joined_late:
            missing.append(f"the beginning of {self._joined_late} connections")
        if missing:
            notes["missing"] = "; ".join(missing)
        if self._skipped:
            notes["skipped"] = ", ".join(f"{n} {what}" for what, n in self._skipped.items())
        return notes


def _distance(number: int, other: int) -> int:
    """Return how far a sequence number is after another one; they wrap around at 2**32."""
    return (number - other + 0x80000000 & 0xFFFFFFFF) - 0x80000000


def _missing(stream: _Stream) -> str:
    """Say which bytes of a direction were not captured; empty if none."""
    if stream.waiting:
        first = stream.waiting[0][0]
        beyond = sum(len(data) for _, _, data in stream.waiting)
        return (
            f"bytes {stream.offset} to {first - 1} were not captured, so the {beyond} captured"
            " after them were left out"
        )
    if stream.next is not None and stream.acknowledged is not None:
        unseen = _distance(stream.acknowledged, stream.next)
        if unseen > 1:  # one may be a FIN
            return f"{unseen} bytes after byte {stream.offset} were acknowledged, but not captured"
    return ""
