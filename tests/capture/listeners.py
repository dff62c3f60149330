"""Sockets to put a tap between, and a sink that remembers."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from underhood.capture.store import Address, Link
from underhood.capture.tap import Endpoint

HOSTS = {"IPv4": "127.0.0.1", "IPv6": "::1"}


@dataclass
class Told:
    """What a sink was told of one connection."""

    link: Link
    client: Address
    server: Address
    opened: int
    events: list[tuple[int, str, bytes | str]] = field(default_factory=list)

    def data(self, time_ns: int, direction: str, data: bytes) -> None:
        self.events.append((time_ns, direction, data))

    def end(self, time_ns: int, direction: str, kind: str) -> None:
        self.events.append((time_ns, direction, kind))

    def stream(self, direction: str) -> bytes:
        return b"".join(d for _, way, d in self.events if way == direction and isinstance(d, bytes))

    @property
    def ends(self) -> list[tuple[str, str]]:
        return [(way, kind) for _, way, kind in self.events if isinstance(kind, str)]


class Memory:
    """A sink."""

    def __init__(self) -> None:
        self.told: list[Told] = []

    def opened(self, link: Link, client: Address, server: Address, time_ns: int) -> Told:
        self.told.append(Told(link, client, server, time_ns))
        return self.told[-1]


class Pair:
    """A server that listens, and a place where a tap may listen in front of it."""

    def __init__(self, family: str) -> None:
        self.family = family
        self._folder = ""

    def __enter__(self) -> Self:
        if self.family == "Unix-domain":
            self._folder = tempfile.mkdtemp(prefix="tap-test-")
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(os.path.join(self._folder, "target"))
            self.target: Endpoint = self.listener.getsockname()
            self.front: Endpoint = os.path.join(self._folder, "front")
        else:
            host = HOSTS[self.family]
            kind = socket.AF_INET6 if ":" in host else socket.AF_INET
            self.listener = socket.create_server((host, 0), family=kind)
            self.target = self.listener.getsockname()[:2]
            self.front = (host, 0)
        self.listener.listen()
        self.listener.settimeout(5)
        return self

    def connect(self, address: Endpoint) -> socket.socket:
        if isinstance(address, str):
            sock = socket.socket(socket.AF_UNIX)
        else:
            sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        sock.settimeout(5)
        sock.connect(address)
        return sock

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.listener.close()
        if self._folder:
            shutil.rmtree(self._folder)


def read_all(sock: socket.socket) -> bytes:
    """Read until the other side has said that it is done."""
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)
