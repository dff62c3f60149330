"""What several test modules share: the book as built from this very checkout, and a browser."""

from __future__ import annotations

import fcntl
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import ROOT, SECONDS, missing
from playwright.sync_api import Browser, Error, sync_playwright


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The build folder, after a build that read every page anew and gave no warning.

    Chapters whose result is fresh are not executed again; ``make test`` executes them before, with
    a line for each. Of the workers that run the tests side by side, the first to ask builds.
    """
    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent
    built = shared / "built"
    with (shared / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            command = [Path(sys.executable).parent / "jupyter-book", "build", ".", "--all"]
            result = subprocess.run(
                [*map(str, command), "-W", "-n", "--keep-going"],
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            assert result.returncode == 0, result.stdout + result.stderr
            built.touch()
    return ROOT / "_build"


# Not for the whole session: while Playwright's synchronous API is open, no other test may run an
# event loop.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    executable = next(filter(None, map(shutil.which, names)), None)
    flags = ["--disable-quic", "--no-first-run", "--disable-background-networking"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=executable, args=flags)
        except Error as error:
            missing(f"no Chromium could be started: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how long actors took; tests may have run side by side."""
    times: dict[tuple[str, float], list[float]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == SECONDS:
                actor, taken, limit = value
                times.setdefault((actor, limit), []).append(taken)
    if times:
        terminalreporter.section("how long actors took to come, work and go", sep="-")
    for (actor, limit), taken in times.items():
        terminalreporter.write_line(
            f"{actor:20} median {statistics.median(taken):5.1f} s, longest {max(taken):5.1f} s, "
            f"{len(taken)} times; {limit:g} s are allowed on two free cores"
        )
