"""``record()``: everything that is started inside is tapped.

Strategy
--------
A recording is a sink of taps (:mod:`underhood.capture.tap`) that keeps what they tell in memory.
While it is active, Jupyter's kernel provisioner factory makes
:class:`~underhood.capture.provisioner.TapProvisioner` its default, so that kernels started in this
process are tapped. Child processes inherit the same choice through the environment, together with
a private folder: there, each kernel that they start gets a pcapng file, which the recording reads
whenever it is asked for what it has. A child that is killed loses at most a tenth of a second.

Several recordings may be active at a time, nested or not: each has everything that was started
while it was active. When a recording ends, taps that still have somebody to serve keep forwarding,
but tell the recording no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload
from urllib.parse import SplitResult, urlsplit

from underhood.capture import pcapng, tap
from underhood.capture.store import (
    Address,
    Capture,
    Chunk,
    Connection,
    Direction,
    End,
    Link,
    merge,
)

if TYPE_CHECKING:
    from underhood.trace import Trace

Target = TypeVar("Target", str, tuple[str, int])

PROVISIONER: Final = "underhood-tap"
"""The entry point's name of :class:`~underhood.capture.provisioner.TapProvisioner`."""

PROVISIONER_VARIABLE: Final = "JUPYTER_DEFAULT_PROVISIONER_NAME"
FOLDER_VARIABLE: Final = "UNDERHOOD_CAPTURE_DIR"
CLIENT_VARIABLE: Final = "UNDERHOOD_CLIENT"
KEEP_VARIABLE: Final = "UNDERHOOD_KEEP"

FLUSH_S: Final = 0.1
"""How long a child keeps what passed in memory, in seconds, before it writes it to its file."""


class NotCapturedWarning(UserWarning):
    """Something was started whose traffic will be missing in the capture."""


# ---------------------------------------------------------------------- the two kinds of sinks


class _Flow:
    """One connection, as far as it has been seen."""

    __slots__ = ("chunks", "client", "ends", "link", "opened", "server")

    def __init__(self, link: Link, client: Address, server: Address, opened: int) -> None:
        self.link, self.client, self.server, self.opened = link, client, server, opened
        self.chunks: list[Chunk] = []
        self.ends: list[End] = []

    def data(self, time_ns: int, direction: Direction, data: bytes) -> None:
        self.chunks.append(Chunk(time_ns, direction, data))

    def end(self, time_ns: int, direction: Direction, kind: Literal["fin", "reset"]) -> None:
        self.ends.append(End(time_ns, direction, kind))

    def connection(self) -> Connection:
        return Connection(
            self.link, 0, self.client, self.server, self.opened,
            tuple(self.chunks), tuple(self.ends),
        )  # fmt: skip


class KernelFile:
    """A file for what a kernel's taps tell, on behalf of a recording in another process.

    What is told is written within :data:`FLUSH_S`. Beside the file lies a Unix-domain socket: who
    connects to it has waited, when it hangs up, until all that was told is in the file.

    Parameters
    ----------
    folder
        The recording's folder.
    kernel_id, key
        The kernel's id, and what its messages are signed with.
    """

    def __init__(self, folder: Path, kernel_id: str, key: bytes) -> None:
        stem = folder / f"{os.getpid()}-{os.urandom(4).hex()}"
        self._socket_path = stem.with_suffix(".sock")
        descriptor = os.open(stem.with_suffix(".pcapng"), os.O_CREAT | os.O_WRONLY, 0o600)
        self._file = open(descriptor, "wb", buffering=1 << 20)  # noqa: SIM115
        self._due: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None
        self._at_once = True
        self._writer = pcapng.Writer(self, keys={kernel_id: key})
        tap.THREAD.hold(self)
        tap.THREAD.run(self._answer)

    async def _answer(self) -> None:
        # A path too long for a socket: then nothing is kept in memory, and nobody has to ask.
        with contextlib.suppress(OSError):
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: _Flushing(self), self._socket_path
            )
            self._at_once = False

    def opened(self, link: Link, client: Address, server: Address, time_ns: int) -> tap.Flow:
        """Take a new connection; a tap calls this."""
        return self._writer.opened(link, client, server, time_ns)

    def write(self, data: bytes) -> None:
        """Take what belongs into the file."""
        # Forwarding goes on if the disk is full; what has been written stays readable.
        with contextlib.suppress(OSError, ValueError):
            self._file.write(data)
            if self._at_once:
                self._file.flush()
            elif self._due is None:
                self._due = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what has been kept in memory; runs on the taps' thread."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        with contextlib.suppress(OSError, ValueError):
            self._file.flush()
            if not os.fstat(self._file.fileno()).st_nlink:  # the recording has ended
                tap.detach_here(self)

    def close(self) -> None:
        """Write the rest and close the file."""

        async def on_thread() -> None:
            self.flush()
            if self._server is not None:
                self._server.close()

        if tap.THREAD.running:
            tap.THREAD.run(on_thread)
        self._socket_path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the disk is full: its kernel ends as it would
            self._file.close()
        tap.THREAD.release(self)


