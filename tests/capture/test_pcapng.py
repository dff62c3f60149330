"""Captures survive files, cut files and other programs' files."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from checkout import missing
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from underhood.capture.pcapng import CaptureFileError, Writer, load, save
from underhood.capture.store import (
    DIRECTIONS,
    Capture,
    Chunk,
    Connection,
    End,
    Link,
    SigningKey,
    scheme_of,
)

EPOCH = 1_780_000_000_000_000_000


def tool(name: str) -> str:
    """The path of a program that comes with Wireshark."""
    found = shutil.which(name)
    if found is None:
        missing(f"{name} is not installed")
    return str(found)


# ---- captures of every kind

texts = st.text(max_size=20)
ports = st.integers(1, 65535)
addresses = (
    st.sampled_from(["127.0.0.1", "127.0.0.2", "10.1.2.3"]),
    st.sampled_from(["::1", "fe80::1", "2001:db8::abcd"]),
)
links = st.builds(Link, texts, texts, st.sampled_from(["shell", "http", "iopub", ""]), texts)
times = st.integers(EPOCH, EPOCH + 10_000)
chunks = (
    st.builds(Chunk, times, st.sampled_from(DIRECTIONS), st.binary(min_size=0, max_size=50))
    | st.builds(  # longer than one packet, than two; exactly as long as one, as two
        Chunk,
        times,
        st.sampled_from(DIRECTIONS),
        st.sampled_from([65_494, 65_495, 65_496, 130_990, 131_000, 200_000]).map(
            lambda n: (b"0123456789abcdef" * (n // 16 + 1))[:n]
        ),
    )
)
ends = st.builds(End, times, st.sampled_from(DIRECTIONS), st.sampled_from(["fin", "reset"]))


def by_time(items: list[Chunk] | list[End]) -> tuple[Chunk | End, ...]:
    return tuple(sorted(items, key=lambda item: item.time_ns))


@st.composite
def connections(draw: st.DrawFn, number: int) -> Connection:
    host = draw(st.sampled_from(addresses))
    client, server = draw(st.tuples(host, ports)), draw(st.tuples(host, ports))
    assume(client != server)
    return Connection(
        draw(links),
        number,
        client,
        server,
        EPOCH - draw(st.integers(0, 10)),
        by_time(draw(st.lists(chunks, max_size=6))),
        by_time(draw(st.lists(ends, max_size=2, unique_by=lambda end: (end.direction, end.kind)))),
    )


@st.composite
def captures(draw: st.DrawFn) -> Capture:
    numbers = sorted(draw(st.sets(st.integers(1, 2**40), max_size=4)))
    made = sorted((draw(connections(n)) for n in numbers), key=lambda c: c.opened)
    return Capture(
        tuple(made),
        draw(st.dictionaries(texts, st.binary(min_size=1, max_size=40), max_size=2)),
        draw(st.dictionaries(texts, texts | st.just("long " * 40_000), max_size=3)),
        draw(texts),
    )


@given(capture=captures())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_saving_and_loading_gives_the_same_capture_back(
    tmp_path_factory: pytest.TempPathFactory, capture: Capture
) -> None:
    path = tmp_path_factory.getbasetemp() / "same.pcapng"
    assert load(save(capture, path, keys=True)) == capture
    assert load(save(capture, path)) == replace(capture, keys={})


def example() -> Capture:
    """Two connections that overlap in time, one over IPv6, with every kind of event."""
    kernel = Connection(
        Link("client", "kernel", "shell", "some-id"), 1, ("127.0.0.1", 50_000), ("127.0.0.1", 6000),
        EPOCH,
        (
            Chunk(EPOCH + 1, ">", b"a short one"),
            Chunk(EPOCH + 5, "<", bytes(range(256)) * 700),
            Chunk(EPOCH + 5, ">", b"at the same time"),
            Chunk(EPOCH + 9, "<", b"and on"),
        ),
        (End(EPOCH + 10, ">", "fin"), End(EPOCH + 11, "<", "fin")),
    )  # fmt: skip
    server = Connection(
        Link("browser", "server", "http"), 2, ("::1", 50_001), ("::1", 8888), EPOCH + 3,
        (
            Chunk(EPOCH + 4, ">", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            Chunk(EPOCH + 6, "<", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ),
        (End(EPOCH + 20, "<", "reset"),),
    )  # fmt: skip
    return Capture(
        (kernel, server),
        {"some-id": b"secret"},
        {"date": "today", "what": "é → 日本"},
        "an example",
    )


def test_a_file_cut_anywhere_loads_as_a_clean_prefix(tmp_path: Path) -> None:
    capture = example()
    whole = save(capture, tmp_path / "whole.pcapng", keys=True).read_bytes()
    cut = tmp_path / "cut.pcapng"
    read: list[int] = []
    for size in itertools.chain(range(400, 3000), range(3000, len(whole), 997)):
        cut.write_bytes(whole[:size])
        part = load(cut)
        assert part.name in (capture.name, "cut")
        assert [c.id for c in part.connections] == [1, 2][: len(part.connections)]
        for got, full in zip(part.connections, capture.connections, strict=False):
            assert replace(got, chunks=(), ends=()) == replace(full, chunks=(), ends=())
            assert got.ends == full.ends[: len(got.ends)]
            for direction in DIRECTIONS:
                assert full.stream(direction).startswith(got.stream(direction))
            complete = got.chunks[:-1]
            assert complete == full.chunks[: len(complete)]
        read.append(sum(len(c.stream(d)) for c in part.connections for d in DIRECTIONS))
        if "cut" in part.notes:
            assert "could not be read" in part.notes["cut"]
    assert read == sorted(read)
    assert read[-1] > 0


def test_keys_are_written_only_when_asked_for(tmp_path: Path) -> None:
    capture = example()
    assert load(save(capture, tmp_path / "a.pcapng")).keys == {}
    for spelling in (b"secret", b"secret".hex().encode()):
        assert spelling not in (tmp_path / "a.pcapng").read_bytes()
    assert load(save(capture, tmp_path / "a.pcapng", keys=True)).keys == {"some-id": b"secret"}


def test_a_key_keeps_its_scheme(tmp_path: Path) -> None:
    keys = {"strong": SigningKey(b"one", "hmac-sha512"), "usual": b"two"}
    again = load(save(replace(example(), keys=keys), tmp_path / "a.pcapng", keys=True)).keys
    assert again == keys
    assert {kernel: scheme_of(key) for kernel, key in again.items()} == {
        "strong": "hmac-sha512",
        "usual": "hmac-sha256",
    }


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = save(example(), tmp_path / "a.pcapng")
    before = path.read_bytes()
    broken = replace(example().connections[0], client_address=("no address", 1))
    with pytest.raises(ValueError, match="'no address' is not the address of an IP host"):
        save(Capture((broken,)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_two_connections_at_once_between_the_same_made_up_addresses_stay_apart(
    tmp_path: Path,
) -> None:
    one = example().connections[0]
    other = replace(one, id=2, chunks=(Chunk(EPOCH + 6, ">", b"the other's"),), ends=())
    capture = Capture((one, other), {}, {}, "twins")
    assert load(save(capture, tmp_path / "twins.pcapng")) == capture


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"nothing\.pcapng is empty"),
        (b"GIF89a and so on", "is not a capture file: it begins with 47 49 46 38"),
        (b"\x0a\x0d\x0d\x0a", "is not a capture file"),
        (b"abc", "is not a capture file"),
    ],
)
def test_what_is_no_capture_file_is_refused_with_a_clear_sentence(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "nothing.pcapng"
    path.write_bytes(content)
    with pytest.raises(CaptureFileError, match=message):
        load(path)


def test_a_damaged_block_ends_the_reading_but_loses_nothing_before(tmp_path: Path) -> None:
    path = save(example(), tmp_path / "damaged.pcapng")
    data = bytearray(path.read_bytes())
    at = data.index(b"and on") - 70
    at = data.rindex(struct.pack("<I", 6), 0, at + 70 - 40)
    data[at + 4 : at + 8] = struct.pack("<I", 7)
    path.write_bytes(data)
    read = load(path)
    assert f"a block is damaged at byte {at}" in read.notes["cut"]
    assert read.connections[0].stream("<") == bytes(range(256)) * 700


# ---- what other programs make of our files


def tshark(path: Path, *arguments: str) -> list[str]:
    result = subprocess.run(
        [tool("tshark"), "-r", str(path), *arguments], capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()


def test_wireshark_sees_one_named_interface_per_link_and_nothing_odd(tmp_path: Path) -> None:
    path = save(example(), tmp_path / "a.pcapng")
    assert tshark(path, "-Y", "tcp.analysis.flags && !tcp.flags.reset") == []
    names = set(tshark(path, "-T", "fields", "-e", "frame.interface_name"))
    assert names == {link.label for link in (c.link for c in example().connections)}
    assert tshark(path, "-o", "ip.check_checksum:TRUE", "-Y", "ip.checksum.status==0") == []
    first = tshark(path, "-T", "fields", "-e", "frame.time_epoch", "-c", "1")
    assert first == [f"{EPOCH // 10**9}.{EPOCH % 10**9:09d}"]


def test_wireshark_follows_the_same_streams(tmp_path: Path) -> None:
    capture = example()
    path = save(capture, tmp_path / "a.pcapng")
    for number, connection in enumerate(capture.connections):
        lines = tshark(path, "-q", "-z", f"follow,tcp,raw,{number}")
        lines = [line for line in lines if line and not line.startswith("=")][4:]
        for direction, indent in ((">", False), ("<", True)):
            got = b"".join(
                bytes.fromhex(line.strip()) for line in lines if line.startswith("\t") is indent
            )
            assert got == connection.stream(direction)  # type: ignore[arg-type]


# ---- what we make of other programs' files


def payloads(capture: Capture) -> list[tuple[bytes, bytes]]:
    return [(c.stream(">"), c.stream("<")) for c in capture.connections]


@pytest.mark.parametrize("form", ["pcap", "nsecpcap", "pcapng"])
def test_the_forms_that_editcap_writes_are_read(tmp_path: Path, form: str) -> None:
    path = save(example(), tmp_path / "a.pcapng")
    copy = tmp_path / "copy"
    subprocess.run([tool("editcap"), "-F", form, str(path), str(copy)], check=True)
    read = load(copy)
    if form == "pcapng":  # editcap keeps our comments, so all is there but its own name
        assert read.connections == example().connections
        return
    assert payloads(read) == payloads(example())
    digit = 1000 if form == "pcap" else 1
    for got, was in zip(read.connections, example().connections, strict=True):
        assert got.opened == was.opened // digit * digit
        assert (got.client_address, got.server_address) == (was.client_address, was.server_address)
        assert [(e.direction, e.kind) for e in got.ends] == [
            (e.direction, e.kind) for e in was.ends
        ]
    assert [c.link.label for c in read.connections] == [
        "127.0.0.1 → 127.0.0.1:6000, tcp",
        "::1 → [::1]:8888, tcp",
    ]
    named = load(copy, links={8888: Link("browser", "server", "http")})
    assert named.connections[1].link == Link("browser", "server", "http")


def test_captures_that_mergecap_put_into_one_file_are_all_there(tmp_path: Path) -> None:
    one = save(example(), tmp_path / "one.pcapng")
    other = tuple(
        replace(c, opened=c.opened + 2, client_address=(c.client_address[0], 40_000))
        for c in example().connections
    )
    two = save(replace(example(), connections=other), tmp_path / "two.pcapng")
    both = tmp_path / "both.pcapng"
    subprocess.run([tool("mergecap"), "-w", str(both), str(one), str(two)], check=True)
    read = load(both)
    assert "cut" not in read.notes
    expected = sorted((*example().connections, *other), key=lambda c: c.opened)
    assert read.connections == tuple(replace(c, id=n) for n, c in enumerate(expected, 1))


def test_a_comment_that_begins_like_ours_does_no_harm(tmp_path: Path) -> None:
    path = save(example(), tmp_path / "a.pcapng")
    path.write_bytes(path.read_bytes().replace(b'{"connection": 1}', b"is a good course!"))
    read = load(path)
    assert "cut" not in read.notes
    assert payloads(read) == payloads(example())


def packets_of(path: Path) -> list[tuple[int, bytes]]:
    """Times and raw IP packets of a file, by way of editcap and the simplest format there is."""
    copy = path.with_suffix(".simple")
    subprocess.run([tool("editcap"), "-F", "nsecpcap", str(path), str(copy)], check=True)
    data, at, packets = copy.read_bytes(), 24, []
    while at < len(data):
        seconds, fraction, length, _ = struct.unpack_from("<IIII", data, at)
        packets.append((seconds * 10**9 + fraction, data[at + 16 : at + 16 + length]))
        at += 16 + length
    return packets


def pcap(
    packets: list[tuple[int, bytes]],
    *,
    link_type: int = 101,
    order: str = "<",
    magic: int,
    unit: int,
) -> bytes:
    return struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262_144, link_type) + b"".join(
        struct.pack(order + "IIII", t // 10**9, t % 10**9 // unit, len(p), len(p)) + p
        for t, p in packets
    )


def pcapng(
    packets: list[tuple[int, bytes]], *, order: str, resolution: int, offset: int = 0
) -> bytes:
    def block(kind: int, body: bytes) -> bytes:
        body += b"\0" * (-len(body) & 3)
        length = struct.pack(order + "I", len(body) + 12)
        return struct.pack(order + "I", kind) + length + body + length

    def option(code: int, value: bytes) -> bytes:
        padded = value + b"\0" * (-len(value) & 3)
        return struct.pack(order + "HH", code, len(value)) + padded

    per_second = 2 ** (resolution & 0x7F) if resolution & 0x80 else 10**resolution
    options = option(9, bytes([resolution])) + option(14, struct.pack(order + "q", offset))
    blocks = [
        block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1)),
        block(5, b"statistics, to be skipped"),
        block(1, struct.pack(order + "HHI", 101, 0, 0) + options + option(0, b"")),
    ]
    for t, packet in packets:
        ticks = -((offset * 10**9 - t) * per_second // 10**9)  # rounded up, so that it reads back
        head = struct.pack(
            order + "IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, len(packet), len(packet)
        )
        blocks.append(block(6, head + packet))
    return b"".join(blocks)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_pcap_is_read_in_both_byte_orders_and_both_units(
    tmp_path: Path, order: str, magic: int, unit: int
) -> None:
    path = save(example(), tmp_path / "a.pcapng")
    path.write_bytes(pcap(packets_of(path), order=order, magic=magic, unit=unit))
    assert payloads(load(path)) == payloads(example())
    assert load(path).connections[1].opened == (EPOCH + 3) // unit * unit


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("resolution", "offset"), [(9, 0), (6, 0), (9, 1_000_000), (0x80 | 30, 0), (0x80 | 30, -5)]
)
def test_pcapng_is_read_in_both_byte_orders_and_any_unit(
    tmp_path: Path, order: str, resolution: int, offset: int
) -> None:
    path = save(example(), tmp_path / "a.pcapng")
    path.write_bytes(pcapng(packets_of(path), order=order, resolution=resolution, offset=offset))
    read = load(path)
    assert payloads(read) == payloads(example())
    unit = 1000 if resolution == 6 else 1
    assert abs(read.connections[0].opened - EPOCH) <= unit


IPV4_IN = {
    "null, little-endian": (0, struct.pack("<I", 2)),
    "null, big-endian": (0, struct.pack(">I", 2)),
    "loop": (108, struct.pack(">I", 2)),
    "raw": (101, b""),
    "raw, as a BSD numbers it": (12, b""),
    "IPv4": (228, b""),
    "Ethernet": (1, bytes(12) + b"\x08\x00"),
    "Ethernet with a VLAN tag": (1, bytes(12) + b"\x81\x00\x00\x05\x08\x00"),
    "Ethernet with two VLAN tags": (
        1, bytes(12) + b"\x88\xa8\x00\x05\x81\x00\x00\x06\x08\x00",
    ),
    "Linux cooked": (113, bytes(14) + b"\x08\x00"),
    "Linux cooked, version 2": (276, b"\x08\x00" + bytes(18)),
}  # fmt: skip


@pytest.mark.parametrize("kind", IPV4_IN)
def test_packets_are_found_behind_any_link_layer(tmp_path: Path, kind: str) -> None:
    link_type, before = IPV4_IN[kind]
    path = save(example(), tmp_path / "a.pcapng")
    packets = [(t, before + p) for t, p in packets_of(path)]
    path.write_bytes(pcap(packets, link_type=link_type, magic=0xA1B23C4D, unit=1))
    assert payloads(load(path)) == payloads(example())


def test_an_unknown_link_layer_is_said_in_a_note(tmp_path: Path) -> None:
    path = save(example(), tmp_path / "a.pcapng")
    path.write_bytes(pcap(packets_of(path), link_type=195, magic=0xA1B23C4D, unit=1))
    assert load(path).connections == ()
    assert "packets of link type 195" in load(path).notes["skipped"]


# ---- segments that come in any order, twice, or not at all

Segment = tuple[int, bytes, int]
"""Offset from the first sequence number, data, flags."""
FIN, SYN, RST, ACK = 1, 2, 4, 16


def ipv4(way: str, number: int, acknowledged: int, flags: int, data: bytes) -> bytes:
    """Build a packet independently of the library's writer."""
    hosts, sides = bytes([127, 0, 0, 1, 127, 0, 0, 1]), (50_000, 8888)
    tcp = struct.pack(
        ">HHIIBBHHH", *(sides if way == ">" else sides[::-1]), number % 2**32,
        acknowledged % 2**32, 0x50, flags, 500, 0, 0,
    )  # fmt: skip
    total = 20 + len(tcp) + len(data)
    return struct.pack(">BBHHHBBH", 0x45, 0, total, 7, 0, 64, 6, 0) + hosts + tcp + data


