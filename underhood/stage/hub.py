"""A real JupyterHub with its real proxy, and a browser to log in with; tapped on every hop.

Strategy: the proxy and the hub are children in a neutral home, and the hub starts its users'
servers there. Who talks to whom goes by address, so a tap needs a port of its own for each pair
that a picture should tell apart: browser and script to the proxy, proxy to hub, hub to the
proxy's API, each user's server to the hub, proxy and hub to each user's server. Programs that
cannot choose their port get free ones from the stage; taps choose theirs.

>>> async with record() as capture, jupyterhub(users=["alice", "bob"]) as hub:
...     alice = await hub.log_in("alice")
...     await alice.open("demo.ipynb")
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from underhood.capture.recording import active, environment
from underhood.stage import guardian
from underhood.stage.browser import chromium
from underhood.stage.cells import run_cell
from underhood.stage.lab import FrontEnd, in_page
from underhood.stage.processes import HOST, Child, Home, StartError, free_ports
from underhood.stage.replay import MissingActor, on_stage
from underhood.stage.server import (
    EXTENSIONS,
    Response,
    Taps,
    forwarded,
    front_end_arguments,
    jupyter_server,
    request,
    settle,
)

_PROXY: Final = "configurable-http-proxy"

_PATIENCE_S: Final = 180.0
"""How long the hub, the proxy and each user's server may take to start, in seconds.

Where many start at once on few processors, a minute is not enough.
"""

_SCOPES: Final = ("admin:users", "admin:servers", "access:servers", "list:users", "proxy", "tokens")
"""What the holder of :attr:`Hub.token` may do: all that a course shows, on every user's behalf."""


