"""Real conversations: kernels, servers, a hub, a browser, and an HTTP server of another make.

Each is captured once. No byte of it may be undecoded, no field without an explanation, and
programs that are not ours must read the same.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import h11
import pytest
from aiohttp import ClientSession, web
from checkout import missing
from jupyter_client import BlockingKernelClient, KernelManager
from live import execute_content, front_end, kernel, run, start_kernel
from recorded import tapped
from tiling import examine, holes, keys
from websockets.asyncio.client import connect

from underhood import Capture, record
from underhood.capture.store import DIRECTIONS
from underhood.dissect import Dissection, dissect
from underhood.dissect.explanations import explanations
from underhood.dissect.http import Request, Response
from underhood.dissect.jupyter import MESSAGE_TYPES, Signature
from underhood.dissect.websocket import WebSocketMessage
from underhood.stage import MissingActor, jupyter_server, jupyterhub, jupyterlab

# ---------------------------------------------------------------- the conversations


def a_kernel_that_is_asked_everything() -> Capture:
    """Every request that ipykernel answers, and all that it publishes."""
    with record("everything") as capture, kernel() as (_, client):
        for code in (
            "print('hello'); import sys; print('oh', file=sys.stderr); 40 + 2",
            "1/0",
            "from IPython.display import clear_output, display\n"
            "shown = display({'text/plain': 'a'}, raw=True, display_id=True)\n"
            "shown.update({'text/plain': 'b'}, raw=True); clear_output(wait=True)",
            "from ipywidgets import Image, IntSlider\n"
            "slider = IntSlider(); slider.value = 7; slider.close(); Image(value=b'PNG')",
            "%load_ext nothing",
            "print?",
        ):
            run(client, code)
        run(client, "x = 1", user_expressions={"x": "x + 1", "y": "y"}, silent=True)
        run(client, "input('name? ')", allow_stdin=True, stdin_hook=lambda _: client.input("me"))
        for kind, content in (
            ("complete_request", {"code": "imp", "cursor_pos": 3}),
            ("inspect_request", {"code": "print", "cursor_pos": 5, "detail_level": 1}),
            ("history_request", history("tail", n=3)),
            ("history_request", history("range", session=0, start=1, stop=3)),
            ("history_request", history("search", pattern="*x*", n=2, unique=True)),
            ("is_complete_request", {"code": "for i in range(3):"}),
            ("comm_info_request", {"target_name": "jupyter.widget"}),
            ("connect_request", {}),
            ("kernel_info_request", {}),
        ):
            ask(client, "shell", kind, content)
        send(client, "shell", "comm_open", {"comm_id": "c", "target_name": "nobody", "data": {}})
        for kind, content in (
            ("usage_request", {}),
            ("list_subshell_request", {}),
            ("debug_request", debug(1, "initialize", clientID="test", adapterID="")),
            ("debug_request", debug(2, "attach")),
            ("debug_request", debug(3, "debugInfo")),
            ("debug_request", debug(4, "no such command")),
            ("debug_request", debug(5, "disconnect")),
            ("interrupt_request", {}),
        ):
            ask(client, "control", kind, content)
        subshell = ask(client, "control", "create_subshell_request", {})["subshell_id"]
        code = execute_content("'from a subshell'")
        ask(client, "shell", "execute_request", code, subshell_id=subshell)
        ask(client, "control", "delete_subshell_request", {"subshell_id": subshell})
        client.hb_channel.unpause()
        time.sleep(1.2)
    return capture.capture


def send(
    client: BlockingKernelClient, channel: str, kind: str, content: dict[str, Any], **more: Any
) -> str:
    """Send any message; return its id."""
    message = client.session.msg(kind, content)
    message["header"].update(more)
    getattr(client, f"{channel}_channel").send(message)
    return str(message["header"]["msg_id"])


def ask(
    client: BlockingKernelClient, channel: str, kind: str, content: dict[str, Any], **more: Any
) -> Any:
    """Send a request; return the content of its reply."""
    msg_id = send(client, channel, kind, content, **more)
    while True:
        reply = getattr(client, f"{channel}_channel").get_msg(timeout=20)
        if reply["parent_header"].get("msg_id") == msg_id:
            return reply["content"]


def history(kind: str, **more: Any) -> dict[str, Any]:
    return {"output": False, "raw": True, "hist_access_type": kind, **more}


def debug(seq: int, command: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "request", "seq": seq, "command": command, "arguments": arguments}


def a_kernel_without_a_key() -> Capture:
    with record("unsigned") as capture, kernel(session=unsigned()) as (_, client):
        run(client, "1")
    return capture.capture


def unsigned() -> Any:
    from jupyter_client.session import Session

    return Session(key=b"")


def an_encrypted_kernel() -> Capture:
    with record("encrypted") as capture:
        manager = KernelManager(transport_encryption="required")
        manager.start_kernel(stderr=subprocess.DEVNULL)
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            run(client, "print('a secret')")
        finally:
            client.stop_channels()
            manager.shutdown_kernel()
    return capture.capture


async def a_server_and_its_websockets() -> Capture:
    async with record("websockets") as capture, jupyter_server() as server:
        kernel_id = await start_kernel(server)
        for v1 in (True, False):
            async with front_end(server, kernel_id, v1=v1) as client:
                await client.execute("print('hello'); 40 + 2")
                await client.execute("import ipywidgets; ipywidgets.Image(value=b'PNG')")
                await client.send(
                    "shell",
                    "comm_open",
                    {"comm_id": "c", "target_name": "nobody", "data": {}},
                    buffers=[b"\x00\x01", b""],
                )
                while (await client.receive() or {})["header"]["msg_type"] != "comm_close":
                    pass
        await server.request("GET", "/api/contents?content=1")
        await server.request("PUT", "/api/contents/a.txt", {"type": "file", "format": "text"})
        await server.request("HEAD", "/api/status")
        await server.request("GET", "/api/nothing")
        await server.request("DELETE", f"/api/kernels/{kernel_id}")
    return capture.capture


async def a_compressed_websocket() -> Capture:
    option = "--ServerApp.websocket_compression_options={}"
    async with record("compressed") as capture, jupyter_server(option) as server:
        kernel_id = await start_kernel(server)
        path = f"/api/kernels/{kernel_id}/channels?token={server.token}"
        async with connect(server.url.replace("http", "ws", 1) + path) as socket:
            await socket.ping(b"are you there")
            for number in range(2):
                await socket.send(json.dumps(execution(number)))
                while True:
                    said = json.loads(await socket.recv())
                    state = said["content"].get("execution_state")
                    if (said["parent_header"].get("msg_id"), state) == (f"run-{number}", "idle"):
                        break
    return capture.capture


def execution(number: int) -> dict[str, Any]:
    header = {"msg_id": f"run-{number}", "msg_type": "execute_request", "session": "s"}
    header |= {"username": "", "version": "5.4", "date": "2026-01-02T03:04:05Z"}
    return {
        "header": header,
        "parent_header": {},
        "metadata": {},
        "content": execute_content("print('x' * 2000)"),
        "channel": "shell",
        "buffers": [],
    }


async def another_makes_server() -> Capture:
    """An aiohttp server and client: chunks, compression, events, a refused upgrade."""

    async def json_reply(request: web.Request) -> web.StreamResponse:
        reply = web.json_response({"asked": await request.text(), "numbers": [1, 2.5, None]})
        reply.enable_compression()
        return reply

    async def events(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        reply.enable_chunked_encoding()
        await reply.prepare(request)
        for number in range(3):
            await reply.write(f"id: {number}\nevent: progress\nda".encode())
            await reply.write(f'ta: {{"progress": {number}}}\n\n: comment\n\n'.encode())
        return reply

    async def echo(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(compress=True)
        await socket.prepare(request)
        async for message in socket:
            if message.type is web.WSMsgType.TEXT:
                await socket.send_str(message.data * 2)
            else:
                await socket.send_bytes(message.data * 2)
        return socket

    async def sends_pieces() -> AsyncIterator[bytes]:
        for piece in (b'{"in', b'": "pieces"}'):
            yield piece

    app = web.Application()
    app.router.add_route("*", "/json", json_reply)
    app.router.add_get("/events", events)
    app.router.add_get("/echo", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    with tapped(port, "http") as tap:
        url = f"http://127.0.0.1:{tap.port}"
        async with ClientSession(url) as session:
            for method in ("GET", "POST", "HEAD", "OPTIONS"):
                async with session.request(method, "/json?x=1&y", data="text") as reply:
                    await reply.read()
            async with session.post("/json", data=sends_pieces(), headers=JSON) as reply:
                await reply.read()
            body = gzip.compress(b'{"packed": true}')
            packed = {**JSON, "Content-Encoding": "gzip"}
            async with session.post("/json", data=body, headers=packed) as reply:
                await reply.read()
            async with session.get("/events") as reply:
                await reply.read()
            refused = {"Connection": "Upgrade", "Upgrade": "nonsense"}
            async with session.get("/json", headers=refused) as reply:
                await reply.read()
            async with session.ws_connect("/echo", compress=15) as socket:
                for said in ("hello", "hello again " * 9, "hello"):
                    await socket.send_str(said)
                    assert await socket.receive_str() == said * 2
                await socket.send_bytes(bytes(70_000))
                await socket.receive()
        capture = Capture(tap.connections, name="aiohttp")
    await runner.cleanup()
    return capture


JSON = {"Content-Type": "application/json"}


async def jupyterlab_in_a_browser() -> Capture:
    async with record("lab") as capture, jupyterlab() as lab:
        await lab.open("demo.ipynb", ["from ipywidgets import IntSlider\nIntSlider()"])
        await lab.run()
        await lab.save()
    return capture.capture


async def jupyterhub_in_a_browser() -> Capture:
    async with record("hub") as capture, jupyterhub(["alice"], browser=True) as hub:
        await hub.log_in("alice")
    return capture.capture


Conversation = Callable[[], Capture | Awaitable[Capture]]
CONVERSATIONS: list[Conversation] = [
    a_kernel_that_is_asked_everything,
    a_kernel_without_a_key,
    an_encrypted_kernel,
    a_server_and_its_websockets,
    a_compressed_websocket,
    another_makes_server,
    jupyterlab_in_a_browser,
    jupyterhub_in_a_browser,
]
_captured: dict[Conversation, Capture | MissingActor] = {}


def captured(conversation: Conversation) -> Capture:
    """The capture of a conversation, which is held once."""
    if conversation not in _captured:
        try:
            held = conversation()
            _captured[conversation] = held if isinstance(held, Capture) else asyncio.run(held)  # type: ignore[arg-type]
        except MissingActor as error:
            _captured[conversation] = error
    found = _captured[conversation]
    if isinstance(found, MissingActor):
        missing(str(found))
    assert isinstance(found, Capture)
    return found


@pytest.fixture(params=CONVERSATIONS, ids=lambda conversation: conversation.__name__)
def capture(request: pytest.FixtureRequest) -> Capture:
    return captured(request.param)


def dissections(capture: Capture) -> list[Dissection]:
    return [dissect({d: c.stream(d) for d in DIRECTIONS}) for c in capture.connections]


# ---------------------------------------------------------------- what holds for each


def test_no_byte_is_undecoded(capture: Capture) -> None:
    assert capture.connections
    for connection in capture.connections:
        dissection = examine({d: connection.stream(d) for d in DIRECTIONS})
        for direction in DIRECTIONS:
            if connection.stream(direction):
                assert dissection.protocol in ("zmtp", "http")
            assert holes(dissection.spans(direction)) == [], connection.link


def test_every_field_is_explained(capture: Capture) -> None:
    known = explanations().keys()
    assert [key for d in dissections(capture) for key in sorted(keys(d) - known)] == []


def test_every_signature_is_valid(capture: Capture) -> None:
    trace = capture.trace()
    verdicts = Counter(m.signature for m in trace if m.signature is not None)
    expected = Signature.UNSIGNED if capture.name == "unsigned" else Signature.VALID
    assert set(verdicts) <= {expected}
    for message in trace:
        if message.jupyter is not None:
            assert message.jupyter.note == ""
            assert message.msg_id


def test_h11_reads_the_same_requests_and_responses(capture: Capture) -> None:
    for dissection in dissections(capture):
        if dissection.protocol != "http":
            continue
        asked = [u for u in dissection.units(">") if isinstance(u, Request)]
        said = responses(dissection)
        final = [u for u in said if u.is_final]
        assert len(final) <= len(asked)
        for request, response in zip(asked, final, strict=False):
            heard = [u for u in said if u.end <= response.end]
            del said[: len(heard)]
            stream = dissection.streams["<"]
            assert by_h11(request, stream[heard[0].start : response.end]) == [
                (u.status, dict_of(u), body_as_sent(u, stream)) for u in heard
            ]


def responses(dissection: Dissection) -> list[Response]:
    """The responses up to an upgrade: JupyterHub's proxy sends one more in a WebSocket."""
    found = [u for u in dissection.units("<") if isinstance(u, Response)]
    switches = [n for n, u in enumerate(found, 1) if u.status == 101]
    return found[: switches[0]] if switches else found


