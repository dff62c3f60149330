"""Captures built from real bytes: jupyter_client signs and serialises, ZMTP frames are written out.

The pictures' tests need conversations of every size and shape, reproducibly; what a kernel says
cannot be had in every shape. So the bytes are made by jupyter_client's own ``Session`` and by
h11, as peers would make them, and go through the same dissectors as any capture.
"""

from __future__ import annotations

import random
import struct
from typing import Any

import h11
from jupyter_client.session import Session

from underhood.capture.store import Capture, Chunk, Connection, Direction, Link, merge

KEY = b"a key for these conversations"
MS = 1_000_000
START = 1_790_000_000 * 1000 * MS

_SOCKETS = {
    "shell": ("DEALER", "ROUTER"),
    "control": ("DEALER", "ROUTER"),
    "stdin": ("DEALER", "ROUTER"),
    "iopub": ("SUB", "XPUB"),
    "heartbeat": ("REQ", "ROUTER"),
}


def frame(body: bytes, *, more: bool = False, command: bool = False) -> bytes:
    """Write one ZMTP frame."""
    flags = (1 if more else 0) | (4 if command else 0)
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | 2,)) + struct.pack(">Q", len(body)) + body


def greeting() -> bytes:
    return b"\xff" + bytes(7) + b"\x01\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


def ready(socket_type: str, identity: bytes = b"") -> bytes:
    body = b"\x05READY"
    for name, value in ((b"Socket-Type", socket_type.encode()), (b"Identity", identity)):
        body += bytes((len(name),)) + name + struct.pack(">I", len(value)) + value
    return frame(body, command=True)


class Conversation:
    """Writes down who says what, with a clock that moves as told."""

    def __init__(self, name: str = "conversation", *, handshakes: bool = False) -> None:
        self.name, self.now, self._handshakes = name, START, handshakes
        self.session = Session(key=KEY, session="5e55105e55105e55105e5510", username="reader")
        self._chunks: dict[Link, list[Chunk]] = {}

    def wait(self, ms: float) -> None:
        self.now += round(ms * MS)

    def link(self, client: str, server: str, channel: str) -> Link:
        """Open a connection, with its handshake if these are wanted."""
        link = Link(client, server, channel, "" if channel == "http" else "kernel-1")
        if link not in self._chunks:
            self._chunks[link] = []
            if channel != "http":
                ours, theirs = _SOCKETS[channel]
                at = self.now if self._handshakes else START - 10 * MS
                self._chunks[link] += [
                    Chunk(at, ">", greeting()),
                    Chunk(at, "<", greeting()),
                    Chunk(at, ">", ready(ours, b"reader")),
                    Chunk(at, "<", ready(theirs)),
                ]
        return link

    def octets(self, link: Link, direction: Direction, data: bytes, ms: float = 0.4) -> None:
        self._chunks[link].append(Chunk(self.now, direction, data))
        self.wait(ms)

    def say(
        self,
        link: Link,
        direction: Direction,
        msg_type: str,
        content: dict[str, Any] | None = None,
        parent: dict[str, Any] | None = None,
        *,
        message: dict[str, Any] | None = None,
        ms: float = 0.4,
        tamper: bool = False,
    ) -> dict[str, Any]:
        """Send a Jupyter message; give ``message`` to pass one on."""
        if message is None:
            message = self.session.msg(msg_type, content or {}, parent=parent)
        topic = b"kernel.1." + msg_type.encode()
        frames = self.session.serialize(message, ident=topic if link.channel == "iopub" else None)
        if tamper:
            frames[-1] = frames[-1].replace(b"{", b"{ ", 1)
        data = b"".join(frame(f, more=n < len(frames) - 1) for n, f in enumerate(frames))
        self.octets(link, direction, data, ms)
        return message

    def capture(self) -> Capture:
        """Return what was said."""
        connections = []
        for n, (link, chunks) in enumerate(self._chunks.items()):
            ordered = tuple(sorted(chunks, key=lambda c: c.time_ns))
            ports = (("127.0.0.1", 40000 + n), ("127.0.0.1", 21000 + n))
            opened = ordered[0].time_ns if ordered else START
            connections.append(Connection(link, n, *ports, opened, ordered))
        return Capture(merge(connections), {"kernel-1": KEY}, {}, self.name)


