"""Tables of this very build: how each chapter ran, and on which versions.

Strategy: two directives without options, used by ``book/appendix/versions.md``. ``course-runs``
lists the executed pages with what their results in the cache and their captures say;
``course-versions`` lists what they ran on. Both write a MyST table and have it parsed, and both
ask to be read anew in each build, since a chapter may have run again while their page is the same.
"""

from __future__ import annotations

import asyncio
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq
from chapter_execution import Chapter
from docutils import nodes
from page_foot import duration, results_of, size
from sphinx.util.docutils import SphinxDirective

from underhood import load
from underhood.stage import MissingActor
from underhood.stage.browser import chromium
from underhood.stage.processes import Home

if TYPE_CHECKING:
    from sphinx.application import Sphinx

#: What the course explains, by layer, as distributions that are installed.
LAYERS = {
    "document": ("nbformat", "jupytext"),
    "client": ("jupyter_client", "nbclient", "nbconvert", "papermill", "jupyter-console"),
    "server": ("jupyter_server", "jupyterhub", "jupyter_kernel_gateway"),
    "front end": ("jupyterlab", "notebook"),
    "kernel": ("ipykernel", "ipython"),
    "transport": ("pyzmq", "tornado"),
    "book": ("jupyter-book", "Sphinx", "myst-nb", "matplotlib", "playwright"),
}


def table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Write a MyST table."""
    lines = ["```{list-table}", ":header-rows: 1", ""]
    for row in (heads, *rows):
        lines += [f"{'*' if n == 0 else ' '} - {cell}" for n, cell in enumerate(row)]
    return "\n".join([*lines, "```", ""])


class Runs(SphinxDirective):
    """A row for each page that was executed: its time, its messages, its bytes."""

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        self.env.note_reread()
        return self.parse_text_to_nodes(
            table(("Page", "Took", "Recordings", "Messages", "On the wire"), self._rows())
        )

    def _rows(self) -> Iterator[tuple[str, ...]]:
        app = self.env.app
        results = results_of(app)
        for name in app.config.external_site_map:
            path = Path(self.env.srcdir, f"{name}.md")
            chapter = Chapter.read(name, path) if path.exists() else None
            run = results.run_of(chapter) if chapter else {}
            if not run:
                continue
            captures = [load(file) for file in sorted(results.captures_of(name).glob("*.pcapng"))]
            passed = sum(len(x.data) for c in captures for one in c.connections for x in one.chunks)
            yield (
                f"{{doc}}`/{name}`",
                duration(run["execution_seconds"]).replace(" ", "\u00a0"),
                str(len(captures)),
                f"{sum(len(capture.trace()) for capture in captures):,}",
                size(passed),
            )


class Versions(SphinxDirective):
    """A row for each thing that the chapters ran on: its layer, its version, what it is."""

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        self.env.note_reread()
        return self.parse_text_to_nodes(table(("Layer", "What", "Version"), self._rows()))

    def _rows(self) -> Iterator[tuple[str, ...]]:
        yield "system", f"Python on {platform.system()}", platform.python_version()
        yield "system", "Chromium", asyncio.run(chromium_version())
        yield "system", "Node.js", node_version()
        for layer, packages in LAYERS.items():
            for package in packages:
                try:
                    yield layer, metadata(package)["Name"], version(package)
                except PackageNotFoundError:
                    yield layer, package, "not installed"
            if layer == "transport":
                yield layer, "libzmq", zmq.zmq_version()


async def chromium_version() -> str:
    """Ask the browser of the stage for its version."""
    try:
        async with Home() as home, chromium(home) as browser:
            return browser.version
    except MissingActor:
        return "not here: recordings are replayed"


def node_version() -> str:
    """Ask the Node.js that the proxy runs on for its version."""
    try:
        said = subprocess.check_output(["node", "--version"], text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "not here: recordings are replayed"
    return said.strip().removeprefix("v")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("course-runs", Runs)
    app.add_directive("course-versions", Versions)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
