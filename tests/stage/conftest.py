"""What the stage's tests share."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from places import LEFT_AFTER, LIMITS, TIMES, Place

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TIMES:
        terminalreporter.section("how long actors took to come, work and go", sep="-")
    for actor, times in TIMES.items():
        terminalreporter.write_line(
            f"{actor:20} median {statistics.median(times):5.1f} s, longest {max(times):5.1f} s, "
            f"{len(times)} times; {LIMITS[actor]:g} s are allowed on two free cores"
        )