def dict_of(response: Response) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in response.headers.fields]


def body_as_sent(response: Response, stream: bytes) -> bytes:
    """The body as h11 gives it: without chunks, but compressed."""
    spans = list(response.span.walk())
    in_chunks = any(s.key in ("http.chunk", "http.last_chunk") for s in spans)
    key = "http.chunk.data" if in_chunks else "http.body"
    return b"".join(stream[s.start : s.end] for s in spans if s.key == key)


def by_h11(request: Request, answer: bytes) -> list[tuple[int, list[tuple[str, str]], bytes]]:
    """Have h11 play the client: send the request, read the answer."""
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20)
    headers = [(n, v) for n, v in request.headers.fields if n.lower() != "transfer-encoding"]
    client.send(h11.Request(method=request.method, target=request.target, headers=headers))
    length = int(request.headers.get("content-length", "0"))
    if length:
        client.send(h11.Data(data=bytes(length)))
    client.send(h11.EndOfMessage())
    client.receive_data(answer)
    found: list[tuple[int, list[tuple[str, str]], bytes]] = []
    while True:
        event = client.next_event()
        if isinstance(event, h11.Response | h11.InformationalResponse):
            fields = [(n.decode(), v.decode("latin-1")) for n, v in event.headers]
            found.append((event.status_code, fields, b""))
        elif isinstance(event, h11.Data):
            found[-1] = (*found[-1][:2], found[-1][2] + bytes(event.data))
        elif event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.EndOfMessage):
            return found


