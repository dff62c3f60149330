"""Where this checkout is, and what to do where an actor is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REQUIRE_LIVE = bool(os.environ.get("UNDERHOOD_REQUIRE_LIVE"))
SECONDS = "seconds"  # a test's property: an actor, how long it took, and what it may take


def missing(what: str) -> None:
    """Skip the test, or fail it where a missing actor is an error."""
    if REQUIRE_LIVE:
        pytest.fail(f"{what}, and UNDERHOOD_REQUIRE_LIVE is set", pytrace=False)
    pytest.skip(what)
