"""A byte tap: a listener that forwards every byte to a target, and tells what passed, and when.

Strategy
--------
One thread with an event loop of its own serves all taps of a process, so a tap works whatever the
rest of the process does with its own loops. Each connection is a relay of two sides, and each side
is an :class:`asyncio.BufferedProtocol`: data is read into one buffer that all sides share, copied
out once, *forwarded first and then recorded*. (asyncio's streams cost two to four times as much.)

A tap changes, delays and reorders nothing: both sides have TCP_NODELAY; a half-close is passed on
as a half-close, and a reset as a reset; a reader that is slower than its writer slows the writer
down; what the client says before the target is up is kept until it is.

What passes is told to *sinks*: :mod:`underhood.capture.recording` has the two kinds. A tap without
a sink forwards and tells nobody.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import errno
import functools
import itertools
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar

from underhood.capture.store import Address, Direction, Link

Endpoint: TypeAlias = Address | str
"""``(host, port)``, or the path of a Unix-domain socket."""

T = TypeVar("T")

CLOCK_VARIABLE: Final = "UNDERHOOD_CLOCK"


def _offset() -> int:
    try:
        return int(os.environ[CLOCK_VARIABLE])
    except (KeyError, ValueError):
        return time.time_ns() - time.monotonic_ns()


CLOCK_OFFSET: Final = _offset()
"""What :func:`now_ns` adds to the monotonic clock, in nanoseconds."""


def now_ns() -> int:
    """Return the time in nanoseconds since 1970-01-01 UTC, on one clock for a whole recording.

    It is the host's monotonic clock, which all its processes share, plus an offset that a recording
    hands to its children in ``UNDERHOOD_CLOCK``. So times taken in several processes can be
    compared, and never run backwards when the clock on the wall is set.
    """
    return time.monotonic_ns() + CLOCK_OFFSET


class Flow(Protocol):
    """Takes what passes on one connection; it is called on the taps' thread and must not raise."""

    def data(self, time_ns: int, direction: Direction, data: bytes) -> None:
        """Take bytes that passed."""

    def end(self, time_ns: int, direction: Direction, kind: Literal["fin", "reset"]) -> None:
        """Take the end of one direction."""


class Sink(Protocol):
    """Takes the connections of a tap; it is called on the taps' thread and must not raise."""

    def opened(self, link: Link, client: Address, server: Address, time_ns: int) -> Flow:
        """Take a new connection, and return what takes its bytes."""