def test_tshark_counts_the_same(capture: Capture, tmp_path: Path) -> None:
    tshark = shutil.which("tshark")
    if tshark is None:
        missing("tshark is not installed")
    assert tshark is not None
    file = capture.save(tmp_path / "capture.pcapng")
    ports = {
        connection.server_address[1]
        for connection in capture.connections
        if connection.link.channel == "http"
    }
    if not ports:
        return
    options = [part for port in ports for part in ("-d", f"tcp.port=={port},http")]

    def counted(field: str) -> Counter[str]:
        command = [tshark, "-r", str(file), *options, "-T", "fields", "-e", field]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        return Counter(word for line in result.stdout.split() for word in line.split(","))

    units = [u for d in dissections(capture) for way in DIRECTIONS for u in d.units(way)]
    assert counted("http.request.method") == Counter(
        u.method for u in units if isinstance(u, Request)
    )
    assert counted("http.response.code") == Counter(
        str(u.status) for d in dissections(capture) for u in responses(d)
    )
    frames = [
        s for d in dissections(capture) for way in DIRECTIONS for top in d.spans(way)
        for s in top.walk() if s.key == "websocket.frame"
    ]  # fmt: skip
    assert sum(counted("websocket.opcode").values()) == len(frames)


# ---------------------------------------------------------------- what holds for one


