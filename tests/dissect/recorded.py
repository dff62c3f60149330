"""Real traffic: a tap before a port, and what passed it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

from underhood.capture import Connection, Link, record
from underhood.capture.recording import Recording
from underhood.capture.store import DIRECTIONS, Direction
from underhood.capture.tap import Tap, start, stop


class Tapped:
    """A tap before a port on loopback."""

    def __init__(self, recording: Recording, tap: Tap) -> None:
        self._recording = recording
        self.port = int(tap.address[1])

    @property
    def connections(self) -> tuple[Connection, ...]:
        return self._recording.connections

    def streams(self, number: int = 0) -> Mapping[Direction, bytes]:
        """The bytes of one connection."""
        connection = self.connections[number]
        return {direction: connection.stream(direction) for direction in DIRECTIONS}

    def wait(self, true: Callable[[Mapping[Direction, bytes]], bool]) -> Mapping[Direction, bytes]:
        """Wait until the first connection's bytes are as they should be, at most ten seconds."""
        end = time.monotonic() + 10
        while not (self.connections and true(self.streams())):
            assert time.monotonic() < end, f"got only {self.connections and self.streams()}"
            time.sleep(0.02)
        return self.streams()


@contextlib.contextmanager
def tapped(port: int, channel: str = "shell") -> Iterator[Tapped]:
    """Put a tap before a port."""
    with record() as recording:
        tap = Tap(
            ("127.0.0.1", 0),
            [("127.0.0.1", port)],
            {recording: Link("client", "server", channel)},
        )
        start(tap)
        try:
            yield Tapped(recording, tap)
        finally:
            stop(tap, drain=0.1)
