"""Run notebooks with no hand on them: parameters, time limits, retries, several at a time.

::

    python runner.py sales.ipynb costs.ipynb --to done --workers 2 -p year 2026

Strategy: nbclient talks to the kernel; this file decides. A run never raises for what goes wrong in
a notebook. It returns an outcome that says what happened, and the notebook is saved after each
cell, as far as it got, so that nothing that was computed is lost. Only what may have been bad luck
is tried again. Workers are threads: the work is done by the kernels, which are processes.

Needs nbformat and nbclient; papermill for parameters, rich for the command line.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO, Final, Literal

import nbformat
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

Fate = Literal[
    "ok",  # every cell ran
    "error",  # a cell raised
    "input",  # a cell wanted to ask somebody
    "timeout",  # a cell took too long
    "dead kernel",  # the kernel ended in the middle of a cell
    "no start",  # the kernel never answered
    "no kernel",  # no kernel of this name is installed
    "invalid",  # this is no notebook
]

LUCK: Final[frozenset[Fate]] = frozenset({"dead kernel", "no start"})
"""What may go well the next time. A cell that raised would raise again."""

# What nbclient complains about is in the outcome, so nobody has to read it twice.
_quiet = logging.getLogger(__name__)
_quiet.addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Job:
    """A notebook to run.

    Parameters
    ----------
    source, target
        Where it is, and where the executed one goes. The source is never changed.
    parameters
        Values for the names that the cell tagged ``parameters`` sets.
    """

    source: Path
    target: Path
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Parameters
    ----------
    job
        What was to be run.
    fate
        How it ended; ``"ok"`` if every cell ran.
    why
        One line for a reader; empty if all went well.
    tries
        How often it was started.
    seconds
        How long that took in all.
    cells
        For each code cell that ended, in order: its place in the notebook, and its seconds.
    """

    job: Job
    fate: Fate
    why: str
    tries: int
    seconds: float
    cells: tuple[tuple[int, float], ...]

    @property
    def ok(self) -> bool:
        """Whether every cell ran."""
        return self.fate == "ok"


def run(
    job: Job,
    *,
    timeout: int = 600,
    startup_timeout: int = 60,
    tries: int = 2,
    on_cell: Callable[[Job, int], None] | None = None,
) -> Outcome:
    """Run one notebook.

    Parameters
    ----------
    job
        The notebook.
    timeout
        How long a single cell may take, in whole seconds.
    startup_timeout
        How long its kernel may take to answer, in whole seconds.
    tries
        How often to start it at most, if it fails for a reason in :data:`LUCK`.
    on_cell
        Called with the job and the cell's place before each code cell.

    Returns
    -------
    Outcome
        Whatever happens in the notebook. What executed is in ``job.target``, also after a failure.

    Raises
    ------
    OSError
        If the target cannot be written.
    """
    began = perf_counter()
    attempt = 0
    while True:
        attempt += 1
        cells: list[tuple[int, float]] = []
        fate, why = _run_once(job, timeout, startup_timeout, on_cell, cells)
        if fate not in LUCK or attempt >= tries:
            return Outcome(job, fate, why, attempt, perf_counter() - began, tuple(cells))


