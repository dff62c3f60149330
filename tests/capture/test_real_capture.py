"""What a packet sniffer sees on loopback is what the tap has told."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkout import missing
from jupyter_client import KernelManager

from underhood import load, record
from underhood.capture.store import DIRECTIONS, Capture, Link

Eventually = Callable[[Callable[[], object]], None]


@contextmanager
def sniffed(path: Path, *options: str) -> Iterator[None]:
    """Have dumpcap write what passes on loopback."""
    program = shutil.which("dumpcap")
    if program is None:
        missing("dumpcap is not installed")
        return
    process = subprocess.Popen(
        [program, "-q", "-w", str(path), *options, "-f", "tcp", "-B", "64"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = ""
    while "File:" not in said:  # from here on it captures
        line = process.stderr.readline()
        said += line
        if not line:
            missing(f"dumpcap may not capture here: {said.strip()}")
    try:
        yield
        time.sleep(0.5)  # what passed last is still in the buffer between kernel and dumpcap
    finally:
        process.terminate()
        process.wait(10)
        process.stderr.close()


def session(tmp_path: Path) -> Capture:
    """A kernel's life, tapped; ends when all its connections have."""
    with record() as capture:
        manager = KernelManager(connection_file=str(tmp_path / "kernel-1.json"))
        manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        for code in ("print('x' * 2_000_000)", "1 + 1", "1 / 0", "print('y' * 200)\n" * 50):
            client.execute(code, reply=True, timeout=60)
        client.stop_channels()
        manager.shutdown_kernel()
    return capture.capture


INTERFACES = {
    "lo as Ethernet": ["-i", "lo"],
    "lo as classic pcap": ["-i", "lo", "-P"],
    "any, Linux cooked": ["-i", "any", "-y", "LINUX_SLL"],
    "any, Linux cooked 2": ["-i", "any", "-y", "LINUX_SLL2"],
}


@pytest.mark.skipif(sys.platform != "linux", reason="loopback is called otherwise")
@pytest.mark.parametrize("how", INTERFACES)
def test_what_dumpcap_sees_is_what_the_tap_told(tmp_path: Path, how: str) -> None:
    path = tmp_path / "real"
    with sniffed(path, *INTERFACES[how]):
        capture = session(tmp_path)
    links = {c.server_address[1]: c.link for c in capture.connections}
    sniffed_connections = load(path, links=links).connections
    real = {c.client_address: c for c in sniffed_connections if c.link in links.values()}
    assert len(capture.connections) >= 6
    for tapped in capture.connections:
        seen = real[tapped.client_address]
        assert seen.server_address == tapped.server_address
        assert seen.link == tapped.link
        for direction in DIRECTIONS:
            assert seen.stream(direction) == tapped.stream(direction)
        assert [(e.direction, e.kind) for e in seen.ends] == [
            (e.direction, e.kind) for e in tapped.ends
        ]
        # The clocks agree. (What a client says before the kernel is up passes the tap later.)
        assert abs(seen.chunks[-1].time_ns - tapped.chunks[-1].time_ns) < 2_000_000_000
    kernel = Link("client", "kernel", "iopub", *capture.keys)
    assert sum(len(c.stream("<")) for c in real.values() if c.link == kernel) > 2_000_000
