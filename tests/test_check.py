"""Rules are silent on healthy conversations, and name the fault in sick ones: all of them real."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from queue import Empty
from typing import Any

import nbformat
import papermill
import psutil
import pytest
import sick_kernel
from checkout import missing
from jupyter_client.session import Session
from live import (
    connect,
    eventually,
    execute_content,
    front_end,
    kernel,
    kill,
    reply_to,
    run,
    start,
    start_kernel,
    until_begun,
)
from nbclient import NotebookClient

from underhood import Trace, load, record
from underhood.capture.recording import active
from underhood.check import RULES, Finding, check
from underhood.stage import MissingActor, jupyter_server, jupyterhub, jupyterlab


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# ---- healthy conversations


def start_execute_shutdown() -> None:
    with kernel() as (_, client):
        run(client, "print('out')\n1 + 1")
        run(client, "from IPython.display import display; display(3)")
        run(client, "1 / 0")


def restart() -> None:
    with kernel() as (manager, client):
        run(client, "x = 1")
        for now in (False, True):
            manager.restart_kernel(now=now)
            client.wait_for_ready(timeout=60)
            run(client, "1")


def input_answered() -> None:
    with kernel() as (_, client):
        run(client, "input('Name? ')", allow_stdin=True, stdin_hook=lambda _: client.input("Ada"))


def interrupt() -> None:
    with kernel() as (manager, client):
        threading.Timer(0.5, manager.interrupt_kernel).start()
        run(client, "import time; time.sleep(60)")


def input_interrupted() -> None:
    with kernel() as (manager, client):
        run(
            client, "input('Name? ')", allow_stdin=True,
            stdin_hook=lambda _: manager.interrupt_kernel(),
        )  # fmt: skip


def widgets() -> None:
    with kernel() as (_, client):
        run(client, "import ipywidgets; slider = ipywidgets.IntSlider(); slider")
        run(client, "slider.value = 3")


def nbclient_run() -> None:
    NotebookClient(_notebook("1 + 1", "print(2)"), kernel_name="python3").execute()


def papermill_run(folder: Path) -> None:
    nbformat.write(_notebook("1 + 1", "print(2)"), folder / "in.ipynb")
    papermill.execute_notebook(
        folder / "in.ipynb", folder / "out.ipynb", kernel_name="python3", progress_bar=False
    )


def two_clients() -> None:
    with kernel() as (manager, one):
        two = connect(manager)
        two.start_channels()
        two.wait_for_ready(timeout=60)
        for client in (one, two, one):
            run(client, "1")
        two.stop_channels()


def subshell() -> None:
    with kernel() as (_, client):

        def control(kind: str, **content: str) -> dict[str, Any]:
            client.control_channel.send(client.session.msg(kind, content))
            reply: dict[str, Any] = client.get_control_msg(timeout=20)["content"]
            return reply

        subshell_id = control("create_subshell_request")["subshell_id"]
        asked: list[str] = []
        for code, where in (("import time; time.sleep(.5)", None), ("1", subshell_id)):
            message = client.session.msg("execute_request", execute_content(code))
            if where:
                message["header"]["subshell_id"] = where
            client.shell_channel.send(message)
            asked.append(message["header"]["msg_id"])
        for msg_id in reversed(asked):  # the later one is answered first
            reply_to(client, msg_id)
        control("delete_subshell_request", subshell_id=subshell_id)


def debugger() -> None:
    with kernel() as (_, client):

        def dap(number: int, command: str, **arguments: object) -> None:
            content = {
                "type": "request", "seq": number, "command": command, "arguments": arguments
            }  # fmt: skip
            client.control_channel.send(client.session.msg("debug_request", content))
            client.get_control_msg(timeout=30)

        dap(1, "initialize", clientID="test", adapterID="", pathFormat="path")
        dap(2, "attach")
        dap(3, "configurationDone")
        run(client, "1 + 1")
        dap(4, "disconnect", restart=False, terminateDebuggee=True)


def requests_aborted() -> None:
    with kernel() as (_, client):
        cells = ("import time; time.sleep(.3); 1 / 0", "1", "2")
        asked = [client.execute(code) for code in cells]
        assert [reply_to(client, msg_id)["status"] for msg_id in asked] == [
            "error", "aborted", "aborted"
        ]  # fmt: skip
        run(client, "3")


def questions() -> None:
    with kernel() as (_, client):
        client.complete("pri", reply=True, timeout=20)
        client.inspect("print", reply=True, timeout=20)
        client.history(reply=True, timeout=20)
        client.comm_info(reply=True, timeout=20)
        # Nobody need answer what it does not know.
        client.shell_channel.send(client.session.msg("no_such_request", {}))
        run(client, "1")


def client_that_leaves_at_once() -> None:
    with kernel() as (manager, _):
        hasty = connect(manager)
        hasty.start_channels()
        eventually(lambda: hasty.hb_channel.is_beating())
        hasty.execute("import time; time.sleep(.5)")
        time.sleep(0.1)
        hasty.stop_channels()
        time.sleep(1)


def output_after_idle() -> None:
    code = "import threading, time\nthreading.Timer(.3, lambda: print('late')).start()"
    with kernel() as (_, client):
        run(client, code)
        time.sleep(0.6)
        run(client, "1")


def impatient_client() -> None:
    manager = start()
    client = manager.client()
    client.start_channels()
    reply_to(client, client.execute("1 + 1"))  # sent long before the kernel is up
    manager.shutdown_kernel()
    client.stop_channels()


def over_unix_sockets() -> None:
    with kernel(transport="ipc") as (_, client):
        run(client, "1")


def encrypted() -> None:
    with kernel(transport_encryption="required") as (_, client):
        run(client, "1")


def without_a_key() -> None:
    with kernel(session=Session(key=b"")) as (_, client):
        run(client, "1")


async def jupyter_server_v1() -> None:
    await _through_a_server(v1=True)


async def jupyter_server_default() -> None:
    await _through_a_server(v1=False)


async def _through_a_server(*, v1: bool) -> None:
    async with jupyter_server() as server:
        kernel_id = await start_kernel(server)
        async with front_end(server, kernel_id, v1=v1) as one:
            await one.execute("print('out')\n1 + 1")
            async with front_end(server, kernel_id, v1=v1) as two:
                await two.execute("2")
            await one.execute("3")
        await server.request("POST", f"/api/kernels/{kernel_id}/restart")
        async with front_end(server, kernel_id, v1=v1) as three:
            await three.execute("4")
        await server.request("DELETE", f"/api/kernels/{kernel_id}")


async def jupyterlab_in_chromium() -> None:
    async with jupyterlab() as lab:
        await lab.open("demo.ipynb")
        await lab.type("6 * 7")
        assert (await lab.run()).output == "42"
        await lab.save()


async def jupyterhub_in_chromium() -> None:
    async with jupyterhub(users=["alice"]) as hub:
        alice = await hub.log_in("alice")
        await alice.open("demo.ipynb")
        await alice.type("6 * 7")
        assert (await alice.run()).output == "42"
        # The hub would end her server, whatever her browser is about to ask it.
        await alice.ready()
        await alice.page.wait_for_load_state("networkidle")
        await alice.page.close(run_before_unload=False)


HEALTHY: dict[Callable[..., Any], str] = {
    start_execute_shutdown: "shutdown_reply",
    restart: "shutdown_request",
    input_answered: "input_reply",
    interrupt: "error",
    input_interrupted: "input_request",
    widgets: "comm_open",
    nbclient_run: "execute_result",
    papermill_run: "execute_result",
    two_clients: "execute_result",
    subshell: "create_subshell_reply",
    debugger: "debug_event",
    requests_aborted: "execute_reply",
    questions: "inspect_reply",
    client_that_leaves_at_once: "execute_request",
    output_after_idle: "stream",
    impatient_client: "execute_reply",
    over_unix_sockets: "execute_result",
    encrypted: "sealed",
    without_a_key: "execute_result",
    jupyter_server_v1: "101 Switching Protocols",
    jupyter_server_default: "101 Switching Protocols",
    jupyterlab_in_chromium: "comm_info_reply",
    jupyterhub_in_chromium: "POST /hub/login",
}
"""What is recorded, and a message that shows that it was."""


@pytest.mark.parametrize("story", HEALTHY, ids=lambda story: story.__name__)
def test_a_healthy_conversation_breaks_no_rule(story: Callable[..., Any], tmp_path: Path) -> None:
    with record(story.__name__) as recording:
        told = story(tmp_path) if story is papermill_run else story()
        if asyncio.iscoroutine(told):
            try:
                asyncio.run(told)
            except MissingActor as actor:
                missing(str(actor))
    trace = recording.trace()
    assert HEALTHY[story] in {m.label for m in trace}
    assert not trace.check(), "\n".join(f"{f.place}: {f}" for f in trace.check())


def _notebook(*sources: str) -> Any:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    return nbformat.v4.new_notebook(cells=cells)


# ---- sick ones


def found_in(story: Callable[[], Any]) -> dict[str, list[Finding]]:
    """Record a story; return the findings by rule."""
    with record() as recording:
        told = story()
        if asyncio.iscoroutine(told):
            asyncio.run(told)
    return by_rule(recording.trace())


def by_rule(trace: Trace) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in trace.check():
        found.setdefault(finding.rule, []).append(finding)
    return found


def label(finding: Finding) -> str:
    assert finding.message is not None
    return finding.message.label


def test_a_kernel_killed_at_work_leaves_a_request_without_reply_and_idle() -> None:
    def story() -> None:
        with kernel() as (manager, client):
            client.execute("import time; time.sleep(60)")
            until_begun(client)
            kill(manager)

    found = found_in(story)
    assert set(found) == {"request without reply", "missing idle"}
    assert label(found["request without reply"][0]) == "execute_request"
    assert "the kernel closed the connection" in found["request without reply"][0].sentence
    assert label(found["missing idle"][0]) == "execute_request"


def test_a_recording_that_stops_while_a_request_is_open_says_so() -> None:
    with record() as recording, kernel() as (_, client):
        client.execute("import time; time.sleep(1)")
        until_begun(client)
        found = by_rule(recording.trace())
    assert set(found) == {"request without reply", "missing idle"}
    assert "the capture ends" in found["request without reply"][0].sentence


def test_a_kernel_killed_while_it_asks_leaves_its_question_open() -> None:
    def story() -> None:
        with kernel() as (manager, client):
            client.execute("input()", allow_stdin=True)
            client.get_stdin_msg(timeout=20)
            kill(manager)

    found = found_in(story)
    assert {label(f) for f in found["request without reply"]} == {
        "execute_request", "input_request"
    }  # fmt: skip


def test_a_client_with_the_wrong_key_signs_badly_and_gets_no_reply() -> None:
    found = found_in(lambda: _with_key(b"not the key"))
    assert set(found) == {"bad signature", "request without reply"}
    assert label(found["bad signature"][0]) == "execute_request"


def test_a_client_without_a_key_does_not_sign() -> None:
    found = found_in(lambda: _with_key(b""))
    assert set(found) == {"missing signature", "request without reply"}
    assert label(found["missing signature"][0]) == "execute_request"


def _with_key(key: bytes) -> None:
    with kernel() as (manager, _):
        client = connect(manager)
        client.session.key = key
        client.start_channels()
        msg_id = client.execute("1")
        with pytest.raises(Empty):
            reply_to(client, msg_id, timeout=1)
        client.stop_channels()


def test_two_clients_of_one_session_are_a_duplicate_identity() -> None:
    def story() -> None:
        with kernel() as (manager, one):
            two = manager.client()
            two.start_channels()
            two.wait_for_ready(timeout=60)
            msg_id = one.execute("1")
            with pytest.raises(Empty):
                reply_to(one, msg_id, timeout=0.5)
            two.stop_channels()

    found = found_in(story)
    assert "duplicate identity" in found
    assert len(found["duplicate identity"]) == 1
    assert "control, shell and stdin" in found["duplicate identity"][0].sentence


def test_a_stopped_kernel_does_not_echo_the_heartbeat() -> None:
    def story() -> None:
        with kernel() as (manager, _):
            kill(manager, signal.SIGSTOP)
            time.sleep(2.5)
            kill(manager, signal.SIGCONT)
            time.sleep(0.2)

    found = found_in(story)
    assert set(found) == {"unanswered heartbeat"}
    assert label(found["unanswered heartbeat"][0]) == "ping"


def test_who_connects_to_a_stopped_kernel_gets_no_greeting() -> None:
    def story() -> None:
        with kernel() as (manager, client):
            client.stop_channels()
            kill(manager, signal.SIGSTOP)
            (recording,) = active()
            before = len(recording.connections)
            late = connect(manager)
            late.start_channels()
            eventually(lambda: any(c.chunks for c in recording.connections[before:]))
            time.sleep(1.2)
            late.stop_channels()

    found = found_in(story)
    assert set(found) == {"nobody answers"}
    assert label(found["nobody answers"][0]) == "greeting"


def test_a_client_without_encryption_is_refused_by_a_kernel_with_it() -> None:
    def story() -> None:
        with kernel(transport_encryption="required") as (manager, _):
            plain = connect(manager)
            plain.curve_publickey = plain.curve_secretkey = None
            plain.start_channels()
            time.sleep(0.5)
            plain.stop_channels()

    found = found_in(story)
    assert set(found) == {"handshake refused"}
    refused = found["handshake refused"][0]
    assert label(refused) == "greeting"
    assert "the kernel hung up on a greeting that announces NULL" in refused.sentence


def test_a_port_where_nobody_listens_refuses() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with record() as recording:
        where = recording.tap(("127.0.0.1", port), client="client", server="server", patience=0.1)
        with socket.create_connection(where) as client, pytest.raises(ConnectionResetError):
            client.recv(1)
    (finding,) = recording.trace().check()
    assert finding.rule == "nobody answers"
    assert finding.connection is not None


def test_a_message_sent_twice_is_a_replay_and_refused() -> None:
    def story() -> None:
        with kernel() as (_, client):
            message = client.session.msg("execute_request", execute_content("1"))
            frames = client.session.serialize(message)
            for _ in range(2):
                client.shell_channel.socket.send_multipart(frames)
                time.sleep(0.3)

    found = found_in(story)
    assert set(found) == {"message replayed", "request without reply"}
    (replayed,) = found["message replayed"]
    assert label(replayed) == "execute_request"
    assert found["request without reply"][0].message == replayed.message


@pytest.mark.parametrize(
    ("fault", "rules", "concerned"),
    [
        ("none", set(), None),
        ("reply first", set(), None),
        ("reply last", set(), None),
        ("mute", {"missing busy", "missing idle"}, "execute_request"),
        ("never idle", {"missing idle"}, "execute_request"),
        ("backwards", {"status out of order"}, "status"),
        ("busy twice", {"status out of order"}, "status"),
        ("on control", {"reply on the wrong channel"}, "execute_reply"),
        ("stranger's parent", {"unknown parent", "request without reply"}, None),
        ("silent", {"request without reply"}, "execute_request"),
        ("unsigned", {"missing signature"}, "execute_reply"),
        ("says it twice", {"message replayed"}, "execute_reply"),
        ("no JSON", {"undecoded bytes"}, None),
    ],
)
def test_a_kernel_with_a_fault_is_told_by_it(
    fault: str, rules: set[str], concerned: str | None, tmp_path: Path
) -> None:
    specs = sick_kernel.install(tmp_path, fault)

    def story() -> None:
        with kernel(kernel_name="sick", kernel_spec_manager=specs) as (_, client):
            time.sleep(0.1)
            client.execute("anything")
            channel = client.control_channel if fault == "on control" else client.shell_channel
            if fault == "silent":
                time.sleep(0.3)
            else:
                eventually(lambda: channel.socket.poll(0))
                time.sleep(0.1)  # what follows the reply

    found = found_in(story)
    assert set(found) == rules
    if concerned:
        assert {label(f) for findings in found.values() for f in findings} == {concerned}


# ---- sick ones with a server


@pytest.mark.anyio
async def test_http_errors_are_named_with_what_was_asked() -> None:
    async with record() as recording, jupyter_server() as server:
        assert (await server.request("GET", "/api/kernels/nothing")).status == 404
        server.token = "wrong"
        assert (await server.request("GET", "/api/kernels")).status == 403
    found = by_rule(recording.trace())
    assert [f.sentence for f in found.pop("HTTP error status")] == [
        "GET /api/kernels/nothing got 404 Not Found",
        "GET /api/kernels got 403 Forbidden",
    ]
    assert not found


@pytest.mark.anyio
async def test_an_error_that_a_proxy_passes_on_is_named_once_where_it_arose() -> None:
    try:
        async with record() as recording, jupyterhub(users=["alice"], browser=False) as hub:
            await hub.start_server("alice")
            token = (await hub.request("POST", "/hub/api/users/alice/tokens", {})).json()["token"]
            answer = await hub.request("GET", "/user/alice/api/kernels/nothing", token=token)
            assert answer.status == 404
    except MissingActor as actor:
        missing(str(actor))
    (error,) = by_rule(recording.trace())["HTTP error status"]
    assert "GET /user/alice/api/kernels/nothing got 404" in error.sentence
    assert error.message is not None
    assert (error.message.sender, error.message.receiver) == ("alice's server", "proxy")
    passed_on = [m for m in recording.trace() if m.label == "404 Not Found"]
    assert len(passed_on) == 2


@pytest.mark.anyio
async def test_a_dropped_websocket_was_closed_abnormally() -> None:
    async with record() as recording, jupyter_server() as server:
        kernel_id = await start_kernel(server)
        async with front_end(server, kernel_id) as client:
            await client.execute("1")
            client.socket.stream.close()  # as a network that is gone
        async with front_end(server, kernel_id) as client:
            await client.execute("1")
            client.socket.close(1011, "out of memory")
        await server.request("DELETE", f"/api/kernels/{kernel_id}")
    found = by_rule(recording.trace())
    assert set(found) == {"WebSocket closed abnormally"}
    dropped, failed = found["WebSocket closed abnormally"]
    assert dropped.connection is not None
    assert "the client ended the connection without a close frame" in dropped.sentence
    assert failed.message is not None
    assert "1011" in failed.sentence


@pytest.mark.anyio
async def test_a_server_that_is_killed_leaves_requests_and_websockets() -> None:
    async with record() as recording, jupyter_server() as server:
        kernel_id = await start_kernel(server)
        async with front_end(server, kernel_id) as client:
            await client.execute("1")
            os.kill(server.process.pid, signal.SIGSTOP)
            asked = asyncio.ensure_future(server.request("GET", "/api/status"))
            await asyncio.sleep(0.5)
            os.kill(server.process.pid, signal.SIGKILL)
            with pytest.raises(OSError):  # noqa: PT011
                await asked
    found = by_rule(recording.trace())
    assert {"WebSocket closed abnormally", "HTTP request without response"} <= set(found)
    assert "the server ended" in found["WebSocket closed abnormally"][0].sentence
    assert label(found["HTTP request without response"][0]) == "GET /api/status"


@pytest.mark.anyio
async def test_a_request_to_a_dead_kernel_is_found_where_it_was_lost() -> None:
    async with (
        record() as recording,
        jupyter_server("--KernelManager.autorestart=False") as server,
    ):
        kernel_id = await start_kernel(server)
        async with front_end(server, kernel_id) as client:
            await client.execute("1")
            processes = psutil.Process(server.process.pid).children(recursive=True)
            (process,) = (p for p in processes if "ipykernel_launcher" in " ".join(p.cmdline()))
            process.kill()
            msg_id = await client.send("shell", "execute_request", execute_content("2"))
            await asyncio.sleep(0.5)
    found = by_rule(recording.trace())
    (lost,) = found["request without reply"]
    assert lost.message is not None
    assert lost.message.msg_id == msg_id


# ---- sick files


def test_a_capture_that_was_cut_has_undecoded_bytes(tmp_path: Path) -> None:
    with record() as recording, kernel() as (_, client):
        run(client, "print('x' * 1_000_000)")
    whole = recording.save(tmp_path / "whole.pcapng", keys=True)
    assert not load(whole).trace().check()
    data = whole.read_bytes()
    cut = tmp_path / "cut.pcapng"
    cut.write_bytes(data[: len(data) // 2])
    found = by_rule(load(cut).trace())
    (undecoded,) = found["undecoded bytes"]
    assert undecoded.connection is not None
    assert undecoded.connection.link.channel == "iopub"
    assert "the capture ends inside the frame" in undecoded.sentence


def test_bytes_in_no_known_protocol_are_undecoded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, record() as recording:
        where = recording.tap(
            ("127.0.0.1", listener.getsockname()[1]), client="client", server="server"
        )
        with socket.create_connection(where) as client:
            server, _ = listener.accept()
            with server:
                client.sendall(b"\x16\x03\x01\x02\x00\x01")  # TLS
                assert server.recv(6)
    (finding,) = recording.trace().check()
    assert finding.rule == "undecoded bytes"
    assert "6 bytes at offset 0" in finding.sentence


def test_whatever_the_bytes_are_there_is_a_verdict() -> None:
    with record() as recording, kernel() as (_, client):
        run(client, "print('out')\n1 + 1")
    rules = {rule.name for rule in RULES}
    found = set()
    for seed in range(60):
        chance = random.Random(seed)
        connections = []
        for connection in recording.connections:
            chunks = []
            for chunk in connection.chunks:
                data = bytearray(chunk.data)
                if chance.random() < 0.1:
                    data[chance.randrange(len(data))] = chance.choice(b'\x00\xff[{"1')
                if chance.random() < 0.03:
                    del data[chance.randrange(len(data)) + 1 :]
                chunks.append(replace(chunk, data=bytes(data)))
            connections.append(replace(connection, chunks=tuple(chunks)))
        broken = replace(recording.capture, connections=tuple(connections)).trace()
        found |= {finding.rule for finding in broken.check()}
    assert found <= rules
    assert {"undecoded bytes", "bad signature", "request without reply"} <= found


def test_fields_of_the_wrong_type_are_no_obstacle() -> None:
    strange = {"msg_id": [1], "msg_type": "execute_request", "session": {}, "date": 5}
    with record() as recording, kernel() as (_, client):
        parts = [json.dumps(part).encode() for part in (strange, {"msg_id": []}, [], "code")]
        client.shell_channel.socket.send_multipart(
            [b"<IDS|MSG>", client.session.sign(parts), *parts]
        )
        run(client, "1")
    trace = recording.trace()
    (message,) = (m for m in trace if m.msg_id == "[1]")
    (finding,) = (f for f in trace.check() if f.rule == "request without reply")
    assert finding.message is message


# ---- what findings are


def test_findings_of_a_part_are_those_that_concern_it() -> None:
    with record() as recording:
        _with_key(b"not the key")
    trace = recording.trace()
    assert {f.rule for f in trace.channel("shell").check()} == {f.rule for f in trace.check()}
    assert not trace.channel("iopub").check()
    assert check(trace) == trace.check()


def test_every_rule_names_its_specification() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.states.endswith(".")
        assert rule.advice.endswith(".")
        assert rule.section
        assert rule.url.startswith("https://")