class TapThread:
    """The thread, with an event loop of its own, that all taps of this process share.

    It runs while somebody holds it. It is a daemon, so that a program that forgets its taps can
    end; they serve to the last, though, because `atexit` functions run before daemons stop, and
    one of these waits for last words: what a program says before it just ends, as
    `jupyter console` its `shutdown_request`, would reach its kernel without a tap.

    While it runs, Python switches between threads sooner than by default (5 ms). Otherwise each
    read and each write could wait that long for another thread that computes: 12 MB/s passed beside
    a busy loop, instead of 480.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holders: set[object] = set()
        self._loop: asyncio.SelectorEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._switch_before = sys.getswitchinterval()
        self._lingers = False
        self.passed = 0  # bytes that sides have read

    @property
    def running(self) -> bool:
        """Whether anybody holds the thread."""
        return self._loop is not None and not sys.is_finalizing()

    @property
    def holders(self) -> tuple[object, ...]:
        """Who holds the thread."""
        with self._lock:
            return tuple(self._holders)

    def hold(self, holder: object) -> None:
        """Start the thread, or keep it running, until ``holder`` releases it."""
        with self._lock:
            self._holders.add(holder)
            if not self._lingers:
                atexit.register(self._linger)
                self._lingers = True
            if self._loop is None:
                self._loop = asyncio.SelectorEventLoop()
                self._loop.set_exception_handler(_quiet)
                self._switch_before = sys.getswitchinterval()
                sys.setswitchinterval(min(_SWITCH_S, self._switch_before))
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name="underhood taps", daemon=True
                )
                self._thread.start()

    def release(self, holder: object) -> None:
        """Let the thread end if nobody else holds it; who did not hold it changes nothing."""
        with self._lock:
            if holder not in self._holders:
                return
            self._holders.remove(holder)
            if self._holders or self._loop is None or self._thread is None:
                return
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            sys.setswitchinterval(self._switch_before)
            loop.call_soon_threadsafe(loop.stop)
            if thread is not threading.current_thread():
                thread.join(5)

    def run(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
        """Run a coroutine function on the thread and return its result; wait for it.

        Raises
        ------
        RuntimeError
            If nobody holds the thread.
        """
        with self._lock:
            if self._loop is None:
                raise RuntimeError("the taps' thread does not run: nobody holds it")
            future = asyncio.run_coroutine_threadsafe(function(*arguments), self._loop)
        return future.result(30)

    def _linger(self) -> None:
        """Wait, when the process ends without having stopped its taps, until they are quiet."""
        end, before = time.monotonic() + _LINGER_S, -1
        while self.running and self.passed != before and time.monotonic() < end:
            before = self.passed
            time.sleep(_QUIET_S)

    def forget(self) -> None:
        """Start anew in a forked child, which has no copy of the thread."""
        for holder in self._holders:
            if isinstance(holder, Tap):
                holder.abandon()
        if self._loop is not None:
            sys.setswitchinterval(self._switch_before)
        self._lock = threading.RLock()
        self._holders = set()
        self._loop = self._thread = None


def _serve(loop: asyncio.SelectorEventLoop) -> None:
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)  # whoever still tries to reach its target
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
    finally:
        loop.close()


def _quiet(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Do not print that a connection broke: taps pass that on to the other side."""
    if not ("transport" in context and isinstance(context.get("exception"), OSError)):
        loop.default_exception_handler(context)


_SWITCH_S: Final = 5e-5
THREAD: Final = TapThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=THREAD.forget)

# One buffer for all reads, since all of them happen on one thread and copy the data out at once.
# With its size, sender, tap and receiver work at the same time, and a chunk fits into one packet of
# a capture file; larger ones were slower.
_BUFFER: Final = memoryview(bytearray(60 * 1024))
# How much is kept in memory before the sender is slowed down, in bytes.
_HIGH_WATER: Final = 1024 * 1024
# How long to wait for one answer; a host that is down gives none. On loopback, it comes at once.
_CONNECT_S: Final = 10.0
_RETRY_FIRST_S: Final = 0.01
_RETRY_LAST_S: Final = 0.02
_WATCH_S: Final = 0.1
# How long no byte must have come for a tap to be quiet (longer than recordings keep what they are
# told in memory), and the longest wait for that.
_QUIET_S: Final = 0.15
_LINGER_S: Final = 1.0
_LOOK_S: Final = 1.0
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class _Side(asyncio.BufferedProtocol):
    """One end of a relay: it reads from its socket and has the other end write."""

    def __init__(self, relay: _Relay, direction: Direction) -> None:
        self.relay, self.direction = relay, direction
        self.peer: _Side
        self.transport: asyncio.Transport | None = None
        self.ended = False
        self.congested = False

    # ---- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        sock = transport.get_extra_info("socket")
        if sock.family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.relay.connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(_BUFFER[:nbytes])
        THREAD.passed += nbytes
        if self.relay.stands:
            self.pass_on(data)
        else:
            self.relay.keep(data)

    def eof_received(self) -> bool:
        self.ended = True
        if self.peer.ended and self.peer.is_reset():
            self.relay.lost(self.peer, broken=True)
        elif self.relay.stands:
            self.pass_on_end()
        return True  # keep the socket open for the other direction

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.relay.lost(self, broken=exc is not None)

    def pause_writing(self) -> None:
        self.congested = True
        self.peer.pause()

    def resume_writing(self) -> None:
        self.congested = False
        self.peer.resume()

    # ---- how it works for the other side

    def pass_on(self, data: bytes) -> None:
        """Have the peer write what this side has read, and tell."""
        time_ns = now_ns()
        peer = self.peer.transport
        if peer is not None and not peer.is_closing():
            peer.write(data)
        direction = self.direction
        for _, flow in self.relay.flows:
            flow.data(time_ns, direction, data)

    def pass_on_end(self) -> None:
        """Have the peer say that this side will say no more, and tell."""
        peer = self.peer.transport
        if peer is not None and not peer.is_closing():
            # The peer may just be gone; it says so by a reset.
            with contextlib.suppress(OSError):
                peer.write_eof()
        self.relay.tell_end(self.direction, "fin")
        if self.peer.ended:
            self.relay.close()
        else:
            asyncio.get_running_loop().call_later(_WATCH_S, self._watch)

    def pause(self) -> None:
        if self.transport is not None and not self.ended:
            self.transport.pause_reading()

    def resume(self) -> None:
        # Once ended, a side is not read any more: its reader would report the end again.
        if self.transport is not None and not self.ended:
            self.transport.resume_reading()

    # ---- how it ends

    def is_reset(self) -> bool:
        """Ask the socket whether it has been reset; once it has ended, nobody reads it any more."""
        if self.transport is None or self.transport.is_closing():
            return False
        sock = self.transport.get_extra_info("socket")
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _watch(self) -> None:
        """Look for a reset after a half-close, now and then."""
        if self.is_reset():
            self.relay.lost(self, broken=True)
        elif not self.relay.over:
            asyncio.get_running_loop().call_later(_WATCH_S, self._watch)

    def close(self, *, reset: bool) -> None:
        if self.transport is None:
            return
        if reset:
            sock = self.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.transport.abort()
        else:
            self.transport.close()


