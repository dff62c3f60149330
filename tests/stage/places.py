"""A temporary place of a test's own, and a look at what is left in it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

LEFT_AFTER = 5.0
"""How long what an owner started may outlive it, in seconds."""


class Place:
    """A temporary folder of a test's own; what is started with it as TMPDIR can be told by it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "TMPDIR": str(folder)}
        self._owners: list[subprocess.Popen[str]] = []

    def owner(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a Python program that starts others."""
        owner = subprocess.Popen(
            [sys.executable, "-X", "dev", "-c", script, *arguments],
            env=self.environment,
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

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir())

    def left(self) -> str:
        """Wait until nothing is left, at most five seconds; describe what is."""
        end = time.monotonic() + LEFT_AFTER
        while (self.processes() or self.files()) and time.monotonic() < end:
            time.sleep(0.1)
        processes = [f"{p.pid} {p.name()} {' '.join(p.cmdline())[:100]}" for p in self.processes()]
        return "\n".join([*processes, *map(str, self.files())])

    def close(self) -> None:
        for owner in self._owners:
            if owner.poll() is None:
                os.killpg(owner.pid, signal.SIGKILL)
        for process in self.processes():
            process.kill()
        for owner in self._owners:
            owner.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)