def wire(tmp_path: Path, first: int, segments: list[Segment]) -> Path:
    """Write a connection whose client says these segments, in this order."""
    packets = [ipv4(">", first - 1, 0, SYN, b""), ipv4("<", 99, first, SYN | ACK, b"")]
    packets += [ipv4(">", first + at, 100, flags | ACK, data) for at, data, flags in segments]
    path = tmp_path / "wire.pcap"
    numbered = [(EPOCH + 1000 * n, packet) for n, packet in enumerate(packets)]
    path.write_bytes(pcap(numbered, magic=0xA1B23C4D, unit=1))
    return path


@st.composite
def shuffled(draw: st.DrawFn) -> tuple[bytes, list[Segment]]:
    """A stream, and segments that hold all of it: overlapping, repeated, in any order."""
    stream = draw(st.binary(min_size=1, max_size=200))
    cuts = sorted(draw(st.sets(st.integers(0, len(stream)), max_size=10)) | {0, len(stream)})
    segments = [(a, stream[a:b], 0) for a, b in itertools.pairwise(cuts)]
    for _ in range(draw(st.integers(0, 5))):  # retransmitted, cut otherwise; empty keep-alives too
        a = draw(st.integers(0, len(stream)))
        segments.append((a, stream[a : draw(st.integers(a, len(stream)))], 0))
    segments.append((-1, b"\0", 0))  # a keep-alive with a byte that has long been received
    segments.append((len(stream), b"", FIN))
    return stream, list(draw(st.permutations(segments)))


