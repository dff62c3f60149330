"""How fast streams are dissected, beside programs that read the same bytes.

Each figure is the best of several rounds, in which ours and the peer take turns, so that both
have the same machine. Run it: ``python benchmarks/dissect_speed.py``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any, Final

import h11
from jupyter_client.session import Session
from wsproto.frame_protocol import FrameProtocol

from underhood.capture.store import Direction
from underhood.dissect import dissect
from underhood.dissect.jupyter import Signature
from underhood.dissect.websocket import WebSocketMessage

KEY: Final = b"a key for the benchmark"
MESSAGES: Final = 20_000
STREAM: Final = 50_000_000
ROUNDS: Final = 5
GREETING: Final = (
    b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
)


def frame(body: bytes, more: bool) -> bytes:
    """Write one ZMTP frame."""
    if len(body) < 256:
        return bytes((more, len(body))) + body
    return bytes((more | 2,)) + len(body).to_bytes(8, "big") + body


def execution(session: Session) -> list[list[bytes]]:
    """Return what a kernel publishes for one cell, as Session itself writes it."""
    parent = session.msg("execute_request", {"code": "print('hello')", "silent": False})["header"]
    contents: list[tuple[str, dict[str, Any]]] = [
        ("status", {"execution_state": "busy"}),
        ("execute_input", {"code": "print('hello')", "execution_count": 7}),
        ("stream", {"name": "stdout", "text": "hello\n" * 20}),
        ("execute_result", {"data": {"text/plain": "42"}, "metadata": {}, "execution_count": 7}),
        ("status", {"execution_state": "idle"}),
    ]
    return [
        session.serialize(session.msg(kind, content, parent=parent), ident=b"kernel.x.y")
        for kind, content in contents
    ]


def best(*functions: Callable[[], object]) -> list[float]:
    """Return the shortest time of each, in seconds; they take turns."""
    times = [float("inf")] * len(functions)
    for _ in range(ROUNDS):
        for n, function in enumerate(functions):
            start = time.perf_counter()
            function()
            times[n] = min(times[n], time.perf_counter() - start)
    return times


def run() -> list[dict[str, Any]]:
    """Measure everything; each row has ``name``, ``ours``, ``peer``, ``ratio`` and ``unit``."""
    # The digests that Session remembers would refuse a message that is read twice.
    session = Session(key=KEY, digest_history_size=0)
    messages = [m for _ in range(MESSAGES // 5) for m in execution(session)]
    stream = GREETING + b"".join(
        frame(part, n < len(message) - 1) for message in messages for n, part in enumerate(message)
    )
    direction: Direction = "<"

    def index() -> None:
        assert len(dissect({direction: stream}).units(direction)) == 1 + MESSAGES

    def skim() -> None:
        """Walk the frames in plain Python: what any reader must do at least."""
        offset, found = len(GREETING), 0
        while offset < len(stream):
            flags = stream[offset]
            if flags & 2:
                offset += 9 + int.from_bytes(stream[offset + 1 : offset + 9], "big")
            else:
                offset += 2 + stream[offset + 1]
            found += not flags & 1
        assert found == MESSAGES

    index_time, skim_time = best(index, skim)

    def decode() -> None:
        for unit in dissect({direction: stream}).units(direction)[1:]:
            message = unit.jupyter
            assert message is not None
            assert message.header
            assert message.parent_header
            assert message.metadata == {}
            assert message.content
            assert message.verdict(KEY) is Signature.VALID

    def deserialize() -> None:
        # It keeps what it decoded, as a dissection does.
        kept = []
        for message in messages:
            _, parts = session.feed_identities(message)
            kept.append(session.deserialize(parts))

    decode_time, deserialize_time = best(decode, deserialize)

    body = os.urandom(1_000_000)
    large = GREETING + b"".join(frame(body, False) for _ in range(STREAM // len(body)))
    text = json.dumps({"data": "x" * 1_000_000}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    response = (head % len(text) + text) * (STREAM // len(text))
    request = b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n" * (STREAM // len(text))

    def read_large() -> None:
        assert len(dissect({direction: large}).units(direction)) == 1 + STREAM // len(body)

    def copy_large() -> None:
        assert len(bytearray(large)) == len(large)

    def read_http() -> None:
        dissection = dissect({">": request, "<": response})
        assert len(dissection.units("<")) == STREAM // len(text)

    def h11_http() -> None:
        # h11 reads one response after the other; both sides must be played.
        for n in range(STREAM // len(text)):
            client = h11.Connection(h11.CLIENT)
            client.send(h11.Request(method="GET", target="/api", headers=[("Host", "x")]))
            client.send(h11.EndOfMessage())
            size = len(response) // (STREAM // len(text))
            client.receive_data(response[n * size : (n + 1) * size])
            while not isinstance(client.next_event(), h11.EndOfMessage):
                pass

    frames = FrameProtocol(client=True, extensions=[])
    masked = b"".join(bytes(frames.send_data(body, fin=True)) for _ in range(STREAM // len(body)))
    asks = (
        b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
    )

    def read_websocket() -> None:
        dissection = dissect({">": asks[0] + masked, "<": asks[1]})
        for unit in dissection.units(">")[1:]:
            assert isinstance(unit, WebSocketMessage)
            assert len(unit.payload) == len(body)

    def wsproto_websocket() -> None:
        reader = FrameProtocol(client=False, extensions=[])
        reader.receive_bytes(masked)
        assert sum(len(f.payload) for f in reader.received_frames()) == STREAM

    large_time, copy_time = best(read_large, copy_large)
    http_time, h11_time = best(read_http, h11_http)
    websocket_time, wsproto_time = best(read_websocket, wsproto_websocket)

    def row(name: str, amount: float, ours: float, peer: float, unit: str) -> dict[str, Any]:
        return {
            "name": name, "ours": amount / ours, "peer": amount / peer, "ratio": peer / ours,
            "unit": unit,
        }  # fmt: skip

    return [
        row("index, against a loop over the frames", MESSAGES, index_time, skim_time, "messages/s"),
        row("decode with signatures, against jupyter_client's Session", MESSAGES, decode_time,
            deserialize_time, "messages/s"),
        row("ZMTP stream of 50 MB, against copying it", len(large) / 1e6, large_time, copy_time,
            "MB/s"),
        row("HTTP responses of 50 MB, against h11", len(response) / 1e6, http_time, h11_time,
            "MB/s"),
        row("WebSocket of 50 MB, unmasked, against wsproto", len(masked) / 1e6, websocket_time,
            wsproto_time, "MB/s"),
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    print(f"{'':62}{'ours':>14}{'peer':>14}{'ratio':>9}")
    for r in run():
        print(f"{r['name']:62}{r['ours']:14,.0f}{r['peer']:14,.0f}{r['ratio']:9.2f}  {r['unit']}")


if __name__ == "__main__":
    main()