_RUN_ALL: Final = """
import jupytext, nbclient, resource
notebook = jupytext.reads({text!r}, fmt="md:myst")
await nbclient.NotebookClient(notebook, timeout=300).async_execute()
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""


class Hub:
    """A JupyterHub that runs.

    Attributes
    ----------
    url : str
        Where a script reaches the proxy, and through it the hub and all servers.
    users : tuple of str
        Who may log in.
    password : str
        Everybody's password, made for this run.
    token : str
        The secret of a service that may do everything, made for this run.
    process, proxy : Child
        The hub's process and the proxy's.
    """

    TOLD: ClassVar = ("url", "users", "password", "token", "log")

    def __init__(
        self,
        url: str,
        users: tuple[str, ...],
        password: str,
        token: str,
        process: Child,
        proxy: Child,
        visitors: _Visitors | None,
        ports: tuple[int, int],
        taps: Taps,
    ) -> None:
        self.url, self.users = url, users
        self.password, self.token = password, token
        self.process, self.proxy = process, proxy
        self._visitors, self._ports, self._taps = visitors, ports, taps

    def __repr__(self) -> str:
        return f"<Hub at {self.url}, {len(self.users)} users, {self.process!r}>"

    @property
    def log(self) -> str:
        """What the hub and its users' servers logged so far."""
        return self.process.log

    async def request(
        self,
        method: str,
        path: str,
        content: object = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] = {},
    ) -> Response:
        """Send an HTTP request to the proxy and return the answer, whatever its status.

        Parameters
        ----------
        method, path
            As in ``"GET"`` and ``"/hub/api/users"`` or ``"/user/alice/api/status"``.
        content
            Sent as JSON; nothing is sent if None.
        token
            Instead of :attr:`token`; none is sent if it is empty.
        headers
            Beside ``Authorization``.
        """
        token = self.token if token is None else token
        secret = {"Authorization": f"token {token}"} if token else {}
        return await request(method, self.url + path, content, headers={**secret, **headers})

    async def log_in(self, user: str) -> FrontEnd:
        """Log a user in with the browser, and wait until JupyterLab stands before them.

        It lasts until the user's server is stopped, or the hub.

        Raises
        ------
        ValueError
            If the hub was started without a browser, or does not know the user.
        """
        if user not in self.users or self._visitors is None:
            who = " and ".join(self.users)
            raise ValueError(
                f"{user!r} cannot log in: "
                + (f"the users are {who}" if self._visitors else "the hub has no browser")
            )
        public, hub = self._ports
        lab, at = await self._visitors.come(user)
        if at:  # then for the hub's own pages as well
            async with forwarded(hub, at=at):
                await lab.page.goto(f"http://{HOST}:{at}/hub/login")
                await lab.forget()
        at = self._taps.before(public, f"{user}'s browser", "proxy", at=at)
        lab.base = f"http://{HOST}:{at}/user/{user}"
        await lab.page.goto(f"http://{HOST}:{at}")
        await lab.page.fill("#username_input", user)
        await lab.page.fill("#password_input", self.password)
        await lab.page.click("#login_submit")
        await lab.page.wait_for_function("() => window.jupyterapp?.restored.then(() => true)")
        lab.loaded = True
        return lab

    async def start_server(self, user: str) -> None:
        """Have the hub start a user's server, and follow its progress until it is ready.

        Raises
        ------
        StartError
            If it does not get ready.
        """
        answer = await self.request("POST", f"/hub/api/users/{user}/server")
        if answer.status not in (201, 202):
            raise StartError(f"the hub did not start {user}'s server: {answer.body.decode()}")
        # Server-sent events, until the server is ready or has failed.
        path = f"/hub/api/users/{user}/server/progress"
        progress = (await self.request("GET", path)).body.decode()
        events = [json.loads(data) for data in re.findall(r"^data: *(.+)$", progress, re.M)]
        if not any(event.get("ready") for event in events):
            raise self.process.failure(f"{user}'s server did not get ready: {progress.strip()}")

    async def stop_server(self, user: str) -> None:
        """Have the hub stop a user's server, and wait until it is gone.

        If the user is there with the browser, they leave before: a page goes on asking.
        """
        if self._visitors is not None:
            await self._visitors.leave(user)
        await self.request("DELETE", f"/hub/api/users/{user}/server")

        async def gone() -> bool:
            return not (await self.request("GET", f"/hub/api/users/{user}")).json()["servers"]

        await self.process.until(gone, timeout=_PATIENCE_S, every=0.2)

    async def run_cell(self, user: str, code: str) -> str:
        """Start a kernel on a user's server, run code in it, and return the output as text.

        The kernel stays; see :func:`underhood.stage.cells.run_cell`.
        """
        return await run_cell(f"{self.url}/user/{user}", code, token=self.token)

    async def measure_notebook(self, user: str, path: str) -> tuple[float, float]:
        """Run a notebook of this machine on a user's server, and measure what it takes.

        Parameters
        ----------
        user
            Somebody whose server runs.
        path
            Where it lies, in text form (MyST Markdown); from the working directory.

        Returns
        -------
        memory
            The most that the user's server and all that it started held at a time, in bytes (the
            sum of ``pss``; see :meth:`memory`).
        processor
            The time that the notebook's processes took of the processors, in seconds.
        """

        held = [0]

        async def watch() -> None:
            while True:
                memory = await self.memory()
                mine = (b["pss"] for who, b in memory.items() if who.startswith(f"{user}'s "))
                held.append(sum(mine))
                await asyncio.sleep(0.3)

        watcher = asyncio.create_task(watch())
        try:
            said = await self.run_cell(user, _RUN_ALL.format(text=Path(path).read_text()))
        finally:
            watcher.cancel()
        return max(held), float(said.split()[-1])

    async def freeze(self) -> None:
        """Stop the hub in the middle of whatever it does, as an overloaded host would."""
        import psutil

        self.process.signal(signal.SIGSTOP)

        async def stopped() -> bool:
            return bool(psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED)

        await self.process.until(stopped)

    async def wake(self) -> None:
        """Let the frozen hub go on."""
        self.process.signal(signal.SIGCONT)

    async def memory(self) -> dict[str, dict[str, int]]:
        """Measure the memory of everybody on the stage but the browser, in bytes.

        Returns
        -------
        dict
            For ``"hub"``, ``"proxy"`` and, while they run, ``"alice's server"`` and ``"alice's
            kernels"``: ``rss``, all that is resident; ``pss``, where what several processes share
            is divided among them; ``uss``, what no other process shares. Where the system does
            not tell ``pss`` (macOS), ``uss`` stands for it.
        """
        return await asyncio.to_thread(self._memory)

    def _memory(self) -> dict[str, dict[str, int]]:
        import psutil

        def held(*processes: psutil.Process) -> dict[str, int]:
            infos = []
            for process in processes:
                with contextlib.suppress(psutil.Error):  # it may have ended just now
                    infos.append(process.memory_full_info())
            return {
                "rss": sum(info.rss for info in infos),
                "pss": sum(getattr(info, "pss", info.uss) for info in infos),
                "uss": sum(info.uss for info in infos),
            }

        hub = psutil.Process(self.process.pid)
        found = {"hub": held(hub), "proxy": held(psutil.Process(self.proxy.pid))}
        for server in hub.children():
            with contextlib.suppress(psutil.Error):
                if user := server.environ().get("JUPYTERHUB_USER"):
                    found[f"{user}'s server"] = held(server)
                    if kernels := server.children(recursive=True):
                        found[f"{user}'s kernels"] = held(*kernels)
        return dict(sorted(found.items()))

    async def routes(self) -> dict[str, str]:
        """Ask the hub for the proxy's routing table: from path to target."""
        table = (await self.request("GET", "/hub/api/proxy")).json()
        return {path: route["target"] for path, route in sorted(table.items())}


