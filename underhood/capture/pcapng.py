"""Captures as files: pcapng, which Wireshark, tshark and many others open.

Strategy
--------
*Writing.* A tap sees bytes, a pcapng file holds packets. So each connection is written as the TCP
segments that would have carried it: a handshake, each chunk as a segment, an end as FIN or RST,
with sequence and acknowledgement numbers that add up, in IPv4 or IPv6 packets without a link layer.
There is one interface per link. A chunk that is too long for one packet becomes several, of which
only the last has PSH set, so that loading joins them again. What packets cannot say (who the
parties are, notes, keys) is JSON in comments that begin with ``underhood:``.

*Reading.* Segments are put together by their sequence numbers, whoever wrote the file: a loopback
capture by dumpcap or tcpdump has segments that are out of order, overlap or come twice. A file that
ends early, or lacks packets, gives what there is before the gap, and a note that says so.

Formats: pcapng, draft-ietf-opsawg-pcapng; pcap, draft-ietf-opsawg-pcap; TCP, RFC 9293.
"""

from __future__ import annotations

import heapq
import ipaddress
import json
import mmap
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

from underhood.capture.store import (
    CLIENT_TO_SERVER,
    DIRECTIONS,
    SERVER_TO_CLIENT,
    Address,
    Capture,
    Chunk,
    Connection,
    Direction,
    End,
    Link,
    merge,
)

# Block types and options of pcapng.
_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_OLD_PACKET: Final = 2
_SIMPLE_PACKET: Final = 3
_PACKET: Final = 6
_BYTE_ORDER: Final = 0x1A2B3C4D
_OPT_COMMENT: Final = 1
_OPT_HARDWARE_OR_NAME: Final = 2
_OPT_DESCRIPTION: Final = 3
_OPT_APPLICATION: Final = 4
_OPT_RESOLUTION: Final = 9
_OPT_OFFSET: Final = 14

# Flags of TCP.
_FIN: Final = 0x01
_SYN: Final = 0x02
_RST: Final = 0x04
_PSH: Final = 0x08
_ACK: Final = 0x10

# Link types (tcpdump.org/linktypes.html): how many bytes stand before the IP packet.
_RAW: Final = 101
_ETHERNET: Final = 1
_BEFORE_IP: Final = {
    _RAW: 0, 12: 0, 14: 0, 228: 0, 229: 0,  # raw IP; 12 and 14 where a system numbers it so
    0: 4, 108: 4,  # null, loop
    _ETHERNET: 14,
    113: 16, 276: 20,  # Linux "cooked", versions 1 and 2
}  # fmt: skip
_VLAN: Final = {b"\x81\x00", b"\x88\xa8", b"\x91\x00"}
_TCP: Final = 6
_IPV6_EXTENSIONS: Final = {0, 43, 60}  # hop-by-hop, routing, destination options

_MARK: Final = "underhood:"
_LONGEST_OPTION: Final = 65_000  # an option's length has 16 bits
_LONGEST_SEGMENT: Final = 65_495  # an IPv4 packet's length has 16 bits, and 40 bytes are headers
# On a SYN: the longest segment, and a window scale of 14, so that no window ever looks full.
_SYN_OPTIONS: Final = struct.pack(">BBHBBBB", 2, 4, _LONGEST_SEGMENT, 1, 3, 3, 14)
_WINDOW: Final = 65_535
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")

_OTHER: Final[dict[Direction, Direction]] = {
    CLIENT_TO_SERVER: SERVER_TO_CLIENT,
    SERVER_TO_CLIENT: CLIENT_TO_SERVER,
}

_pack_packet = struct.Struct("<IIIIIII").pack
_pack_ipv4 = struct.Struct(">BBHHHBBH8sHHIIBBHHH").pack
_pack_ipv6 = struct.Struct(">IHBB32sHHIIBBHHH").pack
_pack_length = struct.Struct("<I").pack


class CaptureFileError(ValueError):
    """A file that is no capture, or of which nothing could be read."""


# ---------------------------------------------------------------------- writing


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + _PADDING[len(value) & 3]


def _comments(value: Mapping[str, Any]) -> bytes:
    """Put a value into as many comments as it needs; ASCII can be cut anywhere."""
    text = json.dumps(value)
    pieces = (text[at : at + _LONGEST_OPTION] for at in range(0, len(text), _LONGEST_OPTION))
    return b"".join(_option(_OPT_COMMENT, (_MARK + piece).encode()) for piece in pieces)