def test_every_message_type_was_seen() -> None:
    seen = {m.label for m in captured(a_kernel_that_is_asked_everything).trace()}
    # ipykernel has no handler for debug events without a breakpoint, and none of the server's.
    assert MESSAGE_TYPES - seen <= {"debug_event"}


def test_nothing_of_an_encrypted_kernel_can_be_read() -> None:
    capture = captured(an_encrypted_kernel)
    trace = capture.trace()
    assert not trace.protocol("jupyter")
    assert len(trace.types("sealed")) > 20
    assert b"a secret" not in b"".join(c.stream("<") for c in capture.connections)


def test_kernel_messages_are_the_same_in_all_forms() -> None:
    trace = captured(a_server_and_its_websockets).trace().between("client", "server")
    assert {"shell", "iopub"} <= {m.channel for m in trace.protocol("jupyter")}
    both = Counter(m.label for m in trace.protocol("jupyter") if m.direction == ">")
    assert both["execute_request"] == 4
    assert both["comm_open"] == 2
    sent = [m for m in trace.types("comm_open") if m.direction == ">"]
    assert [m.jupyter.buffers for m in sent if m.jupyter] == [(b"\x00\x01", b"")] * 2
    images = [m for m in trace.types("comm_open") if m.direction == "<" and m.jupyter]
    assert [m for m in images if m.jupyter and m.jupyter.buffers == (b"PNG",)]


