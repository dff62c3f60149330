"""Execute the book's chapters before Sphinx reads them: in parallel, with a line for each.

Strategy: Jupyter Book executes notebooks one after another while it reads them, and takes from
its cache (jupyter-cache) whatever is there already. So this Sphinx extension looks, just before
the reading begins, which chapters have no fresh result, executes those side by side with nbclient,
and puts the results into that cache. ``jupyter-book build .`` and ``make book`` are thus the same.

What a chapter's result depends on: its own cells (the cache's key), the library, the pins and the
recordings (a fingerprint over their bytes; when it changes, all results go), and the captures that
the chapter saved while it ran (``_build/captures/<chapter>/``, by the environment variable
``UNDERHOOD_KEEP``; without them, pictures could not be checked against what was captured).

Each kernel runs under :mod:`keeper`, so that nothing is left of it however the build ends, and on
this Python by neutral paths, so that captures and pages tell nothing of the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.cache.main import JupyterCacheBase
from jupyter_client.manager import AsyncKernelManager
from myst_nb.core.read import is_myst_markdown_notebook, read_myst_markdown_notebook
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from sphinx.util import logging
from traitlets import Unicode
from traitlets.config import Config

from underhood.stage.neutral import NeutralPython, neutral_folder

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

logger = logging.getLogger(__name__)

#: What, beside a chapter's own cells, its result depends on; relative to the book's root.
DEPENDENCIES = (
    "requirements.txt",
    "underhood/**/*",
    "book/recordings/**/*",
    "book/tooling/*.py",
    "book/slides/speaker.yml",
)

#: The user's name in every header that a chapter's own client writes; the stage's, too.
USER = "jovyan"

#: What is executed with the book, though it is no page of it.
DECKS = ("book/slides/talk",)

KEEPER = Path(__file__).with_name("keeper.py")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Chapter:
    """A chapter to execute: its name in the book, its file, and its cells."""

    name: str
    path: Path
    notebook: nbformat.NotebookNode

    @classmethod
    def read(cls, name: str, path: Path) -> Chapter | None:
        """Read the chapter as the book will; None if it has no code to execute."""
        text = path.read_text(encoding="utf-8")
        if not is_myst_markdown_notebook(text):
            return None
        notebook = read_myst_markdown_notebook(text, add_source_map=True, path=path)
        if not any(cell.cell_type == "code" for cell in notebook.cells):
            return None
        return cls(name, path, notebook)

    def line_of(self, index: int) -> int:
        """Return the line of the file on which cell ``index`` begins."""
        return int(self.notebook.metadata["source_map"][index]) + 1


class Results:
    """What executing chapters left in the build folder: outputs, captures and a fingerprint."""

    def __init__(self, root: Path, build: Path, cache_path: Path) -> None:
        self.root, self.build = root, build
        self.captures = build / "captures"
        self._cache_path = cache_path
        self._fingerprint_file = cache_path / "fingerprint"
        self._cache: JupyterCacheBase | None = None

    @property
    def cache(self) -> JupyterCacheBase:
        """The cache that Jupyter Book reads."""
        if self._cache is None:
            self._cache = get_cache(self._cache_path)
        return self._cache

    def fingerprint(self) -> str:
        """Return a digest of everything that all chapters depend on."""
        digest = hashlib.sha256(sys.version.encode())
        for pattern in DEPENDENCIES:
            for path in sorted(self.root.glob(pattern)):
                if path.is_file() and "__pycache__" not in path.parts:
                    digest.update(f"\0{path.relative_to(self.root).as_posix()}\0".encode())
                    digest.update(path.read_bytes())
        return digest.hexdigest()

    def drop_if_outdated(self) -> bool:
        """Drop all results if the library, the pins or the recordings have changed."""
        now = self.fingerprint()
        with contextlib.suppress(OSError):
            if self._fingerprint_file.read_text() == now:
                return False
        had_results = self._cache_path.exists()
        for folder in (self._cache_path, self.captures):
            shutil.rmtree(folder, ignore_errors=True)
        self._cache = None
        self._cache_path.mkdir(parents=True)
        self._fingerprint_file.write_text(now)
        return had_results

    def captures_of(self, name: str) -> Path:
        """Return the folder in which chapter ``name`` keeps what it captured."""
        return self.captures / name

    def executed_at(self, chapter: Chapter) -> float | None:
        """Return when the chapter, as it is now, was executed (seconds since 1970), or None."""
        if not self.captures_of(chapter.name).is_dir():
            return None
        try:
            record = self.cache.match_cache_notebook(chapter.notebook)
        except KeyError:
            return None
        return float(record.data.get("executed_at", 0.0))

    def run_of(self, chapter: Chapter) -> Mapping[str, Any]:
        """Return what is known of the chapter's last run: when, how long, where, with what."""
        try:
            return dict(self.cache.match_cache_notebook(chapter.notebook).data)
        except KeyError:
            return {}

    def keep(self, chapter: Chapter, executed: nbformat.NotebookNode, seconds: float) -> None:
        """Put an executed chapter into the cache, in place of its older results."""
        uri = str(chapter.path)
        run = {
            "execution_seconds": seconds,
            "executed_at": time.time(),
            "machine": f"{platform.system()} on {platform.machine()}",
            "processors": os.cpu_count(),
            "versions": versions_used(executed),
        }
        record = self.cache.cache_notebook_bundle(
            CacheBundleIn(executed, uri, data=run),
            check_validity=False,
            overwrite=True,
        )
        # The captures in the build folder belong to this run alone.
        for older in self.cache.list_cache_records():
            if older.uri == uri and older.pk != record.pk:
                self.cache.remove_cache(older.pk)