def execute(
    *, name: str = "execute", cells: int = 1, pause: float = 0, relayed: bool = False
) -> Capture:
    """One cell, or several: seven messages each, fourteen where a server passes them on."""
    talk = Conversation(name)
    parties = [("server", "kernel"), ("browser", "server")] if relayed else [("client", "kernel")]
    shells = [talk.link(*p, "shell") for p in parties]
    iopubs = [talk.link(*p, "iopub") for p in parties]
    for n in range(cells):
        code = {"code": f"print({n}); {n}", "silent": False}
        request = talk.session.msg("execute_request", code)
        for shell in reversed(shells):
            talk.say(shell, ">", "", message=request)
        parent = request["header"]
        for msg_type, content in (
            ("status", {"execution_state": "busy"}),
            ("execute_input", {"code": code["code"], "execution_count": n + 1}),
            ("stream", {"name": "stdout", "text": f"{n}\n"}),
            ("execute_result", {"data": {"text/plain": str(n)}, "execution_count": n + 1}),
        ):
            said = talk.session.msg(msg_type, content, parent=parent)
            for iopub in iopubs:
                talk.say(iopub, "<", msg_type, message=said)
        reply = talk.session.msg("execute_reply", {"status": "ok"}, parent=parent)
        idle = talk.session.msg("status", {"execution_state": "idle"}, parent=parent)
        for shell in shells:
            talk.say(shell, "<", "", message=reply)
        for iopub in iopubs:
            talk.say(iopub, "<", "status", message=idle)
        talk.wait(pause)
    return talk.capture()


def http_request(method: str, target: str, body: bytes = b"") -> bytes:
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", "127.0.0.1"), ("Content-Length", str(len(body)))]
    out = connection.send(h11.Request(method=method, target=target, headers=headers)) or b""
    if body:
        out += connection.send(h11.Data(data=body)) or b""
    return out + (connection.send(h11.EndOfMessage()) or b"")


def http_response(status: int, reason: str, body: bytes = b"") -> bytes:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    connection.next_event()
    connection.next_event()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    response = h11.Response(status_code=status, reason=reason.encode(), headers=headers)
    out = connection.send(response) or b""
    if body:
        out += connection.send(h11.Data(data=body)) or b""
    return out + (connection.send(h11.EndOfMessage()) or b"")


_NAMES = (
    "client", "kernel", "server", "browser", "hub", "configurable-http-proxy", "kernel 2", "db",
    "the notebook server behind the proxy", "サーバー", "Gérard’s very own front end", "x",
)  # fmt: skip
_TYPES = (
    "execute_request", "status", "stream", "execute_result", "execute_reply", "comm_open",
    "comm_msg", "kernel_info_reply", "is_complete_request", "update_display_data", "a",
    "debug_event",
    "a_message_type_that_somebody_made_up_and_that_is_longer_than_all_others", "input_request",
)  # fmt: skip
_WORDS = (
    "", "busy", "idle", "stdout", "ZeroDivisionError", "jupyter.widget", "Your name: ",
    "Bitte geben Sie Ihren vollständigen Namen ein, wie er im Ausweis steht: ",
    "名前を入力してください",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft", "a b c d e",
)  # fmt: skip
_PATHS = (
    "/", "/api", "/api/kernels/0c1f7c0e-6d8a-4d4b-9d9a-3f1d2d0c9c55/channels?session_id=1",
    "/static/lab/jlab_core.8811dd2733d03721.js?v=8811dd2733d03721", "/hub/api/users/ada/server",
)  # fmt: skip


def invented(seed: int) -> Capture:
    """A conversation of any shape: 1 to 7 parties, up to 60 messages, of every kind and length."""
    dice = random.Random(seed)
    parties = dice.sample(_NAMES, dice.randint(1, 7))
    talk = Conversation(f"invented-{seed}", handshakes=dice.random() < 0.2)
    requests: list[dict[str, Any]] = []
    for _ in range(dice.randint(1, 60)):
        client, server = dice.choice(parties), dice.choice(parties)
        way: Direction = dice.choice((">", "<"))
        kind = dice.choice((*_SOCKETS, "http"))
        link = talk.link(client, server, kind)
        pause = dice.choice((0, 0.05, 0.4, 3, 80, 2500))
        if kind == "heartbeat":
            talk.octets(link, way, frame(b"", more=True) + frame(b"ping"), pause)
        elif kind == "http":
            if client != server:  # the two directions cannot be told apart otherwise
                method = dice.choice(("GET", "POST", "DELETE"))
                talk.octets(link, ">", http_request(method, dice.choice(_PATHS)), pause)
                status = dice.choice(
                    ((200, "OK"), (404, "Not Found"), (500, "Internal Server Error"))
                )
                talk.octets(link, "<", http_response(*status), pause)
        else:
            word = dice.choice(_WORDS)
            content = {
                "execution_state": word, "name": word, "ename": word, "status": word,
                "prompt": word, "target_name": word, "event": word, "data": {"method": word},
            }  # fmt: skip
            parent = dice.choice(requests)["header"] if requests and dice.random() < 0.7 else None
            tamper = dice.random() < 0.05
            repeat = dice.choice((1, 1, 1, 4))
            for _ in range(repeat):
                made = talk.say(
                    link, way, dice.choice(_TYPES), content, parent, ms=pause, tamper=tamper
                )
                if made["header"]["msg_type"].endswith("_request"):
                    requests.append(made)
    return talk.capture()