class _Flushing(asyncio.Protocol):
    """Answers a connection by flushing the file, and says so by hanging up."""

    def __init__(self, file: KernelFile) -> None:
        self._kernel_file = file

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._kernel_file.flush()
        transport.close()


def _wait_until_flushed(path: Path) -> None:
    """Wait until a child has written to its file what it was told so far, if it still lives."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(2)
        sock.connect(str(path.with_suffix(".sock")))
        sock.recv(1)


def _until(time_ns: int, connections: Iterable[Connection]) -> Iterator[Connection]:
    """Yield connections as they were at a moment."""
    for connection in connections:
        if connection.opened <= time_ns:
            yield replace(
                connection,
                chunks=tuple(c for c in connection.chunks if c.time_ns <= time_ns),
                ends=tuple(e for e in connection.ends if e.time_ns <= time_ns),
            )


# ---------------------------------------------------------------------- who takes what

_lock = threading.RLock()
_active: list[Recording] = []
_unnamed = 0
# What was there before the first of the active recordings, to be put back after the last.
_before: _Before | None = None


def active() -> tuple[Recording, ...]:
    """Return the recordings that are running in this process, the oldest first."""
    return tuple(_active)


def environment(client: str = "server") -> dict[str, str]:
    """Return what children need in their environment to be recorded; nothing if nobody records.

    Parameters
    ----------
    client
        What to call the child, in its role as a client of the kernels that it starts.
    """
    recordings = active()
    return recordings[-1].environment(client) if recordings else {}


class Takers(dict[tap.Sink, str]):
    """The sinks that take a kernel's connections, each with the name it knows the client by."""

    def close(self) -> None:
        """Close what was opened for this kernel only."""
        for sink in self:
            if isinstance(sink, KernelFile):
                sink.close()


def takers_for_kernel(kernel_id: str, key: bytes) -> Takers:
    """Return who takes the connections of a kernel that is about to be started here.

    Parameters
    ----------
    kernel_id
        The id that its kernel manager gave it.
    key
        The key that its messages are signed with.
    """
    takers = Takers()
    with _lock:
        for recording in _active:
            recording.learn_key(kernel_id, key)
            takers[recording] = "client"
        variables = _before.variables if _before else os.environ
        folder, client = variables.get(FOLDER_VARIABLE), variables.get(CLIENT_VARIABLE)
    if folder and os.path.isdir(folder):
        takers[KernelFile(Path(folder), kernel_id, key)] = client or "server"
    return takers