def test_a_compressed_websocket_was_compressed() -> None:
    trace = captured(a_compressed_websocket).trace().between("client", "server")
    sizes = [(m.size, len(m.payload)) for m in trace.types("stream") if m.detail == "stdout"]
    assert len(sizes) == 2
    assert all(size < length / 4 for size, length in sizes)
    assert trace.types("ping")[0].payload == b"are you there"


def test_the_events_of_a_stream_are_read_over_the_border_of_chunks() -> None:
    (reply,) = [
        u for d in dissections(captured(another_makes_server)) for u in d.units("<")
        if isinstance(u, Response) and u.media_type == "text/event-stream"
    ]  # fmt: skip
    said = [s.value for s in reply.span.walk() if s.key == "sse.field.data"]
    assert said[0] == '{"progress": 0}'
    assert {s.key for s in reply.span.walk()} >= {"sse.comment", "sse.field.id", "sse.end"}


def test_compression_is_undone_and_websockets_echo() -> None:
    units = [u for d in dissections(captured(another_makes_server)) for u in d.units("<")]
    replies = [u for u in units if isinstance(u, Response) and u.body and u.status == 200]
    asked = [json.loads(u.body)["asked"] for u in replies if u.media_type == "application/json"]
    assert asked.count("text") == 3  # GET, POST, OPTIONS; HEAD has no body
    assert '{"in": "pieces"}' in asked
    assert '{"packed": true}' in asked
    echoes = [u.payload for u in units if isinstance(u, WebSocketMessage) and u.opcode in (1, 2)]
    assert echoes == [b"hello" * 2, b"hello again " * 18, b"hello" * 2, bytes(140_000)]


def test_every_request_of_jupyterlab_is_found_on_both_hops() -> None:
    trace = captured(jupyterlab_in_a_browser).trace()
    asked = [
        m
        for m in trace.between("browser", "server").protocol("jupyter")
        if m.direction == ">" and m.label.endswith("_request")
    ]
    assert len(asked) > 5
    for message in asked:
        hops = trace.hops(message.msg_id)
        assert [(h.message.sender, h.message.receiver) for h in hops][:2] == [
            ("browser", "server"),
            ("server", "kernel"),
        ], message
        assert {h.message.channel for h in hops} == {message.channel}
