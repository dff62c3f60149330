"""Run the benchmarks: ``python -m benchmarks [NAME …]``, from the top of the repository.

Strategy: every module beside this one has ``run() -> list[dict]``, whose rows say what was measured
(``name``), our figure and the peer's (``ours``, ``peer``, in ``unit``), and their ``ratio``. They
run one after the other, because two at once would measure each other. The rows are printed as a
table and written to ``_build/benchmarks.json``. A benchmark that fails is reported at the end, and
the others are kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

HERE: Final = Path(__file__).parent
RESULT: Final = HERE.parent / "_build" / "benchmarks.json"
KEYS: Final = ("name", "ours", "peer", "ratio", "unit")


def names() -> list[str]:
    """Return the benchmarks there are, by the names of their modules."""
    return sorted(
        m.name for m in pkgutil.iter_modules([str(HERE)]) if m.name != "__main__" and not m.ispkg
    )


def measure(name: str) -> list[dict[str, Any]]:
    """Run one benchmark; return its rows, with the benchmark's name in each.

    Raises
    ------
    ValueError
        If a row lacks one of :data:`KEYS`.
    """
    rows: list[dict[str, Any]] = importlib.import_module(f"benchmarks.{name}").run()
    for row in rows:
        if missing := [key for key in KEYS if key not in row]:
            raise ValueError(f"benchmarks/{name}.py: the row {row!r} has no {', '.join(missing)}")
    return [{"benchmark": name, **row} for row in rows]


def table(rows: list[dict[str, Any]]) -> Table:
    """Set rows as a table, the benchmarks apart."""
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("benchmark", "what", "ours", "peer", "unit", "ratio"):
        numeric = heading in ("ours", "peer", "ratio")
        found.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    before = ""
    for row in rows:
        if row["benchmark"] != before and before:
            found.add_section()
        found.add_row(
            "" if row["benchmark"] == before else row["benchmark"],
            row["name"],
            figure(row["ours"]),
            figure(row["peer"]),
            row["unit"],
            f"{row['ratio']:.2f}",
        )
        before = row["benchmark"]
    return found


def figure(value: float) -> str:
    """Write a figure with as many digits as mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main() -> int:
    """Run what was asked for; return 1 if something failed."""
    known = names()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run the benchmarks.")
    parser.add_argument(
        "name", nargs="*", metavar="NAME", help=f"which to run (default: {', '.join(known)})"
    )  # fmt: skip
    chosen = parser.parse_args().name or known
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(known)}")
    # Into a file or a pipe, without breaking lines.
    console = Console(width=None if sys.stdout.isatty() else 200)
    remarks = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for n, name in enumerate(chosen, 1):
        started = time.monotonic()
        with remarks.status(f"{name} ({n} of {len(chosen)})"):
            try:
                rows += measure(name)
            except Exception:
                failed.append(name)
                traceback.print_exc()
        remarks.print(f"{name}: {time.monotonic() - started:.0f} s", style="dim")
    console.print(table(rows))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    remarks.print(f"written: {RESULT.relative_to(HERE.parent)}")
    if failed:
        remarks.print(f"failed: {', '.join(failed)}", style="bold red")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
