"""How fast 50 MB pass when there is a tap on their way, beside the same way without one.

A cell prints them, a cell sends them as a message's buffers, and a plain socket carries them. The
first is what people do. The last is the hardest test: nobody does anything but copy, so the tap's
two copies stand beside the two of sender and receiver, and the processors decide.

Direct and tapped take turns; each figure is the median of the paired ratios, speed tapped ÷ speed
direct, and the control is the same for direct and direct.

Run it: ``python benchmarks/tap_throughput.py``; it takes about a minute.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

from jupyter_client import BlockingKernelClient, KernelManager

from underhood import record

SIZE: Final = 50_000_000
ROUNDS: Final = 7

CELLS: Final = {
    "50 MB printed by a cell": "print(text)",
    "50 MB in a message's buffers": "Comm(target_name='nobody', buffers=[data])",
}
SET_UP: Final = f"from ipykernel.comm import Comm; text = 'x' * {SIZE}; data = bytes({SIZE})"

Ways = list[Callable[[], float]]
"""Functions that take a turn and return its seconds: direct, direct again, tapped."""


@contextlib.contextmanager
def kernel(*, tapped: bool) -> Iterator[BlockingKernelClient]:
    """Start a kernel, tapped or not, and give a client that is ready."""
    with contextlib.ExitStack() as stack:
        if tapped:
            stack.enter_context(record())
        manager = KernelManager()
        manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(manager.shutdown_kernel, now=True)
        client = manager.client()
        client.start_channels()
        stack.callback(client.stop_channels)
        client.wait_for_ready(timeout=60)
        client.execute(SET_UP, reply=True, timeout=60)
        yield client


def execute(client: BlockingKernelClient, code: str) -> float:
    """Execute a cell; return how long its idle took to arrive: it comes after all outputs."""
    begin = time.perf_counter()
    request = client.execute(code)
    size = 0
    while True:
        message = client.get_iopub_msg(timeout=60)
        if message["parent_header"].get("msg_id") != request:
            continue
        size += sum(len(buffer) for buffer in message["buffers"])
        size += len(message["content"].get("text", ""))
        if message["content"].get("execution_state") == "idle":
            assert size >= SIZE, f"only {size} bytes arrived"
            return time.perf_counter() - begin


def send(listener: socket.socket) -> None:
    """Send 50 MB to whoever connects."""
    data = bytes(SIZE)
    while True:
        client, _ = listener.accept()
        with client:
            client.sendall(data)


def receive(orders: Connection) -> None:
    """Read all from the ports that are asked for, and answer with the seconds it took."""
    buffer = bytearray(1 << 18)
    while True:
        port = orders.recv()
        begin, size = time.perf_counter(), 0
        with socket.create_connection(("127.0.0.1", port)) as sock:
            while count := sock.recv_into(buffer):
                size += count
        assert size == SIZE
        orders.send(time.perf_counter() - begin)


@contextlib.contextmanager
def sockets() -> Iterator[Ways]:
    """Start a sender and a receiver, each a process, and a tap between them in this one."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener, record() as capture:
        direct = listener.getsockname()[1]
        _, tapped = capture.tap(("127.0.0.1", direct), client="receiver", server="sender")
        processes = [
            spawn.Process(target=send, args=(listener,), daemon=True),
            spawn.Process(target=receive, args=(theirs,), daemon=True),
        ]
        for process in processes:
            process.start()

        def read(port: int) -> float:
            ours.send(port)
            return float(ours.recv())

        try:
            yield [partial(read, port) for port in (direct, direct, tapped)]
        finally:
            for process in processes:
                process.kill()
                process.join()


def compare(name: str, ways: Ways) -> list[dict[str, Any]]:
    """Let the ways take turns; return a row for the tap and one for the control."""
    rounds = []
    for n in range(ROUNDS + 1):
        took = [0.0] * len(ways)
        for turn in range(len(ways)):
            which = (turn + n) % len(ways)  # nobody always goes first
            took[which] = ways[which]()
        if n:  # the first round warms up
            rounds.append(took)
    direct, again, tapped = (
        SIZE / 1e6 / statistics.median(column) for column in zip(*rounds, strict=True)
    )
    ratio = statistics.median(d / t for a, b, t in rounds for d in (a, b))
    control = statistics.median(a / b for a, b, _ in rounds)
    return [
        {"name": f"{name}, tapped ÷ direct", "ours": tapped, "peer": direct, "ratio": ratio,
         "unit": "MB/s"},
        {"name": f"{name}, direct ÷ direct", "ours": again, "peer": direct, "ratio": control,
         "unit": "MB/s"},
    ]  # fmt: skip


def run() -> list[dict[str, Any]]:
    """Measure, and return the rows."""
    rows = []
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(kernel(tapped=t)) for t in (False, False, True)]
        for name, code in CELLS.items():
            rows += compare(name, [partial(execute, client, code) for client in clients])
    with sockets() as ways:
        rows += compare("50 MB over a plain socket", ways)
    return rows


def main() -> None:
    """Print the figures."""
    print(f"{'':62}{'ours':>14}{'peer':>14}{'ratio':>9}")
    for r in run():
        print(f"{r['name']:62}{r['ours']:14,.0f}{r['peer']:14,.0f}{r['ratio']:9.2f}  {r['unit']}")


if __name__ == "__main__":
    main()
