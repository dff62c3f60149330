"""A tapped kernel behaves as an untapped one, and all that it says is captured."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
import pytest
import websocket
from checkout import missing
from jupyter_client import AsyncKernelManager, BlockingKernelClient, KernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.session import Session
from nbclient import NotebookClient

from underhood import Trace, load, record
from underhood.capture.provisioner import PORTS
from underhood.capture.recording import FLUSH_S, Recording
from underhood.capture.store import Capture
from underhood.capture.tap import THREAD, Tap

CHANNELS = {"shell", "iopub", "stdin", "control", "heartbeat"}
Eventually = Callable[[Callable[[], object]], None]
TRANSPORTS = pytest.mark.parametrize("transport", ["tcp", "ipc"])


@contextlib.contextmanager
def kernel(
    folder: Path, transport: str = "tcp", **options: Any
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """Start a kernel with a blocking client, and end both."""
    file = folder / f"kernel-{secrets.token_hex(4)}.json"
    manager = KernelManager(transport=transport, connection_file=str(file), **options)
    manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run(client: BlockingKernelClient, code: str) -> list[Any]:
    """Execute code; return what a user would notice, without what differs from run to run."""
    seen: list[Any] = []

    def note(message: dict[str, Any]) -> None:
        content = message["content"]
        kind = message["msg_type"]
        if kind == "stream" and seen and seen[-1][:2] == [kind, content["name"]]:
            seen[-1][2] += content["text"]  # a stream may come in any number of parts
        elif kind == "stream":
            seen.append([kind, content["name"], content["text"]])
        elif kind in ("execute_result", "display_data"):
            seen.append([kind, content["data"]])
        elif kind == "error":
            seen.append([kind, content["ename"], content["evalue"]])
        elif kind == "status":
            seen.append([kind, content["execution_state"]])
        else:
            seen.append([kind])

    reply = client.execute_interactive(
        code,
        timeout=60,
        output_hook=note,
        stdin_hook=lambda request: client.input(request["content"]["prompt"].upper()),
        allow_stdin=True,
    )
    content = reply["content"]
    return [*seen, [content["status"], content["execution_count"]]]


def interrupted(manager: KernelManager, client: BlockingKernelClient) -> list[Any]:
    """Interrupt a kernel that sleeps.

    It sleeps in short pieces: Python notes a signal that comes just before a sleep begins only when
    that sleep is over, about once in a thousand times.
    """
    request = client.execute(
        "import time\nprint('asleep', flush=True)\nfor _ in range(6000): time.sleep(0.01)"
    )
    while client.get_iopub_msg(timeout=30)["msg_type"] != "stream":
        pass
    manager.interrupt_kernel()
    reply = client.get_shell_msg(timeout=30)
    assert reply["parent_header"]["msg_id"] == request
    while client.get_iopub_msg(timeout=30)["content"].get("execution_state") != "idle":
        pass
    return [reply["content"]["status"], reply["content"]["ename"]]


def a_life(manager: KernelManager, client: BlockingKernelClient) -> list[Any]:
    """Everything that a kernel is asked to do in these tests; what comes of it."""
    got = [
        run(client, "print('out'); 6 * 7"),
        run(client, "import sys; print('oh', file=sys.stderr)"),
        run(client, "from IPython.display import display, HTML; display(HTML('<b>bold</b>'))"),
        run(client, "1 / 0"),
        run(client, "name = input('who? '); name"),
        run(client, "print('x' * 3_000_000)"),
        interrupted(manager, client),
        run(client, "a = 1; a"),
    ]
    manager.restart_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client.wait_for_ready(timeout=60)
    got.append(run(client, "'a' in globals()"))
    return got


@TRANSPORTS
def test_a_life_is_the_same_with_and_without_a_tap(tmp_path: Path, transport: str) -> None:
    with kernel(tmp_path, transport) as (manager, client):
        direct = a_life(manager, client)
    with record() as capture, kernel(tmp_path, transport) as (manager, client):
        tapped = a_life(manager, client)
    assert tapped == direct
    assert capture.trace().types("execute_request")
    assert not list(tmp_path.iterdir()), "the kernel managers leave nothing, and so do the taps"


@TRANSPORTS
def test_one_life_has_all_five_channels_and_every_signature_is_valid(
    tmp_path: Path, transport: str, eventually: Eventually
) -> None:
    with record() as capture, kernel(tmp_path, transport) as (_, client):
        run(client, "input('?')")
        client.hb_channel.unpause()
        eventually(lambda: len(capture.trace().channel("heartbeat").types("ping")) >= 4)
        client.shutdown(reply=True, timeout=30)
    trace = capture.trace()
    assert {c.link.channel for c in capture.connections} == CHANNELS
    assert {m.channel for m in trace} == CHANNELS
    jupyter = trace.protocol("jupyter")
    assert {str(m.signature) for m in jupyter} == {"valid"}
    assert {"kernel_info_request", "input_request", "input_reply", "shutdown_reply"} <= {
        m.label for m in jupyter
    }
    ids = {(c.link.client, c.link.server, c.link.kernel_id) for c in capture.connections}
    assert ids == {("client", "kernel", *capture.keys)}
    assert not [m for m in trace if m.label == "undecoded"]
    if transport == "ipc":
        text = repr([(c.client_address, c.server_address) for c in capture.connections])
        assert str(tmp_path) not in text
        assert {c.client_address[0] for c in capture.connections} == {"127.0.0.1"}


def test_a_kernel_that_signs_in_another_way_is_held_to_its_own(tmp_path: Path) -> None:
    strong = Session(key=secrets.token_hex(16).encode(), signature_scheme="hmac-sha512")
    with record() as capture, kernel(tmp_path, session=strong) as (_, client):
        client.execute("1", reply=True, timeout=30)
        # The usual scheme, and the right key: this kernel does not take it.
        usual = Session(key=strong.key)
        message = usual.msg("kernel_info_request")
        usual.send(client.shell_channel.socket, message)
        client.execute("2", reply=True, timeout=30)
    again = load(capture.save(tmp_path / "whole.pcapng", keys=True))
    for trace in (capture.trace(), again.trace()):
        (refused, *answers) = trace.answering(message["msg_id"])
        assert (str(refused.signature), answers) == ("invalid", [])
        others = [m for m in trace.protocol("jupyter") if m.number != refused.number]
        assert {str(m.signature) for m in others} == {"valid"}


def test_an_encrypted_kernel_stays_encrypted(tmp_path: Path) -> None:
    secret = "nobody but the two may read this"
    with record() as capture, kernel(tmp_path, transport_encryption="required") as (_, client):
        got = run(client, f"print({secret!r})")
    assert ["stream", "stdout", secret + "\n"] in got
    both = b"".join(c.stream(d) for c in capture.connections for d in (">", "<"))
    assert b"CURVE" in both
    assert secret.encode() not in both
    assert b"execute_request" not in both


def test_what_a_client_has_received_is_in_the_capture_when_it_ends(tmp_path: Path) -> None:
    for _ in range(3):
        with kernel(tmp_path):  # warm the disk cache, so that the ends come close
            pass
        with contextlib.ExitStack() as stack:
            with record() as capture:
                _, client = stack.enter_context(kernel(tmp_path))
                reply = client.execute("1", reply=True, timeout=30)
            found = [m for m in capture.trace() if m.msg_id == reply["header"]["msg_id"]]
            assert [m.label for m in found] == ["execute_reply"]
            before = len(capture.trace())
            client.execute("2", reply=True, timeout=30)  # forwarded, but recorded no more
            assert len(capture.trace()) == before


def test_a_recording_can_be_read_while_it_runs(tmp_path: Path) -> None:
    with record() as capture, kernel(tmp_path) as (_, client):
        reply = client.execute("1", reply=True, timeout=30)
        labels = [
            m.label for m in capture.trace() if m.parent_id == reply["parent_header"]["msg_id"]
        ]
        assert "execute_reply" in labels
        assert isinstance(capture, Recording)
        assert isinstance(capture.capture, Capture)
    assert isinstance(capture.trace(), Trace)


async def _async_session(**options: Any) -> tuple[list[str], Recording]:
    async with record(**options) as capture:
        manager = AsyncKernelManager()
        await manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = manager.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=60)
            reply = await client.execute("1 + 1", reply=True, timeout=30)
        finally:
            client.stop_channels()
            await manager.shutdown_kernel()
    return [reply["content"]["status"]], capture


def test_an_async_kernel_manager_is_tapped_in_an_async_recording(tmp_path: Path) -> None:
    status, capture = asyncio.run(_async_session())
    assert status == ["ok"]
    assert {c.link.channel for c in capture.connections} == CHANNELS
    whole = load(capture.save(tmp_path / "whole.pcapng", keys=True))
    assert whole == capture.capture
    assert [m.label for m in whole.trace()] == [m.label for m in capture.trace()]


# ---- programs that know nothing of the tap

NOTEBOOK = nbformat.v4.new_notebook(
    cells=[
        nbformat.v4.new_code_cell("a = 20; print('hello')", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("from IPython.display import HTML; HTML('<i>x</i>')"),
        nbformat.v4.new_code_cell("a + 1"),
        nbformat.v4.new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]}),
    ],
    metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
)


def outputs(notebook: Any) -> list[Any]:
    """The outputs of a notebook, without what no two runs have in common."""
    return [
        [{k: v for k, v in o.items() if k != "traceback"} for o in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def executed_by_nbclient() -> list[Any]:
    notebook = copy.deepcopy(NOTEBOOK)
    NotebookClient(notebook, timeout=60, extra_arguments=["--log-level=ERROR"]).execute()
    return outputs(notebook)


def test_nbclient_gets_the_same_outputs() -> None:
    direct = executed_by_nbclient()
    with record() as capture:
        tapped = executed_by_nbclient()
    assert tapped == direct
    assert len(capture.trace().types("execute_request")) == len(NOTEBOOK.cells)


def test_papermill_gets_the_same_outputs(tmp_path: Path) -> None:
    notebook = copy.deepcopy(NOTEBOOK)
    notebook.cells.pop()
    nbformat.write(notebook, tmp_path / "in.ipynb")

    def execute() -> list[Any]:
        out = papermill.execute_notebook(
            tmp_path / "in.ipynb", None, {"a": 41}, progress_bar=False, log_output=False
        )
        return outputs(out)

    direct = execute()
    with record() as capture:
        tapped = execute()
    assert tapped == direct
    assert direct[-1][0]["data"]["text/plain"] == "42"
    assert capture.trace().types("execute_request")


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """Start a Jupyter Server that inherits our environment; give its URL and its token."""
    folder.mkdir(exist_ok=True)
    token = secrets.token_hex(16)
    own = {
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "HOME": str(folder),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyter_server", "--port=0", "--ip=127.0.0.1", "--no-browser",
         "--allow-root", f"--ServerApp.root_dir={folder}"],
        env={k: v for k, v in os.environ.items() if k != "JPY_PARENT_PID"} | own,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        file = folder / "runtime" / f"jpserver-{process.pid}.json"
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError, ValueError):
                url = json.loads(file.read_text())["url"]
                urllib.request.urlopen(f"{url}api", timeout=5).close()
                break
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.05)
        yield process, url, token
    finally:
        process.terminate()
        process.wait(30)


def rest(url: str, token: str, method: str, path: str, content: Any = None) -> Any:
    request = urllib.request.Request(
        url + path,
        method=method,
        data=None if content is None else json.dumps(content).encode(),
        headers={"Authorization": f"token {token}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        body = answer.read()
    return json.loads(body) if body else None


def executed_by_rest_and_websocket(url: str, token: str) -> list[Any]:
    """Start a kernel, execute a cell, end it: what a front end does, and what it gets."""
    created = rest(url, token, "POST", "api/kernels", {"name": "python3"})
    session = Session(session=secrets.token_hex(16))
    sock = websocket.create_connection(
        f"ws{url.removeprefix('http')}api/kernels/{created['id']}/channels",
        header=[f"Authorization: token {token}"],
        timeout=60,
    )
    request = session.msg("execute_request", {"code": "print('hello'); 6 * 7", "silent": False})
    sock.send(json.dumps({**request, "channel": "shell", "buffers": []}, default=str))
    got: list[Any] = []
    wanted = {"execute_reply", "idle"}
    while wanted:
        message = json.loads(sock.recv())
        if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
            continue
        content = message["content"]
        state = content.get("execution_state")
        wanted -= {message["msg_type"], state}
        if message["channel"] == "iopub":
            got.append([message["msg_type"], state, content.get("text"), content.get("data")])
    sock.close()
    running = rest(url, token, "GET", f"api/kernels/{created['id']}")
    assert running["id"] == created["id"]
    rest(url, token, "DELETE", f"api/kernels/{created['id']}")
    return [*got, created["name"], sorted(created), rest(url, token, "GET", "api/kernels")]


def test_a_server_and_the_kernel_it_starts_are_captured_and_behave_the_same(
    tmp_path: Path, eventually: Eventually
) -> None:
    with server(tmp_path / "direct") as (_, url, token):
        direct = executed_by_rest_and_websocket(url, token)
    with record() as capture, server(tmp_path / "tapped") as (_, url, token):
        front = capture.tap(url, client="script", server="server")
        assert front != url
        tapped = executed_by_rest_and_websocket(front, token)
        # Whatever caused an answer that has been received is in the capture already.
        live = capture.trace()
        assert live.types("shutdown_request")
        assert live[-1].label == "200 OK"
    assert tapped == direct
    trace = capture.trace()
    assert trace.parties == ("script", "server", "kernel")
    assert {str(m.signature) for m in trace if m.signature} == {"valid"}
    times = [m.time_ns for m in trace]
    assert times == sorted(times)
    # One clock: a message is on one hop after the other, and the server starts the kernel after it
    # was asked to.
    (request,) = trace.types("execute_request").between("script", "server")
    hops = trace.hops(request.msg_id)
    assert [(hop.message.sender, hop.message.receiver) for hop in hops] == [
        ("script", "server"), ("server", "kernel"),
    ]  # fmt: skip
    assert 0 < hops[1].taken_ns < 5 * 10**9
    (post,) = trace.types("POST /api/kernels")
    assert post.time_ns < trace.between("server", "kernel")[0].time_ns


def test_tshark_counts_the_same_http_messages_and_websocket_frames(tmp_path: Path) -> None:
    program = shutil.which("tshark")
    if program is None:
        missing("tshark is not installed")
    with record() as capture, server(tmp_path) as (_, url, token):
        front = capture.tap(url, client="script", server="server")
        executed_by_rest_and_websocket(front, token)
        with pytest.raises(urllib.error.HTTPError):
            rest(front, token, "GET", "api/contents/nothing.ipynb")
    path = capture.save(tmp_path / "http.pcapng")
    port = urllib.parse.urlsplit(front).port
    result = subprocess.run(
        [str(program), "-r", str(path), "-d", f"tcp.port=={port},http", "-T", "fields",
         "-e", "http.request.method", "-e", "http.response.code", "-e", "websocket.opcode",
         "-Y", "http.request or http.response or websocket"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    theirs = Counter[str]()
    for method, code, opcodes in rows:  # a packet may hold several frames
        theirs += Counter({"request": bool(method), "response": bool(code)})
        theirs["frame"] += len(opcodes.split(",")) if opcodes else 0
    ours = Counter[str]()
    for m in capture.trace().between("script", "server"):
        kind = "frame" if m.protocol != "http" else "request" if m.direction == ">" else "response"
        ours[kind] += 1
    assert ours == theirs
    assert min(ours.values()) >= 6


# ---- ends that nobody planned


def listening(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@TRANSPORTS
def test_a_killed_kernel_leaves_nothing(
    tmp_path: Path, transport: str, eventually: Eventually
) -> None:
    with record() as capture, kernel(tmp_path, transport) as (manager, client):
        assert manager.provisioner is not None
        process = psutil.Process(manager.provisioner.pid)
        port = manager.shell_port
        os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: not manager.is_alive())
        assert run_times_out(client)
    eventually(lambda: not process.is_running())
    assert not listening(port)
    assert not THREAD.running
    assert not list(tmp_path.iterdir())
    assert capture.trace().types("kernel_info_reply")


def run_times_out(client: BlockingKernelClient) -> bool:
    with pytest.raises((TimeoutError, RuntimeError)):
        client.execute("1", reply=True, timeout=0.5)
    return True


RECORDER = """
import sys, time
from pathlib import Path
from jupyter_client import KernelManager
from underhood import record
with record() as capture:
    manager = KernelManager()
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    print(manager.provisioner.pid, *manager.ports, flush=True)
    time.sleep(600)
