"""Run a command and see to it that nothing it started is left when it, or our parent, ends.

Strategy: the keeper is the parent of one chapter's kernel. On Linux it asks to be the reaper of
its descendants (``PR_SET_CHILD_SUBREAPER``), so that a process whose own parent has died, even
one in a session of its own, becomes the keeper's child instead of getting lost. When the command
ends, when the keeper is asked to end, or when the process that started the keeper is gone, it
kills every descendant and ends itself. Elsewhere than on Linux, orphans of orphans can be missed.

Usage: ``python keeper.py PARENT COMMAND…``, where PARENT is the process id of whoever starts the
keeper (it may be gone before the keeper has begun to look). The exit code is the command's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36  # both from <linux/prctl.h>
LOOK_EVERY = 0.5  # seconds between looks at whether our parent still lives, where no signal says so


def children(pid: int) -> list[int]:
    """Return the process ids of all living descendants of ``pid``, children first."""
    if Path("/proc/self/stat").exists():
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    # After the command's name, which may hold blanks and brackets: state, parent.
                    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                    if state != "Z":
                        parents[int(entry.name)] = int(parent)
        found, wanted = [], {pid}
        while wanted:
            wanted = {child for child, parent in parents.items() if parent in wanted}
            found.extend(wanted)
        return found
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def kill_descendants(patience: float = 3.0) -> None:
    """Kill all descendants, again and again until none is left or ``patience`` seconds went by."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        left = children(os.getpid())
        if not left:
            return
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)  # orphans need a moment to arrive here
        reap(None)


def reap(command: int | None) -> int | None:
    """Collect children that have ended; return the wait status of ``command`` if it is one."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, result = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == command:
                status = result
    return status


def main(parent: int, command: list[str]) -> int:
    """Run ``command`` until it ends, or until ``parent`` or we are to end; leave nothing behind."""
    wake, told = os.pipe()
    for end in (wake, told):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(told)
    asked_to_end = False

    def end_now(*_: object) -> None:
        nonlocal asked_to_end
        asked_to_end = True

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, end_now)
    # An interrupt goes to the whole process group, and it is meant for the kernel. A handler, not
    # SIG_IGN: the kernel would inherit that.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0)

    if os.getppid() != parent:
        return 128 + signal.SIGTERM
    # A kernel watches its parent, which is the keeper.
    child = subprocess.Popen(command, env={**os.environ, "JPY_PARENT_PID": str(os.getpid())})
    status = None
    while status is None and not asked_to_end and os.getppid() == parent:
        select.select([wake], [], [], LOOK_EVERY)
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 512)
        status = reap(child.pid)
    kill_descendants()
    if status is None:
        return 128 + signal.SIGTERM
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
