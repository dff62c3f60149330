"""A recording has what was started in it, and leaves the process as it found it."""

from __future__ import annotations

import asyncio
import http.client
import http.server
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from underhood import load, record
from underhood.capture.recording import (
    KernelFile,
    NotCapturedWarning,
    active,
    environment,
    takers_for_kernel,
)
from underhood.capture.store import Link
from underhood.capture.tap import THREAD, Tap, detach, now_ns, start, stop

Eventually = Callable[[Callable[[], object]], None]
VARIABLES = (
    "JUPYTER_DEFAULT_PROVISIONER_NAME", "UNDERHOOD_CAPTURE_DIR", "UNDERHOOD_CLOCK",
    "UNDERHOOD_CLIENT",
)  # fmt: skip


class Answer(http.server.BaseHTTPRequestHandler):
    """Says where it was asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"{self.headers['Host']} {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def server_close(self) -> None:
        self.shutdown()
        super().server_close()


class Server6(Server):
    address_family = socket.AF_INET6


@pytest.fixture(params=["127.0.0.1", "::1"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    kind = Server6 if ":" in request.param else Server
    with kind((request.param, 0), Answer) as running:
        threading.Thread(target=running.serve_forever, args=(0.05,)).start()
        yield running


IPV4 = pytest.mark.parametrize("server", ["127.0.0.1"], indirect=True)


def get(host: str, port: int, path: str = "/") -> str:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


# ---- what it changes, and puts back


def test_everything_is_put_back_however_recordings_are_nested_or_overlap() -> None:
    factory = KernelProvisionerFactory.instance()
    before = dict(os.environ), factory.default_provisioner_name, dict(vars(factory))
    for order in ("one two 2 1", "one two 1 2", "one 1 two 2"):
        recordings = {"1": record("one"), "2": record("two")}
        for step in order.split():
            if step in recordings:
                recordings[step].__exit__(None, None, None)
            else:
                recordings[{"one": "1", "two": "2"}[step]].__enter__()
            if active():
                assert factory.default_provisioner_name == "underhood-tap"
                assert {name for name in VARIABLES if name in os.environ} == set(VARIABLES)
                assert (
                    os.environ["UNDERHOOD_CAPTURE_DIR"]
                    == (active()[-1].environment()["UNDERHOOD_CAPTURE_DIR"])
                )
        after = dict(os.environ), factory.default_provisioner_name, dict(vars(factory))
        assert after == before
    assert not active()


def test_a_factory_that_nobody_had_made_is_unmade() -> None:
    KernelProvisionerFactory.clear_instance()
    with record():
        assert KernelProvisionerFactory.instance().default_provisioner_name == "underhood-tap"
    assert not KernelProvisionerFactory.initialized()


def test_variables_that_were_set_before_are_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "local-provisioner")
    with record():
        assert os.environ["JUPYTER_DEFAULT_PROVISIONER_NAME"] == "underhood-tap"
    assert os.environ["JUPYTER_DEFAULT_PROVISIONER_NAME"] == "local-provisioner"


def test_the_folder_for_children_is_private_and_goes_with_the_last_recording() -> None:
    with record() as outer:
        with record() as inner:
            folder = Path(inner.environment()["UNDERHOOD_CAPTURE_DIR"])
            assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.parent.stat().st_mode & 0o777 == 0o700
        assert folder.parent == Path(outer.environment()["UNDERHOOD_CAPTURE_DIR"]).parent
    assert not folder.parent.exists()


def test_what_only_works_inside_says_so_outside() -> None:
    recording = record("mine")
    for use in (
        recording.environment,
        lambda: recording.tap("127.0.0.1:1", client="a", server="b"),
    ):
        with pytest.raises(RuntimeError, match="'mine' is not running"):
            use()
    with recording:
        pass
    with pytest.raises(RuntimeError, match=re.escape("call record() for a new one")), recording:
        pass
    assert environment() == {}


def test_names_count_and_notes_say_when_and_with_what() -> None:
    one, named, two = record(), record("named"), record(notes={"what": "a test"})
    first = re.fullmatch(r"capture-(\d+)", one.name)
    assert first
    assert two.name == f"capture-{int(first[1]) + 1}"
    assert named.name == "named"
    with two:
        pass
    assert two.notes["what"] == "a test"
    assert {"date", "jupyter_client", "underhood"} <= two.notes.keys()
    assert two.capture.name == two.name


@IPV4
def test_a_recording_may_span_several_cells_and_take_notes_on_the_way(server: Server) -> None:
    capture = record()
    assert capture.start() is capture
    assert active() == (capture,)
    address = capture.tap(("127.0.0.1", server.server_port), client="a", server="b")
    get(*address)
    capture.note("what", "one request")
    server.server_close()
    capture.stop()
    assert active() == ()
    assert capture.notes["what"] == "one request"
    assert [m.label for m in capture.trace()] == ["GET /", "200 OK"]
    with pytest.raises(RuntimeError, match="is not running"):
        capture.stop()


def test_an_empty_recording_has_a_capture_and_starts_no_thread() -> None:
    with record() as capture:
        assert capture.connections == ()
    assert not THREAD.running
    assert len(capture.trace()) == 0
    assert "ended" in repr(capture)


def test_captures_are_kept_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERHOOD_KEEP", str(tmp_path / "kept"))
    with record("first one/x") as first, record() as second:
        pass
    asyncio.run(_async_recording())
    kept = {path.name for path in (tmp_path / "kept").iterdir()}
    assert kept == {"first-one-x.pcapng", f"{second.name}.pcapng", "async.pcapng"}
    assert load(tmp_path / "kept" / "first-one-x.pcapng") == first.capture


async def _async_recording() -> None:
    async with record("async"):
        pass


# ---- servers that it is told of


def test_a_tap_is_given_back_in_the_form_of_its_target(server: Server) -> None:
    host, port = server.server_address[:2]
    shown = f"[{host}]" if ":" in str(host) else host
    with record() as capture:
        taps: list[Any] = [
            capture.tap(target, client="script", server="web")
            for target in (
                f"http://{shown}:{port}/lab/?token=x#here",
                f"ws://me:secret@{shown}:{port}",
                f"{shown}:{port}",
                (str(host), int(port)),
            )
        ]
        ports = [int(re.findall(r":(\d+)", str(t).replace("', ", ":"))[-1]) for t in taps]
        assert taps == [
            f"http://{shown}:{ports[0]}/lab/?token=x#here",
            f"ws://me:secret@{shown}:{ports[1]}",
            f"{shown}:{ports[2]}",
            (host, ports[3]),
        ]
        assert len({*ports, port}) == 5
        for n in ports:
            assert get(str(host), n, "/where") == f"{shown}:{n} /where"
        server.server_close()
    assert {c.link for c in capture.connections} == {Link("script", "web", "http")}
    assert len(capture.trace().types("GET /where")) == 4


@IPV4
def test_localhost_keeps_its_name(server: Server) -> None:
    with record() as capture:
        url = capture.tap(
            f"http://localhost:{server.server_port}/", client="browser", server="server"
        )
        assert re.fullmatch(r"http://localhost:\d+/", url)
        port = int(url.rstrip("/").rpartition(":")[2])
        assert get("localhost", port) == f"localhost:{port} /"
        server.server_close()
    assert len(capture.connections) == 1


@pytest.mark.parametrize("target", ["http:///", "127.0.0.1", "ftp://127.0.0.1/"])
def test_a_target_without_a_port_is_an_error_that_shows_how_to_write_it(target: str) -> None:
    with record() as capture, pytest.raises(ValueError, match="write it like 'http://127"):
        capture.tap(target, client="a", server="b")


def test_a_port_can_be_asked_for_and_may_be_busy(eventually: Eventually) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy, record() as capture:
        port = busy.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port} already"):
            capture.tap("127.0.0.1:9", client="a", server="b", port=port)
        busy.close()
        assert capture.tap("127.0.0.1:9", client="a", server="b", port=port).endswith(f":{port}")


@IPV4
def test_a_tap_goes_on_after_the_recording_as_long_as_its_target_lives(
    server: Server, eventually: Eventually
) -> None:
    with record() as capture:
        _, port = capture.tap(("127.0.0.1", server.server_port), client="a", server="b")
        get("127.0.0.1", port, "/on-record")
    assert get("127.0.0.1", port, "/off-record").endswith("/off-record")
    assert [m.label for m in capture.trace()] == ["GET /on-record", "200 OK"]
    server.server_close()
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        get("127.0.0.1", port)
    eventually(lambda: not THREAD.running)


@IPV4
def test_nested_recordings_each_have_what_was_started_inside(server: Server) -> None:
    target = ("127.0.0.1", server.server_port)
    with record() as outer:
        first = outer.tap(target, client="first", server="server")
        with record() as inner:
            second = inner.tap(target, client="second", server="server")
            get(*first)
            get(*second)
        get(*first)
        get(*second)
        server.server_close()
    assert [c.link.client for c in inner.connections] == ["second"]
    assert [c.link.client for c in outer.connections] == ["first", "second", "first", "second"]


# ---- children


CHILD = """
from underhood import record
from underhood.capture.recording import KernelFile, Link, takers_for_kernel
from underhood.capture.tap import THREAD, now_ns

