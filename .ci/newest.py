"""Build and test the book with the newest releases of the pinned packages, and report on it.

Usage: ``python3 .ci/newest.py``. Writes ``_build/newest.md``. Exit code 1: something differs, that
is, the newest releases cannot be installed together, the book cannot be built from them, or a test
fails; among the tests are those that hold each chapter to what was captured. It upgrades ``.venv``;
``rm -r .venv`` and ``make book`` bring the pins back.

Like ``environment.py``, it runs on whatever ``python3`` there is, with the standard library only.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv/bin/python"
REPORT = ROOT / "_build/newest.md"
#: The end of what a failing step prints, in lines; an issue holds 65,536 characters.
SHOWN = 120
#: It compares what is installed with the pins, which is what we change here.
NOT_NOW = "tests/test_environment.py::test_what_is_installed_is_what_is_pinned"


def pins(text: str) -> dict[str, str]:
    """Return names and versions of a ``requirements.txt`` or of what ``pip freeze`` prints."""
    found = re.findall(r"^([\w.-]+)==(\S+)", text, flags=re.M)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return the rows of a table: what has another version now, is new, or is gone."""
    return [
        f"| {name} | {before.get(name, '–')} | {after.get(name, '–')} |"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def report(rows: list[str], failed: str, output: str) -> str:
    """Write the report, as Markdown."""
    text = "No package has a newer release than the pinned one.\n"
    if rows:
        text = "\n".join(["| package | pinned | newest |", "|---|---|---|", *rows, ""])
    if not failed:
        return f"The book built and tested with the newest releases is the same.\n\n{text}"
    lines = re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines()[-SHOWN:]
    end = "\n".join(line[:300].replace("```", "'''") for line in lines)
    return (
        f"{failed} failed with the newest releases.\n\n{text}\nIts last lines:\n\n```\n{end}\n```\n"
    )


def attempt(*command: str | Path) -> tuple[bool, str]:
    """Run a command, show what it prints, and return whether it succeeded, and its output."""
    variables = {**os.environ, "UNDERHOOD_REQUIRE_LIVE": "1", "PYTHONUNBUFFERED": "1"}
    variables["PYTEST_ADDOPTS"] = f"--deselect {NOT_NOW}"
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=str(ROOT),
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return process.wait() == 0, "".join(lines)


def main() -> int:
    """Try it; return 1 if something differs."""
    pinned = pins((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    upgrade = ("-m", "pip", "install", "--upgrade", "--upgrade-strategy", "eager", "--editable")
    steps: list[tuple[str, tuple[str | Path, ...]]] = [
        ("Setting up", (sys.executable, ".ci/environment.py", "test")),
        ("Installing", (PYTHON, *upgrade, ".[test]")),
        ("`make test`", ("make", "test")),
    ]
    failed, output = "", ""
    for name, command in steps:
        succeeded, output = attempt(*command)
        if not succeeded:
            failed = name
            break
    installed = ""
    if PYTHON.exists():
        installed = subprocess.check_output(
            [str(PYTHON), "-m", "pip", "freeze", "--exclude-editable"], encoding="utf-8"
        )
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(report(changes(pinned, pins(installed)), failed, output), encoding="utf-8")
    print(REPORT.read_text(encoding="utf-8"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
