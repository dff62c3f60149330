"""What holds whatever the bytes, for each dissector.

Streams are made whole from the grammars, then cut, changed byte by byte, or mixed with anything.
Any split of the bytes into chunks gives the same spans; they tile each direction exactly, down to
the last leaf; and nothing is ever raised.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from jupyter_server.services.kernels.connection.base import (
    serialize_binary_message,
    serialize_msg_to_ws_v1,
)
from tiling import examine, flat, holes
from wire import (
    DELIMITER,
    chunked,
    command,
    frame,
    greeting,
    head,
    header,
    jupyter,
    message,
    prop,
    ready,
    switched,
    upgrade,
)
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol

from underhood.capture.store import DIRECTIONS, Chunk, Connection, Direction, Link
from underhood.dissect import Dissection, dissect
from underhood.dissect.http import event_spans
from underhood.dissect.jupyter import MESSAGE_TYPES
from underhood.dissect.websocket import V1

Streams = dict[Direction, bytes]

SMALL = st.binary(max_size=24)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
CONTENTS = st.dictionaries(st.text(max_size=6) | st.sampled_from(["status", "data"]), VALUES)
TYPES = st.sampled_from(sorted(MESSAGE_TYPES)) | st.text(max_size=5)

# ---- ZMTP

MESSAGES = st.one_of(
    st.lists(SMALL | st.just(b"long" * 80), min_size=1, max_size=4).map(lambda p: message(*p)),
    st.builds(
        lambda kind, content, before, buffers: message(
            *jupyter(kind, content, before=tuple(before), buffers=tuple(buffers))
        ),
        TYPES,
        CONTENTS,
        # An identity that looks like the delimiter would be one.
        st.lists(SMALL.filter(lambda identity: identity != DELIMITER), max_size=2),
        st.lists(SMALL, max_size=2),
    ),
    st.builds(lambda body: frame(body, long=True), SMALL),
    st.builds(lambda on, topic: message(bytes((on,)) + topic), st.integers(0, 1), SMALL),
)
COMMANDS = st.one_of(
    st.builds(
        lambda name, topic: command(name, topic), st.sampled_from([b"SUBSCRIBE", b"CANCEL"]), SMALL
    ),
    st.builds(lambda ctx: command(b"PING", b"\0\x0a" + ctx), st.binary(max_size=16)),
    st.builds(lambda ctx: command(b"PONG", ctx), st.binary(max_size=16)),
    st.builds(lambda why: command(b"ERROR", bytes((len(why),)) + why), SMALL),
    st.builds(command, st.sampled_from([b"JOIN", b"TOKEN", b"A"]), SMALL),
)
SOCKETS = st.sampled_from([b"DEALER", b"ROUTER", b"SUB", b"XPUB", b"PUB", b"REQ", b"REP"])


@st.composite
def zmtp_side(draw: st.DrawFn, mechanism: bytes) -> bytes:
    stream = greeting(mechanism, minor=draw(st.integers(0, 1)), as_server=draw(st.integers(0, 1)))
    identity = draw(st.none() | st.binary(max_size=9))
    properties = prop(b"Socket-Type", draw(SOCKETS))
    if mechanism == b"NULL":
        stream += ready(draw(SOCKETS), identity)
    elif mechanism == b"PLAIN":
        stream += draw(
            st.sampled_from(
                [
                    command(b"HELLO", b"\x04name\x08password") + command(b"INITIATE", properties),
                    command(b"WELCOME") + command(b"READY", properties),
                    frame(b"\x5eRROR\x03400", 4),
                ]
            )
        )
    else:
        stream += draw(
            st.sampled_from(
                [
                    command(b"HELLO", bytes(194)) + command(b"INITIATE", bytes(96 + 8 + 150)),
                    command(b"WELCOME", bytes(160)) + command(b"READY", bytes(40)),
                ]
            )
        )
        boxes = draw(st.lists(st.binary(min_size=25, max_size=40), max_size=3))
        flags = draw(st.sampled_from([0, 4]))
        return stream + b"".join(frame(b"\x07MESSAGE" + box, flags) for box in boxes)
    return stream + b"".join(draw(st.lists(MESSAGES | COMMANDS, max_size=5)))


@st.composite
def zmtp_streams(draw: st.DrawFn) -> Streams:
    mechanism = draw(st.sampled_from([b"NULL", b"NULL", b"PLAIN", b"CURVE"]))
    return {d: draw(zmtp_side(mechanism)) for d in DIRECTIONS}


# ---- HTTP

JSON_BODIES = VALUES.map(lambda value: json.dumps(value).encode())
EVENTS = st.lists(
    st.sampled_from(["data: x\n", "event: e\r\n", ":c\n", "\n", "id\r", "odd: \u20ac\n"]),
    max_size=6,
).map(lambda lines: "".join(lines).encode())
BODIES = st.one_of(
    st.tuples(st.just("application/json"), st.none(), JSON_BODIES),
    st.tuples(st.just("application/json"), st.just("gzip"), JSON_BODIES.map(gzip.compress)),
    st.tuples(st.just("text/event-stream"), st.none(), EVENTS),
    st.tuples(st.just("text/plain"), st.none(), st.text(max_size=9).map(str.encode)),
    st.tuples(st.just("application/octet-stream"), st.just("br"), SMALL),
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[list[tuple[str, str]], bytes]:
    media, coding, body = draw(BODIES)
    fields = [("Content-Type", media)]
    if coding:
        fields.append(("Content-Encoding", coding))
    if draw(st.booleans()):
        return [*fields, ("Content-Length", str(len(body)))], body
    cut = draw(st.integers(0, len(body)))
    pieces = [piece for piece in (body[:cut], body[cut:]) if piece]
    trailer = draw(st.sampled_from([b"", b"X-Sum: 1\r\n"]))
    return [*fields, ("Transfer-Encoding", "chunked")], chunked(*pieces, trailer=trailer)


@st.composite
def http_streams(draw: st.DrawFn) -> Streams:
    client = server = b""
    for _ in range(draw(st.integers(0, 4))):
        method = draw(st.sampled_from(["GET", "HEAD", "POST", "PATCH"]))
        fields, body = draw(bodies()) if method in ("POST", "PATCH") else ([], b"")
        client += draw(st.sampled_from([b"", b"", b"\r\n"]))
        client += head(f"{method} /a/b?c=1 HTTP/1.1", ("Host", "x"), *fields) + body
        status = draw(st.sampled_from(["200 OK", "204 No Content", "304 Not Modified", "404 No"]))
        fields, body = draw(bodies())
        if method == "HEAD" or status[:3] in ("204", "304"):
            body = b""
        server += head(f"HTTP/1.1 {status}", *fields) + body
    return {">": client, "<": server}


# ---- WebSocket


@st.composite
def kernel_payloads(draw: st.DrawFn) -> tuple[str | bytes, str]:
    """A kernel message in one of its three forms, and the subprotocol for it."""
    kind, content = draw(TYPES), draw(CONTENTS)
    buffers = draw(st.lists(SMALL, max_size=2))
    if draw(st.booleans()):
        return serialize_msg_to_ws_v1(jupyter(kind, content)[2:] + buffers, "iopub"), V1
    whole: dict[str, Any] = {
        "header": header(kind),
        "parent_header": {},
        "metadata": {},
        "content": content,
        "channel": "shell",
    }
    if buffers:
        return serialize_binary_message({**whole, "buffers": buffers}), ""
    return json.dumps(whole), ""


@st.composite
def websocket_streams(draw: st.DrawFn) -> Streams:
    packs = draw(st.booleans())
    protocol = draw(st.sampled_from(["", V1]))
    kernel = draw(st.booleans())
    accepted = "permessage-deflate" if packs else ""
    path = "/api/kernels/1/channels" if kernel else "/terminals/websocket/1"
    streams: Streams = {
        ">": upgrade(path, offer=V1, extensions="permessage-deflate; client_max_window_bits"),
        "<": switched(protocol=protocol, extensions=accepted),
    }
    for direction in DIRECTIONS:
        extension = PerMessageDeflate()
        extension.finalize("permessage-deflate")
        writer = FrameProtocol(direction == ">", [extension] if packs else [])
        for _ in range(draw(st.integers(0, 4))):
            payload, _ = draw(
                st.one_of(kernel_payloads(), st.tuples(SMALL | st.text(max_size=9), st.just("")))
            )
            cut = draw(st.integers(0, len(payload)))
            if draw(st.booleans()):
                streams[direction] += bytes(writer.send_data(payload, fin=True))
                continue
            streams[direction] += bytes(writer.send_data(payload[:cut], fin=False))
            streams[direction] += bytes(writer.ping(b"between"))
            streams[direction] += bytes(writer.send_data(payload[cut:], fin=True))
        if draw(st.booleans()):
            streams[direction] += bytes(writer.close(1000, "bye"))
    return streams


# ---- damage


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[Streams]) -> Streams:
    """Cut a stream off, change bytes of it, or put anything into it."""
    streams = draw(whole)
    for direction in DIRECTIONS:
        stream = bytearray(streams[direction])
        match draw(st.sampled_from(["whole", "cut", "flipped", "mixed", "random"])):
            case "cut":
                del stream[draw(st.integers(0, len(stream))) :]
            case "flipped" if stream:
                for _ in range(draw(st.integers(1, 4))):
                    place = draw(st.integers(0, len(stream) - 1))
                    stream[place] ^= draw(st.integers(1, 255))
            case "mixed":
                place = draw(st.integers(0, len(stream)))
                stream[place:place] = draw(st.binary(max_size=20))
            case "random":
                stream[:] = draw(st.binary(max_size=200))
        streams[direction] = bytes(stream)
    return streams


@st.composite
def splits(draw: st.DrawFn, streams: Mapping[Direction, bytes]) -> Connection:
    """Split the streams into chunks, in any way, as a tap might see them."""
    sides: dict[Direction, list[Chunk]] = {}
    for direction in DIRECTIONS:
        stream = streams[direction]
        cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=5)))
        places = zip([0, *cuts], [*cuts, len(stream)], strict=True)
        sides[direction] = [Chunk(0, direction, stream[start:end]) for start, end in places]
    chunks = []
    while sides[">"] and sides["<"]:
        chunks.append(sides[draw(st.sampled_from(DIRECTIONS))].pop(0))
    chunks += sides[">"] + sides["<"]
    return Connection(Link("a", "b", "shell"), 1, ("", 1), ("", 2), 0, tuple(chunks))


def same(one: Dissection, other: Dissection) -> None:
    for direction in DIRECTIONS:
        assert flat(one.spans(direction)) == flat(other.spans(direction))
        assert [(u.start, u.end, u.label, u.detail) for u in one.units(direction)] == [
            (u.start, u.end, u.label, u.detail) for u in other.units(direction)
        ]


def check(data: st.DataObject, whole: st.SearchStrategy[Streams]) -> None:
    streams = data.draw(damaged(whole))
    connection = data.draw(splits(streams))
    same(examine(streams), dissect({d: connection.stream(d) for d in DIRECTIONS}))


@given(st.data())
def test_zmtp(data: st.DataObject) -> None:
    check(data, zmtp_streams())


@given(st.data())
def test_http(data: st.DataObject) -> None:
    check(data, http_streams())


@given(st.data())
def test_websocket(data: st.DataObject) -> None:
    check(data, websocket_streams())


@given(st.fixed_dictionaries({">": st.binary(max_size=300), "<": st.binary(max_size=300)}))
def test_anything(streams: Streams) -> None:
    examine(streams)


@given(EVENTS | st.binary(max_size=60), st.integers(0, 9))
def test_event_streams(stream: bytes, base: int) -> None:
    ends = [span.end for span in event_spans(stream, base)]
    assert (ends or [base])[-1] == base + len(stream)


# ---- whole streams are read whole


@given(zmtp_streams())
def test_zmtp_as_the_grammar_has_it_is_read_to_the_last_byte(streams: Streams) -> None:
    dissection = dissect(streams)
    assert holes(dissection.spans(">")) == holes(dissection.spans("<")) == []


@given(http_streams())
def test_http_as_the_grammar_has_it_is_read_to_the_last_byte(streams: Streams) -> None:
    dissection = dissect(streams)
    assert holes(dissection.spans(">")) == holes(dissection.spans("<")) == []


@given(websocket_streams())
def test_websocket_as_the_grammar_has_it_is_read_to_the_last_byte(streams: Streams) -> None:
    dissection = dissect(streams)
    assert holes(dissection.spans(">")) == holes(dissection.spans("<")) == []


# ---- what was read stays read


@given(st.data(), st.sampled_from([zmtp_streams(), http_streams(), websocket_streams()]))
def test_a_cut_loses_nothing_before_it(data: st.DataObject, whole: Any) -> None:
    streams = data.draw(whole)
    full = dissect(streams)
    # The server's direction is cut, while the client's is there: that frames it.
    cut = data.draw(st.integers(0, len(streams["<"])))
    part = dissect({**streams, "<": streams["<"][:cut]})
    if full.protocol != part.protocol:
        return
    complete = [unit for unit in full.units("<") if unit.end <= cut]
    kept = part.units("<")[: len(complete)]
    assert [(u.start, u.end, u.label) for u in kept] == [
        (u.start, u.end, u.label) for u in complete
    ]
    assert flat(u.span for u in kept) == flat(u.span for u in complete)
