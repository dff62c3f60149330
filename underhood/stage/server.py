"""A real Jupyter Server, tapped in front of its port, with its kernels tapped behind it.

Strategy: the server is a child in a neutral home and chooses its port itself; it is ready when it
has written the file that says which, and answers. Inside a ``record()`` a tap stands in front of
that port, one for each client that asks for a URL of its own, so that a picture can tell a browser
from a script. What the server's kernels say is captured in the server's process and joins the
recording when the server stops.

>>> async with record() as capture, jupyter_server() as server:
...     await server.request("GET", "/api/kernelspecs")
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from underhood.capture.recording import active, environment
from underhood.capture.store import Link
from underhood.capture.tap import Tap, start, stop
from underhood.stage.processes import HOST, Child, Home

EXTENSIONS: Final = (
    "jupyter_lsp",
    "jupyter_server_terminals",
    "jupyterlab",
    "notebook",
    "notebook_shim",
)
"""The server extensions that come with JupyterLab and Notebook, and are switched on by default."""

_PATIENCE_S: Final = 180.0
"""How long an answer may take, in seconds."""

_HALVES: Final = (
    "@jupyterlab",  # jupyterlab-mathjax3, which comes with jupyterlab-rise
    "@voila-dashboards",
    "ipyparallel-labextension",
    "jupyterlab-rise",
    "nbdime-jupyterlab",
)
"""The parts in the page of tools whose parts in the server are not among :data:`EXTENSIONS`.

Such a page would ask its server for what is not there.
"""


@dataclass(frozen=True, slots=True)
class Response:
    """What a server answered.

    Parameters
    ----------
    status, reason
        As in ``201`` and ``"Created"``.
    headers
        Their names as the server wrote them.
    body
        Decoded from its transfer and content codings.
    """

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body, read as JSON; None if there is none."""
        return json.loads(self.body) if self.body else None


class Server:
    """A Jupyter Server that runs.

    Attributes
    ----------
    token : str
        Its secret, made for this run.
    notebooks : Path
        The folder that it serves.
    process : Child
        Its process.
    port : int
        Where it listens, behind the taps.
    """

    def __init__(
        self, process: Child, port: int, token: str, notebooks: Path, client: str, taps: Taps
    ) -> None:
        self.process, self.token, self.notebooks = process, token, notebooks
        self.port, self._client, self._taps = port, client, taps
        self._urls: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Server at {self.url}, {self.process!r}>"

    @property
    def log(self) -> str:
        """What the server logged so far."""
        return self.process.log

    @property
    def url(self) -> str:
        """Where the client reaches it (inside a recording through a tap); no slash at its end."""
        return self.url_for(self._client)

    def url_for(self, client: str) -> str:
        """Return a URL for one more client, which pictures will call by this name."""
        if client not in self._urls:
            port = self._taps.before(self.port, client, "server")
            self._urls[client] = f"http://{HOST}:{port}"
        return self._urls[client]

    async def request(
        self, method: str, path: str, content: object = None, *, headers: Mapping[str, str] = {}
    ) -> Response:
        """Send an HTTP request, with the token, and return the answer, whatever its status.

        Parameters
        ----------
        method, path
            As in ``"POST"`` and ``"/api/sessions"``.
        content
            Sent as JSON; nothing is sent if None.
        headers
            Beside ``Authorization``.
        """
        return await request(
            method,
            self.url + path,
            content,
            headers={"Authorization": f"token {self.token}", **headers},
        )


@contextlib.asynccontextmanager
async def jupyter_server(
    *arguments: str,
    extensions: Sequence[str] = (),
    kernels: Mapping[str, Path] = {},
    client: str = "client",
    home: Home | None = None,
) -> AsyncIterator[Server]:
    """Run a Jupyter Server as long as the block runs.

    Parameters
    ----------
    arguments
        Command-line arguments beside those that make it private and quiet, as in
        ``"--ZMQChannelsWebsocketConnection.iopub_msg_rate_limit=10"``.
    extensions
        The server extensions to switch on (:data:`EXTENSIONS` is what comes with JupyterLab).
    kernels
        Kernelspecs beside ``python3``: for each name, the folder with its ``kernel.json``.
    client
        What pictures call the client of :attr:`Server.url`.
    home
        Where it lives; a home of its own by default.

    Raises
    ------
    StartError
        If it is not ready within a minute; with the end of its log.
    """
    async with contextlib.AsyncExitStack() as stack:
        if home is None:
            home = await stack.enter_async_context(Home())
        taps = Taps()
        stack.push_async_callback(taps.close)
        token = secrets.token_hex(16)
        for name, folder in kernels.items():
            data = Path(home.environment["JUPYTER_DATA_DIR"])
            shutil.copytree(folder, data / "kernels" / name)
        if "jupyterlab" in extensions:
            settle(Path(home.environment["JUPYTERLAB_SETTINGS_DIR"]))
            arguments = (*front_end_arguments(home), *arguments)
        process = await home.start(
            [
                *(home.python, "-m", "jupyter_server"),
                f"--ip={HOST}",
                "--port=0",
                "--no-browser",
                "--allow-root",
                f"--ServerApp.root_dir={home.notebooks}",
                f"--ServerApp.jpserver_extensions={dict.fromkeys(extensions, True)}",
                f"--KernelSpecManager.allowed_kernelspecs={ {'python3', *kernels}!r}",
                *arguments,
            ],
            name="Jupyter Server",
            environment={"JUPYTER_TOKEN": token, **environment("server")},
        )
        stack.push_async_callback(process.stop)
        place: dict[str, Any] = {}
        runtime = Path(home.environment["JUPYTER_RUNTIME_DIR"])

        async def ready() -> bool:
            nonlocal place
            # The file may not be there yet, or not be complete yet.
            with contextlib.suppress(OSError, ValueError):
                place = json.loads((runtime / f"jpserver-{process.pid}.json").read_text())
                return (await request("GET", f"{place['url']}api")).status == HTTPStatus.OK
            return False

        await process.until(ready)
        yield Server(process, place["port"], token, home.notebooks, client, taps)


