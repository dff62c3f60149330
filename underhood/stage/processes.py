"""Children in a neutral home: processes that know nothing of this machine and never outlive us.

Strategy: a :class:`Home` is a temporary folder with everything that a Jupyter program looks for
(home, configuration, data, runtime, notebooks …), an environment built from nothing but those
folders and a fixed user name, and a guardian process that owns the children (see
:mod:`underhood.stage.guardian`). Python itself is reached through links inside the home (see
:mod:`underhood.stage.neutral`), so that no path of this machine stands in what the children say,
and a capture can be published as it is.

>>> async with Home() as home:
...     child = await home.start(["jupyter-server", "--port=0"], name="server")
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from underhood.capture.provisioner import PORTS
from underhood.stage import guardian
from underhood.stage.neutral import NeutralPython, neutral_folder

USER: Final = "jovyan"
"""Everybody's user name on the stage: the one that Jupyter's own container images use."""

HOST: Final = "127.0.0.1"
"""The only address that anything on the stage listens on."""

_KEPT: Final = ("DYLD_LIBRARY_PATH", "LD_LIBRARY_PATH", "PYTHONPATH")
"""Variables without which Python may not find its parts; all others stay outside."""

_SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
"""Where children find programs, after those of our own Python."""

_LOG_LINES: Final = 40
"""How many lines of a log an error shows."""


class StartError(RuntimeError):
    """An actor did not start; the message ends with the end of its log."""


class Child:
    """A process in a home.

    Attributes
    ----------
    name : str
        What it is, as errors call it.
    pid : int
        Its process id; it leads a process group of its own.
    """

    def __init__(self, home: Home, number: int, name: str, log: Path) -> None:
        self.name, self.pid = name, 0
        self._home, self._number, self._log = home, number, log
        self._last_log = ""
        self._started: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._ended: concurrent.futures.Future[int] = concurrent.futures.Future()

    def __repr__(self) -> str:
        state = "running" if self.returncode is None else f"ended with {self.returncode}"
        return f"<Child {self.name}, process {self.pid}, {state}>"

    @property
    def returncode(self) -> int | None:
        """Its exit code (negative: the signal that ended it); None while it runs."""
        return self._ended.result() if self._ended.done() else None

    @property
    def log(self) -> str:
        """What it wrote to its standard output and error so far."""
        with contextlib.suppress(OSError):  # the home is gone: the log was read before
            self._last_log = self._log.read_text(errors="replace")
        return self._last_log

    async def wait(self, timeout: float | None = None) -> int | None:
        """Wait until it ends, at most ``timeout`` seconds; return :attr:`returncode`."""
        await asyncio.wait({asyncio.wrap_future(self._ended)}, timeout=timeout)
        return self.returncode

    async def until(
        self, ready: Callable[[], Awaitable[bool]], *, timeout: float = 60.0, every: float = 0.03
    ) -> None:
        """Wait until ``ready()`` says that it has started.

        Parameters
        ----------
        ready
            Asked again and again.
        timeout, every
            How long to go on, and how long to wait between two questions, in seconds.

        Raises
        ------
        StartError
            If it ended before, or is not ready in time; with the end of its log.
        """
        end = time.monotonic() + timeout
        while not await ready():
            if self.returncode is not None:
                raise self.failure(f"it ended with exit code {self.returncode}")
            if time.monotonic() > end:
                raise self.failure(f"it was not ready after {timeout:g} s")
            await asyncio.sleep(every)

    def failure(self, why: str) -> StartError:
        """Return the error that says why it did not start, with the end of its log."""
        lines = self.log.splitlines()[-_LOG_LINES:]
        said = "\n".join(f"    {line}" for line in lines) or "    (nothing)"
        return StartError(f"{self.name} did not start: {why}. The end of its log:\n{said}")

    def signal(self, number: int) -> None:
        """Send a signal to it and to the processes of its group."""
        self._home._order(signal=self._number, number=number)

    async def stop(self, grace: float = 5.0) -> None:
        """End it: ask (SIGTERM), and insist (SIGKILL) after ``grace`` seconds."""
        if self.returncode is None:
            self.signal(signal.SIGTERM)
            if await self.wait(grace) is None:
                self.signal(signal.SIGKILL)
                await self.wait(grace)
        _ = self.log  # keep it beyond the home


class Home:
    """A neutral home for actors; at its end nothing of it is left, neither process nor file.

    Attributes
    ----------
    folder : Path
        The temporary folder that holds everything.
    notebooks : Path
        Where servers find their documents; empty at first.
    python : str
        The running Python, by a path that tells nothing of this machine.
    neutral : callable
        From a path within this Python to the same by way of the home; others stay as they are.
    environment : dict of str to str
        What children find in their environment.
    """

    def __init__(self) -> None:
        self._mark = secrets.token_hex(8)
        self._children: dict[int, Child] = {}
        self._lock = threading.Lock()
        self._forsaken = False  # the guardian has ended

    async def __aenter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="underhood-stage-", dir=neutral_folder()))
        try:
            self._furnish()
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", guardian.__file__, self._mark, str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            guardian.remove(self.folder)
            raise
        threading.Thread(target=self._listen, name="underhood home", daemon=True).start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _furnish(self) -> None:
        place = self.folder
        user, jupyter = place / "home", place / "jupyter"
        self.notebooks = user / "notebooks"
        folders = {
            "HOME": user,
            "IPYTHONDIR": place / "ipython",
            "JUPYTERLAB_SETTINGS_DIR": jupyter / "settings",
            "JUPYTERLAB_WORKSPACES_DIR": jupyter / "workspaces",
            "JUPYTER_CONFIG_DIR": jupyter / "config",
            "JUPYTER_DATA_DIR": jupyter / "data",
            "JUPYTER_RUNTIME_DIR": jupyter / "runtime",
            "TMPDIR": place / "tmp",
            "XDG_CACHE_HOME": user / ".cache",
            "XDG_CONFIG_HOME": user / ".config",
            "XDG_DATA_HOME": user / ".local" / "share",
            "XDG_RUNTIME_DIR": place / "run",
        }
        for folder in (*folders.values(), self.notebooks, place / "logs"):
            folder.mkdir(mode=0o700, parents=True)
        neutral = NeutralPython(place)
        prefix, self.python, self.neutral = neutral.prefix, neutral.executable, neutral.path
        # JupyterLab resolves links in its folder's own path, but not in what lies inside.
        lab = jupyter / "lab"
        (lab / "settings").mkdir(parents=True)
        for part in ("schemas", "static", "themes"):
            (lab / part).symlink_to(prefix / "share" / "jupyter" / "lab" / part)
        self.environment = {
            "JUPYTERLAB_DIR": str(lab),
            **{name: os.environ[name] for name in _KEPT if name in os.environ},
            **{name: str(folder) for name, folder in folders.items()},
            **dict.fromkeys(("USER", "LOGNAME", "USERNAME"), USER),
            "LANG": "C.UTF-8",
            "PATH": f"{prefix / 'bin'}:{_SYSTEM_PATH}",
            "PS1": "$ ",  # a terminal's prompt would tell user and host name
            "SHELL": "/bin/sh",
            "TZ": "UTC",
            # The configuration of this machine stays outside: actors get theirs by arguments.
            "JUPYTER_NO_CONFIG": "1",
            guardian.MARK: self._mark,
        }

    async def start(
        self,
        command: Sequence[str],
        *,
        name: str,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> Child:
        """Start a process in this home.

        Parameters
        ----------
        command
            The program and its arguments.
        name
            What errors and the log's file call it.
        environment
            Variables beside those of the home.
        folder
            Its working folder; :attr:`notebooks` by default.

        Raises
        ------
        StartError
            If the program could not be executed.
        """
        with self._lock:
            number = len(self._children) + 1
            log = self.folder / "logs" / f"{number}-{name.replace(' ', '-')}.log"
            child = Child(self, number, name, log)
            if self._forsaken:
                raise child.failure("its guardian process has ended")
            self._children[number] = child
        self._order(
            start=number,
            command=list(command),
            environment={**self.environment, **(environment or {})},
            folder=str(folder or self.notebooks),
            log=str(log),
        )
        child.pid = await asyncio.shield(asyncio.wrap_future(child._started))
        return child

    async def close(self) -> None:
        """End the children, the last first, and everything they started; remove the folder."""
        try:
            for child in reversed(self._children.values()):
                await child.stop()
        finally:
            # From here the guardian does the rest, even if we are cancelled or killed.
            with contextlib.suppress(OSError):
                assert self._guardian.stdin is not None
                self._guardian.stdin.close()
            await asyncio.to_thread(self._finish)

    def _finish(self) -> None:
        try:
            ended_well = self._guardian.wait(10) == 0
        except subprocess.TimeoutExpired:
            self._guardian.kill()
            self._guardian.wait()
            ended_well = False
        if not ended_well:  # somebody killed it: its work is ours
            guardian.sweep(self._mark)
            guardian.remove(self.folder)

    # ---- the conversation with the guardian

    def _order(self, **order: object) -> None:
        assert self._guardian.stdin is not None
        with self._lock, contextlib.suppress(OSError, ValueError):  # _listen sees its end
            self._guardian.stdin.write(json.dumps(order).encode() + b"\n")
            self._guardian.stdin.flush()

    def _listen(self) -> None:
        assert self._guardian.stdout is not None
        with self._guardian.stdout as lines:
            for line in lines:
                self._hear(json.loads(line))
        with self._lock:
            self._forsaken = True
            children = list(self._children.values())
        for child in children:
            if not child._started.done():
                child._started.set_exception(child.failure("its guardian process has ended"))
            if not child._ended.done():
                child._ended.set_result(-signal.SIGTERM)  # Linux sent it on the guardian's death

    def _hear(self, fact: dict[str, Any]) -> None:
        if "started" in fact:
            self._children[fact["started"]]._started.set_result(fact["pid"])
        elif "failed" in fact:
            child = self._children[fact["failed"]]
            child._ended.set_result(127)  # as a shell says of a command it cannot run
            child._started.set_exception(child.failure(fact["why"]))
        elif "ended" in fact:
            self._children[fact["ended"]]._ended.set_result(fact["status"])


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on, for programs that cannot choose one themselves.

    They lie below the range from which systems take the ports of outgoing connections, so that
    none is taken by chance before its program listens.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = PORTS.start + secrets.randbelow(len(PORTS))
        # Without SO_REUSEADDR: it would find ports that are held for a tapped kernel.
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports
