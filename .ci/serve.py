"""Show the built site, and build it again whenever a chapter, a setting or the library changes.

Strategy: livereload serves the site, watches the files, and tells the browser when to load a page
again. A build that fails says why, and the site stays as it was. If the port is taken, the next one
that is free is used. ``make serve`` runs this, in the folder of the book, after a build.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from livereload import Server

BUILD: Final = (str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "-n")
HOST: Final = "127.0.0.1"  # so that nobody else in the network sees it
WATCHED: Final = ("book", "underhood", "_config.yml", "_toc.yml")


def build() -> None:
    """Build what has changed."""
    print("Building what has changed …", flush=True)
    if subprocess.run(BUILD).returncode:
        print("The site stays as it was, until the next change.", flush=True)


def free_port(wanted: str) -> int:
    """Return this port, or the next one on which nobody listens."""
    if not wanted.isdecimal() or not 1024 <= int(wanted) < 65536:
        sys.exit(f"{wanted!r} is no port that this may use. Take a number from 1024 to 65535.")
    for port in range(int(wanted), 65536):
        try:
            socket.create_server((HOST, port)).close()
        except OSError:
            print(f"Port {port} is in use; trying the next one.", flush=True)
        else:
            return port
    sys.exit(f"No port from {wanted} on is free.")


def main(wanted: str) -> None:
    """Serve until Ctrl-C."""
    port = free_port(wanted)
    server = Server()
    for place in WATCHED:
        server.watch(place, build, ignore=lambda name: "__pycache__" in name)
    print("Press Ctrl-C to stop.", flush=True)
    server.serve(root="_build/html", host=HOST, port=port)


if __name__ == "__main__":
    main(sys.argv[1])