class _Before:
    """Makes the tap the default way to start kernels, and puts back what was there before."""

    def __init__(self) -> None:
        from jupyter_client.provisioning.factory import KernelProvisionerFactory as Factory

        self.variables = {
            name: os.environ.get(name)
            for name in (PROVISIONER_VARIABLE, FOLDER_VARIABLE, CLIENT_VARIABLE, tap.CLOCK_VARIABLE)
        }
        outer = self.variables[FOLDER_VARIABLE]
        # Inside the folder of a recording in a parent process, so that it finds our children too.
        self._ours = not (outer and os.path.isdir(outer))
        self.folder = Path(tempfile.mkdtemp(prefix="underhood-", dir=None if self._ours else outer))
        self._had_factory = Factory.initialized()
        self._factory = Factory.instance()
        self._name = self._factory.default_provisioner_name
        self._factory.default_provisioner_name = PROVISIONER
        original = self._factory.create_provisioner_instance

        def create(kernel_id: str, kernel_spec: Any, parent: Any) -> Any:
            own = kernel_spec.metadata.get("kernel_provisioner", {}).get("provisioner_name")
            if own and own != PROVISIONER:
                warnings.warn(
                    f"the kernel {kernel_spec.display_name!r} brings its own provisioner ({own!r},"
                    " in its kernel.json), so it is started without a tap, and its traffic will be"
                    " missing in the capture; take metadata.kernel_provisioner out to capture it",
                    NotCapturedWarning,
                    stacklevel=2,
                )
            return original(kernel_id, kernel_spec, parent)

        vars(self._factory)["create_provisioner_instance"] = create

    def restore(self) -> None:
        for name, value in self.variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        del vars(self._factory)["create_provisioner_instance"]
        self._factory.default_provisioner_name = self._name
        if not self._had_factory:
            type(self._factory).clear_instance()
        if self._ours:
            shutil.rmtree(self.folder, ignore_errors=True)


def _tidy() -> None:
    """Put everything back if nobody records any more."""
    global _before
    with _lock:
        if _before is not None and not _active:
            _before.restore()
            _before = None


def _forget() -> None:
    """Start anew in a forked child: to the recordings, it is a child like any other."""
    global _before
    _active.clear()
    _before = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


# ---------------------------------------------------------------------- a recording


