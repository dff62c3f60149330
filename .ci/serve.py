"""Show the built site, and build it again whenever a chapter, a setting or the library changes.

Strategy: livereload serves the site, watches the files, and tells the browser when to load a page
again. A build that fails says why, and the site stays as it was. ``make serve`` runs this, in the
folder of the book, after a build.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from livereload import Server

BUILD: Final = (str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "-n")
WATCHED: Final = ("book", "underhood", "_config.yml", "_toc.yml")


def build() -> None:
    """Build what has changed."""
    print("Building what has changed …", flush=True)
    if subprocess.run(BUILD).returncode:
        print("The site stays as it was, until the next change.", flush=True)


def main(port: int) -> None:
    """Serve until Ctrl-C."""
    server = Server()
    for place in WATCHED:
        server.watch(place, build, ignore=lambda name: "__pycache__" in name)
    print("Press Ctrl-C to stop.", flush=True)
    server.serve(root="_build/html", host="127.0.0.1", port=port)


if __name__ == "__main__":
    main(int(sys.argv[1]))
