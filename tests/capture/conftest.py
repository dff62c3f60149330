"""What the capture's tests share: sockets on loopback, and a tap between them."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from listeners import Memory, Pair

from underhood.capture.store import Link
from underhood.capture.tap import THREAD, Endpoint, Tap, start, stop

LINK = Link("client", "server", "raw")


@pytest.fixture
def memory() -> Memory:
    """A sink that keeps what it is told."""
    return Memory()


@pytest.fixture(params=["IPv4", "IPv6", "Unix-domain"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def listen(family: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Pair]]:
    """Make a listener and a free place to listen, of the family that is asked for."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(Pair(family))


@pytest.fixture
def tap(memory: Memory) -> Iterator[Callable[..., Tap]]:
    """Start taps, and stop them at the end."""
    taps: list[Tap] = []

    def make(where: Endpoint, target: Endpoint, **options: float) -> Tap:
        taps.append(Tap(where, [target], {memory: LINK}, **options))
        start(taps[-1])
        return taps[-1]

    yield make
    stop(*taps, drain=0)


@pytest.fixture
def joined(
    listen: Callable[[], Pair], tap: Callable[..., Tap]
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets with a tap in between: the client's and the server's."""
    pair = listen()
    client = pair.connect(tap(pair.front, pair.target).address)
    server, _ = pair.listener.accept()
    with client, server:
        yield client, server


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until something comes true, at most five seconds."""

    def wait(true: Callable[[], object]) -> None:
        end = time.monotonic() + 5
        while not true():
            assert time.monotonic() < end, "it did not come true within five seconds"
            time.sleep(0.01)

    return wait


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    yield
    assert not THREAD.running, f"taps were left running: {THREAD.holders}"