#: Packages behind each chapter: its kernel, and what it is spoken to with.
ALWAYS = ("ipykernel", "jupyter_client", "pyzmq")
#: Packages behind what a chapter takes from the stage, by the module of it.
ON_STAGE = {
    "server": ("jupyter_server",),
    "lab": ("jupyterlab", "jupyter_server"),
    "hub": ("jupyterhub", "jupyterlab", "jupyter_server"),
    "console": ("jupyter-console", "qtconsole"),
    "ensemble": ("jupyterlab", "notebook", "jupyter_server", "jupyter-console", "qtconsole"),
    "gateway": ("jupyter_kernel_gateway",),
}


def versions_used(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Return the versions of what a notebook imports and puts on the stage; Python's first."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    modules = re.findall(r"^\s*(?:from|import) +([\w.]+)", code, flags=re.MULTILINE)
    staged = re.findall(r"underhood\.stage\.(\w+)|from underhood\.stage import ([\w, ]+)", code)
    words = set(re.findall(r"\w+", " ".join(part for found in staged for part in found)))
    known = packages_distributions()
    names = {*ALWAYS, *(name for word in words for name in ON_STAGE.get(word, ()))}
    names.update(name for module in modules for name in known.get(module.partition(".")[0], ()))
    found = {"Python": platform.python_version()}
    for name in sorted(names - {"underhood", "myst-nb"}, key=str.lower):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class KeptKernelManager(AsyncKernelManager):
    """A kernel manager whose kernels run under :mod:`keeper`, on this very Python."""

    python = Unicode(config=True, help="This very Python, by a neutral path.")

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        """Return the command of the kernel, preceded by its keeper's."""
        keeper = [sys.executable, str(KEEPER), str(os.getpid())]
        command = super().format_kernel_cmd(extra_arguments)
        return keeper + [self.python if part == sys.executable else part for part in command]


@dataclass(slots=True)
class Failure:
    """Why a chapter did not run to its end, in words for whoever has to mend it."""

    chapter: str
    text: str


class RunningCell:
    """Remembers which cell of a chapter is being executed, and how it failed."""

    index: int | None = None
    traceback: str = ""

    def begins(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        """Take note, as nbclient's ``on_cell_execute``."""
        self.index = cell_index

    def fails(self, execute_reply: Mapping[str, Any], **_: object) -> None:
        """Take note, as nbclient's ``on_cell_error``."""
        self.traceback = "\n".join(execute_reply["content"].get("traceback", []))

    def describe(self, chapter: Chapter, what: str) -> str:
        """Say which cell failed, what it holds, and how it failed."""
        if self.index is None:
            return f"{chapter.path.name}, before its first cell: {what}"
        source = chapter.notebook.cells[self.index].source
        return (
            f"{chapter.path.name}, line {chapter.line_of(self.index)}: this cell failed:\n\n"
            + "\n".join(f"    {line}" for line in source.splitlines())
            + f"\n\n{what}"
        )


class Executor:
    """Executes chapters side by side.

    Parameters
    ----------
    results
        Where the outcome is kept.
    workers
        How many chapters run at the same time.
    timeout
        How long one cell may take, in seconds.
    """

    def __init__(self, results: Results, workers: int, timeout: int) -> None:
        self.results, self.workers, self.timeout = results, workers, timeout
        self.failures: list[Failure] = []
        self._done = 0

    def run(self, chapters: list[Chapter]) -> None:
        """Execute ``chapters``; what went wrong is in :attr:`failures` afterwards."""
        # nbclient takes over SIGINT and SIGTERM where it can, once for each notebook. In a thread
        # of our own it cannot, and Ctrl-C stays ours: it cancels everything.
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._all(chapters))

        def work() -> None:
            asyncio.set_event_loop(loop)
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(task)

        thread = threading.Thread(target=work, name="chapters")
        thread.start()
        try:
            thread.join()
        except BaseException:
            loop.call_soon_threadsafe(task.cancel)
            thread.join()
            raise
        finally:
            if not thread.is_alive():
                loop.close()
        if not task.cancelled():
            task.result()

    async def _all(self, chapters: list[Chapter]) -> None:
        total = len(chapters)
        free = asyncio.Semaphore(self.workers)

        async def one(chapter: Chapter) -> None:
            async with free:
                begin = time.monotonic()
                failure = await self._with_second_try(chapter)
                self._done += 1
                verdict = "FAILED after " if failure else ""
                seconds = time.monotonic() - begin
                title = chapter.name.removeprefix("book/")
                logger.info(f"[{self._done}/{total}] {title} … {verdict}{seconds:.1f} s")
                if failure:
                    self.failures.append(failure)

        async with asyncio.TaskGroup() as group:
            for chapter in chapters:
                group.create_task(one(chapter))

    async def _with_second_try(self, chapter: Chapter) -> Failure | None:
        for last in (False, True):
            with tempfile.TemporaryDirectory(prefix="underhood-", dir=neutral_folder()) as private:
                folder = Path(private)
                cell = RunningCell()
                try:
                    await self._execute(chapter, folder, cell)
                    return None
                except CellExecutionError:
                    return Failure(chapter.name, cell.describe(chapter, cell.traceback))
                except (CellTimeoutError, DeadKernelError) as error:
                    return Failure(chapter.name, cell.describe(chapter, f"{error}{_said(folder)}"))
                except RuntimeError as error:
                    # From jupyter_client: the kernel died, or said nothing, before its first reply.
                    # Two kernels that start at once can have been given the same port.
                    if not last:
                        logger.info(
                            f"{chapter.name}: its kernel died before its first reply "
                            f"({error}); trying once more"
                        )
                        continue
                    return Failure(
                        chapter.name,
                        f"{chapter.path.name}: no kernel could be started, twice: {error}"
                        f"{_said(folder)}",
                    )
        raise AssertionError("unreachable")

    async def _execute(self, chapter: Chapter, private: Path, cell: RunningCell) -> None:
        captures = self.results.captures_of(chapter.name)
        shutil.rmtree(captures, ignore_errors=True)
        captures.mkdir(parents=True)
        notebook = nbformat.from_dict(chapter.notebook)
        python = NeutralPython(private)
        client = NotebookClient(
            notebook,
            config=Config(KeptKernelManager={"python": python.executable}),
            kernel_manager_class=KeptKernelManager,
            timeout=self.timeout,
            startup_timeout=120,
            record_timing=False,
            on_cell_execute=cell.begins,
            on_cell_error=cell.fails,
            resources={"metadata": {"path": str(chapter.path.parent)}},
        )
        begin = time.monotonic()
        with (private / "kernel.log").open("wb") as said:
            await client.async_execute(
                env=chapter_environment(private, python, self.results.build, captures),
                stdout=said,
                stderr=said,
            )
        self.results.keep(chapter, notebook, time.monotonic() - begin)


def chapter_environment(
    private: Path, python: NeutralPython, build: Path, captures: Path
) -> Mapping[str, str]:
    """Return the environment of a chapter's kernel.

    It is ours, but for what would make the page depend on whose machine built it: the reader's
    IPython profile and Jupyter settings, the paths of their Python and of their temporary files,
    and their name, which every message header carries.
    """
    return {
        **os.environ,
        "UNDERHOOD_KEEP": str(captures),
        "IPYTHONDIR": str(private / "ipython"),
        "JUPYTER_CONFIG_DIR": str(private / "jupyter"),
        "JUPYTER_DATA_DIR": str(private / "data"),
        "JUPYTER_RUNTIME_DIR": str(private / "runtime"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "MPLCONFIGDIR": str(build / "matplotlib"),
        "PATH": os.pathsep.join([str(python.prefix / "bin"), os.environ.get("PATH", "")]),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "TMPDIR": neutral_folder(),
        **dict.fromkeys(("USER", "LOGNAME", "USERNAME"), USER),
    }


def _said(private: Path) -> str:
    """Return the last lines that a kernel wrote to its terminal."""
    with contextlib.suppress(OSError):
        lines = (private / "kernel.log").read_text(errors="replace").splitlines()
        if lines:
            return "\nThe kernel's last words were:\n" + "\n".join(lines[-20:])
    return "\nThe kernel said nothing."


def read_chapters(environment: BuildEnvironment) -> Iterator[Chapter]:
    """Read all that has code to execute: pages, in the order of the contents, then decks."""
    order = list(environment.config.external_site_map)
    names = sorted(
        environment.found_docs, key=lambda n: order.index(n) if n in order else len(order)
    )
    for name in (*names, *DECKS):
        path = Path(environment.srcdir, f"{name}.md")
        chapter = Chapter.read(name, path) if path.exists() else None
        if chapter:
            yield chapter


def execute_outdated(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> Iterable[str]:
    """Execute the chapters without a fresh result; tell Sphinx to read again what was executed."""
    if app.config.nb_execution_mode != "cache":
        return []
    build = Path(app.outdir).parent
    cache_path = Path(app.config.nb_execution_cache_path or build / ".jupyter_cache")
    results = Results(Path(app.srcdir), build, cache_path)
    if results.drop_if_outdated():
        logger.info("the library, the pins or the recordings have changed: executing everything")
    chapters = list(read_chapters(env))
    stale = [chapter for chapter in chapters if results.executed_at(chapter) is None]
    if stale:
        workers = app.config.underhood_workers
        logger.info(
            f"executing {len(stale)} of {len(chapters)} chapters, {workers} at a time: "
            "real kernels, live captures"
        )
        executor = Executor(results, workers, app.config.nb_execution_timeout)
        executor.run(stale)
        if executor.failures:
            # Not an exception: Jupyter Book would add a traceback of its own, and the reader
            # would have to look for ours above it.
            sys.exit(report(executor.failures))
    else:
        logger.info(f"all {len(chapters)} chapters have been executed before; nothing changed")
    # Sphinx compares times of files only. A page is old, too, if it was read before its last run.
    return [
        chapter.name
        for chapter in chapters
        if chapter.name in env.found_docs
        and (results.executed_at(chapter) or 0) * 1e6 > env.all_docs.get(chapter.name, 0)
    ]


def report(failures: list[Failure]) -> str:
    """Say what failed, for whoever has to mend it."""
    names = ", ".join(failure.chapter for failure in failures)
    text = "\n\n".join(f"──── {failure.chapter} ────\n{failure.text}" for failure in failures)
    if not sys.stderr.isatty():
        text = COLOURS.sub("", text)
    return f"\n{text}\n\nThe book was not built: {names} failed."


def repeat_warnings(app: Sphinx, exception: Exception | None) -> None:
    """Make the next build read every page again if this one warned of anything.

    Sphinx warns of what it reads, and reads only what has changed: a second build would succeed.
    """
    if app._warncount:
        (Path(app.doctreedir) / "environment.pickle").unlink(missing_ok=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_config_value("underhood_workers", 2, "")
    app.connect("env-get-outdated", execute_outdated)
    app.connect("build-finished", repeat_warnings)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
