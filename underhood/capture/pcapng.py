"""Captures as files: pcapng, which Wireshark, tshark and many others open.

Strategy
--------
*Writing.* A tap sees bytes, a pcapng file holds packets. So each connection is written as the TCP
segments that would have carried it: a handshake, each chunk as a segment, an end as FIN or RST,
with sequence and acknowledgement numbers that add up, in IPv4 or IPv6 packets without a link layer.
There is one interface per link. A chunk that is too long for one packet becomes several, of which
only the last has PSH set, so that loading joins them again. What packets cannot say (who the
parties are, notes, keys) is JSON in comments that begin with ``underhood:``.

*Reading.* This module finds the packets, in files of any program;
:mod:`underhood.capture.reassembly` makes connections of them. A file that ends early, is damaged or
lacks packets gives what there is before, and a note that says so.

Formats: draft-ietf-opsawg-pcapng and draft-ietf-opsawg-pcap.
"""

from __future__ import annotations

import contextlib
import heapq
import ipaddress
import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

from underhood.capture.reassembly import (
    ACK,
    FIN,
    OTHER,
    PSH,
    RAW,
    RST,
    SYN,
    TCP,
    Interface,
    Reassembly,
)
from underhood.capture.store import (
    CLIENT_TO_SERVER,
    DEFAULT_SCHEME,
    DIRECTIONS,
    SERVER_TO_CLIENT,
    Address,
    Capture,
    Chunk,
    Connection,
    Direction,
    End,
    Link,
    SigningKey,
    merge,
    scheme_of,
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

_MARK: Final = "underhood:"
_LONGEST_OPTION: Final = 65_000  # an option's length has 16 bits
_LONGEST_SEGMENT: Final = 65_495  # an IPv4 packet's length has 16 bits, and 40 bytes are headers
# On a SYN: the longest segment, and a window scale of 14, so that no window ever looks full.
_SYN_OPTIONS: Final = struct.pack(">BBHBBBB", 2, 4, _LONGEST_SEGMENT, 1, 3, 3, 14)
_WINDOW: Final = 65_535
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")

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
            schemes = {kernel: scheme_of(key) for kernel, key in keys.items()}
            if others := {k: s for k, s in schemes.items() if s != DEFAULT_SCHEME}:
                about["schemes"] = others
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
                    struct.pack("<HHI", RAW, 0, 0)
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
        self._segment(time_ns, CLIENT_TO_SERVER, SYN, _SYN_OPTIONS, comment)
        self._segment(time_ns, SERVER_TO_CLIENT, SYN | ACK, _SYN_OPTIONS)
        self._segment(time_ns, CLIENT_TO_SERVER, ACK, b"")

    def data(self, time_ns: int, direction: Direction, data: bytes) -> None:
        """Write a chunk; if it is long, as several segments."""
        if len(data) > _LONGEST_SEGMENT:
            view = memoryview(data)
            last = len(data) - (len(data) % _LONGEST_SEGMENT or _LONGEST_SEGMENT)
            for at in range(0, last, _LONGEST_SEGMENT):
                self._segment(time_ns, direction, ACK, view[at : at + _LONGEST_SEGMENT])
            data = view[last:]  # type: ignore[assignment]
        self._segment(time_ns, direction, ACK | PSH, data)

    def end(self, time_ns: int, direction: Direction, kind: Literal["fin", "reset"]) -> None:
        """Write the end of a direction."""
        self._segment(time_ns, direction, (FIN if kind == "fin" else RST) | ACK, b"")
        if kind == "fin":
            self._segment(time_ns, OTHER[direction], ACK, b"")
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
        acknowledged = numbers[OTHER[direction]] if flags & ACK else 0
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
        counted = 1 if flags & SYN else len(data) + (flags & FIN)
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
        offset = 0x70 if flags & SYN else 0x50
        if not self._sum:
            return _pack_ipv6(
                0x60000000, 20 + length, TCP, 64, self._addresses, *self._ports,
                number, acknowledged, offset, flags, _WINDOW, 0, 0,
            )  # fmt: skip
        total = 40 + length
        checksum = self._sum + total
        checksum = (checksum & 0xFFFF) + (checksum >> 16)
        checksum = (checksum & 0xFFFF) + (checksum >> 16)
        return _pack_ipv4(
            0x45, 0, total, 0, 0x4000, 64, TCP, ~checksum & 0xFFFF, self._addresses, *self._ports,
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
    reassembly = Reassembly(data, links or {})
    for packet in packets:
        reassembly.add(*packet)
    connections, numbered = reassembly.connections()
    return Capture(
        connections if numbered else merge(connections),
        MappingProxyType(reader.keys),
        MappingProxyType(reader.notes | reassembly.notes()),
        path.stem if reader.name is None else reader.name,
    )


def _structures(order: str) -> tuple[struct.Struct, struct.Struct, struct.Struct]:
    """Return how a block's head, a packet's block and an old packet's block begin."""
    return tuple(struct.Struct(order + form) for form in ("II", "IIII", "H2xIII"))  # type: ignore[return-value]


@dataclass(slots=True)
class _Timed(Interface):
    """An interface, and what its timestamps mean: ``t * times / per + plus`` nanoseconds."""

    times: int = 1
    per: int = 1
    plus: int = 0

    def nanoseconds(self, high: int, low: int) -> int:
        """Return the time that the two halves of a timestamp mean, since 1970."""
        return (high << 32 | low) * self.times // self.per + self.plus


_Packet = tuple[int, Interface, int, int, int]
"""What :meth:`Reassembly.add` takes."""


class _FileReader:
    """Finds the packets in a file."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.name: str | None = None
        self.notes: dict[str, str] = {}
        self.keys: dict[str, bytes] = {}

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
        self.notes["cut"] = (
            f"{why} at byte {at}; the last {left} bytes of the file could not be read"
        )

    def _pcap(self, order: str, times: int) -> Iterator[_Packet]:
        header = struct.Struct(order + "IIII")
        if len(self.data) < 24:
            self._end(0, "the file's header ends early")
            return
        (link_type,) = struct.unpack_from(order + "I", self.data, 20)
        interface = Interface(link_type & 0x0FFFFFFF)
        at, size = 24, len(self.data)
        while at + 16 <= size:
            seconds, fraction, captured, _ = header.unpack_from(self.data, at)
            if at + 16 + captured > size:
                break
            start = at + 16
            stop = start + captured
            yield seconds * 1_000_000_000 + fraction * times, interface, start, stop, 0
            at = stop
        if at < size:
            self._end(at, "a packet ends early")

    def _pcapng(self) -> Iterator[_Packet]:
        data, size = self.data, len(self.data)
        order, at, spaces = "<", 0, 0
        interfaces: list[_Timed] = []
        head, packet, old_packet = _structures(order)
        while at + 12 <= size:
            kind, length = head.unpack_from(data, at)
            if kind == _SECTION:  # the same in both orders
                order = ">" if bytes(data[at + 8 : at + 12]) == b"\x1a\x2b\x3c\x4d" else "<"
                head, packet, old_packet = _structures(order)
                kind, length = head.unpack_from(data, at)
                interfaces = []
            if length < 12 or length & 3:
                self._end(at, "a block is damaged")
                return
            if at + length > size:
                break
            end = at + length - 4
            try:
                if kind == _PACKET:
                    number, high, low, captured = packet.unpack_from(data, at + 8)
                    stop = at + 28 + captured
                    if stop > end:
                        raise ValueError
                    after = stop + (-captured & 3)
                    given = self._connection_number(order, after, end) if after < end else 0
                    interface = interfaces[number]
                    yield interface.nanoseconds(high, low), interface, at + 28, stop, given
                elif kind == _OLD_PACKET:
                    number, high, low, captured = old_packet.unpack_from(data, at + 8)
                    stop = min(at + 28 + captured, end)
                    interface = interfaces[number]
                    yield interface.nanoseconds(high, low), interface, at + 28, stop, 0
                elif kind == _SIMPLE_PACKET:  # it has no timestamp
                    (original,) = struct.unpack_from(order + "I", data, at + 8)
                    yield 0, interfaces[0], at + 12, min(at + 12 + original, end), 0
                elif kind == _INTERFACE:
                    interfaces.append(self._interface(order, at, end, spaces))
                    spaces += 1
                elif kind == _SECTION:
                    self._learn(*self._options(order, at + 24, end))
            except (ValueError, TypeError, IndexError, struct.error):
                self._end(at, "a block is damaged")
                return
            at += length
        if at < size:
            self._end(at, "a block ends early")

    def _learn(self, options: Mapping[int, bytes], about: Mapping[str, Any]) -> None:
        """Take what a section's options say of the capture."""
        if _OPT_COMMENT in options:
            self.notes["comment"] = options[_OPT_COMMENT].decode("utf-8", "replace")
        if "name" in about:
            self.name = str(about["name"])
        self.notes |= {str(key): str(value) for key, value in dict(about.get("notes", {})).items()}
        schemes = dict(about.get("schemes", {}))
        self.keys |= {
            kernel: SigningKey(bytes.fromhex(key), str(schemes.get(kernel, DEFAULT_SCHEME)))
            for kernel, key in dict(about.get("keys", {})).items()
        }

    def _connection_number(self, order: str, at: int, end: int) -> int:
        _, about = self._options(order, at, end)
        return int(about.get("connection", 0))

    def _interface(self, order: str, at: int, end: int, space: int) -> _Timed:
        (link_type,) = struct.unpack_from(order + "H", self.data, at + 8)
        options, about = self._options(order, at + 16, end)
        resolution = options.get(_OPT_RESOLUTION, b"\x06")[0]
        per = 2 ** (resolution & 0x7F) if resolution & 0x80 else 10**resolution
        plus = 0
        if _OPT_OFFSET in options:
            plus = struct.unpack(order + "q", options[_OPT_OFFSET])[0] * 10**9
        link = Link(**{key: str(value) for key, value in about.items()}) if about else None
        # Only our own interfaces have a space of their own.
        return _Timed(link_type, link, -1 if link is None else space, 10**9, per, plus)

    def _options(self, order: str, at: int, end: int) -> tuple[dict[int, bytes], dict[str, Any]]:
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
        about: Any = {}
        if ours:
            # Others may add to a comment, as mergecap does, or write one that begins like ours.
            with contextlib.suppress(ValueError, RecursionError):
                about, _ = json.JSONDecoder().raw_decode(ours)
        return found, about if isinstance(about, dict) else {}
