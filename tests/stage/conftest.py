"""What the stage's tests share."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from checkout import SECONDS
from places import LEFT_AFTER, Place, Timed

from underhood.stage import Home, MissingActor
from underhood.stage.console import find_consoles
from underhood.stage.hub import find_proxy


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


def _missing(why: str) -> None:
    if os.environ.get("UNDERHOOD_REQUIRE_LIVE"):
        pytest.fail(f"{why}, and UNDERHOOD_REQUIRE_LIVE is set")
    pytest.skip(why)


@pytest.fixture(scope="session")
def chromium_is_here() -> None:
    playwrights = Path.home() / ".cache" / "ms-playwright"
    if not (shutil.which("chromium") or list(playwrights.glob("chromium-*"))):
        _missing("there is no Chromium")


@pytest.fixture(scope="session")
def hub_is_here() -> None:
    try:
        find_proxy()
    except MissingActor as missing:
        _missing(str(missing))


@pytest.fixture(scope="session")
async def consoles_are_here(anyio_backend: str) -> None:
    async with Home() as home:
        try:
            await find_consoles(home)
        except MissingActor as missing:
            _missing(str(missing))


LIMITS: Final = {
    "server": 5.0,
    "two consoles": 10.0,
    "jupyterlab": 15.0,
    "notebook": 15.0,
    "hub with two users": 20.0,
}
"""What actors may take to come, work and go, in seconds, on two cores with nothing else to do."""


@pytest.fixture
def timed(record_property: Callable[[str, object], None]) -> Timed:
    """Note how long a block takes, for the end of the tests; fail only if it takes far too long."""

    @contextmanager
    def note(actor: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        taken = time.perf_counter() - started
        record_property(SECONDS, (actor, taken, LIMITS[actor]))
        # Others may be using the processors, too.
        crowd = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        assert taken < 4 * LIMITS[actor] * crowd

    return note