class Recording:
    """A recording: a context manager, for ``with`` as well as for ``async with``.

    While it runs, and after, it can be asked for what it has; see :func:`record`.

    Attributes
    ----------
    name : str
        The capture's name.
    """

    def __init__(self, name: str | None = None, notes: Mapping[str, str] | None = None) -> None:
        global _unnamed
        if name is None:
            with _lock:
                _unnamed += 1
                name = f"capture-{_unnamed}"
        self.name = name
        self._notes = dict(notes or {})
        self._keys: dict[str, bytes] = {}
        self._flows: list[_Flow] = []
        self._folder: Path | None = None
        self._folders: list[Path] = []
        self._final: Capture | None = None

    def __repr__(self) -> str:
        state = "not started" if self._folder is None else "ended" if self._final else "running"
        return f"<Recording {self.name!r}, {state}>"

    # ---- a context manager

    def start(self) -> Recording:
        """Begin, as ``with`` does; for a recording that spans several cells of a notebook."""
        if self._folder is not None:
            raise RuntimeError(
                f"the recording {self.name!r} has been used before; call record() for a new one"
            )
        from importlib import metadata  # slow to import, and only needed here

        self._notes.setdefault("date", datetime.now(UTC).isoformat(timespec="seconds"))
        for package in ("underhood", "jupyter_client"):
            self._notes.setdefault(package, metadata.version(package))
        self._begin()
        return self

    def stop(self) -> None:
        """End, as leaving ``with`` does."""
        self._running()
        self._end()
        self._finish()

    def __enter__(self) -> Recording:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Recording:
        return self.start()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()
        await asyncio.to_thread(self._finish)  # it may have large files to read

    def _begin(self) -> None:
        global _before
        with _lock:
            if _before is None:
                _before = _Before()
            self._folder = Path(tempfile.mkdtemp(prefix="recording-", dir=_before.folder))
            _active.append(self)
            for recording in _active:
                recording._folders.append(self._folder)
            os.environ.update(self.environment())

    def _end(self) -> None:
        """Let what is started from now on be of no concern."""
        with _lock:
            _active.remove(self)
            if _active:
                os.environ.update(_active[-1].environment())

    def _finish(self) -> None:
        try:
            tap.detach(self)
            self._final = self._snapshot(ended=True)
        finally:
            _tidy()
        if any(flow.link.channel == "http" for flow in self._flows):
            _warn_of_own_provisioners()
        if keep := os.environ.get(KEEP_VARIABLE):
            Path(keep).mkdir(parents=True, exist_ok=True)
            file_name = re.sub(r"[^\w.-]+", "-", self.name)
            self._final.save(Path(keep) / f"{file_name}.pcapng")

    def _snapshot(self, *, ended: bool = False) -> Capture:
        # One moment for all, or a message of a child could turn up before what was seen already,
        # and numbers would change from one look to the next. The last look has no next.
        now, connections = self._seen()
        keys = dict(self._keys)
        for child in self._children():
            connections += child.connections if ended else _until(now, child.connections)
            keys |= child.keys
        return Capture(
            merge(connections),
            MappingProxyType(keys),
            MappingProxyType(dict(self._notes)),
            self.name,
        )

    def _seen(self) -> tuple[int, list[Connection]]:
        """Return what the taps of this process have told, and the moment, in nanoseconds."""

        def seen() -> tuple[int, list[Connection]]:
            return tap.now_ns(), [flow.connection() for flow in self._flows]

        async def on_thread() -> tuple[int, list[Connection]]:
            return seen()  # no tap forwards anything meanwhile

        try:
            return tap.THREAD.run(on_thread)
        except RuntimeError:  # no tap runs
            return seen()

    def _children(self) -> Iterator[Capture]:
        """Yield what children have written so far."""
        for folder in tuple(self._folders):
            for path in sorted(folder.rglob("*.pcapng")):
                _wait_until_flushed(path)
                # A child that has just begun may have written nothing yet.
                with contextlib.suppress(pcapng.CaptureFileError, FileNotFoundError):
                    yield pcapng.load(path)

    # ---- what taps and their provisioner tell it

    def opened(self, link: Link, client: Address, server: Address, time_ns: int) -> _Flow:
        """Take a new connection; a tap calls this."""
        flow = _Flow(link, client, server, time_ns)
        self._flows.append(flow)
        return flow

    def learn_key(self, kernel_id: str, key: bytes) -> None:
        """Take the key that a kernel's messages are signed with."""
        self._keys[kernel_id] = key

    # ---- what else can be recorded

    def environment(self, client: str = "server") -> dict[str, str]:
        """Return what children need in their environment for their kernels to be recorded.

        Children inherit it anyway, unless they are started with an environment of their own.

        Parameters
        ----------
        client
            What to call the child, in its role as a client of the kernels that it starts.
        """
        return {
            PROVISIONER_VARIABLE: PROVISIONER,
            FOLDER_VARIABLE: str(self._running()),
            CLIENT_VARIABLE: client,
            tap.CLOCK_VARIABLE: str(tap.CLOCK_OFFSET),
        }

    @overload
    def tap(
        self, target: str, *, client: str, server: str, channel: str = "http", port: int = 0,
        patience: float = 30.0,
    ) -> str: ...  # fmt: skip
    @overload
    def tap(
        self, target: Address, *, client: str, server: str, channel: str = "http", port: int = 0,
        patience: float = 30.0,
    ) -> Address: ...  # fmt: skip
    def tap(
        self,
        target: str | Address,
        *,
        client: str,
        server: str,
        channel: str = "http",
        port: int = 0,
        patience: float = 30.0,
    ) -> str | Address:
        """Put a tap in front of any TCP endpoint.

        Parameters
        ----------
        target
            Where the server listens, or will: a URL, ``"host:port"`` or ``(host, port)``.
        client, server
            The parties' names.
        channel
            What runs between them.
        port
            Where the tap listens, on loopback; any free port by default.
        patience
            How long to try, in seconds, when a client connects and the server is not up.

        Returns
        -------
        str or tuple
            Where the tap listens, in the form of ``target``. When the recording ends, it stops if
            the server is gone, and goes on forwarding as long as it is not.

        Raises
        ------
        ValueError
            If ``target`` has no port, and no scheme that would tell it.
        OSError
            If the target's name is unknown, or ``port`` is busy.
        """
        self._running()
        host, target_port = _host_and_port(target)
        link = Link(client, server, channel)
        found = socket.getaddrinfo(host, target_port, type=socket.SOCK_STREAM)
        new = tap.Tap(
            ("::1" if host == "::1" else "127.0.0.1", port),
            list(dict.fromkeys((str(address[0]), target_port) for *_, address in found)),
            dict.fromkeys(active(), link),
            patience=patience,
            until_gone=True,
        )
        tap.start(new)
        return _in_form_of(target, host, int(new.address[1]))

    def _running(self) -> Path:
        if self._folder is None or self not in _active:
            raise RuntimeError(
                f"the recording {self.name!r} is not running: this works inside its with block only"
            )
        return self._folder

    # ---- what it has

    @property
    def capture(self) -> Capture:
        """What has been captured: so far while it runs, all of it afterwards.

        Whatever a client has received before this is asked for is in it.
        """
        if self._final is not None:
            return self._final
        return self._snapshot()

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The connections captured, in the order in which they opened."""
        return self.capture.connections

    @property
    def keys(self) -> Mapping[str, bytes]:
        """For each kernel id, the key that its messages are signed with."""
        return self.capture.keys

    @property
    def notes(self) -> Mapping[str, str]:
        """What a reader of the capture should know: date, versions, what was done."""
        return self.capture.notes

    def note(self, name: str, text: str) -> None:
        """Add to what a reader of the capture should know."""
        self._notes[name] = text

    def trace(self) -> Trace:
        """Dissect the bytes: the messages of all connections, ordered by time.

        While it runs, messages keep their numbers from one look to the next, unless half of one
        was on the wire: when the rest has come, it stands after what arrived in the meantime.
        """
        return self.capture.trace()

    def save(self, path: str | Path, *, keys: bool = False) -> Path:
        """Write a pcapng file; see :func:`underhood.capture.pcapng.save`."""
        return self.capture.save(path, keys=keys)


def record(name: str | None = None, *, notes: Mapping[str, str] | None = None) -> Recording:
    """Record the traffic of everything that is started inside.

    Kernels started in this process are tapped, those that child processes start too, and any
    other server that :meth:`Recording.tap` is told of. If ``UNDERHOOD_KEEP`` names a folder, the
    capture is saved there at the end, under its name.

    Parameters
    ----------
    name
        A short name for the capture, unique within one page or program; ``"capture-1"``,
        ``"capture-2"`` … by default.
    notes
        What a reader of the capture should know.

    Returns
    -------
    Recording
        A context manager, for ``with`` as well as for ``async with``.

    Examples
    --------
    >>> with record() as capture:        # every kernel started in here is tapped
    ...     ...
    >>> capture.trace().sequence_diagram()
    """
    return Recording(name, notes)


# ---------------------------------------------------------------------- addresses and kernelspecs

_PORTS: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}


def _split(target: str) -> SplitResult:
    return urlsplit(target if "://" in target else f"//{target}")


def _host_and_port(target: str | Address) -> Address:
    if not isinstance(target, str):
        return target
    parts = _split(target)
    port = parts.port or _PORTS.get(parts.scheme)
    if not parts.hostname or port is None:
        raise ValueError(
            f"{target!r} names no host and port to put a tap in front of; write it like"
            " 'http://127.0.0.1:8888/', '127.0.0.1:8888' or ('127.0.0.1', 8888)"
        )
    return parts.hostname, port


def _in_form_of(target: str | Address, host: str, port: int) -> str | Address:
    """Write where a tap listens as its target was written."""
    # The name stays, if it is one for loopback: servers look at it when they check for a local
    # client, and browsers when they choose cookies.
    host = host if host in ("localhost", "::1") else "127.0.0.1"
    if not isinstance(target, str):
        return host, port
    parts = _split(target)
    user, at, _ = parts.netloc.rpartition("@")
    shown = f"[{host}]" if ":" in host else host
    changed = parts._replace(netloc=f"{user}{at}{shown}:{port}").geturl()
    return changed if "://" in target else changed.removeprefix("//")


def _warn_of_own_provisioners() -> None:
    """Say which kernels a server could have started without a tap."""
    from jupyter_client.kernelspec import KernelSpecManager

    own = {}
    for name, folder in KernelSpecManager().find_kernel_specs().items():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            spec = json.loads((Path(folder) / "kernel.json").read_text())
            provisioner = spec.get("metadata", {}).get("kernel_provisioner", {})
            own[name] = provisioner.get("provisioner_name")
    missing = [name for name, provisioner in own.items() if provisioner not in (None, PROVISIONER)]
    if missing:
        warnings.warn(
            f"these kernels bring their own provisioner: {', '.join(sorted(missing))}; if a server"
            " started one of them, its traffic is missing in the capture",
            NotCapturedWarning,
            stacklevel=3,
        )