def run_all(
    jobs: Iterable[Job], *, workers: int = 2, executor: Executor | None = None, **options: Any
) -> Iterator[Outcome]:
    """Run notebooks side by side and yield each outcome as soon as it is there.

    Parameters
    ----------
    jobs
        The notebooks.
    workers
        How many at a time.
    executor
        Whoever runs them instead of threads of this process, such as a cluster.
    options
        For :func:`run`.
    """
    with ExitStack() as stack:
        if executor is None:
            executor = stack.enter_context(ThreadPoolExecutor(workers))
        futures = [executor.submit(run, job, **options) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:  # if somebody stops us, what has not begun does not begin
            for future in futures:
                future.cancel()


def report(outcomes: Iterable[Outcome]) -> NotebookNode:
    """Make a notebook of what became of others: a table, and the last output of each."""
    found = sorted(outcomes, key=lambda outcome: outcome.job.target.name)
    rows = ["| notebook | fate | tries | seconds | why |", "|---|---|---|---|---|"]
    rows += [
        f"| {o.job.target.name} | {o.fate} | {o.tries} | {o.seconds:.1f} | "
        f"{o.why.replace('|', chr(92) + '|')} |"
        for o in found
    ]
    cells = [new_markdown_cell("# Report\n\n" + "\n".join(rows))]
    for outcome in found:
        if outcome.fate == "invalid":
            continue
        with_output = [
            cell
            for cell in nbformat.read(outcome.job.target, as_version=4).cells
            if cell.cell_type == "code" and cell.outputs
        ]
        cells.append(new_markdown_cell(f"## {outcome.job.target.name}"))
        if with_output:
            cells.append(new_code_cell("", outputs=with_output[-1].outputs))
    made: NotebookNode = new_notebook(cells=cells)
    return made


# ---- one attempt


def _run_once(
    job: Job,
    timeout: int,
    startup_timeout: int,
    on_cell: Callable[[Job, int], None] | None,
    cells: list[tuple[int, float]],
) -> tuple[Fate, str]:
    try:
        notebook = _read(job)
    except Exception as error:  # bytes can be wrong in more ways than nbformat has exceptions for
        return "invalid", _first_line(error)

    clock: dict[int, float] = {}
    noise = 0  # how much the kernel had written when it was ready

    def before(cell: NotebookNode, cell_index: int) -> None:
        clock[cell_index] = perf_counter()
        if on_cell is not None:
            on_cell(job, cell_index)

    def after(cell_index: int, **_: Any) -> None:
        cells.append((cell_index, perf_counter() - clock[cell_index]))
        _save(notebook, job.target)

    def begun(**_: Any) -> None:
        nonlocal noise
        noise = words.tell()

    client = NotebookClient(
        notebook,
        log=_quiet,
        timeout=timeout,
        startup_timeout=startup_timeout,
        shutdown_kernel="immediate",  # a cell that hangs may not let it end politely
        resources={"metadata": {"path": str(job.source.parent)}},
        on_notebook_start=begun,
        on_cell_execute=before,
        on_cell_executed=after,
    )
    with tempfile.TemporaryFile(buffering=0) as words:
        try:
            _execute(client, words)
        except CellTimeoutError:
            return "timeout", f"cell {max(clock)} took more than {timeout} s"
        except DeadKernelError:
            where = f"in cell {max(clock)}" if clock else "before the first cell"
            return "dead kernel", f"{where}{_last_line(words, noise)}"
        except CellExecutionError as error:
            fate: Fate = "input" if error.ename == "StdinNotImplementedError" else "error"
            return fate, f"cell {max(clock)}: {error.ename}: {error.evalue}"
        except NoSuchKernel as error:
            return "no kernel", f"no kernel is called {error.name!r}"
        except OSError as error:  # the program that its kernelspec names is not there
            return "no kernel", f"its kernel cannot be started: {_first_line(error)}"
        except RuntimeError as error:
            return "no start", f"{_first_line(error)}{_last_line(words, noise)}"
        finally:
            _save(notebook, job.target)
    return "ok", ""


def _execute(client: NotebookClient, words: BinaryIO) -> None:
    """Run a client to its end, in a thread and an event loop of its own.

    So it works where a loop is running already, as in a notebook; and the end of the loop cancels
    what nbclient leaves waiting after a timeout.
    """
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, client.async_execute(stderr=words)).result()


def _read(job: Job) -> NotebookNode:
    """Read a job's notebook, with its parameters in it."""
    found = nbformat.reader.reads(job.source.read_text(encoding="utf-8"))
    notebook: NotebookNode = nbformat.convert(found, nbformat.current_nbformat)
    nbformat.validate(notebook)
    if job.parameters:
        from papermill.parameterize import parameterize_notebook

        notebook.metadata.setdefault("papermill", {})
        for cell in notebook.cells:
            cell.metadata.setdefault("tags", [])
        notebook = parameterize_notebook(notebook, dict(job.parameters))
    return notebook


def _save(notebook: NotebookNode, target: Path) -> None:
    """Write a notebook so that whoever looks finds the old one or the new one, whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    nbformat.write(notebook, unfinished)
    unfinished.replace(target)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _last_line(words: BinaryIO, start: int) -> str:
    """Return what a kernel said last on its standard error, after ``start`` bytes."""
    words.seek(start)
    lines = words.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""


# ---- the command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run notebooks from the command line; return 0 only if all of them went well."""
    parser = argparse.ArgumentParser(description="Run notebooks with no hand on them.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--to", type=Path, default=Path("done"), help="folder for the results")
    parser.add_argument("--workers", type=int, default=2, help="how many at a time")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one cell")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    given = parser.parse_args(arguments)
    parameters = {name: _value(text) for name, text in given.p}
    jobs = [Job(path, given.to / path.name, parameters) for path in given.notebooks]

    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    running = run_all(jobs, workers=given.workers, timeout=given.timeout)
    outcomes = list(track(running, "notebooks", total=len(jobs), console=console))
    for outcome in outcomes:
        print(f"{outcome.fate:12} {outcome.seconds:6.1f} s  {outcome.job.target}  {outcome.why}")
    _save(report(outcomes), given.to / "report.ipynb")
    return 0 if all(outcome.ok for outcome in outcomes) else 1


def _value(text: str) -> Any:
    """Read a parameter: a number or a boolean if it looks like one, else text."""
    import json

    with suppress(ValueError):
        return json.loads(text)
    return text


if __name__ == "__main__":
    sys.exit(main())
