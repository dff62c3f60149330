"""A temporary place of a test's own, and a look at what is left in it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, TypeAlias

import psutil
import pytest

LEFT_AFTER = 5.0
"""How long what an owner started may outlive it, in seconds."""


def command(process: psutil.Process) -> list[str]:
    """Return a process's program and arguments; empty if it has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class Place:
    """A temporary folder of a test's own; what is started with it as TMPDIR can be told by it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "TMPDIR": str(folder)}
        self._owners: list[subprocess.Popen[str]] = []

    def owner(
        self, script: str, *arguments: str, prefix: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """Start a Python program that starts others."""
        owner = subprocess.Popen(
            [*prefix, sys.executable, "-W", "always", "-c", script, *arguments],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._owners.append(owner)
        return owner

    def processes(self) -> list[psutil.Process]:
        """Find the living processes that were started with this place in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                told = str(self.folder) in "\n".join(process.environ().values())
                if told and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def files(self, only: str = "") -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.name.startswith(only))

    def left(self, only: str = "") -> str:
        """Wait until nothing is left, at most five seconds; describe what is.

        Of files, only those count whose names begin so.
        """
        end = time.monotonic() + LEFT_AFTER
        while (self.processes() or self.files(only)) and time.monotonic() < end:
            time.sleep(0.1)
        processes = [f"{p.pid} {' '.join(command(p))[:120]}" for p in self.processes()]
        return "\n".join([*processes, *map(str, self.files(only))])

    def close(self) -> None:
        for owner in self._owners:
            if owner.poll() is None:
                os.killpg(owner.pid, signal.SIGKILL)
        for process in self.processes():
            process.kill()
        for owner in self._owners:
            owner.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


TURNS: Final = int(
    os.environ.get("UNDERHOOD_TURNS", 5 if os.environ.get("UNDERHOOD_REQUIRE_LIVE") else 1)
)
"""How often in a row each actor has to come, work and go: five times in CI, 20 by hand."""

Timed: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""The fixture that notes how long a block takes, under an actor's name."""

repeatedly = pytest.mark.parametrize("turn", range(TURNS))