@given(
    case=shuffled(),
    first=st.sampled_from([1, 1000, 2**31 - 50, 2**31, 2**32 - 100, 2**32 - 1, 2**32]),
)
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
def test_segments_in_any_order_are_put_together_across_the_wrap_around(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[bytes, list[Segment]], first: int
) -> None:
    stream, segments = case
    read = load(wire(tmp_path_factory.getbasetemp(), first, segments))
    (connection,) = read.connections
    assert connection.stream(">") == stream
    assert [(e.direction, e.kind) for e in connection.ends] == [(">", "fin")]
    assert "missing" not in read.notes
    times = [chunk.time_ns for chunk in connection.chunks]
    assert times == sorted(times)


def test_a_byte_counts_when_it_could_be_read_not_when_it_came(tmp_path: Path) -> None:
    (connection,) = load(wire(tmp_path, 1, [(5, b"world", 0), (0, b"hello", 0)])).connections
    assert connection.stream(">") == b"helloworld"
    assert {chunk.time_ns for chunk in connection.chunks} == {EPOCH + 3000}


def test_a_hole_is_a_note_and_what_is_before_it_is_kept(tmp_path: Path) -> None:
    read = load(wire(tmp_path, 1, [(0, b"hello", 0), (10, b"again", 0), (15, b"", FIN)]))
    assert read.connections[0].stream(">") == b"hello"
    assert read.notes["missing"] == (
        "127.0.0.1:50000 > 127.0.0.1:8888: bytes 5 to 9 were not captured, so the 5 captured after"
        " them were left out"
    )