def _text(value: str) -> bytes:
    return value.encode("utf-8", "replace")[:255]


def _block(kind: int, body: bytes) -> bytes:
    body += b"\0\0\0\0"  # the end of the options
    length = _pack_length(len(body) + 12)
    return _pack_length(kind) + length + body + length


class _Writable(Protocol):
    def write(self, data: bytes, /) -> object: ...


class Writer:
    """Writes a capture while it happens; a tap can tell it directly (it is a sink).

    Parameters
    ----------
    file
        Takes bytes. What it got can be cut anywhere and still be read up to there.
    name, notes
        The capture's.
    keys
        The keys that messages are signed with, by kernel id; they are written as they are.
    """

    def __init__(
        self,
        file: _Writable,
        *,
        name: str = "capture",
        notes: Mapping[str, str] | None = None,
        keys: Mapping[str, bytes] | None = None,
    ) -> None:
        self.write = file.write
        self._interfaces: dict[tuple[Link, int], int] = {}
        self._open: dict[int, set[tuple[Address, Address]]] = {}
        self._connections = 0
        about: dict[str, Any] = {"name": name, "notes": dict(notes or {})}
        if keys:
            about["keys"] = {kernel: key.hex() for kernel, key in keys.items()}
        self.write(
            _block(
                _SECTION,
                struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
                + _comments(about)
                + _option(_OPT_APPLICATION, b"underhood"),
            )
        )

    def opened(
        self,
        link: Link,
        client: Address,
        server: Address,
        time_ns: int,
        number: int | None = None,
    ) -> Segments:
        """Write a connection's handshake, and return what writes its segments.

        Raises
        ------
        ValueError
            If an address is not that of an IP host.
        """
        self._connections += 1
        number = self._connections if number is None else number
        return Segments(
            self, self._interface(link, client, server), client, server, time_ns, number
        )

    def closed(self, interface: int, client: Address, server: Address) -> None:
        """Note that the two addresses may be used again."""
        self._open[interface].discard((client, server))

    def _interface(self, link: Link, client: Address, server: Address) -> int:
        """Return the link's interface; write its block first if it is new.

        Within one interface, two addresses stand for one connection at a time. Should a capture
        have two at once, as made-up addresses may, the link gets another interface.
        """
        copy = 0
        while (interface := self._interfaces.get((link, copy))) is not None:
            if (client, server) not in self._open[interface]:
                break
            copy += 1
        if interface is None:
            interface = self._interfaces[link, copy] = len(self._interfaces)
            self._open[interface] = set()
            kernel = f" (kernel {link.kernel_id})" if link.kernel_id else ""
            about = {
                "client": link.client,
                "server": link.server,
                "channel": link.channel,
                "kernel_id": link.kernel_id,
            }
            self.write(
                _block(
                    _INTERFACE,
                    struct.pack("<HHI", _RAW, 0, 0)
                    + _comments(about)
                    + _option(_OPT_HARDWARE_OR_NAME, _text(link.label))
                    + _option(
                        _OPT_DESCRIPTION,
                        _text(f"{link.channel}: {link.client} opened it to {link.server}{kernel}"),
                    )
                    + _option(_OPT_RESOLUTION, b"\x09"),  # nanoseconds
                )
            )
        self._open[interface].add((client, server))
        return interface