class _Relay:
    """One connection through a tap: the client's side, the target's side, and who is told.

    It stands once the target is reached, and is told from then on: what a client says before, or
    to a target that is never reached, has not passed.
    """

    def __init__(self, tap: Tap) -> None:
        self.tap = tap
        self.flows: list[tuple[Sink, Flow]] = []
        self.near, self.far = _Side(self, ">"), _Side(self, "<")
        self.near.peer, self.far.peer = self.far, self.near
        self.stands = self.over = self._reset = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._dialling: asyncio.Task[None] | None = None
        self._early: list[bytes] = []

    def connected(self, side: _Side) -> None:
        """Go on when a side is connected: the client's first, then the target's."""
        if side is self.near:
            self.tap.relays.add(self)
            self._dialling = asyncio.get_running_loop().create_task(self._dial())
        elif self.over:
            side.close(reset=self._reset)
        else:
            self._tell_opened()
            self.stands = True
            early, self._early = self._early, []
            for data in early:
                self.near.pass_on(data)
            if self.near.ended:
                self.near.pass_on_end()
            elif not side.congested:
                self.near.resume()

    @property
    def has_more_to_say(self) -> bool:
        """Whether the target may have said something that has not been forwarded yet."""
        if self.near.transport is None or self.far.transport is None:
            return False
        return not self.far.ended or self.near.transport.get_write_buffer_size() > 0

    def keep(self, data: bytes) -> None:
        """Keep what the client says before the target is reached."""
        self._early.append(data)
        if sum(map(len, self._early)) > _HIGH_WATER:
            self.near.pause()

    async def _dial(self) -> None:
        """Connect to the target; it may not be up yet."""
        give_up = time.monotonic() + self.tap.patience
        pause = _RETRY_FIRST_S
        while await _connect(self.far, self.tap.targets) is None:
            if time.monotonic() >= give_up:
                self._dialling = None
                self._tell_opened()
                self.lost(self.far, broken=True)
                return
            await asyncio.sleep(pause)
            pause = min(pause * 1.1, _RETRY_LAST_S)

    def _tell_opened(self) -> None:
        time_ns = now_ns()
        if self.near.transport is not None:
            client, server = _addresses(self.near.transport, self.tap.shown_address)
            for sink, link in self.tap.links.items():
                self.flows.append((sink, sink.opened(link, client, server, time_ns)))

    def tell_end(self, direction: Direction, kind: Literal["fin", "reset"]) -> None:
        time_ns = now_ns()
        for _, flow in self.flows:
            flow.end(time_ns, direction, kind)

    def lost(self, side: _Side, *, broken: bool) -> None:
        """Do what follows from one side's end: a reset is passed on as a reset."""
        if broken and not self.over:
            self.tell_end(side.direction, "reset")
        self.close(reset=broken)

    def close(self, *, reset: bool = False) -> None:
        self.over, self._reset = True, self._reset or reset
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        for side in (self.near, self.far):
            side.close(reset=reset)
        if self.near.transport is None and self.far.transport is None and not self.done.done():
            self.done.set_result(None)
            self.tap.ended(self)