class _Visitors:
    """The browser, in which each user gets a page, after a first visit that nobody recorded.

    A first visit takes as long as the hub takes to start; so the first user's is made meanwhile.

    Parameters
    ----------
    home
        Where the browser and the servers of first visits live.
    folders
        For each user, the folder that their server serves.
    cached
        Whether there are first visits.
    taps
        Those in front of the actors' ports.
    """

    def __init__(self, home: Home, folders: Mapping[str, Path], cached: bool, taps: Taps) -> None:
        self._home, self._folders, self._cached, self._taps = home, folders, cached, taps
        self._stack = contextlib.AsyncExitStack()
        self._coming: dict[str, asyncio.Task[tuple[FrontEnd, int]]] = {}
        self._here: dict[str, list[FrontEnd]] = {}

    async def start(self, first: str) -> None:
        """Start the browser, and begin the first user's first visit."""
        self._browser = await self._stack.enter_async_context(chromium(self._home))
        self._coming[first] = asyncio.create_task(self._visit(first))

    async def come(self, user: str) -> tuple[FrontEnd, int]:
        """Give a user a page; return it with the port of the first visit, 0 without one."""
        coming = self._coming.pop(user, None)
        page, at = await (coming or self._visit(user))
        self._here.setdefault(user, []).append(page)
        return page, at

    async def leave(self, user: str) -> None:
        """Close a user's pages, and wait until their servers know."""
        from playwright.async_api import Error

        for front_end in self._here.pop(user, []):
            with contextlib.suppress(Error):  # somebody killed the browser
                await front_end.page.context.close()
        await self._taps.hung_up(f"{user}'s browser")

    async def stop(self) -> None:
        """Close everybody's pages and end the browser."""
        for task in self._coming.values():
            task.cancel()
        await asyncio.gather(*self._coming.values(), return_exceptions=True)
        await asyncio.gather(*(self.leave(user) for user in self._folders))
        await self._stack.aclose()

    async def _visit(self, user: str) -> tuple[FrontEnd, int]:
        page = in_page("JupyterLab", self._browser, "", self._folders[user])
        lab = await self._stack.enter_async_context(page)
        if not (self._cached and active()):
            return lab, 0
        # A server of the same name and address.
        base_url = f"--ServerApp.base_url=/user/{user}/"
        server_is_up = jupyter_server(base_url, extensions=EXTENSIONS, home=self._home)
        async with server_is_up as server, forwarded(server.port) as at:
            await lab.fill_cache(f"http://{HOST}:{at}/user/{user}", server.token)
        return lab, at


