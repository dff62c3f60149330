"""What several test modules share: the book as it was built from this very checkout."""

from __future__ import annotations

import fcntl
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT, SECONDS


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
