"""Everything that a capture holds, as whoever publishes it has to look at it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from underhood.capture.store import DIRECTIONS, Capture


def texts_in(capture: Capture) -> Iterator[bytes]:
    """Yield every stream, what was compressed in it, and the content of every message."""
    for connection in capture.connections:
        for direction in DIRECTIONS:
            stream = connection.stream(direction)
            yield stream
            for match in re.finditer(rb"\x1f\x8b\x08", stream):
                try:
                    yield zlib.decompressobj(31).decompress(stream[match.start() :])
                except zlib.error:  # these three bytes were something else
                    continue
    for message in capture.trace():
        if message.protocol in ("http", "websocket"):
            yield bytes(getattr(message, "body", b"") or getattr(message, "payload", b""))
