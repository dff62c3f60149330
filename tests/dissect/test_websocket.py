"""WebSocket, in the specification's own bytes, and beside wsproto on the same bytes."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_server.services.kernels.connection.base import (
    deserialize_msg_from_ws_v1,
    serialize_binary_message,
    serialize_msg_to_ws_v1,
)
from tiling import examine, fields, holes
from wire import header, jupyter, switched, upgrade, ws_frame
from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol, Opcode

from underhood.dissect import Dissection
from underhood.dissect.jupyter import Signature
from underhood.dissect.websocket import V1, WebSocketMessage

DEFLATE = "permessage-deflate"


def opened(
    client: bytes = b"",
    server: bytes = b"",
    *,
    path: str = "/api/events/subscribe",
    protocol: str = "",
    extensions: str = "",
) -> Dissection:
    """Dissect what follows an upgrade."""
    return examine(
        {
            ">": upgrade(path, offer=protocol, extensions=extensions) + client,
            "<": switched(protocol=protocol, extensions=extensions) + server,
        }
    )


def messages(dissection: Dissection, direction: Any = "<") -> list[WebSocketMessage]:
    return [u for u in dissection.units(direction) if isinstance(u, WebSocketMessage)]


def downward(server: bytes, **options: Any) -> list[WebSocketMessage]:
    return messages(opened(server=server, **options))


# ---- the examples of RFC 6455 section 5.7


def test_a_text_in_one_frame() -> None:
    (unit,) = downward(bytes.fromhex("810548656c6c6f"))
    assert (unit.protocol, unit.label, unit.detail) == ("websocket", "text", "Hello")
    assert (unit.opcode, unit.payload) == (1, b"Hello")
    assert fields(unit.span) == [
        ("flags and opcode", "FIN, text"),
        ("mask bit and length", "5"),
        ("text", "Hello"),
    ]


def test_a_masked_text() -> None:
    (unit,) = messages(opened(bytes.fromhex("818537fa213d7f9f4d5158")), ">")
    assert unit.payload == b"Hello"
    assert fields(unit.span) == [
        ("flags and opcode", "FIN, text"),
        ("mask bit and length", "masked, 5"),
        ("masking key", bytes.fromhex("37fa213d")),
        ("text", "Hello"),
    ]


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 4095, 4096, 4097, 10_001])
def test_masks_of_any_length(size: int) -> None:
    payload = bytes(n % 251 for n in range(size))
    (unit,) = messages(opened(ws_frame(payload, 2, mask=b"\x00\xa5\x01\xff")), ">")
    assert unit.payload == payload


def test_a_text_in_fragments() -> None:
    (unit,) = downward(bytes.fromhex("010348656c 80026c6f"))
    assert unit.payload == b"Hello"
    assert [s.label for s in unit.span.children] == ["text frame", "continuation frame"]
    assert holes([unit.span]) == []


def test_ping_and_pong() -> None:
    (ping,) = downward(bytes.fromhex("890548656c6c6f"))
    (pong,) = messages(opened(bytes.fromhex("8a8537fa213d7f9f4d5158")), ">")
    assert [(u.label, u.detail, u.payload) for u in (ping, pong)] == [
        ("ping", "Hello", b"Hello"),
        ("pong", "Hello", b"Hello"),
    ]


@pytest.mark.parametrize(
    ("start", "size"),
    [
        ("827e0100", 256),
        ("827f0000000000010000", 65536),
        # Longer than need be, which a sender must not do; it can be read all the same.
        ("827e0005", 5),
        ("827f0000000000000005", 5),
    ],
)
def test_extended_lengths(start: str, size: int) -> None:
    (unit,) = downward(bytes.fromhex(start) + bytes(size))
    assert (unit.label, len(unit.payload)) == ("binary", size)
    assert ("extended length", size) in fields(unit.span)


# ---- the examples of RFC 7692 section 7.2.3


@pytest.mark.parametrize(
    ("name", "stream", "payloads"),
    [
        ("one block", "c107f248cdc9c90700", [b"Hello"]),
        ("in fragments", "4103f248cd 8004c9c90700", [b"Hello"]),
        ("one window", "c107f248cdc9c90700 c105f200110000", [b"Hello", b"Hello"]),
        ("stored", "c10b000500faff48656c6c6f00", [b"Hello"]),
        ("final block", "c108f348cdc9c9070000", [b"Hello"]),
        ("two blocks", "c10df24805000000ffffcac9c90700", [b"Hello"]),
        ("not compressed", "810548656c6c6f", [b"Hello"]),
        ("empty", "c10100", [b""]),
    ],
)  # fmt: skip
def test_compressed_messages(name: str, stream: str, payloads: list[bytes]) -> None:
    found = downward(bytes.fromhex(stream), extensions=DEFLATE)
    assert [unit.payload for unit in found] == payloads
    assert [unit.note for unit in found] == [""] * len(payloads)


def test_a_compressed_payload_shows_what_it_was() -> None:
    (unit,) = downward(bytes.fromhex("c107f248cdc9c90700"), extensions=DEFLATE)
    assert fields(unit.span)[-1] == ("compressed payload", "Hello")
    assert unit.detail == "Hello"


def test_the_last_message_can_be_asked_for_first() -> None:
    stream = bytes.fromhex("c107f248cdc9c90700 c105f200110000")
    _, last = downward(stream, extensions=DEFLATE)
    assert last.payload == b"Hello"


def test_without_takeover_each_message_stands_alone() -> None:
    broken_then_good = bytes.fromhex("c103ffffff c107f248cdc9c90700")
    one, two = downward(broken_then_good, extensions=f"{DEFLATE}; server_no_context_takeover")
    assert "cannot be inflated" in one.note
    assert two.payload == b"Hello"
    one, two = downward(broken_then_good, extensions=DEFLATE)
    assert "share one window" in two.note
    assert holes([one.span])
    assert holes([two.span])


def test_a_small_message_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("underhood.dissect.websocket.MOST_INFLATED", 1000)
    writer = FrameProtocol(client=False, extensions=[deflate()])
    (unit,) = downward(bytes(writer.send_data(bytes(10_000), fin=True)), extensions=DEFLATE)
    assert unit.note == "inflates to more than 1000 bytes"


# ---- control frames


def test_a_close_frame_has_a_code_and_a_reason() -> None:
    (unit,) = downward(ws_frame(b"\x03\xe9going away", 8))
    assert (unit.label, unit.detail) == ("close", "1001 going away")
    assert (unit.close_code, unit.close_reason) == (1001, "going away")
    assert fields(unit.span)[-2:] == [("code", 1001), ("reason", "going away")]


@pytest.mark.parametrize(("payload", "code"), [(b"", None), (b"\x03", None), (b"\x03\xe8", 1000)])
def test_a_close_frame_may_say_less(payload: bytes, code: int | None) -> None:
    (unit,) = downward(ws_frame(payload, 8))
    assert unit.close_code == code
    assert holes([unit.span]) == (["a close code has two bytes"] if len(payload) == 1 else [])


def test_control_frames_come_between_fragments() -> None:
    stream = ws_frame(b'{"a":', 1, fin=False) + ws_frame(b"are you there", 9)
    stream += ws_frame(b" [1,", 0, fin=False) + ws_frame(b" 2]}", 0)
    dissection = opened(server=stream)
    ping, text = messages(dissection)
    # The ping was complete first, and lies inside the other message.
    assert (ping.label, text.label) == ("ping", "text")
    assert text.start < ping.start < ping.end < text.end
    assert text.payload == b'{"a": [1, 2]}'
    (top,) = dissection.spans("<")[1:]
    assert [s.label for s in top.children] == [
        "text frame",
        "ping",
        "continuation frame",
        "continuation frame",
    ]
    # JSON goes on over the border of fragments, down to its values.
    assert [v for label, v in fields(top) if label == "number"] == [1, 2]


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (ws_frame(b"x", 3), "opcode 3 is reserved"),
        (ws_frame(b"x", 11), "opcode 11 is reserved"),
        (ws_frame(b"x", 1, rsv=1), "RSV2 or RSV3 is set"),
        (ws_frame(b"x", 1, rsv=4), "RSV1 is set where no compressed message can begin"),
        (ws_frame(b"x", 0), "a continuation of no message"),
        (ws_frame(b"x", 1, fin=False) * 2, "a new message inside another"),
        (ws_frame(b"x", 9, fin=False), "a control frame in fragments"),
        (ws_frame(b"x" * 126, 9), "a control frame with more than 125 bytes"),
        (ws_frame(b"abc", 1)[:-1], "the capture ends inside a frame"),
        (ws_frame(b"abc" * 100, 1)[:3], "the capture ends inside a frame"),
        (b"\x81\x7f" + b"\xff" * 8, "the capture ends inside a frame"),
        (b"\x81\x7f" + (2**32 + 1).to_bytes(8) + b"x", "the capture ends inside a frame"),
    ],
)
def test_a_frame_that_breaks_the_rules_ends_its_direction(frame: bytes, why: str) -> None:
    dissection = opened(ws_frame(b"up", mask=b"mask"), ws_frame(b"good") + frame)
    assert [u.payload for u in messages(dissection)] == [b"good"]
    assert any(why in hole for hole in holes(dissection.spans("<")))
    assert [u.payload for u in messages(dissection, ">")] == [b"up"]


def test_the_frames_of_an_unfinished_message_can_be_read() -> None:
    stream = ws_frame(b"good") + ws_frame(b"one", 1, fin=False) + ws_frame(b"p", 9)
    stream += ws_frame(b"two", 0, fin=False)
    dissection = opened(server=stream)
    assert [u.label for u in messages(dissection)] == ["text", "ping"]
    assert holes(dissection.spans("<")) == []
    assert [s.label for s in dissection.spans("<")[2:]] == [
        "text frame",
        "ping",
        "continuation frame",
    ]


def test_a_proxy_may_end_a_websocket_in_http() -> None:
    # What configurable-http-proxy 5.3 says when the server behind it has gone.
    said = b"HTTP/1.1 503\r\nContent-Length: 0\r\n\r\n"
    dissection = opened(server=ws_frame(b"good") + said)
    assert [u.label for u in dissection.units("<")] == ["101 Switching Protocols", "text", "503"]
    assert holes(dissection.spans("<")) == []


# ---- beside wsproto


def deflate(parameters: str = "") -> PerMessageDeflate:
    extension = PerMessageDeflate()
    extension.finalize(f"{DEFLATE}; {parameters}" if parameters else DEFLATE)
    return extension


SENDS = st.lists(
    st.tuples(
        st.booleans(),
        st.lists(st.text(max_size=30) | st.just("long" * 60), min_size=1, max_size=3),
        st.booleans(),
    ),
    max_size=6,
)


@given(
    SENDS,
    st.sampled_from(
        [None, "", "server_no_context_takeover", "client_no_context_takeover",
         "server_max_window_bits=9; client_max_window_bits=10"]
    ),
    st.sampled_from("<>"),
)  # fmt: skip
def test_wsproto_writes_and_the_dissector_reads(
    sends: list[tuple[bool, list[str], bool]], parameters: str | None, direction: Any
) -> None:
    def extensions() -> list[Extension]:
        return [] if parameters is None else [deflate(parameters)]

    writer = FrameProtocol(client=direction == ">", extensions=extensions())
    stream, expected = b"", []
    for as_text, pieces, with_ping in sends:
        for n, piece in enumerate(pieces):
            data = piece if as_text else piece.encode()
            stream += bytes(writer.send_data(data, fin=n == len(pieces) - 1))
            if with_ping and n < len(pieces) - 1:
                stream += bytes(writer.ping(b"between"))
        expected.append(("text" if as_text else "binary", "".join(pieces).encode()))
    stream += bytes(writer.close(1000, "done"))

    accepted = "" if parameters is None else f"{DEFLATE}; {parameters}"
    streams = (stream, b"") if direction == ">" else (b"", stream)
    dissection = opened(*streams, extensions=accepted)
    found = messages(dissection, direction)
    assert [(u.label, u.payload) for u in found if u.opcode in (1, 2)] == expected
    assert (found[-1].close_code, found[-1].close_reason) == (1000, "done")
    assert holes(dissection.spans(direction)) == []

    # wsproto reads it the same way; but it loses its place when a ping comes between the
    # fragments of a compressed message.
    if parameters is not None and any(with_ping for _, _, with_ping in sends):
        return
    reader = FrameProtocol(client=direction == "<", extensions=extensions())
    reader.receive_bytes(stream)
    frames = [f for f in reader.received_frames() if f.opcode in (Opcode.TEXT, Opcode.BINARY)]
    read = b"".join(f.payload.encode() if isinstance(f.payload, str) else f.payload for f in frames)
    assert read == b"".join(u.payload for u in found if u.opcode in (1, 2))
    assert sum(f.message_finished for f in frames) == len(expected)


# ---- kernel messages, beside jupyter_server's own serializers

CHANNELS = "/user/someone/api/kernels/7c3e/channels"


def parts_of(msg_type: str, content: dict[str, Any], buffers: tuple[bytes, ...]) -> list[bytes]:
    return jupyter(msg_type, content, buffers=buffers)[2:]


@given(
    st.sampled_from(["shell", "iopub", "stdin", "control"]),
    st.lists(st.binary(max_size=200), max_size=3).map(tuple),
    st.booleans(),
)
def test_v1_as_jupyter_server_writes_it(
    channel: str, buffers: tuple[bytes, ...], masked: bool
) -> None:
    parts = parts_of("stream", {"name": "stdout", "text": "…"}, buffers)
    payload = serialize_msg_to_ws_v1(parts, channel)
    assert deserialize_msg_from_ws_v1(payload) == (channel, parts)
    framed = ws_frame(payload, 2, mask=b"\x01\x02\x03\x04" if masked else b"")
    (unit,) = downward(framed, path=CHANNELS, protocol=V1)
    assert (unit.protocol, unit.label, unit.detail) == ("jupyter", "stream", "stdout")
    found = unit.jupyter
    assert found is not None
    assert (found.channel, found.buffers, found.signed_hop) == (channel, buffers, False)
    assert found.header == json.loads(parts[0])
    assert found.verdict(b"key") is Signature.UNSIGNED
    keys = {s.key: s.value for s in unit.span.walk()}
    assert keys["jupyter.v1.channel"] == channel
    assert keys["jupyter.stream.name"] == "stdout"
    assert keys["jupyter.v1.count"] == len(parts) + 2
    assert holes([unit.span]) == []


def whole(msg_type: str, content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "header": header(msg_type),
        "parent_header": header("execute_request"),
        "metadata": {},
        "content": content,
        "channel": "iopub",
        **more,
    }


def test_the_default_form_is_json() -> None:
    text = json.dumps(whole("status", {"execution_state": "busy"}, buffers=[]))
    (unit,) = downward(ws_frame(text.encode()), path=CHANNELS)
    assert (unit.protocol, unit.label, unit.detail) == ("jupyter", "status", "busy")
    assert unit.jupyter is not None
    assert unit.jupyter.channel == "iopub"
    assert unit.jupyter.parent_header["msg_type"] == "execute_request"
    found = {s.key: s.value for s in unit.span.walk()}
    assert found["jupyter.websocket.channel"] == "iopub"
    assert found["jupyter.status.execution_state"] == "busy"
    assert found["jupyter.header.msg_type"] == "status"
    assert found["jupyter.parent_header.msg_type"] == "execute_request"


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=3))
def test_the_default_form_with_buffers_as_jupyter_server_writes_it(buffers: list[bytes]) -> None:
    message = whole("comm_msg", {"comm_id": "c", "data": {"method": "update"}}, buffers=buffers)
    payload = serialize_binary_message(message)
    assert payload[:4] == struct.pack(">I", len(buffers) + 1)
    (unit,) = downward(ws_frame(payload, 2), path=CHANNELS)
    assert (unit.protocol, unit.label, unit.detail) == ("jupyter", "comm_msg", "update")
    assert unit.jupyter is not None
    assert list(unit.jupyter.buffers) == buffers
    found = {s.key for s in unit.span.walk()}
    assert {"jupyter.binary.count", "jupyter.comm_msg.comm_id"} <= found
    assert holes([unit.span]) == []


def test_a_kernel_message_may_be_compressed_and_in_fragments() -> None:
    text = json.dumps(whole("status", {"execution_state": "idle"}))
    writer = FrameProtocol(client=False, extensions=[deflate()])
    stream = bytes(writer.send_data(text[:50], fin=False) + writer.send_data(text[50:], fin=True))
    (unit,) = downward(stream, path=CHANNELS, extensions=DEFLATE)
    assert (unit.protocol, unit.label, unit.detail) == ("jupyter", "status", "idle")
    plain = ws_frame(text[:50].encode(), fin=False) + ws_frame(text[50:].encode(), 0)
    (unit,) = downward(plain, path=CHANNELS)
    assert (unit.label, unit.detail) == ("status", "idle")
    assert "jupyter.status.execution_state" in {s.key for s in unit.span.walk()}


@pytest.mark.parametrize(
    ("payload", "opcode", "protocol"),
    [
        (b"not json", 1, ""),
        (b"[1]", 1, ""),
        (b'{"header": 7}', 1, ""),
        (b"", 2, ""),
        (b"\0\0\0\1\0\0\0\x09", 2, ""),
        (b"\xff\xff\xff\xff", 2, ""),
        (b"\0" * 8, 2, V1),
        (b"\xff" * 80, 2, V1),
        ((6).to_bytes(8, "little") + b"\0" * 48, 2, V1),
        (serialize_msg_to_ws_v1(parts_of("status", {}, ()), "iopub") + b"more", 2, V1),
        (serialize_msg_to_ws_v1([b"[]", b"{}", b"{}", b"{}"], "shell"), 2, V1),
    ],
)
def test_what_is_no_kernel_message_stays_a_websocket_message(
    payload: bytes, opcode: int, protocol: str
) -> None:
    (unit,) = downward(ws_frame(payload, opcode), path=CHANNELS, protocol=protocol)
    assert (unit.protocol, unit.jupyter, unit.payload) == ("websocket", None, payload)
    assert unit.label == ("text" if opcode == 1 else "binary")


@pytest.mark.parametrize("how", ["in order", "going back", "behind a gap"])
def test_a_table_of_offsets_has_to_lead_through_the_whole_message(how: str) -> None:
    parts = parts_of("status", {}, (b"one", b"two", b"three"))
    good = serialize_msg_to_ws_v1(parts, "iopub")
    count = int.from_bytes(good[:8], "little")
    offsets = list(struct.unpack_from(f"<{count}Q", good, 8))
    after = good[8 * (1 + count) :]
    if how == "going back":  # between the buffers: all else can be read
        offsets[-3], offsets[-2] = offsets[-2], offsets[-3]
    elif how == "behind a gap":
        offsets, after = [offset + 5 for offset in offsets], b"a gap" + after
    payload = struct.pack(f"<{count + 1}Q", count, *offsets) + after
    (unit,) = downward(ws_frame(payload, 2), path=CHANNELS, protocol=V1)
    assert unit.protocol == ("jupyter" if how == "in order" else "websocket")
    assert unit.payload == payload


def test_only_a_kernels_socket_carries_kernel_messages() -> None:
    text = json.dumps(whole("status", {"execution_state": "busy"}))
    (unit,) = downward(ws_frame(text.encode()), path="/api/events/subscribe")
    assert (unit.protocol, unit.label) == ("websocket", "text")
