"""A kernel of our own that breaks one rule: ``python sick_kernel.py FAULT CONNECTION_FILE``.

No kernel in use breaks these rules when asked to, so this one does. It speaks through
jupyter_client's own ``Session`` and real ZeroMQ sockets; without a fault it is healthy.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.session import Session

FAULTS = (
    "none", "reply first", "reply last", "mute", "never idle", "on control", "stranger's parent",
    "backwards", "busy twice", "silent", "unsigned", "says it twice", "no JSON",
)  # fmt: skip
# The states that it publishes before its reply, and after.
STATES = {
    "reply last": (("busy", "idle"), ()),  # no fault: channels have no order among each other
    "mute": ((), ()),
    "never idle": (("busy",), ()),
    "backwards": (("idle",), ("busy",)),
    "busy twice": (("busy", "busy"), ("idle",)),
}
INFO = {
    "status": "ok",
    "protocol_version": "5.3",
    "implementation": "sick",
    "implementation_version": "1",
    "language_info": {"name": "none"},
    "banner": "",
}


class Kernel:
    def __init__(self, fault: str, connection: dict[str, Any]) -> None:
        self.fault = fault
        self.session = Session(key=connection["key"].encode())
        self.sockets: dict[str, zmq.Socket[bytes]] = {}
        context = zmq.Context()
        for channel, kind in (
            ("shell", zmq.ROUTER), ("control", zmq.ROUTER), ("stdin", zmq.ROUTER),
            ("iopub", zmq.XPUB), ("hb", zmq.REP),
        ):  # fmt: skip
            socket = self.sockets[channel] = context.socket(kind)
            socket.linger = 1000
            socket.bind(f"tcp://{connection['ip']}:{connection[f'{channel}_port']}")

    def run(self) -> None:
        poller = zmq.Poller()
        for channel in ("shell", "control", "hb", "iopub"):
            poller.register(self.sockets[channel], zmq.POLLIN)
        while True:
            for socket, _ in poller.poll():
                if socket in (self.sockets["hb"], self.sockets["iopub"]):
                    try:
                        frames = socket.recv_multipart(zmq.NOBLOCK)
                    except zmq.Again:
                        continue
                    if socket is self.sockets["hb"]:
                        socket.send_multipart(frames)
                    continue
                identities, request = self.session.recv(socket)
                if request is None:  # ZeroMQ may wake up for nothing
                    continue
                self.answer(socket, identities, request)
                if request["msg_type"] == "shutdown_request":
                    return

    def answer(self, socket: Any, identities: Any, request: dict[str, Any]) -> None:
        kind = request["msg_type"]
        # Faults wait for the first cell, so that every client finds the kernel in order.
        fault = self.fault if kind == "execute_request" else "none"
        parent = request["header"]
        if fault == "stranger's parent":
            parent = parent | {"msg_id": "nobody-sent-this"}
        before, after = STATES.get(fault, (("busy",), ("idle",)))
        for state in before:
            self.say("status", {"execution_state": state}, parent)
        if fault == "on control":
            socket = self.sockets["control"]
        if fault == "reply last":
            time.sleep(0.05)
        content = {
            "kernel_info_request": INFO,
            "shutdown_request": {"status": "ok", "restart": False},
        }.get(kind, {"status": "ok", "execution_count": 1, "user_expressions": {}})
        if fault != "silent":
            message = self.session.msg(
                kind.replace("_request", "_reply"), content, {"header": parent}
            )
            key = self.session.key
            if fault == "unsigned":
                self.session.key = b""
            frames = self.session.serialize(message, identities)
            if fault == "no JSON":
                frames[-1] = b'{"status": ok}'
                frames[-5] = self.session.sign(frames[-4:])
            for _ in range(2 if fault == "says it twice" else 1):
                socket.send_multipart(frames)
            self.session.key = key
        if fault == "reply first":
            time.sleep(0.05)
        for state in after:
            self.say("status", {"execution_state": state}, parent)

    def say(self, kind: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        self.session.send(
            self.sockets["iopub"], kind, content, {"header": parent}, ident=kind.encode()
        )


def install(folder: Path, fault: str) -> KernelSpecManager:
    """Write the kernelspec "sick" for a kernel with this fault; return a manager that finds it."""
    spec = {
        "argv": [sys.executable, __file__, fault, "{connection_file}"],
        "display_name": "Sick",
        "language": "none",
    }
    (folder / "sick").mkdir()
    (folder / "sick" / "kernel.json").write_text(json.dumps(spec))
    return KernelSpecManager(kernel_dirs=[str(folder)])


if __name__ == "__main__":
    assert sys.argv[1] in FAULTS
    # Its manager interrupts it before it asks for shutdown.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Kernel(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())).run()