def test_a_lost_tail_is_a_note(tmp_path: Path) -> None:
    path = wire(tmp_path, 1, [(0, b"hello", 0)])
    answer = ipv4("<", 100, 1 + 5 + 700, ACK, b"thanks")
    record = struct.pack("<IIII", EPOCH // 10**9, 999, len(answer), len(answer)) + answer
    path.write_bytes(path.read_bytes() + record)
    read = load(path)
    assert payloads(read) == [(b"hello", b"thanks")]
    assert "700 bytes after byte 5 were acknowledged, but not captured" in read.notes["missing"]


def test_a_connection_that_began_before_the_capture_is_read_from_where_it_is_seen(
    tmp_path: Path,
) -> None:
    packets = [
        ipv4("<", 5000, 300, ACK, b"...an answer"),
        ipv4(">", 300, 5012, ACK, b"a question"),
        ipv4("<", 5012, 310, ACK, b"another answer"),
    ]
    path = tmp_path / "late.pcap"
    path.write_bytes(pcap([(EPOCH, p) for p in packets], magic=0xA1B23C4D, unit=1))
    read = load(path)
    assert payloads(read) == [(b"a question", b"...an answeranother answer")]
    assert read.connections[0].server_address == ("127.0.0.1", 8888)
    assert read.notes["missing"] == "the beginning of 1 connections"


def test_a_port_used_again_is_another_connection(tmp_path: Path) -> None:
    first, second = wire(tmp_path, 1, [(0, b"one", 0), (3, b"", FIN)]).read_bytes(), b""
    second = wire(tmp_path, 90_000, [(0, b"two", 0)]).read_bytes()[24:]
    (tmp_path / "again.pcap").write_bytes(first + second)
    assert payloads(load(tmp_path / "again.pcap")) == [(b"one", b""), (b"two", b"")]


def test_a_syn_that_comes_twice_is_one_connection(tmp_path: Path) -> None:
    packets = [ipv4(">", 0, 0, SYN, b"")] * 2 + [ipv4("<", 9, 1, SYN | ACK, b"")] * 2
    packets += [ipv4(">", 1, 10, ACK, b"hello"), ipv4(">", 6, 10, RST, b"")]
    path = tmp_path / "twice.pcap"
    path.write_bytes(pcap([(EPOCH, p) for p in packets], magic=0xA1B23C4D, unit=1))
    (connection,) = load(path).connections
    assert connection.stream(">") == b"hello"
    assert [(e.direction, e.kind) for e in connection.ends] == [(">", "reset")]


def test_packets_that_are_not_tcp_are_counted(tmp_path: Path) -> None:
    udp = bytearray(ipv4(">", 1, 1, ACK, b"x"))
    udp[9] = 17
    fragment = bytearray(ipv4(">", 1, 1, ACK, b"x"))
    fragment[6] = 0x20
    path = tmp_path / "other.pcap"
    others = [bytes(udp), bytes(fragment), b"\x45too short", bytes(60)]
    path.write_bytes(pcap([(EPOCH, p) for p in others], magic=0xA1B23C4D, unit=1))
    assert load(path).notes["skipped"] == (
        "1 IP packets without TCP, 1 IP fragments, 1 packets too short for TCP,"
        " 1 packets that are not IP"
    )


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_damaged_file_never_raises_anything_but_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "broken"
    if not path.with_suffix(".whole").exists():
        save(example(), path.with_suffix(".whole"), keys=True)
    content = bytearray(path.with_suffix(".whole").read_bytes()[:3000])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(CaptureFileError):
        load(path)


def test_a_writer_needs_nothing_but_something_to_write_to(tmp_path: Path) -> None:
    """A child writes while it goes, and may be killed at any time."""
    path = tmp_path / "child.pcapng"
    with path.open("wb") as file:
        writer = Writer(file, keys={"id": b"key"})
        assert load_flushed(file, path) == ()
        flow = writer.opened(
            Link("server", "kernel", "shell", "id"), ("127.0.0.1", 1), ("127.0.0.1", 2), EPOCH
        )
        flow.data(EPOCH + 1, ">", b"x")
        assert load_flushed(file, path)[0].stream(">") == b"x"
        flow.end(EPOCH + 2, ">", "fin")
        assert len(load_flushed(file, path)[0].ends) == 1


def load_flushed(file: BinaryIO, path: Path) -> tuple[Connection, ...]:
    file.flush()
    return load(path).connections