def front_end_arguments(home: Home) -> tuple[str, ...]:
    """Return arguments for servers with front ends in ``home``.

    They give the pages a name for their own objects, which the stage asks for the truth, no
    half extensions, and Notebook the way through the home to its own files, of which its page
    tells.
    """
    extensions = _whole_extensions(home)
    arguments: tuple[str, ...] = (
        "--LabApp.expose_app_in_browser=True",
        "--JupyterNotebookApp.expose_app_in_browser=True",
        f"--LabApp.labextensions_path={extensions}",
        f"--JupyterNotebookApp.labextensions_path={extensions}",
    )
    spec = find_spec("notebook")
    if spec is not None and spec.origin is not None:
        place = home.neutral(Path(spec.origin).parent)
        arguments += (
            f"--JupyterNotebookApp.static_dir={place / 'static'}",
            f"--JupyterNotebookApp.templates_dir={place / 'templates'}",
        )
    return arguments


def _whole_extensions(home: Home) -> Path:
    """Return a folder in ``home`` with the installed extensions of pages, but for the halves."""
    folder = home.folder / "jupyter" / "labextensions"
    folder.mkdir(exist_ok=True)
    installed = home.neutral(Path(sys.prefix)) / "share" / "jupyter" / "labextensions"
    for extension in installed.iterdir():
        if extension.name not in _HALVES and not (folder / extension.name).exists():
            (folder / extension.name).symlink_to(extension)
    return folder


def settle(settings: Path) -> None:
    """Answer beforehand what JupyterLab would ask a new user, or ask the internet."""
    file = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True})
    )


class Taps:
    """The taps in front of an actor's ports: as many as there are clients to tell apart."""

    def __init__(self) -> None:
        self._taps: list[tuple[str, Tap]] = []

    def before(
        self,
        port: int,
        client: str,
        server: str,
        *,
        at: int = 0,
        channel: str = "http",
        kernel_id: str = "",
    ) -> int:
        """Put a tap in front of ``port``, if something is recording; return the port to use.

        Parameters
        ----------
        port
            Where ``server`` listens, or will.
        client, server
            The parties' names, as a diagram's lifelines will show them.
        at
            Where the tap listens; any free port by default.
        channel, kernel_id
            For a kernel's sockets: as in :class:`~underhood.capture.store.Link`.
        """
        if not active():
            return port
        link = Link(client, server, channel, kernel_id)
        new = Tap((HOST, at), [(HOST, port)], dict.fromkeys(active(), link))
        start(new)
        self._taps.append((client, new))
        return int(new.address[1])

    async def hung_up(self, client: str, *, patience: float = 3.0) -> None:
        """Wait until this client has no connection any more, at most ``patience`` seconds."""
        end = time.monotonic() + patience
        while any(tap.relays for who, tap in self._taps if who == client):
            if time.monotonic() > end:
                return
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Stop them, after their actors have ended."""
        await asyncio.to_thread(stop, *(tap for _, tap in self._taps))


@contextlib.asynccontextmanager
async def forwarded(port: int, *, at: int = 0) -> AsyncIterator[int]:
    """Yield another port by which ``port`` is reached as long as the block runs, unrecorded.

    Any free one, or ``at``.
    """
    tap = Tap((HOST, at), [(HOST, port)], {})
    start(tap)
    try:
        yield int(tap.address[1])
    finally:
        await asyncio.to_thread(stop, tap, drain=0.0)


async def request(
    method: str, url: str, content: object = None, *, headers: Mapping[str, str] = {}
) -> Response:
    """Send one HTTP request on a connection of its own; see :meth:`Server.request`.

    Raises
    ------
    OSError
        If there is no answer.
    """
    from tornado.httpclient import AsyncHTTPClient, HTTPError, HTTPRequest

    client = AsyncHTTPClient(force_instance=True)
    try:
        answer = await client.fetch(
            HTTPRequest(
                url,
                method,
                dict(headers),
                None if content is None else json.dumps(content),
                allow_nonstandard_methods=True,
                follow_redirects=False,
                # Some answers come only when a program has started.
                request_timeout=_PATIENCE_S,
            ),
            raise_error=False,
        )
    except (HTTPError, OSError) as error:
        raise ConnectionError(f"{method} {url}: {error}") from error
    finally:
        client.close()
    if answer.code == 599:  # tornado's own number for "no answer"
        raise ConnectionError(f"{method} {url}: {answer.reason}")
    return Response(answer.code, answer.reason, dict(answer.headers.get_all()), answer.body or b"")