with record("in the child"):  # it ends first, and must not lose what an outer one waits for
    takers = takers_for_kernel("an-id", b"key")
    print(sorted(takers.values()), flush=True)
    (file,) = [taker for taker in takers if isinstance(taker, KernelFile)]

    async def tell():
        link = Link(takers[file], "kernel", "shell", "an-id")
        flow = file.opened(link, ("127.0.0.1", 1), ("127.0.0.1", 2), now_ns())
        flow.data(now_ns(), ">", b"hello")

    THREAD.run(tell)
    takers.close()
"""


def test_a_child_is_found_by_every_recording_that_was_active() -> None:
    with record() as outer:
        with record() as inner:
            result = subprocess.run(
                [sys.executable, "-c", CHILD],
                env={**os.environ, **environment(client="batch")},
                capture_output=True,
                text=True,
                check=True,
            )
        with record() as later:
            pass
    assert result.stdout == "['batch', 'client']\n"
    for recording in (inner, outer):
        assert [c.stream(">") for c in recording.connections] == [b"hello"]
        assert recording.connections[0].link.client == "batch"
        assert recording.keys == {"an-id": b"key"}
    assert later.connections == ()


def test_a_child_stops_to_write_when_the_recording_has_ended(
    tmp_path: Path, eventually: Eventually
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        file = KernelFile(tmp_path, "an-id", b"key")
        running = Tap(
            ("127.0.0.1", 0), [listener.getsockname()[:2]], {file: Link("a", "kernel", "shell")}
        )
        start(running)
        with socket.create_connection(running.address) as client:  # type: ignore[arg-type]
            server, _ = listener.accept()
            client.sendall(b"on record")
            assert server.recv(100) == b"on record"
            (path,) = tmp_path.glob("*.pcapng")
            eventually(lambda: load(path).connections)
            path.unlink()
            client.sendall(b"the file is gone")
            eventually(lambda: not running.links)
            client.sendall(b"!")
            assert server.recv(100) == b"the file is gone"
            assert server.recv(100) == b"!"
        file.close()
        stop(running, drain=0)
    assert not list(tmp_path.iterdir())


def test_a_kernel_can_end_where_the_disk_is_full(tmp_path: Path) -> None:
    script = """if True:
        import resource, sys, time
        from pathlib import Path
        from underhood.capture.recording import KernelFile
        from underhood.capture.store import Link
        from underhood.capture.tap import THREAD

        file = KernelFile(Path(sys.argv[1]), "an-id", b"key")
        async def tell():
            flow = file.opened(Link("a", "b", "shell"), ("127.0.0.1", 1), ("127.0.0.1", 2), 10**18)
            flow.data(10**18, ">", bytes(50_000))
        THREAD.run(tell)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        file.close()
        print(THREAD.running)
        """
    command = [sys.executable, "-c", script, str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True)
    assert (told.stdout, told.stderr) == ("False\n", "")
    (path,) = tmp_path.glob("*.pcapng")
    assert path.stat().st_size == 10_000
    assert "cut" in load(path).notes


def test_what_was_seen_stays_as_it_was_seen_while_children_talk() -> None:
    with record() as recording:
        child = KernelFile(Path(os.environ["UNDERHOOD_CAPTURE_DIR"]), "an-id", b"key")

        async def talk() -> None:
            flows = [
                sink.opened(Link(name, "b", "x"), ("127.0.0.1", 1), ("127.0.0.1", 2), now_ns())
                for sink, name in ((recording, "here"), (child, "there"))
            ]
            for _ in range(400):
                for flow in flows:
                    flow.data(now_ns(), ">", b"word")
                await asyncio.sleep(0.001)

        talking = threading.Thread(target=THREAD.run, args=(talk,))
        talking.start()
        looks: list[list[tuple[int, str]]] = [[]]
        while talking.is_alive():
            connections = recording.connections
            looks.append(sorted((x.time_ns, c.link.client) for c in connections for x in c.chunks))
        talking.join()
        child.close()
    assert len(looks) > 3
    for before, after in itertools.pairwise(looks):
        assert after[: len(before)] == before


def test_a_child_whose_clock_is_ahead_loses_nothing_in_the_end() -> None:
    with record() as recording:
        child = KernelFile(Path(os.environ["UNDERHOOD_CAPTURE_DIR"]), "an-id", b"key")

        async def tell() -> None:
            soon = now_ns() + 10**12
            flow = child.opened(Link("a", "b", "x"), ("127.0.0.1", 1), ("127.0.0.1", 2), now_ns())
            flow.data(soon, ">", b"from the future")

        THREAD.run(tell)
        assert [c.stream(">") for c in recording.connections] == [b""]
    assert [c.stream(">") for c in recording.connections] == [b"from the future"]
    child.close()


def test_a_folder_whose_path_is_too_long_for_a_socket_still_works(tmp_path: Path) -> None:
    folder = tmp_path / ("long " * 20) / ("longer " * 20)
    folder.mkdir(parents=True)
    file = KernelFile(folder, "an-id", b"key")
    try:
        (path,) = folder.glob("*.pcapng")

        async def tell() -> None:
            flow = file.opened(Link("a", "b", "shell"), ("127.0.0.1", 1), ("127.0.0.1", 2), 10**18)
            flow.data(10**18, ">", b"at once")

        THREAD.run(tell)
        assert load(path).connections[0].stream(">") == b"at once"
    finally:
        file.close()


def test_without_a_folder_nobody_takes_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERHOOD_CAPTURE_DIR", str(tmp_path / "removed long ago"))
    assert not takers_for_kernel("an-id", b"key")
    assert not THREAD.running


def test_a_forked_child_is_a_child_like_any_other() -> None:
    with record() as capture:
        folder = Path(capture.environment()["UNDERHOOD_CAPTURE_DIR"])
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert not active()
                takers = takers_for_kernel("an-id", b"key")
                assert [type(taker) for taker in takers] == [KernelFile]
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert len(list(folder.glob("*.pcapng"))) == 1
    assert capture.keys == {"an-id": b"key"}


# ---- kernels that bring their own provisioner


class OwnProvisioner(LocalProvisioner):
    """Somebody's own way to start kernels."""


