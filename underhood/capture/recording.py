"""``record()``: everything that is started inside is tapped.

Strategy
--------
A recording is a sink of taps (:mod:`underhood.capture.tap`) that keeps what they tell in memory.
While it is active, Jupyter's kernel provisioner factory makes
:class:`~underhood.capture.provisioner.TapProvisioner` its default, so that kernels started in this
process are tapped. Child processes inherit the same choice through the environment, together with
a private folder: there, each kernel that they start gets a pcapng file, which the recording reads
when it is asked for what it has, and once more when it ends. A child that is killed loses at most
the last tenth of a second.

Several recordings may be active at a time, nested or not: each has everything that was started
while it was active. When a recording ends, taps that still have a kernel to serve keep forwarding,
but tell the recording no more.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

from underhood.capture import tap
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

PROVISIONER: Final = "underhood-tap"


class NotCapturedWarning(UserWarning):
    """Something was started whose traffic will be missing in the capture."""


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


class Takers(dict[tap.Sink, str]):
    """The sinks that take a kernel's connections, each with the name it knows the client by."""

    def close(self) -> None:
        """Close what was opened for this kernel only."""


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
    for recording in _active:
        recording._keys[kernel_id] = key
        takers[recording] = "client"
    return takers


_lock = threading.RLock()
_active: list[Recording] = []
_count = 0


def active() -> tuple[Recording, ...]:
    """Return the recordings that run at this moment, the outermost first."""
    with _lock:
        return tuple(_active)


class Recording:
    """A recording: a context manager, for ``with`` as well as for ``async with``.

    While it runs, and after, it can be asked for what it has; see :func:`record`.
    """

    def __init__(self, name: str | None = None, notes: Mapping[str, str] | None = None) -> None:
        global _count
        with _lock:
            _count += 1
            self.name = name if name is not None else f"capture-{_count}"
        self._notes = dict(notes or {})
        self._keys: dict[str, bytes] = {}
        self._flows: list[_Flow] = []
        self._final: Capture | None = None
        self._entered = False

    def __repr__(self) -> str:
        state = "ended" if self._final else "running" if self._entered else "not started"
        return f"<Recording {self.name!r}, {state}, {len(self.connections)} connections>"

    # ---- a context manager

    def __enter__(self) -> Recording:
        return self.start()

    def start(self) -> Recording:
        """Begin, as ``with`` does; for a recording that spans several cells of a notebook."""
        if self._entered:
            raise RuntimeError(f"recording {self.name!r} was used before; call record() anew")
        self._entered = True
        self._notes.setdefault("date", datetime.now(UTC).isoformat(timespec="seconds"))
        for package in ("underhood", "jupyter_client"):
            self._notes.setdefault(package, metadata.version(package))
        with _lock:
            _active.append(self)
            _select()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End, as the end of ``with`` does."""
        self._deselect()
        self._finish()

    async def __aenter__(self) -> Recording:
        return self.start()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._deselect()
        await asyncio.to_thread(self._finish)

    def _deselect(self) -> None:
        with _lock:
            _active.remove(self)
            _select()

    def _finish(self) -> None:
        tap.detach(self)
        self._final = self._snapshot()

    def _snapshot(self) -> Capture:
        return Capture(
            merge(flow.connection() for flow in tuple(self._flows)),
            MappingProxyType(dict(self._keys)),
            MappingProxyType(dict(self._notes)),
            self.name,
        )

    # ---- a sink

    def opened(self, link: Link, client: Address, server: Address, time_ns: int) -> _Flow:
        """Take a new connection; a tap calls this."""
        flow = _Flow(link, client, server, time_ns)
        self._flows.append(flow)
        return flow

    # ---- what it has

    @property
    def capture(self) -> Capture:
        """What has been captured: so far while it runs, all of it afterwards."""
        if self._final is not None:
            return self._final
        tap.THREAD.barrier()
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

    def trace(self) -> Trace:
        """Dissect the bytes: the messages of all connections, ordered by time."""
        return self.capture.trace()

    def save(self, path: str | Path, *, keys: bool = False) -> Path:
        """Write a pcapng file; see :func:`underhood.capture.pcapng.save`."""
        return self.capture.save(path, keys=keys)


_before: dict[str, Any] | None = None


def _select() -> None:
    """Make the tap the default way to start kernels while a recording is active."""
    global _before
    from jupyter_client.provisioning.factory import KernelProvisionerFactory

    if _active and _before is None:
        _before = {
            "initialized": KernelProvisionerFactory.initialized(),
            "name": KernelProvisionerFactory.instance().default_provisioner_name,
        }
        KernelProvisionerFactory.instance().default_provisioner_name = PROVISIONER
    elif not _active and _before is not None:
        KernelProvisionerFactory.instance().default_provisioner_name = _before["name"]
        if not _before["initialized"]:
            KernelProvisionerFactory.clear_instance()
        _before = None


def record(name: str | None = None, *, notes: Mapping[str, str] | None = None) -> Recording:
    """Record the traffic of everything that is started inside.

    Parameters
    ----------
    name
        A short name for the capture, unique within one page or program.
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
