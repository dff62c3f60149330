"""Where this checkout is, how to serve a part of it, and what to do where an actor is missing."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
REQUIRE_LIVE = bool(os.environ.get("UNDERHOOD_REQUIRE_LIVE"))
SECONDS = "seconds"  # a test's property: an actor, how long it took, and what it may take


def missing(what: str) -> None:
    """Skip the test, or fail it where a missing actor is an error."""
    if REQUIRE_LIVE:
        pytest.fail(f"{what}, and UNDERHOOD_REQUIRE_LIVE is set", pytrace=False)
    pytest.skip(what)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback; give its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
