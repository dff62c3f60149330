"""The actors come, work and go: again and again, in time, on loopback only, without a trace."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import psutil
import pytest
from contents import texts_in
from places import Place, Timed, repeatedly

from underhood import record
from underhood.capture.store import Capture
from underhood.stage import (
    Home,
    StartError,
    jupyter_server,
    jupyterhub,
    jupyterlab,
    notebook,
    web_page,
)
from underhood.stage.cells import run_cell
from underhood.stage.lab import FrontEnd
from underhood.stage.processes import free_ports
from underhood.stage.server import EXTENSIONS, request

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- server


@repeatedly
async def test_a_server_starts_a_kernel_and_stops(turn: int, timed: Timed) -> None:
    with timed("server"):
        async with record() as capture, jupyter_server() as server:
            started = await server.request("POST", "/api/kernels", {"name": "python3"})
            assert started.status == 201
            kernels = (await server.request("GET", "/api/kernels")).json()
            assert [kernel["id"] for kernel in kernels] == [started.json()["id"]]
            while not capture.trace().types("status"):
                await asyncio.sleep(0.05)
            stopped = await server.request("DELETE", f"/api/kernels/{kernels[0]['id']}")
            assert stopped.status == 204
            await server.request("POST", "/api/kernels", {"name": "python3"})
    assert not psutil.pid_exists(server.process.pid)
    assert "Shutting down 1 kernel" in server.log
    trace = capture.trace()
    assert trace.parties == ("client", "server", "kernel")
    asked = [m.label for m in trace.between("client", "server") if m.sender == "client"]
    assert asked[:2] == ["POST /api/kernels", "GET /api/kernels"]
    assert trace.between("server", "kernel").types("shutdown_request")


async def test_without_a_recording_a_server_is_reached_directly() -> None:
    async with jupyter_server() as server:
        assert server.url.endswith(f":{server.port}")
        assert (await server.request("GET", "/api/status")).status == 200


async def test_two_clients_of_one_server_are_told_apart() -> None:
    async with record() as capture, jupyter_server() as server:
        await server.request("GET", "/api")
        with socket.create_connection(
            ("127.0.0.1", int(server.url_for("telephone").rpartition(":")[2]))
        ) as line:
            line.sendall(b"GET /api HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            assert b"200 OK" in await asyncio.to_thread(line.recv, 1 << 16)
    assert {m.sender for m in capture.trace() if m.label == "GET /api"} == {"client", "telephone"}


async def test_a_server_refuses_who_has_no_token() -> None:
    async with jupyter_server() as server:
        answer = await server.request("GET", "/api/kernels", headers={"Authorization": "token no"})
        assert answer.status == 403


async def test_a_server_that_cannot_start_shows_its_log() -> None:
    with pytest.raises(StartError, match=r"(?s)exit code.*no-such-folder"):
        async with jupyter_server("--ServerApp.root_dir=/no-such-folder"):
            pytest.fail("it cannot have started")


async def test_a_server_loads_the_extensions_it_is_given_and_no_others() -> None:
    async with jupyter_server() as bare:
        assert (await bare.request("GET", "/lab")).status == 404
    async with jupyter_server(extensions=EXTENSIONS) as full:
        assert (await full.request("GET", "/lab")).status == 200
        assert (await full.request("GET", "/tree")).status == 200
        # Nor does a page get what belongs to a server extension that it was not given.
        page = (await full.request("GET", "/lab")).body.decode()
        assert "@jupyter-widgets/jupyterlab-manager" in page
        assert "nbdime" not in page


async def test_a_killed_server_is_noticed_and_leaves_nothing() -> None:
    async with jupyter_server() as server:
        await server.request("POST", "/api/kernels", {"name": "python3"})
        family = psutil.Process(server.process.pid).children(recursive=True)
        os.kill(server.process.pid, 9)
        assert await server.process.wait(5) == -9
        with pytest.raises(OSError, match=r"GET http://127.0.0.1:\d+/api: .*refused"):
            await server.request("GET", "/api")
    assert not [process for process in family if process.is_running()]


# ---------------------------------------------------------------------- front ends


@repeatedly
@pytest.mark.usefixtures("chromium_is_here")
@pytest.mark.parametrize("start", [jupyterlab, notebook])
async def test_a_front_end_runs_a_cell(
    start: Callable[[], object], turn: int, timed: Timed
) -> None:
    name = start.__name__
    with timed(name):
        async with record() as capture, start() as front_end:
            await front_end.open("demo.ipynb")
            await front_end.type("6 * 7")
            ran = await front_end.run()
            await front_end.save()
    assert ran.output == "42"
    assert ran.pressed_ns < ran.shown_ns < ran.painted_ns
    trace = capture.trace()
    assert trace.parties == ("browser", "server", "kernel")
    (request,) = trace.between("browser", "server").types("execute_request")
    hops = trace.hops(request.msg_id)
    assert [(h.message.sender, h.message.receiver) for h in hops] == [
        ("browser", "server"),
        ("server", "kernel"),
    ]
    # One clock: the key, the message on both hops, its result back, and the paint.
    (result,) = [
        m
        for m in trace.between("browser", "server").types("execute_result")
        if m.parent_id == request.msg_id
    ]
    moments = [ran.pressed_ns, *(h.message.time_ns for h in hops), result.time_ns, ran.painted_ns]
    assert moments == sorted(moments)


@pytest.mark.usefixtures("chromium_is_here")
async def test_what_the_browser_saw_is_what_passed_the_tap() -> None:
    async with record() as capture, jupyterlab(cached=False) as lab:
        await lab.open("demo.ipynb")
        await lab.type("print('hello')")
        await lab.run()
        await lab.ready()
    wire = capture.trace().between("browser", "server")
    by_wire = sorted(m.label for m in wire if m.sender == "browser" and m.protocol == "http")
    by_browser = sorted(
        f"{r.method} {r.path.partition('?')[0]}" for r in lab.network.requests if not r.from_cache
    )
    assert by_wire == by_browser
    assert len(by_wire) > 80
    # Frames, by what is in them: the browser's are unmasked, the tap's decoded from the wire.
    seen = [
        m.payload for m in wire if m.protocol in ("jupyter", "websocket") and m.label != "close"
    ]
    for frame in lab.network.frames:
        assert frame.payload in seen
    assert len(lab.network.frames) > 50


@pytest.mark.usefixtures("chromium_is_here")
async def test_the_browsers_clock_is_the_taps_clock() -> None:
    async with record() as capture, jupyterlab() as lab:
        await lab.open("demo.ipynb")
    wire = capture.trace().between("browser", "server").types("GET /lab/tree/demo.ipynb")
    first = lab.network.requests[0]
    # Sent before it passed the tap, which was before its answer had come.
    assert first.started_ns < wire[0].time_ns < first.answered_ns
    assert first.answered_ns - first.started_ns < 5e9


@pytest.mark.usefixtures("chromium_is_here")
async def test_a_cell_of_each_kind_of_outcome_is_waited_for() -> None:
    async with jupyterlab() as lab:
        await lab.open("demo.ipynb")
        for source, output in {
            "import time; time.sleep(0.5)": "",
            "print('late')": "late",
            "x = 1\nfor i in range(3):\n    x += i\nx": "4",
            "1 / 0": "ZeroDivisionError",
            "None": "",
        }.items():
            await lab.type(source)
            ran = await lab.run()
            assert output in ran.output
            assert bool(output) == bool(ran.output)
            assert bool(ran.shown_ns) == bool(output)
            assert ran.finished_ns > ran.pressed_ns


@pytest.mark.usefixtures("chromium_is_here")
async def test_a_cell_that_takes_too_long_is_given_up_and_can_be_interrupted() -> None:
    async with jupyterlab() as lab:
        await lab.open("demo.ipynb")
        await lab.type("import time; time.sleep(60)")
        with pytest.raises(TimeoutError, match="not run after 1 s"):
            await lab.run(timeout=1)
        await lab.command("notebook:interrupt-kernel")
        await lab.ready()
        await lab.type("'free again'")
        assert (await lab.run()).output == "'free again'"


@pytest.mark.usefixtures("chromium_is_here")
async def test_a_cell_that_gets_the_same_number_again_is_waited_for_too() -> None:
    async with jupyterlab() as lab:
        await lab.open("demo.ipynb", cells=["import os; os.getpid()"])
        first = await lab.run()
        await lab.page.evaluate(
            "() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"
        )
        await lab.ready()
        await lab.press("Escape")
        await lab.press("ArrowUp")
        again = await lab.run()
        assert await lab.page.locator(".jp-InputPrompt").first.inner_text() == "[1]:"
    assert again.output.isdigit()
    assert again.output != first.output
    assert again.pressed_ns > first.finished_ns


@pytest.mark.usefixtures("chromium_is_here")
async def test_a_kernel_that_dies_is_reported_in_the_pages_own_words() -> None:
    async with jupyterlab() as lab:
        await lab.open("demo.ipynb")
        await lab.type("import os; os._exit(1)")
        with pytest.raises(TimeoutError, match=r"not run after 8 s; the page says: .*died"):
            await lab.run(timeout=8)


@pytest.mark.usefixtures("chromium_is_here")
async def test_a_second_notebook_comes_to_the_front_and_the_first_again() -> None:
    async with jupyterlab() as lab:
        for name in ("one", "two"):
            await lab.open(f"{name}.ipynb", cells=[f"'in {name}'"])
            assert (await lab.run()).output == f"'in {name}'"
        await lab.open("one.ipynb")
        await lab.type("_")  # the last result of this kernel
        assert (await lab.run()).output == "'in one'"
        shown = (await lab.screenshot()).alternative
        assert "in one" in shown
        assert "in two" not in shown


@pytest.mark.usefixtures("chromium_is_here")
async def test_a_saved_notebook_holds_what_was_run() -> None:
    async with jupyter_server(extensions=EXTENSIONS) as server, jupyterlab(server=server) as lab:
        await lab.open("demo.ipynb", cells=["first = 1", "first + 1"])
        await lab.run()
        ran = await lab.run()
        await lab.save()
        saved = nbformat.read(server.notebooks / "demo.ipynb", as_version=4)
    assert ran.output == "2"
    assert [cell.source for cell in saved.cells][:2] == ["first = 1", "first + 1"]
    assert saved.cells[1].outputs[0].data["text/plain"] == "2"


@pytest.mark.usefixtures("chromium_is_here")
async def test_a_screenshot_shows_the_page_and_says_so_in_words() -> None:
    async with jupyterlab() as lab:
        await lab.open("demo.ipynb")
        await lab.type("'forty-two'")
        await lab.run()
        picture = await lab.screenshot()
    assert picture.png.startswith(b"\x89PNG")
    assert "demo.ipynb" in picture.alternative
    assert "forty-two" in picture.alternative
    shown = picture._repr_mimebundle_()["text/html"]
    assert 'width="1280" height="720"' in shown
    assert "forty-two" in shown


@pytest.mark.usefixtures("chromium_is_here")
async def test_the_browsers_own_network_tab_lists_what_was_seen_from_the_first_request_on() -> None:
    async with jupyterlab(tools=True) as lab:
        await lab.open("demo.ipynb")
        everything = await lab.network_tab()
        asked = await lab.network_tab("api/")
        chosen = await lab.network_tab("channels", "channels", "Headers")
        requests = [r for r in lab.network.requests if not r.path.startswith("data:")]
    shown, api = (
        int(re.search(r"(\d+) (?:/ \d+ )?requests", picture.alternative)[1])
        for picture in (everything, asked)
    )
    assert 0 < api < shown
    assert api <= sum("api/" in r.path for r in requests)
    assert "Headers of 'channels'" in chosen.alternative
    assert chosen.png != asked.png


@pytest.mark.usefixtures("chromium_is_here")
async def test_a_network_tab_that_was_not_open_says_so() -> None:
    async with jupyterlab() as lab:
        with pytest.raises(RuntimeError, match="while it is open"):
            await lab.network_tab()


@pytest.mark.usefixtures("chromium_is_here")
async def test_two_front_ends_share_a_server_and_are_told_apart() -> None:
    async with (
        record() as capture,
        jupyter_server(extensions=EXTENSIONS) as server,
        jupyterlab(server=server, client="Lab") as lab,
        notebook(server=server, client="Notebook") as classic,
    ):
        front_ends: list[FrontEnd] = [lab, classic]
        for number, front_end in enumerate(front_ends):
            await front_end.open(f"{number}.ipynb")
            await front_end.type("6 * 7")
            assert (await front_end.run()).output == "42"
    trace = capture.trace()
    assert {"Lab", "Notebook", "server", "kernel", "kernel 2"} == set(trace.parties)


@pytest.mark.usefixtures("chromium_is_here")
async def test_a_front_end_runs_another_kernel(tmp_path: Path) -> None:
    command = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Another", "language": "python"}
    (tmp_path / "kernel.json").write_text(json.dumps(spec))
    async with jupyterlab(kernels={"another": tmp_path}) as lab:
        await lab.open("demo.ipynb", cells=["6 * 7"], kernel="another")
        assert (await lab.run()).output == "42"
        shown = await lab.read(".jp-Toolbar-kernelName")
    assert shown == "Another"


PAGE = """<!doctype html><title>Own page</title>
<input id=who><button onclick="hello.textContent = 'Hello, ' + who.value">Greet</button>
<p id=hello></p>"""


@pytest.mark.usefixtures("chromium_is_here")
async def test_any_page_can_be_visited(tmp_path: Path) -> None:
    (tmp_path / "own.html").write_text(PAGE)
    async with Home() as home:
        (port,) = free_ports(1)
        served = [home.python, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
        child = await home.start(served, name="own server", folder=tmp_path)

        async def ready() -> bool:
            with contextlib.suppress(OSError):
                return (await request("HEAD", f"http://127.0.0.1:{port}/own.html")).status == 200
            return False

        await child.until(ready)
        url = f"http://127.0.0.1:{port}"
        async with record() as capture, web_page(url, server="own server") as page:
            await page.go("/own.html")
            await page.fill("#who", "Ada")
            await page.click("button")
            assert await page.read("#hello", containing="Ada") == "Hello, Ada"
            assert "Own page" in (await page.screenshot()).alternative
    assert capture.trace().parties == ("browser", "own server")
    assert capture.trace().types("GET /own.html")


# ---------------------------------------------------------------------- hub


@repeatedly
@pytest.mark.usefixtures("chromium_is_here", "hub_is_here")
async def test_a_hub_serves_two_users(turn: int, timed: Timed) -> None:
    with timed("hub with two users"):
        async with record() as capture, jupyterhub(users=["alice", "bob"]) as hub:
            assert list(await hub.routes()) == ["/"]
            alice, _ = await asyncio.gather(hub.log_in("alice"), hub.start_server("bob"))
            await alice.open("demo.ipynb")
            await alice.type("6 * 7")
            assert (await alice.run()).output == "42"
            assert list(await hub.routes()) == ["/", "/user/alice/", "/user/bob/"]
            token = (await hub.request("POST", "/hub/api/users/alice/tokens", {})).json()["token"]
            own = await hub.request("GET", "/user/alice/api/status", token=token)
            others = await hub.request("GET", "/user/bob/api/status", token=token)
            assert (own.status, others.status) == (200, 403)
            await hub.stop_server("bob")
            assert list(await hub.routes()) == ["/", "/user/alice/"]
    trace = capture.trace()
    assert {
        "client", "alice's browser", "proxy", "hub", "alice's server", "bob's server", "kernel",
    } == set(trace.parties)  # fmt: skip
    (request,) = trace.between("alice's browser", "proxy").types("execute_request")
    assert [h.message.receiver for h in trace.hops(request.msg_id)] == [
        "proxy",
        "alice's server",
        "kernel",
    ]
    assert trace.between("hub", "proxy").types("POST /api/routes/user/alice")
    assert trace.between("alice's server", "hub").types("GET /hub/api/user")
    # Who looks whether a server is up is the hub; the proxy only passes on, and says for whom.
    assert trace.between("hub", "alice's server").types("GET /user/alice/api")
    passed_on = trace.between("proxy", "alice's server").protocol("http")
    passed_on = passed_on.filter(lambda message: message.receiver == "alice's server")
    assert passed_on
    assert all("x-forwarded-for" in dict(message.headers) for message in passed_on)


@pytest.mark.usefixtures("hub_is_here")
async def test_who_is_in_does_not_notice_that_the_hub_is_frozen() -> None:
    async with jupyterhub(users=["alice"], browser=False) as hub:
        await hub.start_server("alice")
        assert (await hub.request("GET", "/user/alice/api/status")).status == 200
        await hub.freeze()
        assert psutil.Process(hub.process.pid).status() == psutil.STATUS_STOPPED
        assert (await hub.request("GET", "/user/alice/api/status")).status == 200
        await hub.wake()
        assert list(await hub.routes()) == ["/", "/user/alice/"]


@pytest.mark.usefixtures("hub_is_here")
async def test_a_users_server_that_has_forgotten_them_asks_the_hub_again() -> None:
    short_memory = ["--HubOAuth.cache_max_age=2"]
    async with (
        record() as capture,
        jupyterhub(users=["alice"], browser=False, arguments=short_memory) as hub,
    ):
        await hub.start_server("alice")
        for pause in (0, 0, 2.5):
            await asyncio.sleep(pause)
            await hub.request("GET", "/user/alice/api/status")
    assert len(capture.trace().types("GET /hub/api/user")) == 2


async def test_a_cell_runs_without_a_front_end() -> None:
    async with jupyter_server() as server:
        assert await run_cell(server.url, "1 / 0", token=server.token) == (
            "ZeroDivisionError: division by zero"
        )
        with pytest.raises(ConnectionError, match="started no kernel: 403 Forbidden"):
            await run_cell(server.url, "6 * 7", token="wrong")


@pytest.mark.usefixtures("hub_is_here")
async def test_a_hub_measures_the_memory_of_everybody_behind_it() -> None:
    async with jupyterhub(users=["alice", "bob"], browser=False) as hub:
        assert set(await hub.memory()) == {"hub", "proxy"}
        await hub.start_server("alice")
        assert set(await hub.memory()) == {"hub", "proxy", "alice's server"}
        assert await hub.run_cell("alice", "print('six'); 6 * 7") == "six\n42"
        memory = await hub.memory()
        assert set(memory) == {"hub", "proxy", "alice's server", "alice's kernels"}
        for held in memory.values():
            assert 1_000_000 < held["uss"] <= held["pss"] <= held["rss"]


@pytest.mark.usefixtures("hub_is_here")
async def test_who_is_no_user_cannot_log_in() -> None:
    async with jupyterhub(users=["alice"], browser=False) as hub:
        with pytest.raises(ValueError, match=r"'mallory' cannot log in: .*no browser"):
            await hub.log_in("mallory")
        assert (await hub.request("GET", "/hub/api/users", token="")).status == 403


async def test_a_users_name_is_checked() -> None:
    with pytest.raises(ValueError, match=r"'\.\./root' cannot be a user's name"):
        async with jupyterhub(users=["../root"]):
            pytest.fail("it cannot have started")


@pytest.mark.usefixtures("hub_is_here")
async def test_a_killed_hub_leaves_nothing() -> None:
    async with jupyterhub(users=["alice"], browser=False) as hub:
        await hub.start_server("alice")
        family = psutil.Process(hub.process.pid).children(recursive=True)
        assert family
        os.kill(hub.process.pid, 9)
        assert await hub.process.wait(5) == -9
    assert not [process for process in family if process.is_running()]
    assert not psutil.pid_exists(hub.proxy.pid)


# ---------------------------------------------------------------------- all of them


def listening(place: Place) -> list[tuple[str, str]]:
    found = []
    for process in place.processes():
        try:
            found += [
                (process.name(), connection.laddr.ip)
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
                or (connection.type == socket.SOCK_DGRAM and not connection.raddr)
            ]
        except (psutil.Error, OSError):
            continue
    return found


DOORS = """
import socket, sys
tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
tcp.bind(("127.0.0.2", 0))
udp.bind(("127.0.0.3", 0))
tcp.listen()
print("open", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere loopback has one address")
def test_a_door_at_another_address_would_be_found(place: Place) -> None:
    owner = place.owner(DOORS)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "open\n"
    assert {ip for _, ip in listening(place)} == {"127.0.0.2", "127.0.0.3"}


EVERYBODY = """
import asyncio, sys
from underhood import record
from underhood.stage import jupyter_server, jupyterhub, jupyterlab, notebook

async def up():
    print("up", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

async def main():
    async with record("neutral") as capture:
        async with jupyter_server() as server, jupyterlab() as lab, notebook() as classic:
            await server.request("POST", "/api/kernels", {"name": "python3"})
            for front_end in (lab, classic):
                await front_end.open("demo.ipynb")
                await front_end.type("import json; json.loads('{')")
                await front_end.run()
                await front_end.save()
            await up()
        async with jupyterhub(users=["alice"]) as hub:
            alice = await hub.log_in("alice")
            await alice.open("demo.ipynb")
            await alice.type("6 * 7")
            await alice.run()
            await up()
    capture.save(sys.argv[1], keys=True)

asyncio.run(main())
"""


@pytest.mark.usefixtures("chromium_is_here", "hub_is_here")
def test_actors_listen_on_loopback_only_and_captures_tell_nothing_of_this_machine(
    place: Place,
) -> None:
    home = place.folder / "Quetzalcoatl"
    home.mkdir()
    names = {"USER": "xochipilli", "LOGNAME": "xochipilli", "HOSTNAME": "tenochtitlan"}
    place.environment.update(names, HOME=str(home))
    file = home / "capture.pcapng"
    # A host name of its own, where the system lets us.
    renamed = ["unshare", "--uts", "sh", "-c", 'hostname tenochtitlan && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*renamed, "true"], check=False).returncode:
        renamed = []
    owner = place.owner(EVERYBODY, str(file), prefix=renamed)
    assert owner.stdin is not None
    assert owner.stdout is not None
    # First three servers with two browsers and three kernels, each behind five taps; then proxy
    # (2), hub, alice's server, her kernel, and their taps.
    for at_least in (33, 19):
        assert owner.stdout.readline() == "up\n", owner.communicate()[1]
        doors = listening(place)
        assert len(doors) >= at_least
        assert {ip for _, ip in doors} <= {"127.0.0.1", "::1"}, doors
        owner.stdin.write("on\n")
        owner.stdin.flush()
    _, errors = owner.communicate(timeout=60)
    assert (owner.returncode, errors) == (0, "")
    secrets = {
        *names.values(),
        "Quetzalcoatl",
        str(Path.cwd()),
        sys.prefix,
        sys.base_prefix,
    }
    if len(os.uname().nodename) > 5:  # a shorter one is found by chance
        secrets.add(os.uname().nodename)
    searched = [file.read_bytes(), *texts_in(Capture.load(file))]
    assert any(b'"serverRoot": "~/notebooks"' in text for text in searched)  # it looks inside
    assert not {secret for secret in secrets for text in searched if secret.encode() in text}