@pytest.fixture
def own_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "kernels" / "special"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {
        "argv": argv,
        "display_name": "Special",
        "language": "python",
        "metadata": {"kernel_provisioner": {"provisioner_name": "local-provisioner"}},
    }
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    return "special"


def test_a_kernel_with_its_own_provisioner_is_not_silently_missed(own_spec: str) -> None:
    with record() as capture:
        manager = KernelManager(kernel_name=own_spec)
        with pytest.warns(
            NotCapturedWarning, match=r"'Special' brings its own provisioner \('local-provisioner'"
        ):
            manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        manager.shutdown_kernel(now=True)
    assert capture.connections == ()


@IPV4
def test_a_recording_with_a_server_says_which_kernels_could_be_missing(
    own_spec: str, server: Server
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with record():
            pass  # no server: nothing to say
    assert own_spec in KernelSpecManager().find_kernel_specs()
    with warnings.catch_warnings(record=True) as told, record() as capture:
        warnings.simplefilter("always")
        get(*capture.tap(("127.0.0.1", server.server_port), client="a", server="b"))
        server.server_close()
    (warning,) = [w for w in told if w.category is NotCapturedWarning]
    assert "own provisioner: special; if a server started one" in str(warning.message)


def test_a_kernel_that_does_not_listen_on_loopback_is_started_untapped_with_a_warning() -> None:
    with record() as capture:
        manager = KernelManager(ip="0.0.0.0")
        with pytest.warns(NotCapturedWarning, match="taps listen on loopback only"):
            manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        manager.shutdown_kernel(now=True)
    assert capture.connections == ()
    assert not THREAD.running


def test_detaching_where_no_tap_runs_does_nothing() -> None:
    detach(KernelFile)  # type: ignore[arg-type]