class Segments:
    """Writes one connection as TCP segments; a tap can tell it directly (it is a flow)."""

    __slots__ = ("_ended", "_headers", "_interface", "_key", "_numbers", "_write", "_writer")

    def __init__(
        self,
        writer: Writer,
        interface: int,
        client: Address,
        server: Address,
        time_ns: int,
        number: int,
    ) -> None:
        self._writer, self._write, self._interface = writer, writer.write, interface
        self._key = (client, server)
        self._ended: set[str] = set()
        self._headers = {
            CLIENT_TO_SERVER: _Headers(client, server),
            SERVER_TO_CLIENT: _Headers(server, client),
        }
        # Where each direction's sequence numbers begin. They differ from one connection to the
        # next: to Wireshark, a second SYN with the same number is a retransmission of the first.
        self._numbers = {
            CLIENT_TO_SERVER: number * 2_654_435_761 & 0xFFFFFFFF,
            SERVER_TO_CLIENT: number * 2_246_822_519 & 0xFFFFFFFF,
        }
        comment = _comments({"connection": number})
        self._segment(time_ns, CLIENT_TO_SERVER, _SYN, _SYN_OPTIONS, comment)
        self._segment(time_ns, SERVER_TO_CLIENT, _SYN | _ACK, _SYN_OPTIONS)
        self._segment(time_ns, CLIENT_TO_SERVER, _ACK, b"")

    def data(self, time_ns: int, direction: Direction, data: bytes) -> None:
        """Write a chunk; if it is long, as several segments."""
        if len(data) > _LONGEST_SEGMENT:
            view = memoryview(data)
            last = len(data) - (len(data) % _LONGEST_SEGMENT or _LONGEST_SEGMENT)
            for at in range(0, last, _LONGEST_SEGMENT):
                self._segment(time_ns, direction, _ACK, view[at : at + _LONGEST_SEGMENT])
            data = view[last:]  # type: ignore[assignment]
        self._segment(time_ns, direction, _ACK | _PSH, data)

    def end(self, time_ns: int, direction: Direction, kind: Literal["fin", "reset"]) -> None:
        """Write the end of a direction."""
        self._segment(time_ns, direction, (_FIN if kind == "fin" else _RST) | _ACK, b"")
        if kind == "fin":
            self._segment(time_ns, _OTHER[direction], _ACK, b"")
        self._ended.add(direction if kind == "fin" else "reset")
        if "reset" in self._ended or self._ended.issuperset(DIRECTIONS):
            self._writer.closed(self._interface, *self._key)

    def _segment(
        self,
        time_ns: int,
        direction: Direction,
        flags: int,
        data: bytes | memoryview,
        comment: bytes = b"",
    ) -> None:
        numbers = self._numbers
        number = numbers[direction]
        acknowledged = numbers[_OTHER[direction]] if flags & _ACK else 0
        headers = self._headers[direction].pack(number, acknowledged, flags, len(data))
        length = len(headers) + len(data)
        options = comment + b"\0\0\0\0" if comment else b""
        padding = _PADDING[length & 3]
        total = 32 + length + len(padding) + len(options)
        self._write(
            b"".join(
                (
                    _pack_packet(
                        _PACKET, total, self._interface,
                        time_ns >> 32, time_ns & 0xFFFFFFFF, length, length,
                    ),
                    headers, data, padding, options, _pack_length(total),
                )
            )
        )  # fmt: skip
        counted = 1 if flags & _SYN else len(data) + (flags & _FIN)
        numbers[direction] = number + counted & 0xFFFFFFFF


class _Headers:
    """Packs the IP and TCP headers of one direction of one connection."""

    __slots__ = ("_addresses", "_ports", "_sum")

    def __init__(self, source: Address, destination: Address) -> None:
        hosts = []
        for host, _ in (source, destination):
            try:
                hosts.append(ipaddress.ip_address(host.partition("%")[0]).packed)
            except ValueError:
                raise ValueError(
                    f"{host!r} is not the address of an IP host, and no packet can hold it"
                ) from None
        if len({len(host) for host in hosts}) > 1:
            raise ValueError(f"no packet goes from {source[0]} to {destination[0]}: IPv4 and IPv6")
        self._addresses = b"".join(hosts)
        self._ports = (source[1], destination[1])
        # The part of IPv4's header checksum that is the same for all packets of this direction:
        # version, "do not fragment", time to live, protocol, addresses. 0 for IPv6.
        self._sum = 0
        if len(self._addresses) == 8:
            self._sum = 0x4500 + 0x4000 + 0x4006 + sum(struct.unpack(">4H", self._addresses))

    def pack(self, number: int, acknowledged: int, flags: int, length: int) -> bytes:
        # A SYN's data are the TCP options. The checksum of TCP stays 0: it would cost more than
        # all the rest, and loopback captures by other programs carry no valid one either.
        offset = 0x70 if flags & _SYN else 0x50
        if not self._sum:
            return _pack_ipv6(
                0x60000000, 20 + length, _TCP, 64, self._addresses, *self._ports,
                number, acknowledged, offset, flags, _WINDOW, 0, 0,
            )  # fmt: skip
        total = 40 + length
        checksum = self._sum + total
        checksum = (checksum & 0xFFFF) + (checksum >> 16)
        checksum = (checksum & 0xFFFF) + (checksum >> 16)
        return _pack_ipv4(
            0x45, 0, total, 0, 0x4000, 64, _TCP, ~checksum & 0xFFFF, self._addresses, *self._ports,
            number, acknowledged, offset, flags, _WINDOW, 0, 0,
        )  # fmt: skip


