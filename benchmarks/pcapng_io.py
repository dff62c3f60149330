"""How fast captures are written and read, beside a plain copy of the file.

The captures hold 50 MB: in pieces as large as the tap reads them when it has much to do (256 kB),
and in messages of 1 kB, most of which is headers' work. The peer is the least that anybody could
do with so many bytes: write them to a file, or read them from one.

Run it: ``python benchmarks/pcapng_io.py``.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from underhood.capture import pcapng
from underhood.capture.store import DIRECTIONS, Capture, Chunk, Connection, Link

SIZE: Final = 50_000_000
ROUNDS: Final = 7
PIECES: Final = {"in 256 kB pieces": 256 * 1024, "in messages of 1 kB": 1000}


def capture(piece: int) -> Capture:
    """Make a capture of 50 MB, with time and direction for each piece."""
    data = random.Random(1).randbytes(SIZE)
    chunks = tuple(
        Chunk(10**18 + at, DIRECTIONS[at // piece % 2], data[at : at + piece])
        for at in range(0, SIZE, piece)
    )
    link = Link("client", "kernel", "shell", "some-id")
    connection = Connection(link, 1, ("127.0.0.1", 50_000), ("127.0.0.1", 5000), 10**18, chunks)
    return Capture((connection,), name="benchmark")


def best(*functions: Callable[[], object]) -> list[float]:
    """Let functions take turns; return the least seconds of each."""
    took = [float("inf")] * len(functions)
    for _ in range(ROUNDS):
        for n, function in enumerate(functions):
            begin = time.perf_counter()
            function()
            took[n] = min(took[n], time.perf_counter() - begin)
    return took


def run() -> list[dict[str, Any]]:
    """Measure, and return the rows."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path, plain = Path(folder, "ours.pcapng"), Path(folder, "plain")
        for name, piece in PIECES.items():
            whole = capture(piece)
            data = b"".join(chunk.data for chunk in whole.connections[0].chunks)
            writing = best(
                lambda whole=whole: pcapng.save(whole, path),
                lambda data=data: plain.write_bytes(data),
            )
            reading = best(lambda: pcapng.load(path), plain.read_bytes)
            assert pcapng.load(path) == whole
            for what, (ours, peer) in (("written", writing), ("read", reading)):
                rows.append(
                    {
                        "name": f"pcapng {what}, {name}",
                        "ours": SIZE / 1e6 / ours,
                        "peer": SIZE / 1e6 / peer,
                        "ratio": peer / ours,
                        "unit": "MB/s",
                    }
                )
    return rows


def main() -> None:
    """Print the figures."""
    print(f"{'':62}{'ours':>14}{'plain file':>14}{'ratio':>9}")
    for r in run():
        print(f"{r['name']:62}{r['ours']:14,.0f}{r['peer']:14,.0f}{r['ratio']:9.2f}  {r['unit']}")


if __name__ == "__main__":
    main()