async def _connect(
    protocol: asyncio.BaseProtocol, targets: Sequence[Endpoint]
) -> asyncio.BaseTransport | None:
    """Connect to the first target that answers; return None if none does."""
    loop = asyncio.get_running_loop()
    for target in targets:
        with contextlib.suppress(OSError):  # among them TimeoutError
            async with asyncio.timeout(_CONNECT_S):
                if isinstance(target, str):
                    transport, _ = await loop.create_unix_connection(lambda: protocol, target)
                else:
                    transport, _ = await loop.create_connection(lambda: protocol, *target)
            return transport
    return None


# Unix-domain sockets have paths, which tell about the machine and fit no packet. Instead, a
# listener's path and each client get a made-up address. The ports count from another one in each
# process, so that captures of several processes can be merged.
_made_up_ports = itertools.count(os.getpid() * 509)


def _made_up_address() -> Address:
    return ("127.0.0.1", 1024 + next(_made_up_ports) % (65536 - 1024))


@functools.cache
def _address_of(path: str) -> Address:
    return _made_up_address()


def _addresses(transport: asyncio.Transport, shown: Address) -> tuple[Address, Address]:
    """Return the addresses of a connection's client and of the tap, as the client sees them."""
    peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    if isinstance(peer, tuple) and isinstance(own, tuple):
        return (peer[0], peer[1]), (own[0], own[1])
    return _made_up_address(), shown


class Tap:
    """A listener on loopback that forwards to a target and tells sinks what passes.

    Parameters
    ----------
    listen
        Where clients connect: ``(host, port)``, port 0 for any that is free, or the path of a
        Unix-domain socket.
    targets
        Where the target listens; if there are several, the first that answers is taken.
    links
        For each sink that is told what passes, the link to tell it.
    patience
        How long to try, in seconds, while the target is not up. After that the client's
        connection is reset.
    until_gone
        Whether to stop by itself when no sink is left and the target is gone.

    Attributes
    ----------
    address : Address or str
        Where it listens, once started.
    links : dict
        Sinks and links; new connections are told to those that are in it.
    """

    def __init__(
        self,
        listen: Endpoint,
        targets: Sequence[Endpoint],
        links: Mapping[Sink, Link],
        *,
        patience: float = 30.0,
        until_gone: bool = False,
    ) -> None:
        self.address = listen
        self.targets = tuple(targets)
        self.links = dict(links)
        self.patience = patience
        self.relays: set[_Relay] = set()
        self.shown_address: Address = ("", 0)
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._until_gone = until_gone
        self._looking: asyncio.TimerHandle | None = None

    async def listen(self) -> None:
        """Start to listen; runs on the taps' thread (use :func:`start`)."""
        self._socket = sock = _listener(self.address)
        loop = asyncio.get_running_loop()
        if isinstance(self.address, str):
            self.shown_address = _address_of(self.address)
            self._server = await loop.create_unix_server(lambda: _Relay(self).near, sock=sock)
        else:
            self.address = self.shown_address = sock.getsockname()[:2]
            self._server = await loop.create_server(lambda: _Relay(self).near, sock=sock)

    async def close(self, drain: float) -> None:
        """Stop; runs on the taps' thread (use :func:`stop`)."""
        self._stop_listening()
        give_up = time.monotonic() + drain
        while any(relay.has_more_to_say for relay in self.relays) and time.monotonic() < give_up:
            await asyncio.sleep(0.005)
        for reset in (False, True):  # first politely
            for relay in tuple(self.relays):
                relay.close(reset=reset)
            if self.relays:
                await asyncio.wait([relay.done for relay in self.relays], timeout=0.2)

    def abandon(self) -> None:
        """Leave the port to the parent; called in a forked child."""
        if self._socket is not None:
            self._socket.close()

    def detach(self, sink: Sink) -> None:
        """Tell this sink no more; runs on the taps' thread."""
        self.links.pop(sink, None)
        for relay in self.relays:
            relay.flows = [(taker, flow) for taker, flow in relay.flows if taker is not sink]

    async def stop_if_gone(self) -> None:
        """Stop if nobody is left to tell and to forward to; runs on the taps' thread."""
        if not self._until_gone or self.links:
            return
        self.patience = 0.0
        if not self.relays:
            probe = await _connect(asyncio.Protocol(), self.targets)
            if probe is not None:
                probe.close()
            elif not self.relays:
                self._stop_listening()
                THREAD.release(self)

    def _look_again(self) -> None:
        """Look for the target once more, when nothing has happened for a while."""
        loop = asyncio.get_running_loop()
        if self._looking is not None:
            self._looking.cancel()
        self._looking = loop.call_later(_LOOK_S, lambda: loop.create_task(self.stop_if_gone()))

    def ended(self, relay: _Relay) -> None:
        """Note that a connection is over."""
        self.relays.discard(relay)
        if self._until_gone and not self.links and not self.relays:
            self._look_again()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            if isinstance(self.address, str):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.address)