def save(capture: Capture, path: str | Path, *, keys: bool = False) -> Path:
    """Write a capture as a pcapng file; :func:`load` gives the same capture back.

    Parameters
    ----------
    capture
        What to write; its connections are in the order in which they opened.
    path
        Where to; the file is replaced if it exists, at the end and at once.
    keys
        Whether to write the keys that messages are signed with. With a kernel's key, whoever
        reaches its ports can run code in it: think before you publish the key of one that lives.

    Returns
    -------
    Path
        The file's path.

    Raises
    ------
    ValueError
        If an address is not that of an IP host.
    OSError
        If the file cannot be written.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb", buffering=1 << 20) as file:
            writer = Writer(
                file, name=capture.name, notes=capture.notes, keys=capture.keys if keys else None
            )
            flows: dict[int, Segments] = {}
            for place, event in heapq.merge(
                *(_events(place, c) for place, c in enumerate(capture.connections)),
                key=_time_of,
            ):
                if isinstance(event, Connection):
                    flows[place] = writer.opened(
                        event.link, event.client_address, event.server_address,
                        event.opened, event.id,
                    )  # fmt: skip
                elif isinstance(event, Chunk):
                    flows[place].data(event.time_ns, event.direction, event.data)
                else:
                    flows[place].end(event.time_ns, event.direction, event.kind)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


_Event = Connection | Chunk | End


def _time_of(item: tuple[int, _Event]) -> int:
    event = item[1]
    return event.opened if isinstance(event, Connection) else event.time_ns


def _events(place: int, connection: Connection) -> Iterator[tuple[int, _Event]]:
    """Yield what happened on a connection, in order."""
    yield place, connection
    ends = iter(connection.ends)
    end = next(ends, None)
    for chunk in connection.chunks:
        while end is not None and end.time_ns < chunk.time_ns:
            yield place, end
            end = next(ends, None)
        yield place, chunk
    while end is not None:
        yield place, end
        end = next(ends, None)


# ---------------------------------------------------------------------- reading


def load(path: str | Path, *, links: Mapping[int, Link] | None = None) -> Capture:
    """Read a capture from a pcapng or pcap file, of this library or of any program.

    Parameters
    ----------
    path
        The file. Timestamps may be in any unit and either byte order; packets may be raw IP,
        loopback, Ethernet (with VLAN tags or without) or Linux "cooked" ones.
    links
        For captures by other programs: what to call the connections to a server's port. Those
        that are not named get names made of addresses and ports.

    Returns
    -------
    Capture
        All TCP connections in it. Its notes say what could not be read: ``"cut"`` that the file
        ends early, ``"missing"`` which bytes were not captured, ``"skipped"`` what is not TCP.

    Raises
    ------
    CaptureFileError
        If it is no capture file.
    OSError
        If it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise CaptureFileError(f"{path} is empty: nothing was captured, or nothing written")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    reader = _FileReader(data)
    packets = reader.packets()
    if packets is None:
        raise CaptureFileError(
            f"{path} is not a capture file: it begins with {bytes(data[:4]).hex(' ')}, which is"
            " neither pcapng nor pcap; give a file that Wireshark, tcpdump or underhood wrote"
        )
    reassembly = _Reassembly(reader, links or {})
    for packet in packets:
        reassembly.add(*packet)
    connections, numbered = reassembly.connections()
    about = reader.about
    notes = dict(about.get("notes", {}))
    if reader.cut:
        notes["cut"] = reader.cut
    notes.update(reassembly.notes())
    return Capture(
        connections if numbered else merge(connections),
        MappingProxyType({k: bytes.fromhex(v) for k, v in about.get("keys", {}).items()}),
        MappingProxyType(notes),
        about.get("name", path.stem),
    )


