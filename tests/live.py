"""What the tests of traces, rules and the command have in common: kernels and servers that live."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import IO, Any

from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.session import Session
from jupyter_server.services.kernels.connection.base import (
    deserialize_binary_message,
    deserialize_msg_from_ws_v1,
    serialize_binary_message,
    serialize_msg_to_ws_v1,
)
from tornado.websocket import WebSocketClientConnection, websocket_connect

from underhood.stage.server import Server

V1 = "v1.kernel.websocket.jupyter.org"


def start(log: IO[bytes] | int = subprocess.DEVNULL, **options: Any) -> KernelManager:
    """Start a kernel whose warnings nobody reads, unless it fails."""
    manager = KernelManager(**options)
    manager.start_kernel(stdout=subprocess.DEVNULL, stderr=log)
    return manager


def connect(manager: KernelManager) -> BlockingKernelClient:
    """Make a client from the connection file, with a session of its own."""
    client = BlockingKernelClient(connection_file=manager.connection_file)
    client.load_connection_file()
    return client


@contextlib.contextmanager
def kernel(**options: Any) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """Start a kernel with a client; end both, the kernel first, whatever state it is in."""
    with tempfile.TemporaryFile() as log:
        manager = start(log, **options)
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            yield manager, client
        except RuntimeError as error:
            log.seek(0)
            error.add_note(log.read().decode(errors="replace"))
            raise
        finally:
            # A stopped or dead kernel hears no shutdown_request.
            manager.shutdown_kernel(now=not answers(manager))
            client.stop_channels()


def answers(manager: KernelManager) -> bool:
    """Whether the kernel's process runs, and is not stopped."""
    process = manager.provisioner
    if not manager.is_alive() or process is None:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process.pid)], capture_output=True)
    return not state.stdout.startswith(b"T")


def kill(manager: KernelManager, number: int = signal.SIGKILL) -> None:
    """Send a signal to the kernel's process."""
    assert manager.provisioner is not None
    os.kill(manager.provisioner.pid, number)


def run(client: BlockingKernelClient, code: str, **options: Any) -> dict[str, Any]:
    """Execute code until reply and idle have come; return the reply."""
    options.setdefault("output_hook", lambda _: None)
    reply: dict[str, Any] = client.execute_interactive(code, timeout=60, **options)
    return reply


def reply_to(client: BlockingKernelClient, msg_id: str, timeout: float = 60) -> dict[str, Any]:
    """Wait for the reply on shell to one request; return its content."""
    while True:
        # Clients repeat their first kernel_info_request, so there may be more replies than one.
        message = client.get_shell_msg(timeout=timeout)
        if message["parent_header"]["msg_id"] == msg_id:
            content: dict[str, Any] = message["content"]
            return content


def until_begun(client: BlockingKernelClient) -> None:
    """Wait until the kernel says that it has begun to execute."""
    while client.get_iopub_msg(timeout=60)["msg_type"] != "execute_input":
        pass


def eventually(true: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something comes true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it did not come true within {seconds} s"
        time.sleep(0.02)


# ---- through a Jupyter Server


class FrontEnd:
    """A program that speaks kernel messages over WebSocket, in the v1 form or the default one."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self.socket = socket
        self.session = Session(session=secrets.token_hex(16))

    async def send(self, channel: str, kind: str, content: dict[str, Any], **more: Any) -> str:
        message = {**self.session.msg(kind, content), "channel": channel, **more}
        message["header"]["date"] = message["header"]["date"].isoformat()
        message.pop("msg_id"), message.pop("msg_type")
        if self.socket.selected_subprotocol == V1:
            parts = [
                json.dumps(message[name]).encode()
                for name in ("header", "parent_header", "metadata", "content")
            ]
            data: str | bytes = serialize_msg_to_ws_v1(
                [*parts, *message.get("buffers", [])], channel
            )
        elif message.get("buffers"):
            data = serialize_binary_message(message)
        else:
            data = json.dumps(message)
        await self.socket.write_message(data, binary=isinstance(data, bytes))
        return str(message["header"]["msg_id"])

    async def receive(self) -> dict[str, Any] | None:
        """Return the next message; None when the connection has ended."""
        data = await self.socket.read_message()
        if data is None:
            return None
        if self.socket.selected_subprotocol == V1:
            channel, parts = deserialize_msg_from_ws_v1(data)
            names = ("header", "parent_header", "metadata", "content")
            found = {
                name: json.loads(bytes(part)) for name, part in zip(names, parts, strict=False)
            }
            return {**found, "channel": channel}
        found = json.loads(data) if isinstance(data, str) else deserialize_binary_message(data)
        return dict(found)

    async def execute(self, code: str) -> str:
        """Execute code until reply and idle have come; return the request's msg_id."""
        msg_id = await self.send("shell", "execute_request", execute_content(code))
        due = {"execute_reply", "idle"}
        while due:
            message = await self.receive()
            assert message is not None, "the server ended the connection"
            if message["parent_header"].get("msg_id") == msg_id:
                due.discard(message["header"]["msg_type"])
                due.discard(message["content"].get("execution_state", ""))
        return msg_id


def execute_content(code: str) -> dict[str, Any]:
    return {
        "code": code,
        "silent": False,
        "store_history": True,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": True,
    }


@contextlib.asynccontextmanager
async def front_end(server: Server, kernel_id: str, *, v1: bool = True) -> AsyncIterator[FrontEnd]:
    """Connect to a kernel through the server; close politely."""
    url = f"{server.url.replace('http', 'ws', 1)}/api/kernels/{kernel_id}/channels"
    socket = await websocket_connect(
        f"{url}?token={server.token}", subprotocols=[V1] if v1 else None
    )
    try:
        yield FrontEnd(socket)
    finally:
        socket.close(1000)
        while await socket.read_message() is not None:
            pass


async def start_kernel(server: Server) -> str:
    """Start a kernel through the server's API; return its id."""
    answer = await server.request("POST", "/api/kernels", {"name": "python3"})
    return str(answer.json()["id"])