"""


def start_to_be_killed(script: str, folder: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Start a Python whose files stay in a folder; return it and the numbers that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    numbers = [int(word) for word in process.stdout.readline().split()]
    process.stdout.close()
    return process, numbers


def test_when_the_recording_process_is_killed_its_kernel_ends_and_no_port_listens(
    tmp_path: Path, eventually: Eventually
) -> None:
    process, (pid, *ports) = start_to_be_killed(RECORDER, tmp_path)
    process.kill()
    process.wait()
    eventually(lambda: not psutil.pid_exists(pid))
    assert not [port for port in ports if listening(port)]


CHILD = """
import sys, time
from jupyter_client import KernelManager
manager = KernelManager()
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)
client.execute("'done'", reply=True, timeout=60)
print(manager.provisioner.pid, flush=True)
time.sleep(600)
"""


def test_a_child_that_is_killed_loses_at_most_a_tenth_of_a_second(
    tmp_path: Path, eventually: Eventually
) -> None:
    with record() as capture:
        process, (pid,) = start_to_be_killed(CHILD, tmp_path)
        time.sleep(2 * FLUSH_S)  # nobody asks the child for what it has; it writes by itself
        process.kill()
        process.wait()
        eventually(lambda: not psutil.pid_exists(pid))
    trace = capture.trace()
    assert trace.parties == ("server", "kernel")
    assert trace.types("execute_request")
    assert trace.types("execute_reply")


def test_the_last_words_of_a_child_that_just_ends_reach_its_kernel(
    tmp_path: Path, eventually: Eventually
) -> None:
    farewell = CHILD.replace("time.sleep(600)", "client.shutdown()")
    with record() as capture:
        process, (pid,) = start_to_be_killed(farewell, tmp_path)
        assert process.wait(30) == 0
        eventually(lambda: not psutil.pid_exists(pid))
    trace = capture.trace()
    assert trace.types("shutdown_request")
    assert trace.types("shutdown_reply").channel("control")


def test_a_cell_that_raises_inside_a_recording_leaves_everything_as_it_was(tmp_path: Path) -> None:
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), record() as capture, kernel(tmp_path):
        1 / 0  # noqa: B018
    assert dict(os.environ) == before
    assert not THREAD.running
    assert capture.trace().types("kernel_info_request")


# ---- the provisioner


def test_the_entry_point_is_installed() -> None:
    factory = KernelProvisionerFactory()
    assert factory.get_provisioner_entries()["underhood-tap"] == (
        "underhood.capture.provisioner:TapProvisioner"
    )


def test_without_a_recording_the_tap_provisioner_is_a_local_provisioner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = KernelProvisionerFactory.instance()
    monkeypatch.setattr(factory, "default_provisioner_name", "underhood-tap")
    with kernel(tmp_path) as (manager, client):
        assert type(manager.provisioner).__name__ == "TapProvisioner"
        assert run(client, "1")[-1] == ["ok", 1]
        assert not THREAD.running
        command = psutil.Process(manager.provisioner.pid).cmdline()
        assert str(tmp_path / Path(manager.connection_file).name) in command


def test_the_kernel_has_a_private_connection_file_of_the_same_name(tmp_path: Path) -> None:
    with record(), kernel(tmp_path) as (manager, _):
        assert manager.provisioner is not None
        command = psutil.Process(manager.provisioner.pid).cmdline()
        name = Path(manager.connection_file).name
        (private,) = [Path(part) for part in command if part.endswith(name)]
        assert private != Path(manager.connection_file)
        assert private.stat().st_mode & 0o777 == 0o600
        assert private.parent.stat().st_mode & 0o777 == 0o700
        theirs, ours = (json.loads(f.read_text()) for f in (private, Path(manager.connection_file)))
        assert {key for key in ours if ours[key] != theirs[key]} == {
            "shell_port", "iopub_port", "stdin_port", "control_port", "hb_port",
        }  # fmt: skip
    assert not private.parent.exists()


def test_the_taps_stay_where_they_are_when_a_kernel_restarts(tmp_path: Path) -> None:
    with record() as capture, kernel(tmp_path) as (manager, client):
        taps = THREAD.holders
        for now in (False, True):
            manager.restart_kernel(now=now, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            client.wait_for_ready(timeout=60)
            assert run(client, "1")[-1] == ["ok", 1]
        assert set(THREAD.holders) == set(taps)
    servers = {(c.link.channel, c.server_address) for c in capture.connections}
    assert len(servers) == 5


def test_taps_follow_a_kernel_that_restarts_on_other_ports(tmp_path: Path) -> None:
    with record() as capture, kernel(tmp_path, cache_ports=False) as (manager, client):
        before = manager.ports
        client.stop_channels()
        manager.restart_kernel(newports=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert manager.ports != before
        again = manager.client()
        again.start_channels()
        again.wait_for_ready(timeout=60)
        assert run(again, "'on another port'")[-1] == ["ok", 1]
        again.stop_channels()
        assert not [port for port in before if listening(port)]
    assert len(capture.trace().types("execute_request")) == 1


def test_a_kernel_that_restarts_after_the_recording_is_still_forwarded_and_not_recorded(
    tmp_path: Path,
) -> None:
    with contextlib.ExitStack() as stack:
        with record() as capture:
            manager, client = stack.enter_context(kernel(tmp_path, "ipc"))
        before = capture.connections
        manager.restart_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client.wait_for_ready(timeout=60)
        assert run(client, "1")[-1] == ["ok", 1]
        assert capture.connections == before
        assert {len(tap.links) for tap in THREAD.holders if isinstance(tap, Tap)} == {0}


def test_a_kernel_that_cannot_be_launched_leaves_no_tap(tmp_path: Path) -> None:
    with record():
        manager = KernelManager(connection_file=str(tmp_path / "kernel-1.json"))
        assert manager.kernel_spec is not None
        manager.kernel_spec.argv = [str(tmp_path / "no such program"), "{connection_file}"]
        with pytest.raises(FileNotFoundError):
            manager.start_kernel()
        assert not THREAD.running


def test_a_tapped_kernel_takes_no_port_that_somebody_could_get_by_chance(tmp_path: Path) -> None:
    manager = KernelManager(connection_file=str(tmp_path / "kernel-1.json"))
    with record():
        manager.start_kernel()
        try:
            for_clients = json.loads((tmp_path / "kernel-1.json").read_text())
            assert all(
                port in PORTS for name, port in for_clients.items() if name.endswith("_port")
            )
        finally:
            manager.shutdown_kernel(now=True)


def test_a_kernel_whose_ports_are_busy_says_so_and_leaves_no_tap(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy, record():
        port = busy.getsockname()[1]
        manager = KernelManager(
            connection_file=str(tmp_path / "kernel-1.json"), cache_ports=False, iopub_port=port
        )
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            manager.start_kernel()
        assert not THREAD.running
