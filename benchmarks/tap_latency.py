"""How much longer a cell takes when its kernel is tapped.

Three kernels take turns, cell by cell: two direct, one tapped. So whatever else the machine does
hits all three alike. The overhead is the median of the paired ratios tapped ÷ direct; the same
figure for direct ÷ direct is the control, which would be 1 on a machine without noise. The kernels
are started anew several times, because one kernel is a little faster than the next for its life.

Run it: ``python benchmarks/tap_latency.py``; it takes about a minute.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from collections.abc import Iterator
from typing import Any, Final

from jupyter_client import BlockingKernelClient, KernelManager

from underhood import record

GENERATIONS: Final = 6
CELLS: Final = 100
WARM_UP: Final = 20


@contextlib.contextmanager
def kernel(*, tapped: bool) -> Iterator[BlockingKernelClient]:
    """Start a kernel, tapped or not, and give a client that is ready."""
    with contextlib.ExitStack() as stack:
        if tapped:
            stack.enter_context(record())
        manager = KernelManager()
        manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(manager.shutdown_kernel, now=True)
        client = manager.client()
        client.start_channels()
        stack.callback(client.stop_channels)
        client.wait_for_ready(timeout=60)
        yield client


def seconds(client: BlockingKernelClient) -> float:
    """Execute ``pass``; return how long its reply *and* its idle took to arrive."""
    begin = time.perf_counter()
    request = client.execute("pass")
    while client.get_shell_msg(timeout=30)["parent_header"].get("msg_id") != request:
        pass
    while True:
        message = client.get_iopub_msg(timeout=30)
        if (
            message["parent_header"].get("msg_id") == request
            and message["content"].get("execution_state") == "idle"
        ):
            return time.perf_counter() - begin


def measure() -> list[tuple[float, ...]]:
    """Return the seconds of each round: direct, direct again, tapped."""
    rounds = []
    for _ in range(GENERATIONS):
        with contextlib.ExitStack() as stack:
            # The recording is entered last: kernels before it are not tapped.
            clients = [stack.enter_context(kernel(tapped=t)) for t in (False, False, True)]
            for n in range(WARM_UP + CELLS):
                took = [0.0] * len(clients)
                for turn in range(len(clients)):
                    which = (turn + n) % len(clients)  # nobody always goes first
                    took[which] = seconds(clients[which])
                if n >= WARM_UP:
                    rounds.append(tuple(took))
    return rounds


def run() -> list[dict[str, Any]]:
    """Measure, and return one row each for the tap and for the control."""
    rounds = measure()
    direct, again, tapped = (
        statistics.median(column) * 1000 for column in zip(*rounds, strict=True)
    )
    overhead = statistics.median(t / d for a, b, t in rounds for d in (a, b))
    control = statistics.median(b / a for a, b, _ in rounds)
    return [
        {"name": "a cell's round trip, tapped ÷ direct (at most 1.08)", "ours": tapped,
         "peer": direct, "ratio": overhead, "unit": "ms"},
        {"name": "a cell's round trip, direct ÷ direct (the control)", "ours": again,
         "peer": direct, "ratio": control, "unit": "ms"},
    ]  # fmt: skip


def main() -> None:
    """Print the figures."""
    print(f"{'':62}{'ours':>14}{'peer':>14}{'ratio':>9}")
    for r in run():
        print(f"{r['name']:62}{r['ours']:14,.3f}{r['peer']:14,.3f}{r['ratio']:9.3f}  {r['unit']}")


if __name__ == "__main__":
    main()
