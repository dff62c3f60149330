"""With the network cut: in a namespace with nothing but loopback, the book is built all right."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT, missing
from test_build import Book

#: Brings loopback up, which is down in a new namespace, and becomes the command that follows.
LOOPBACK = """
import fcntl, os, socket, struct, sys
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    flags = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sh", b"lo", 0).ljust(40, b"\\0"))
    name, was = struct.unpack("16sh", flags[:18])
    fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh", name, was | IFF_UP).ljust(40, b"\\0"))
os.execvp(sys.argv[1], sys.argv[1:])
"""

#: Runs the command that follows, then says how many packets found no way out of the namespace.
#: Of IPv4: Chromium looks now and then whether there is IPv6 at all, without sending anything
#: (``kIPv6ProbeAddress`` in its ``net/dns/host_resolver_manager.cc``).
WITH_COUNT = """
import subprocess, sys
from pathlib import Path
code = subprocess.call(sys.argv[1:])
names, numbers = (
    line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line[:3] == "Ip:"
)
print("packets for elsewhere:", dict(zip(names, numbers))["OutNoRoutes"])
sys.exit(code)
"""

#: A kernel alone, and everything that a browser and JupyterLab might ask for.
CHAPTERS = {"kernel": "book/meet/kernel.md", "keystroke": "book/meet/keystroke.md"}


@pytest.fixture
def cut() -> list[str]:
    """What to put in front of a command to run it with the network cut."""
    unshare = shutil.which("unshare")
    words = [unshare or "", "--net", "--map-root-user", sys.executable, "-c", LOOPBACK]
    if unshare is None or subprocess.call([*words, "true"], stderr=subprocess.DEVNULL):
        missing("no network namespace can be made here")
    return words


def test_with_the_network_cut_only_loopback_answers(cut):
    reach = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
    with socket.create_server(("127.0.0.1", 0)) as outside:
        there = ["127.0.0.1", str(outside.getsockname()[1])]
        assert subprocess.call([sys.executable, "-c", reach, *there]) == 0
        # The same address inside is another loopback, on which nobody listens.
        refused = subprocess.run(
            [*cut, sys.executable, "-c", reach, *there], capture_output=True, text=True
        )
        assert "ConnectionRefusedError" in refused.stderr
    away = [*cut, sys.executable, "-c", WITH_COUNT, sys.executable, "-c", reach, "192.0.2.1", "80"]
    lost = subprocess.run(away, capture_output=True, text=True)
    assert "Network is unreachable" in lost.stderr
    assert "packets for elsewhere: 1\n" in lost.stdout


@pytest.mark.timeout(600)
def test_chapters_are_executed_live_and_built_with_the_network_cut_and_ask_nobody(cut, tmp_path):
    book = Book(tmp_path / "book")
    book.write(**{name: (ROOT / path).read_text("utf-8") for name, path in CHAPTERS.items()})
    counted = [*cut, sys.executable, "-c", WITH_COUNT]
    done = book.build("--keep-going", prefix=counted, UNDERHOOD_REQUIRE_LIVE="1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "packets for elsewhere: 0\n" in done.stdout
    for name in CHAPTERS:
        page = Path(book.folder, f"_build/html/book/{name}.html").read_text("utf-8")
        assert 'data-underhood="sequence"' in page