@contextlib.asynccontextmanager
async def jupyterhub(
    users: Sequence[str] = ("alice", "bob"),
    *,
    browser: bool = True,
    cached: bool = True,
    arguments: Sequence[str] = (),
) -> AsyncIterator[Hub]:
    """Run a JupyterHub with its proxy, and a browser, as long as the block runs.

    Parameters
    ----------
    users
        Who may log in (small letters and digits).
    browser
        Whether a browser is wanted.
    cached
        Whether the browser has the hub's and JupyterLab's files (9 MB) already when a user logs
        in, as on any day but the first; the visit before this one is not recorded.
    arguments
        Command-line arguments for each user's server, as in ``"--HubOAuth.cache_max_age=1"``.

    Raises
    ------
    ValueError
        If a name is not made of small letters and digits.
    MissingActor
        If JupyterHub, the proxy, Node.js or the browser is missing.
    StartError
        If the proxy or the hub does not start.
    """
    for user in users:
        if not re.fullmatch(r"[a-z][a-z0-9]*", user):
            raise ValueError(f"{user!r} cannot be a user's name: use small letters and digits")
    async with on_stage(Hub, _hub(users, browser, cached, arguments)) as hub:
        yield hub


@contextlib.asynccontextmanager
async def _hub(
    users: Sequence[str], browser: bool, cached: bool, arguments: Sequence[str]
) -> AsyncIterator[Hub]:
    proxy_command = find_proxy()
    async with contextlib.AsyncExitStack() as stack:
        home = await stack.enter_async_context(Home())
        folders = {user: home.folder / "users" / user for user in users}
        for folder in folders.values():
            folder.mkdir(mode=0o700, parents=True)
        password, token, proxy_token = (secrets.token_hex(16) for _ in range(3))
        public, api, hub_port, *user_ports = free_ports(3 + len(users))

        taps = Taps()
        stack.push_async_callback(taps.close)
        visitors = _Visitors(home, folders, cached, taps) if browser else None
        # Everybody on the stage, and the port by which they reach each other.
        hub_for_proxy = f"http://{HOST}:{taps.before(hub_port, 'proxy', 'hub')}"
        url = f"http://{HOST}:{taps.before(public, 'client', 'proxy')}"
        api_for_hub = f"http://{HOST}:{taps.before(api, 'hub', 'proxy')}"

        async def routes() -> Any:
            headers = {"Authorization": f"token {proxy_token}"}
            with contextlib.suppress(OSError):
                return (
                    await request("GET", f"http://{HOST}:{api}/api/routes", headers=headers)
                ).json()

        async def proxy_ready() -> bool:
            return await routes() is not None

        async def hub_ready() -> bool:
            # Its last step is to tell the proxy where to find it.
            return bool(await routes())

        async def start_programs() -> tuple[Child, Child]:
            proxy = await home.start(
                [
                    *proxy_command,
                    *("--ip", HOST, "--port", str(public)),
                    *("--api-ip", HOST, "--api-port", str(api)),
                    *("--error-target", f"{hub_for_proxy}/hub/error"),
                ],
                name="configurable-http-proxy",
                environment={"CONFIGPROXY_AUTH_TOKEN": proxy_token},
            )
            stack.push_async_callback(proxy.stop)
            await proxy.until(proxy_ready, timeout=_PATIENCE_S)
            command = [home.python, "-m", "jupyterhub", "-f", str(configuration)]
            hub = await home.start(command, name="JupyterHub")
            stack.push_async_callback(hub.stop, 15.0)
            await hub.until(hub_ready, timeout=_PATIENCE_S)
            return proxy, hub

        places: dict[str, dict[str, Any]] = {}
        doors: dict[str, str] = {}
        for user, port in zip(users, user_ports, strict=True):
            server = f"{user}'s server"
            hubs, proxys = (taps.before(port, who, server) for who in ("hub", "proxy"))
            doors[f"http://{HOST}:{hubs}"] = f"http://{HOST}:{proxys}"
            places[user] = {
                "port": port,
                "address": hubs,
                "hub": f"http://{HOST}:{taps.before(hub_port, server, 'hub')}",
                "environment": {
                    **_users_environment(home, folders[user]),
                    **environment(server),
                },
            }
        settings: dict[str, dict[str, Any]] = {
            "JupyterHub": {
                "authenticator_class": "shared-password",
                "bind_url": url,
                "cleanup_proxy": True,
                "cleanup_servers": True,
                "cookie_secret_file": str(home.folder / "jupyter" / "cookie_secret"),
                "db_url": "sqlite:///:memory:",  # a disk takes its time over each of many changes
                "hub_bind_url": f"http://{HOST}:{hub_port}",
                "hub_connect_url": hub_for_proxy,
                "proxy_class": "underhood.stage.spawner.StageProxy",
                "load_roles": [{"name": "course", "scopes": list(_SCOPES), "services": ["course"]}],
                "services": [{"name": "course", "api_token": token}],
                "spawner_class": "underhood.stage.spawner.StageSpawner",
            },
            "SharedPasswordAuthenticator": {"user_password": password},
            "Authenticator": {"allowed_users": set(users)},
            "ConfigurableHTTPProxy": {
                "api_url": api_for_hub,
                "auth_token": proxy_token,
                "should_start": False,
            },
            "StageProxy": {"doors": doors},
            "StageSpawner": {
                "args": [
                    "--allow-root",
                    f"--ServerApp.jpserver_extensions={dict.fromkeys(EXTENSIONS, True)}",
                    *front_end_arguments(home),
                    *arguments,
                ],
                "cmd": [home.python, "-m", "jupyterhub.singleuser"],
                "home_dir_template": str(home.folder / "users" / "{username}"),
                "http_timeout": int(_PATIENCE_S),
                "ip": HOST,
                "places": places,
                "start_timeout": int(_PATIENCE_S),
            },
        }
        configuration = home.folder / "jupyter" / "jupyterhub_config.py"
        configuration.touch(0o600)
        configuration.write_text(
            "".join(
                f"c.{section}.{name} = {value!r}\n"
                for section, values in settings.items()
                for name, value in values.items()
            )
        )
        try:
            # Together, because each takes seconds.
            try:
                async with asyncio.TaskGroup() as group:
                    programs = group.create_task(start_programs())
                    if visitors is not None:
                        group.create_task(visitors.start(users[0]))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            proxy, process = programs.result()
            ports = public, hub_port
            yield Hub(url, tuple(users), password, token, process, proxy, visitors, ports, taps)
        finally:
            if visitors is not None:  # before their servers end: a page goes on asking
                await visitors.stop()


