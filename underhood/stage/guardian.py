"""The process that owns a home's children, so that none of them outlives the program that asked.

Strategy: a notebook can die in many ways, and a dead process cleans nothing up. So the children
belong to a small process of their own, which does nothing but start them, report their end, and
wait. It holds the reading end of a pipe whose only writing end is in the owner: when the owner
ends, however it ends, the operating system closes the pipe, and the guardian ends every child,
sweeps up what the children started, and removes the home.

A child's own children run in sessions of their own (a server starts its kernels so), hence
neither a process group nor the parent's death reaches them. They are found in three ways that
cover for each other: they inherit an environment variable (:data:`MARK`), they are descendants of
the guardian, and, on Linux, orphans are handed to the guardian as their nearest *subreaper*. If
the guardian itself is killed, Linux ends its children for it (``PR_SET_PDEATHSIG``, which is safe
here and not in the owner: it fires when the *thread* that started the child ends, and the
guardian has one thread).

The script needs nothing but the standard library and psutil, and is run by path, so that it
starts in a few milliseconds. Both ends speak JSON, one object a line:

- to the guardian: ``{"start": n, "command", "environment", "folder", "log"}`` and
  ``{"signal": n, "number"}``;
- from it: ``{"started": n, "pid"}``, ``{"failed": n, "why"}`` and ``{"ended": n, "status"}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import psutil

MARK: Final = "UNDERHOOD_HOME_MARK"
"""The environment variable by which a home knows its processes."""

GRACE: Final = 1.5
"""How long processes may take to end by themselves, in seconds, once their owner is gone."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36


def marked(mark: str, *, below: int | None = None) -> list[psutil.Process]:
    """Find the living processes of a home, children before their parents.

    Parameters
    ----------
    mark
        The value of :data:`MARK` in their environment.
    below
        A process id whose descendants count too.
    """
    import psutil

    found: dict[int, psutil.Process] = {}

    def take(process: psutil.Process) -> None:
        if process.pid in found or process.pid == os.getpid():
            return
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process
                for child in process.children(recursive=True):
                    take(child)

    if below is not None:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(below).children(recursive=True):
                take(child)
    for process in psutil.process_iter():
        # Other users' processes and those that have just ended do not tell, and are not ours.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                take(process)
    return list(reversed(found.values()))


def sweep(
    mark: str,
    *,
    below: int | None = None,
    grace: float = GRACE,
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """End every process of a home: ask first, then insist, until none is left.

    Parameters
    ----------
    mark, below
        Whose processes: see :func:`marked`.
    grace
        How long they may take to end by themselves, in seconds.
    meanwhile
        Called while waiting (the guardian collects ended children in it).
    """
    import psutil

    insist = time.monotonic() + grace
    give_up = insist + 3.0
    asked: set[int] = set()
    while living := marked(mark, below=below):
        now = time.monotonic()
        if now > give_up:
            return
        for process in living:
            with contextlib.suppress(psutil.Error):
                if now > insist:
                    process.kill()
                elif process.pid not in asked:
                    process.terminate()
                    process.send_signal(signal.SIGCONT)  # a stopped one could not end
                    asked.add(process.pid)
        meanwhile()
        time.sleep(0.05)


def remove(folder: Path) -> None:
    """Remove a home's folder, also while a last process may still be writing into it."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


class _Guardian:
    def __init__(self, mark: str, folder: Path) -> None:
        self._mark, self._folder = mark, folder
        self._owner = os.getppid()
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._prctl: Callable[..., int] | None = None
        if sys.platform == "linux":
            import ctypes

            self._prctl = ctypes.CDLL(None).prctl
            self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def run(self) -> None:
        """Serve the owner until it closes the pipe, or is gone."""
        wake_up, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        # The owner decides when it is over; a signal to its terminal does not. Handlers that do
        # nothing, because children would inherit an ignored signal, but not a handler.
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        pending = b""
        # The owner's own fork could hold the pipe open: so look at the parent, too.
        while os.getppid() == self._owner:
            ready, _, _ = select.select([0, wake_up], [], [], 1.0)
            if wake_up in ready:
                os.read(wake_up, 4096)
            self._collect()
            if 0 in ready:
                data = os.read(0, 1 << 16)
                if not data:
                    break
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))
        sweep(self._mark, below=os.getpid(), meanwhile=self._collect)
        end = time.monotonic() + 1.0
        while self._collect() and time.monotonic() < end:
            time.sleep(0.01)
        remove(self._folder)

    def _obey(self, order: dict[str, Any]) -> None:
        if "start" in order:
            self._start(order["start"], order)
        elif child := self._children.get(order["signal"]):
            # Every child leads a process group of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, order["number"])

    def _start(self, number: int, order: dict[str, Any]) -> None:
        prctl = self._prctl

        def die_with_guardian() -> None:
            if prctl is not None:
                prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

        try:
            with open(order["log"], "ab") as log:
                self._children[number] = subprocess.Popen(
                    order["command"],
                    env=order["environment"],
                    cwd=order["folder"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=die_with_guardian,
                )
        except (OSError, subprocess.SubprocessError) as error:
            self._tell(failed=number, why=str(error))
        else:
            self._tell(started=number, pid=self._children[number].pid)

    def _collect(self) -> bool:
        """Collect ended children, our own and orphans handed to us; say if any are left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            for number, child in self._children.items():
                if child.pid == pid:
                    child.returncode = os.waitstatus_to_exitcode(status)
                    del self._children[number]
                    self._tell(ended=number, status=child.returncode)
                    break

    @staticmethod
    def _tell(**facts: object) -> None:
        with contextlib.suppress(OSError):  # the owner may be gone
            os.write(1, json.dumps(facts).encode() + b"\n")


def main(arguments: Iterable[str]) -> None:
    """Guard the home with this mark and folder until the owner is gone."""
    mark, folder = arguments
    _Guardian(mark, Path(folder)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
