"""Bytes as they go over the wire, written from the grammars and not with the library's code."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

KEY = b"7c3ef4c0-key-of-the-tests"
DELIMITER = b"<IDS|MSG>"


# ---- ZMTP (RFC 37, "Formal Grammar")


def greeting(mechanism: bytes = b"NULL", *, minor: int = 1, as_server: int = 0) -> bytes:
    signature = b"\xff" + bytes(8) + b"\x7f"
    return (
        signature + bytes((3, minor)) + mechanism.ljust(20, b"\0") + bytes((as_server, *[0] * 31))
    )


def frame(body: bytes, flags: int = 0, *, long: bool = False) -> bytes:
    if long or len(body) > 255:
        return bytes((flags | 2,)) + len(body).to_bytes(8, "big") + body
    return bytes((flags, len(body))) + body


def message(*parts: bytes) -> bytes:
    return b"".join(frame(part, int(n < len(parts) - 1)) for n, part in enumerate(parts))


def command(name: bytes, data: bytes = b"") -> bytes:
    return frame(bytes((len(name),)) + name + data, 4)


def prop(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


def ready(socket_type: bytes, identity: bytes | None = None) -> bytes:
    said = prop(b"Socket-Type", socket_type)
    if identity is not None:
        said += prop(b"Identity", identity)
    return command(b"READY", said)


# ---- Jupyter ("The Wire Protocol")


def header(msg_type: str, **more: Any) -> dict[str, Any]:
    return {
        "msg_id": f"id-{msg_type}",
        "msg_type": msg_type,
        "session": "s",
        "username": "reader",
        "date": "2026-01-02T03:04:05.678901Z",
        "version": "5.4",
        **more,
    }


def jupyter(
    msg_type: str,
    content: dict[str, Any] | None = None,
    *,
    before: tuple[bytes, ...] = (),
    buffers: tuple[bytes, ...] = (),
    key: bytes = KEY,
) -> list[bytes]:
    parts = [json.dumps(p).encode() for p in (header(msg_type), {}, {}, content or {})]
    return [*before, DELIMITER, sign(parts, key), *parts, *buffers]


def sign(parts: list[bytes], key: bytes = KEY) -> bytes:
    if not key:
        return b""
    digest = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()


# ---- WebSocket (RFC 6455 section 5.2)


def ws_frame(
    payload: bytes,
    opcode: int = 1,
    *,
    fin: bool = True,
    mask: bytes = b"",
    rsv: int = 0,
) -> bytes:
    first = (0x80 if fin else 0) | (rsv << 4) | opcode
    masked = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        said = bytes((first, masked | size))
    elif size < 65536:
        said = bytes((first, masked | 126)) + size.to_bytes(2, "big")
    else:
        said = bytes((first, masked | 127)) + size.to_bytes(8, "big")
    if mask:
        payload = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))
    return said + mask + payload


def upgrade(
    path: str = "/api/kernels/k/channels", *, offer: str = "", extensions: str = ""
) -> bytes:
    return head(
        f"GET {path} HTTP/1.1",
        ("Host", "localhost"),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        *([("Sec-WebSocket-Protocol", offer)] if offer else []),
        *([("Sec-WebSocket-Extensions", extensions)] if extensions else []),
    )


def switched(*, protocol: str = "", extensions: str = "") -> bytes:
    return head(
        "HTTP/1.1 101 Switching Protocols",
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        *([("Sec-WebSocket-Protocol", protocol)] if protocol else []),
        *([("Sec-WebSocket-Extensions", extensions)] if extensions else []),
    )


# ---- HTTP (RFC 9112)


def head(line: str, *fields: tuple[str, str]) -> bytes:
    lines = [line, *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode()


def chunked(*pieces: bytes, trailer: bytes = b"") -> bytes:
    found = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return found + b"0\r\n" + trailer + b"\r\n"