def find_proxy() -> tuple[str, ...]:
    """Find the command of JupyterHub's proxy, as ``npm ci`` installs it, or npm globally.

    Raises
    ------
    MissingActor
        If JupyterHub, the proxy or Node.js is missing.
    """
    from importlib.util import find_spec

    if find_spec("jupyterhub") is None:
        raise MissingActor("JupyterHub is missing: pip install jupyterhub")
    node = shutil.which("node")
    if node is None:
        raise MissingActor("Node.js, which runs JupyterHub's proxy, is not on the path")
    here = Path(__file__).resolve()
    for folder in (*here.parents, *Path.cwd().resolve().parents, Path.cwd()):
        script = folder / "node_modules" / _PROXY / "bin" / _PROXY
        if script.exists():
            return node, str(script)
    # A program of the same name on PyPI drops the WebSocket subprotocol: only Node's will do.
    if (found := shutil.which(_PROXY)) and b"node" in Path(found).read_bytes()[:80]:
        return node, found
    raise MissingActor(f"{_PROXY}, JupyterHub's proxy, is missing: run `npm ci` in the project")


def _users_environment(home: Home, folder: Path) -> dict[str, str]:
    """Return what a user's server finds in its environment: its own folders, not the stage's."""
    settings = folder / ".settings"
    settle(settings)
    shared = ("JUPYTERLAB_DIR", "JUPYTER_NO_CONFIG", "PS1", "SHELL", "TMPDIR", "TZ")
    return {
        **{name: home.environment[name] for name in shared},
        guardian.MARK: home.environment[guardian.MARK],
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces"),
        "LOGNAME": folder.name,
        "USERNAME": folder.name,
    }
