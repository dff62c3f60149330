"""A Jupyter kernel provisioner that puts a tap on each of a kernel's five sockets.

Strategy
--------
Clients keep the connection file that their kernel manager wrote, and so need to know nothing: the
taps listen where it says. The kernel gets a private connection file that is the same but for the
places to listen, and its path takes the place of the other in the kernel's command line.

``underhood.record`` selects this provisioner, by its entry point ``underhood-tap``, for kernels
that are started in this process, and through the environment for those that children start. When
nothing records, it is an ordinary :class:`jupyter_client.provisioning.LocalProvisioner`.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from underhood.capture import recording, tap
from underhood.capture.store import Link, SigningKey

if TYPE_CHECKING:
    from jupyter_client.manager import KernelManager

CHANNELS: Final = {
    "shell_port": "shell",
    "iopub_port": "iopub",
    "stdin_port": "stdin",
    "control_port": "control",
    "hb_port": "heartbeat",
}

PORTS: Final = range(20_000, 32_000)
"""Where tapped kernels and their taps listen, if nobody says where: below the ports that systems
give to who does not ask for one."""


class TapProvisioner(LocalProvisioner):
    """Starts a kernel on this host, like its base class, behind a tap for each socket.

    The taps stay up when the kernel restarts, so that clients see the restart as they would
    without them, and stop when the kernel manager cleans up for good.
    """

    _taps: tuple[tap.Tap, ...] = ()
    _fronts: tuple[tap.Endpoint, ...] = ()
    _places: dict[str, Any] | None = None
    _held: tuple[socket.socket, ...] = ()
    _folder: str = ""
    _takers: recording.Takers | None = None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Put the taps up, and the private connection file's path into the command."""
        manager = self.parent
        if manager is None:
            return await super().pre_launch(**kwargs)
        if self._takers is None:
            key = SigningKey(manager.session.key, manager.session.signature_scheme)
            self._takers = recording.takers_for_kernel(str(self.kernel_id), key)
        if not self._takers:
            return await super().pre_launch(**kwargs)
        kept = self._choose_ports(manager)
        try:
            kwargs = await super().pre_launch(**kwargs)
            return self._tapped(manager, self._takers, kwargs)
        except BaseException:
            self._take_down()
            raise
        finally:
            for sock in kept:
                sock.close()

    def _choose_ports(self, manager: KernelManager) -> tuple[socket.socket, ...]:
        """Choose where clients find the kernel, if its manager lets the provisioner choose.

        Returns
        -------
        kept
            What keeps others away from these ports until it is closed.
        """
        if not manager.cache_ports or self.ports_cached or not _is_loopback(manager.ip):
            return ()
        ports, kept = _find_ports(manager.ip, len(CHANNELS))
        for name, port in zip(CHANNELS, ports, strict=True):
            setattr(manager, name, port)
        self.ports_cached = True  # or the base class would choose others
        return kept

    def _tapped(
        self, manager: KernelManager, takers: recording.Takers, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        client_file = os.path.realpath(manager.connection_file)
        obstacle = self._obstacle(client_file, kwargs["cmd"])
        if obstacle:
            warnings.warn(
                f"the kernel {manager.kernel_name!r} is started without a tap, and its traffic"
                f" will be missing in the capture: {obstacle}",
                recording.NotCapturedWarning,
                stacklevel=3,
            )
            return kwargs
        self._put_up(takers)
        kernel_file = self._write_connection_file(client_file)
        kwargs["cmd"] = [part.replace(client_file, kernel_file) for part in kwargs["cmd"]]
        return kwargs

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Launch the kernel; take the taps down if that fails."""
        try:
            return await super().launch_kernel(cmd, **kwargs)
        except BaseException:
            self._take_down()
            raise

    async def cleanup(self, restart: bool = False) -> None:
        """Clean up; take the taps down unless the kernel is about to be started again."""
        await super().cleanup(restart=restart)
        if not restart:
            self._take_down()

    def _obstacle(self, client_file: str, cmd: list[str]) -> str:
        """Say why the kernel cannot be tapped; empty if it can."""
        if not any(client_file in part for part in cmd):
            return "its command line does not name the connection file"
        info = self.connection_info
        if info["transport"] == "tcp" and not _is_loopback(info["ip"]):
            return f"it listens on {info['ip']}, and taps listen on loopback only"
        return ""

    def _put_up(self, takers: recording.Takers) -> None:
        """Start the taps, or keep those that are up if they still listen at the right places."""
        info: dict[str, Any] = dict(self.connection_info)
        transport, ip = info["transport"], info["ip"]
        fronts = tuple(_endpoint(transport, ip, info[port]) for port in CHANNELS)
        # At each restart, the kernel manager removes the files of Unix-domain sockets.
        lost = any(isinstance(front, str) and not os.path.exists(front) for front in fronts)
        if self._taps and fronts == self._fronts and not lost:
            return
        # Taps that move tell those that they told before; a recording may have ended since.
        links = [old.links for old in self._taps] or [
            {
                taker: Link(client, "kernel", channel, str(self.kernel_id))
                for taker, client in takers.items()
            }
            for channel in CHANNELS.values()
        ]
        tap.stop(*self._taps)
        if self._places is None:
            # A folder of its own lets the file keep its name: tools read the kernel's id from it.
            self._folder = tempfile.mkdtemp(prefix="underhood-")
            self._places = self._kernel_places(transport, ip)
        backs = [_endpoint(transport, self._places["ip"], self._places[port]) for port in CHANNELS]
        self._fronts = fronts
        self._taps = tuple(
            tap.Tap(front, [back], told)
            for front, back, told in zip(fronts, backs, links, strict=True)
        )
        tap.start(*self._taps)

    def _kernel_places(self, transport: str, ip: str) -> dict[str, Any]:
        """Choose where the kernel listens, in the terms of a connection file."""
        if transport == "ipc":
            # Short, because such a path has room for about a hundred characters.
            places: dict[str, Any] = {"ip": os.path.join(self._folder, "k")}
            return places | {port: n for n, port in enumerate(CHANNELS, 1)}
        ports, self._held = _find_ports(ip, len(CHANNELS))
        return {"ip": ip} | dict(zip(CHANNELS, ports, strict=True))

    def _write_connection_file(self, client_file: str) -> str:
        assert self._places is not None
        info = json.loads(Path(client_file).read_text()) | self._places
        path = os.path.join(self._folder, os.path.basename(client_file))
        # It holds the key, so nobody else may read it.
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as file:
            json.dump(info, file, indent=2)
        return path

    def _take_down(self) -> None:
        taps, self._taps, self._places = self._taps, (), None
        with contextlib.suppress(TimeoutError):
            tap.stop(*taps)
        for held in self._held:
            held.close()
        self._held = ()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""
        if self._takers is not None:
            self._takers.close()
            self._takers = None


def _endpoint(transport: str, ip: str, port: int) -> tap.Endpoint:
    return f"{ip}-{port}" if transport == "ipc" else (ip, port)


def _is_loopback(ip: str) -> bool:
    try:
        return ipaddress.ip_address(ip).is_loopback
    except ValueError:
        return ip == "localhost"


def _find_ports(ip: str, count: int) -> tuple[list[int], tuple[socket.socket, ...]]:
    """Find free ports for the kernel, and hold them as long as the sockets returned stay open.

    Between finding a port and the kernel's bind, half a second later, another program may take it.
    On Linux it can be held: a socket that is bound, but does not listen, keeps others away, yet
    lets a socket bind that sets SO_REUSEADDR, as ZeroMQ's do. Elsewhere it is only found. Other
    kernels' ports were found, too, and are not held by anybody; so these ports lie below the range
    from which systems choose, where nobody finds any by chance.
    """
    family, *_, address = socket.getaddrinfo(ip, 0, type=socket.SOCK_STREAM)[0]
    held: list[socket.socket] = []
    try:
        while len(held) < count:
            sock = socket.socket(family)
            port = PORTS.start + secrets.randbelow(len(PORTS))
            try:
                sock.bind((address[0], port, *address[2:]))
            except OSError as error:
                sock.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            # Set after the bind, so that the bind itself shared no port with anybody.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.append(sock)
    except BaseException:
        for sock in held:
            sock.close()
        raise
    ports = [sock.getsockname()[1] for sock in held]
    if sys.platform != "linux":
        while held:
            held.pop().close()
    return ports, tuple(held)
