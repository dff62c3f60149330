"""What a page needs to open messages: their bytes, what the bytes mean, and the capture.

Strategy: the messages' bytes are in the capture already, so a page carries them once: a pcapng file
of the connections that the picture shows, compressed, which can be downloaded, and for each message
the places in that file where its bytes stand. What the bytes mean is a tree of lengths. A capture
that is too large to carry is cut down to the messages of the picture and the handshakes before
them; one that is still too large is left out, and messages show the beginning of their bytes.

Keys are never part of it.
"""

from __future__ import annotations

import base64
import json
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from underhood.capture.store import DIRECTIONS, Capture, Chunk, Connection
from underhood.dissect import dissect
from underhood.draw.fields import explanation, field, packed

if TYPE_CHECKING:
    from underhood.trace import Message, Trace

_CAPTURE: Final = 12_000  # bytes of a compressed capture that a page carries whole
_EXCERPT: Final = 20_000  # bytes of a compressed excerpt that it carries at most
_SHOWN: Final = (256, 4096)  # least and most bytes of one message that can be looked at
_SHOWN_IN_ALL: Final = 48_000


def payload(trace: Trace) -> str:
    """Return, as JSON for a page's script, what it needs to open the messages of ``trace``."""
    file, extent = _file(trace)
    extra = bytearray()
    kinds: dict[tuple[str, str], int] = {}
    messages = {}
    pieces = _Pieces(trace.capture)
    most = max(_SHOWN[0], min(_SHOWN[1], _SHOWN_IN_ALL // max(len(trace), 1)))
    for message in trace:
        span, data = message.span, message.data
        limit = min(len(data), _SHOWN[1] if file else most)
        at = []
        for piece in pieces.of(message, limit):
            found = file.find(piece)
            if found < 0:
                found = len(file) + len(extra)
                extra += piece
            at.append((found, len(piece)))
        messages[str(message.number)] = [at, packed(field(span, data), kinds, limit)]
    table = [(label, *explanation(key)) for label, key in kinds]
    made = {
        "name": trace.capture.name,
        "file": len(file),
        "extent": extent,
        "kinds": table,
        "messages": messages,
        "data": base64.b64encode(zlib.compress(file + bytes(extra), 9)).decode("ascii"),
    }
    # "</script>" inside a string would end the element that this stands in.
    return json.dumps(made, separators=(",", ":")).replace("</", "<\\/")


class _Pieces:
    """Finds the runs of bytes that a message came in, as chunks (and so packets) have them."""

    def __init__(self, capture: Capture) -> None:
        self._connections = {c.id: c for c in capture.connections}
        self._chunks: dict[tuple[int, str], list[tuple[int, Chunk]]] = {}

    def of(self, message: Message, limit: int) -> Iterator[bytes]:
        """Yield the pieces of the first ``limit`` bytes of a message."""
        key = (message.connection, message.direction)
        if message.connection not in self._connections:  # a trace made without a capture
            yield message.data[:limit]
            return
        if key not in self._chunks:
            offset, found = 0, []
            for chunk in self._connections[message.connection].chunks:
                if chunk.direction == message.direction:
                    found.append((offset, chunk))
                    offset += len(chunk.data)
            self._chunks[key] = found
        start = message.span.start
        end = start + limit
        for offset, chunk in self._chunks[key]:
            low, high = max(start - offset, 0), min(end - offset, len(chunk.data))
            if low < high:
                yield chunk.data[low:high]


def _file(trace: Trace) -> tuple[bytes, str]:
    """Return a pcapng file for the picture, and what it holds."""
    wanted = {message.connection for message in trace}
    connections = tuple(c for c in trace.capture.connections if c.id in wanted)
    if not connections:
        return b"", ""
    capture = replace(trace.capture, connections=connections, keys={})
    size = sum(len(chunk.data) for c in connections for chunk in c.chunks)
    if size < 20 * _CAPTURE:
        file = _written(capture)
        if len(zlib.compress(file, 6)) <= _CAPTURE:
            return file, "these connections"
    file = _written(replace(capture, connections=tuple(_excerpt(trace, connections))))
    if len(zlib.compress(file, 6)) <= _EXCERPT:
        return file, "these messages, and the handshakes before them"
    return b"", ""


def _written(capture: Capture) -> bytes:
    with tempfile.TemporaryDirectory(prefix="underhood-") as folder:
        return capture.save(Path(folder) / "capture.pcapng").read_bytes()


def _excerpt(trace: Trace, connections: tuple[Connection, ...]) -> Iterator[Connection]:
    """Keep, of each connection, the messages of the trace and what opened the connection.

    What is left can still be read: messages are delimited by themselves, once the handshake has
    been seen, in ZMTP, in HTTP (a response together with its request) and in WebSocket.
    """
    starts: dict[tuple[int, str], set[int]] = defaultdict(set)
    for message in trace:
        starts[message.connection, message.direction].add(message.span.start)
    for connection in connections:
        dissection = dissect({d: connection.stream(d) for d in DIRECTIONS})
        units = {d: dissection.units(d) for d in DIRECTIONS}
        upgraded = any(unit.protocol == "websocket" for d in DIRECTIONS for unit in units[d])
        # Requests and responses are told by their place, handshakes by being first.
        places = {
            place
            for d in DIRECTIONS
            for place, unit in enumerate(units[d])
            if unit.protocol == "http" and (upgraded or unit.start in starts[connection.id, d])
        }
        chunks = []
        for direction in DIRECTIONS:
            stream, offset = connection.stream(direction), 0
            ends: list[tuple[int, int]] = []
            for chunk in connection.chunks:
                if chunk.direction == direction:
                    offset += len(chunk.data)
                    ends.append((offset, chunk.time_ns))
            for place, unit in enumerate(units[direction]):
                opens = place < 4 if unit.protocol == "zmtp" else place in places
                if opens or unit.start in starts[connection.id, direction]:
                    time_ns = next(t for end, t in ends if end >= unit.end)
                    chunks.append(Chunk(time_ns, direction, stream[unit.start : unit.end]))
        ordered = tuple(sorted(chunks, key=lambda chunk: chunk.time_ns))
        yield replace(connection, chunks=ordered)
