"""Audit the built site with Lighthouse: ``make audit``, or ``python -m benchmarks.audit``.

Strategy: the landing page and the heaviest chapter (by its size as built) are visited as a desktop
computer and as a phone, several times, in turn with the same pages as the theme made them
(``_build/untreated``). Both sites come from servers on loopback that compress what is text, as
every host for static pages does. The median of each score counts. What is printed beside the
scores: bytes that travelled, requests, and how far the page moved while it loaded.

The result is ``_build/audit.json``: a list with ``page``, ``form`` (``desktop`` or ``mobile``), and
the scores ``performance``, ``accessibility``, ``best-practices`` and ``seo``, from 0 to 1. The exit
code is 1 if a score is below its target.
"""

from __future__ import annotations

import argparse
import gzip
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT: Final = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "book/_ext"))
import light_pages  # noqa: E402

SITE: Final = ROOT / "_build/html"
RESULT: Final = ROOT / "_build/audit.json"
DRIVER: Final = Path(__file__).with_name("lighthouse.mjs")
CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FORMS: Final = ("desktop", "mobile")
SCORES: Final = ("performance", "accessibility", "best-practices", "seo")
#: How phones differ: a slow processor and a slow network leave no room for the last points.
TARGETS: Final = {"desktop": {"performance": 1.0}, "mobile": {"performance": 0.98}}


@dataclass
class Measured:
    """What was measured of one page in one form.

    Parameters
    ----------
    page, form
        The page's name in the book; ``desktop`` or ``mobile``.
    treated
        False for the page as the theme made it.
    runs
        What each visit gave.
    """

    page: str
    form: str
    treated: bool
    runs: list[dict[str, Any]] = field(default_factory=list)

    def score(self, name: str) -> float:
        """Return the median of a score, from 0 to 1."""
        return float(median(run["scores"][name] for run in self.runs))

    def figure(self, name: str) -> float:
        """Return the median of ``bytes``, ``requests`` or ``shift``."""
        return float(median(run[name] for run in self.runs))

    def missed(self) -> list[str]:
        """Name the targets that are missed, with what Lighthouse says about it."""
        target = {name: TARGETS[self.form].get(name, 1.0) for name in SCORES}
        found = [
            f"{self.page}, {self.form}: {name} {100 * self.score(name):.0f}, "
            f"not {100 * target[name]:.0f}"
            for name in SCORES
            if self.score(name) < target[name]
        ]
        if found:
            found += [f"    {said}" for said in dict.fromkeys(self.runs[-1]["missed"])]
        return found


class Compressed(http.server.SimpleHTTPRequestHandler):
    """Serves a folder as a host for static pages does: text compressed, connections kept."""

    protocol_version = "HTTP/1.1"
    packed: dict[Path, bytes]

    def do_GET(self) -> None:
        """Send a file."""
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            path /= "index.html"
        if not path.is_file():
            self.send_error(404)
            return
        kind = self.guess_type(str(path))
        is_text = kind.startswith("text/") or "svg" in kind or "javascript" in kind
        if path not in self.packed:
            data = path.read_bytes()
            self.packed[path] = gzip.compress(data, 9) if is_text else data
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if is_text else kind)
        if is_text:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(self.packed[path])))
        self.send_header("Cache-Control", "max-age=600")
        self.end_headers()
        self.wfile.write(self.packed[path])

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback; give its address."""
    handler = type("Handler", (Compressed,), {"packed": {}})

    def in_folder(*given: Any) -> http.server.BaseHTTPRequestHandler:
        return handler(*given, directory=str(folder))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), in_folder) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def pages() -> list[str]:
    """Return the landing page and the heaviest chapter, as they are built."""
    first, *chapters = parse_toc_yaml(ROOT / "_toc.yml")
    # What is looked up, as the gallery of pictures is, is no chapter that one begins to read with.
    chapters = [name for name in chapters if "/appendix/" not in name]
    built = [name for name in chapters if (SITE / f"{name}.html").is_file()]
    return [first, max(built, key=lambda name: (SITE / f"{name}.html").stat().st_size)]


def measure(runs: int, console: Console) -> list[Measured]:
    """Visit every page in every form, treated and untreated in turn, ``runs`` times."""
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    node = shutil.which("node")
    if chromium is None or node is None:
        sys.exit("The audit needs Chromium and Node.js: run make audit, which sets them up.")
    rows = [
        Measured(page, form, treated)
        for page in pages()
        for form in FORMS
        for treated in (True, False)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        untreated = Path(temporary) / "html"
        light_pages.copy_untreated(SITE, untreated)
        with served(SITE) as ours, served(untreated) as theirs:
            visits = [(row, f"{ours if row.treated else theirs}{row.page}.html") for row in rows]
            visits *= runs
            task = {
                "chromium": chromium,
                "visits": [{"url": url, "form": row.form} for row, url in visits],
            }
            driver = subprocess.Popen(
                [node, str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert driver.stdin is not None
            assert driver.stdout is not None
            with driver, console.status("Lighthouse starts") as status:
                driver.stdin.write(json.dumps(task))
                driver.stdin.close()
                for number, (row, _) in enumerate(visits, 1):
                    status.update(f"{row.page}, {row.form} ({number} of {len(visits)})")
                    if not (line := driver.stdout.readline()):
                        break
                    row.runs.append(json.loads(line))
    if driver.returncode:
        sys.exit("Lighthouse failed; the lines above say why.")
    return rows


def table(rows: list[Measured]) -> Table:
    """Set the rows as a table."""
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("page", "form", "build"):
        found.add_column(heading)
    for heading in (*SCORES, "kB", "requests", "shift"):
        found.add_column(heading, justify="right")
    for row in rows:
        found.add_row(
            row.page if row.treated else "",
            row.form if row.treated else "",
            "this site" if row.treated else "untreated",
            *(f"{100 * row.score(name):.0f}" for name in SCORES),
            f"{row.figure('bytes') / 1000:,.0f}",
            f"{row.figure('requests'):.0f}",
            f"{row.figure('shift'):.3f}",
            end_section=not row.treated,
        )
    return found


def main() -> int:
    """Run the audit; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.audit", description="Audit the site."
    )
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="visits each (default: 5)")
    runs = parser.parse_args().runs
    if not (SITE / light_pages.SHARED).is_dir():
        sys.exit("There is no site to audit, or its pages were not made light: run make audit.")
    rows = measure(runs, Console(stderr=True))
    Console(width=None if sys.stdout.isatty() else 120).print(table(rows))
    ours = [row for row in rows if row.treated]
    RESULT.write_text(
        json.dumps(
            [
                {"page": r.page, "form": r.form, **{name: r.score(name) for name in SCORES}}
                for r in ours
            ],
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )
    print(f"written: {RESULT.relative_to(ROOT)}")
    missed = [line for row in ours for line in row.missed()]
    print("\n".join(missed) if missed else "Every target is met.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
