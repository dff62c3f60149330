"""What the stage's tests share."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from places import LEFT_AFTER, Place


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def place() -> Iterator[Place]:
    # Not pytest's tmp_path: it names the user, and the stage avoids such folders.
    place = Place(Path(tempfile.mkdtemp(prefix="stage-test-", dir="/tmp")))
    yield place
    place.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait until something comes true, and fail if it does not within five seconds."""

    def wait(true: Callable[[], bool]) -> None:
        end = time.monotonic() + LEFT_AFTER
        while not true():
            assert time.monotonic() < end, "it did not come true within five seconds"
            time.sleep(0.05)

    return wait