@dataclass(slots=True)
class _Interface:
    """Where packets were captured, and how to read them."""

    link_type: int
    # A timestamp t means t * times / per + plus, in nanoseconds.
    times: int = 1
    per: int = 1
    plus: int = 0
    # The id that keeps apart what has the same addresses; the same for all foreign interfaces.
    space: int = -1
    link: Link | None = None
    order: str = "<"


_Packet = tuple[int, _Interface, int, int, int]
"""Time in nanoseconds, interface, and where in the file the captured bytes begin and end, and where
the options end that follow them."""


class _FileReader:
    """Finds the packets in a file."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.about: dict[str, Any] = {}
        self.cut = ""

    def packets(self) -> Iterator[_Packet] | None:
        """Return the packets, or None if this is no capture file."""
        magic = bytes(self.data[:4])
        if magic == b"\x0a\x0d\x0d\x0a":
            known = bytes(self.data[8:12]) in (b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d")
            return self._pcapng() if known else None
        for order, times in (("<", 1), (">", 1), ("<", 1000), (">", 1000)):
            if magic == struct.pack(order + "I", 0xA1B23C4D if times == 1 else 0xA1B2C3D4):
                return self._pcap(order, times)
        return None

    def _end(self, at: int, why: str) -> None:
        left = len(self.data) - at
        self.cut = f"{why} at byte {at}; the last {left} bytes of the file could not be read"

    def _pcap(self, order: str, times: int) -> Iterator[_Packet]:
        header = struct.Struct(order + "IIII")
        if len(self.data) < 24:
            self._end(0, "the file's header ends early")
            return
        (link_type,) = struct.unpack_from(order + "I", self.data, 20)
        interface = _Interface(link_type & 0x0FFFFFFF)
        at, size = 24, len(self.data)
        while at + 16 <= size:
            seconds, fraction, captured, _ = header.unpack_from(self.data, at)
            if at + 16 + captured > size:
                break
            start = at + 16
            stop = start + captured
            yield seconds * 1_000_000_000 + fraction * times, interface, start, stop, stop
            at = stop
        if at < size:
            self._end(at, "a packet ends early")

    def _pcapng(self) -> Iterator[_Packet]:
        data, size = self.data, len(self.data)
        order, at, spaces = "<", 0, 0
        interfaces: list[_Interface] = []
        head, packet = struct.Struct("<II"), struct.Struct("<IIII")
        while at + 12 <= size:
            kind, length = head.unpack_from(data, at)
            if kind == _SECTION:  # the same in both orders
                order = ">" if bytes(data[at + 8 : at + 12]) == b"\x1a\x2b\x3c\x4d" else "<"
                head, packet = struct.Struct(order + "II"), struct.Struct(order + "IIII")
                kind, length = head.unpack_from(data, at)
                interfaces = []
            if length < 12 or length & 3:
                self._end(at, "a block is damaged")
                return
            if at + length > size:
                break
            if kind == _PACKET:
                number, high, low, captured = packet.unpack_from(data, at + 8)
                start = at + 28
                if number >= len(interfaces) or start + captured > at + length:
                    self._end(at, "a packet's block is damaged")
                    return
                interface = interfaces[number]
                time_ns = high << 32 | low
                if interface.per != interface.times or interface.plus:
                    time_ns = time_ns * interface.times // interface.per + interface.plus
                yield time_ns, interface, start, start + captured, at + length - 4
            elif kind == _OLD_PACKET and interfaces:
                number, high, low, captured = struct.unpack_from(order + "H2xIII", data, at + 8)
                end = at + length - 4
                interface = interfaces[min(number, len(interfaces) - 1)]
                time_ns = (high << 32 | low) * interface.times // interface.per + interface.plus
                yield time_ns, interface, at + 28, min(at + 28 + captured, end), end
            elif kind == _SIMPLE_PACKET and interfaces:  # it has no timestamp
                (original,) = struct.unpack_from(order + "I", data, at + 8)
                end = at + length - 4
                yield 0, interfaces[0], at + 12, min(at + 12 + original, end), end
            elif kind == _INTERFACE:
                interfaces.append(self._interface(order, at, length, spaces))
                spaces += 1
            elif kind == _SECTION:
                options, about = self.options(order, at + 24, at + length - 4)
                if _OPT_COMMENT in options:
                    comment = options[_OPT_COMMENT].decode("utf-8", "replace")
                    self.about.setdefault("notes", {}).setdefault("comment", comment)
                for key, value in about.items():
                    known = self.about.setdefault(key, value)
                    if isinstance(known, dict):
                        known.update(value)
            at += length
        if at < size:
            self._end(at, "a block ends early")

    def _interface(self, order: str, at: int, length: int, space: int) -> _Interface:
        (link_type,) = struct.unpack_from(order + "H", self.data, at + 8)
        options, about = self.options(order, at + 16, at + length - 4)
        resolution = options.get(_OPT_RESOLUTION, b"\x06")[0]
        per = 2 ** (resolution & 0x7F) if resolution & 0x80 else 10**resolution
        plus = 0
        if _OPT_OFFSET in options:
            plus = struct.unpack(order + "q", options[_OPT_OFFSET])[0] * 1_000_000_000
        interface = _Interface(link_type, 1_000_000_000, per, plus, order=order)
        if {"client", "server", "channel", "kernel_id"} <= about.keys():
            interface.link = Link(**about)
            interface.space = space
        return interface

    def options(self, order: str, at: int, end: int) -> tuple[dict[int, bytes], dict[str, Any]]:
        """Read a block's options; return them by code, and what our comments say."""
        found: dict[int, bytes] = {}
        ours = ""
        while at + 4 <= end:
            code, length = struct.unpack_from(order + "HH", self.data, at)
            if code == 0:
                break
            value = bytes(self.data[at + 4 : at + 4 + length])
            if code == _OPT_COMMENT and value.startswith(_MARK.encode()):
                ours += value.decode("ascii", "replace").removeprefix(_MARK)
            else:
                found.setdefault(code, value)
            at += 4 + length + (-length & 3)
        try:
            about = json.loads(ours) if ours else {}
        except json.JSONDecodeError:
            about = {}
        return found, about if isinstance(about, dict) else {}


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