def _listener(where: Endpoint) -> socket.socket:
    """Bind and return a socket for a tap; it says clearly why it cannot."""
    if isinstance(where, str):
        sock = socket.socket(socket.AF_UNIX)
        address: Any = where
    else:
        family, *_, address = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        if isinstance(where, str):
            os.chmod(where, 0o600)  # nobody can connect before `listen`
        sock.listen(128)
    except OSError as error:
        sock.close()
        shown = where if isinstance(where, str) else f"{where[0]}:{where[1]}"
        if error.errno == errno.EADDRINUSE:
            reason = f"another program listens on {shown} already; free it or choose another port"
        else:
            reason = f"cannot listen on {shown}: {error.strerror}"
        raise OSError(error.errno, f"tap not started: {reason}") from error
    sock.setblocking(False)
    return sock


def start(*taps: Tap) -> None:
    """Have taps listen, all or none.

    Raises
    ------
    OSError
        If a port is busy.
    """
    started: list[Tap] = []
    try:
        for tap in taps:
            THREAD.hold(tap)
            started.append(tap)
            THREAD.run(tap.listen)
    except BaseException:
        stop(*started)
        raise


def stop(*taps: Tap, drain: float = 1.0) -> None:
    """Stop taps quietly.

    Parameters
    ----------
    taps
        What to stop; those that were stopped before are left alone.
    drain
        How long to wait, in seconds, for connections that are about to end by themselves: a target
        that just ended may have said last words that are still to be forwarded.
    """

    async def close_all() -> None:
        await asyncio.gather(*(tap.close(drain) for tap in taps))

    if THREAD.running:
        THREAD.run(close_all)
        for tap in taps:
            THREAD.release(tap)


def detach_here(sink: Sink) -> None:
    """Have no tap of this process tell the sink any more; runs on the taps' thread."""
    for holder in THREAD.holders:
        if isinstance(holder, Tap):
            holder.detach(sink)


def detach(sink: Sink) -> None:
    """Have no tap of this process tell the sink any more.

    Everything that a client has received before this is called, the sink has been told.
    """

    async def on_thread() -> None:
        detach_here(sink)
        for holder in THREAD.holders:
            if isinstance(holder, Tap):
                await holder.stop_if_gone()

    if THREAD.running:
        THREAD.run(on_thread)