class _Reassembly:
    """Puts segments together to connections."""

    def __init__(self, reader: _FileReader, links: Mapping[int, Link]) -> None:
        self._reader, self._data, self._links = reader, reader.data, links
        # By interface, addresses and ports, as they stand in a packet.
        self._known: dict[tuple[int, bytes, bytes], tuple[_Conversation, Direction]] = {}
        self._all: list[_Conversation] = []
        self._skipped: Counter[str] = Counter()
        self._joined_late = 0
        self._arrivals = 0

    def add(self, time_ns: int, interface: _Interface, start: int, stop: int, end: int) -> None:
        """Take a packet; see :data:`_Packet`."""
        found = self._find_tcp(interface, start, stop)
        if isinstance(found, str):
            self._skipped[found] += 1
            return
        addresses, tcp, stop_of_tcp = found
        data = self._data
        ports = bytes(data[tcp : tcp + 4])
        number, acknowledged = _unpack_numbers(data, tcp + 4)
        flags = data[tcp + 13]
        at = tcp + (data[tcp + 12] >> 4 << 2)
        length = max(0, stop_of_tcp - at)

        key = (interface.space, addresses, ports)
        known = self._known.get(key)
        if flags & _SYN:
            known = self._synchronise(known, key, time_ns, interface, number, flags)
            number = number + 1 & 0xFFFFFFFF
            if interface.link is not None and not flags & _ACK:
                _, about = self._reader.options(interface.order, stop + (start - stop & 3), end)
                known[0].number = int(about.get("connection", 0))
        elif known is None:
            if not length:
                return  # an acknowledgement on a connection that is not in this file
            known = self._join_late(key, time_ns, interface, number, acknowledged)
        conversation, direction = known
        stream = conversation.streams[direction]
        if stream.next is None:
            stream.next = number
        if flags & _ACK:
            conversation.streams[_OTHER[direction]].acknowledged = acknowledged

        push = not conversation.ours or flags & _PSH
        if number == stream.next and not stream.waiting:
            if length or (conversation.ours and push):
                piece = bytes(data[at : at + length])
                self._append(conversation, direction, time_ns, piece, whole=bool(push))
        elif length:
            self._put_in_order(
                conversation, direction, time_ns, number, bytes(data[at : at + length])
            )
        if flags & _FIN and stream.end is None:
            stream.end = stream.offset + _distance(number + length, stream.next)
        if stream.end == stream.offset:
            conversation.ends.append(End(time_ns, direction, "fin"))
            stream.next = stream.next + 1 & 0xFFFFFFFF
            stream.end = -1  # told
        if flags & _RST and (
            conversation.ours or not any(known.kind == "reset" for known in conversation.ends)
        ):
            conversation.ends.append(End(time_ns, direction, "reset"))

    def _find_tcp(
        self, interface: _Interface, start: int, stop: int
    ) -> tuple[bytes, int, int] | str:
        """Return a packet's addresses and where TCP begins and ends; or what it is instead."""
        data, at = self._data, start
        if interface.link_type != _RAW:
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
            if (data[at + 6] & 0x3F) << 8 | data[at + 7]:
                return "IP fragments"
            addresses, protocol = bytes(data[at + 12 : at + 20]), data[at + 9]
            tcp = at + ((data[at] & 15) << 2)
            length = data[at + 2] << 8 | data[at + 3]
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
        if protocol != _TCP or tcp + 20 > stop:
            return "IP packets without TCP"
        return addresses, tcp, min(end, stop)

    # ---- which conversation

    def _synchronise(
        self,
        known: tuple[_Conversation, Direction] | None,
        key: tuple[int, bytes, bytes],
        time_ns: int,
        interface: _Interface,
        number: int,
        flags: int,
    ) -> tuple[_Conversation, Direction]:
        """Return the conversation that a SYN belongs to; usually it begins one."""
        following = number + 1 & 0xFFFFFFFF
        if known is not None:
            stream = known[0].streams[known[1]]
            if stream.next is None:  # the answer to a SYN
                stream.next = following
                return known
            if _distance(following + stream.offset, stream.next) in (0, -1):  # it came twice
                return known
        first: Direction = CLIENT_TO_SERVER if not flags & _ACK else SERVER_TO_CLIENT
        return self._begin(key, first, time_ns, interface, following)

    def _join_late(
        self,
        key: tuple[int, bytes, bytes],
        time_ns: int,
        interface: _Interface,
        number: int,
        acknowledged: int,
    ) -> tuple[_Conversation, Direction]:
        """Begin a conversation whose handshake is not in the file."""
        self._joined_late += 1
        source, destination = struct.unpack(">HH", key[2])
        # A server's port is one that has a name, or else the lower one: clients' are ephemeral.
        from_client = destination in self._links or (
            source not in self._links and destination <= source
        )
        first: Direction = CLIENT_TO_SERVER if from_client else SERVER_TO_CLIENT
        known = self._begin(key, first, time_ns, interface, number)
        known[0].streams[_OTHER[first]].next = acknowledged
        return known

    def _begin(
        self,
        key: tuple[int, bytes, bytes],
        direction: Direction,
        time_ns: int,
        interface: _Interface,
        number: int,
    ) -> tuple[_Conversation, Direction]:
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
        conversation.streams[direction].next = number
        self._all.append(conversation)
        back = (space, addresses[half:] + addresses[:half], ports[2:] + ports[:2])
        self._known[back] = (conversation, _OTHER[direction])
        self._known[key] = (conversation, direction)
        return self._known[key]

    # ---- bytes

    def _append(
        self,
        conversation: _Conversation,
        direction: Direction,
        time_ns: int,
        data: bytes,
        *,
        whole: bool,
    ) -> None:
        """Take the bytes that come next."""
        stream = conversation.streams[direction]
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
        time_ns: int,
        number: int,
        data: bytes,
    ) -> None:
        """Take bytes that came too early, or before; a receiver gets them when their turn is."""
        stream = conversation.streams[direction]
        assert stream.next is not None
        self._arrivals += 1
        offset = stream.offset + _distance(number, stream.next)
        heapq.heappush(stream.waiting, (offset, self._arrivals, data))
        while stream.waiting and stream.waiting[0][0] <= stream.offset:
            offset, _, data = heapq.heappop(stream.waiting)
            data = data[stream.offset - offset :]
            if data:
                self._append(conversation, direction, time_ns, data, whole=True)

    # ---- the result

    def connections(self) -> tuple[tuple[Connection, ...], bool]:
        """Return the connections, and whether the file numbered them all."""
        made = []
        for conversation in self._all:
            for direction, stream in conversation.streams.items():
                if stream.pieces:  # the file ends inside a chunk
                    self._append(conversation, direction, stream.pieces_time, b"", whole=True)
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


_unpack_numbers = struct.Struct(">II").unpack_from


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
