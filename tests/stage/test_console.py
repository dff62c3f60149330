"""Consoles come to a kernel that runs already, and a picture can tell them from its server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from places import Timed, repeatedly

from underhood import record
from underhood.stage import Home, MissingActor, front_ends, jupyter_server
from underhood.stage.console import (
    QtConsole,
    TerminalConsole,
    find_consoles,
    qt_console,
    terminal_console,
)
from underhood.stage.guardian import MARK, marked

pytestmark = pytest.mark.anyio


@dataclass
class Desk:
    """Both consoles on one kernel, which a server started."""

    home: Home
    terminal: TerminalConsole
    qt: QtConsole


@contextlib.asynccontextmanager
async def desk(*arguments: str) -> AsyncIterator[Desk]:
    """Start a server, a kernel and both consoles; the arguments are for the Qt console."""
    async with (
        Home() as home,
        jupyter_server(home=home) as server,
    ):
        await server.request("POST", "/api/kernels", {"name": "python3"})
        async with terminal_console(home) as terminal, qt_console(home, *arguments) as qt:
            yield Desk(home, terminal, qt)


@repeatedly
@pytest.mark.usefixtures("consoles_are_here")
async def test_two_consoles_share_a_kernel_and_are_told_apart(turn: int, timed: Timed) -> None:
    with timed("two consoles"):
        async with record() as capture, desk() as at:
            for console in (at.terminal, at.qt):
                await console.type("1 + 1")
            assert await at.terminal.run() == "Out[1]: 2"
            assert (await at.qt.run()).endswith(": 2")
            await at.terminal.type("print('a line')")
            assert await at.terminal.run() == "a line"
            assert "Out[1]: 2\n" in await at.terminal.screen()
            picture = await at.qt.screenshot()
        assert picture.png.startswith(b"\x89PNG")
        assert "1 + 1" in picture.alternative
        mark = at.home.environment[MARK]
    assert marked(mark) == []
    trace = capture.trace()
    assert trace.parties == ("client", "console", "Qt console", "server", "kernel")
    asked = [m for m in trace.types("execute_request") if m.content["code"] == "1 + 1"]
    assert [(m.sender, m.receiver) for m in asked] == [
        ("console", "kernel"),
        ("Qt console", "kernel"),
    ]
    assert {m.signature for m in asked} == {"valid"}
    # Both hear what the console caused; only it gets the reply.
    answers = trace.answering(asked[0].msg_id)
    assert {m.receiver for m in answers.types("execute_result")} >= {"console", "Qt console"}
    assert [m.receiver for m in answers.types("execute_reply")] == ["console"]
    # Nothing passed two taps on its way.
    assert [m.sender for m in trace.types("execute_reply")].count("kernel") == len(
        trace.types("execute_reply")
    )
    assert {m.channel for m in trace.between("console", "kernel")} == {
        "shell", "iopub", "stdin", "control", "heartbeat",
    }  # fmt: skip


@pytest.mark.usefixtures("consoles_are_here")
async def test_a_console_that_is_told_to_shows_what_others_do() -> None:
    async with desk("--ConsoleWidget.include_other_output=True") as at:
        await at.terminal.type("6 * 7")
        await at.terminal.run()
        await at.qt.shows("42")
        assert "[remote] In [1]: 6 * 7" in await at.qt.screen()
        assert "remote" not in (await at.terminal.screen()).lower()


@pytest.mark.usefixtures("consoles_are_here")
async def test_a_console_finds_no_kernel_where_none_runs() -> None:
    async with Home() as home:
        with pytest.raises(FileNotFoundError, match="open a notebook before a console"):
            async with terminal_console(home):
                pytest.fail("there is no kernel")


@pytest.mark.usefixtures("consoles_are_here")
async def test_a_console_that_ends_says_so_and_shows_its_screen() -> None:
    async with desk() as at:
        await at.terminal.type("exit")
        with pytest.raises(TimeoutError, match=r"(?s)console: it ended with exit code 0.*exit"):
            await at.terminal.run()
        psutil.Process(at.qt._process.pid).kill()
        with pytest.raises(RuntimeError, match="Qt console: the window has gone, exit code -9"):
            await at.qt.screen()


@pytest.mark.usefixtures("consoles_are_here")
async def test_where_qt_lacks_a_library_of_the_system_it_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "qtpy").mkdir()
    (tmp_path / "qtpy" / "__init__.py").write_text("raise ImportError('libEGL.so.1 is not here')")
    async with Home() as home:
        home.environment["PYTHONPATH"] = str(tmp_path)
        with pytest.raises(MissingActor, match=r"pip install qtconsole .*libEGL.so.1 is not here"):
            await find_consoles(home)


@pytest.mark.usefixtures("chromium_is_here", "consoles_are_here")
async def test_four_front_ends_share_a_kernel() -> None:
    async with record() as capture, front_ends() as ends:
        lab, notebook = await ends.jupyterlab(), await ends.notebook()
        for page in (lab, notebook):
            await page.open("shared.ipynb")
        console, qt = await ends.console(), await ends.qt_console()
        for front_end in (lab, notebook, console, qt):
            await front_end.type("1 + 1")
            await front_end.run()
        assert await console.screen() != await qt.screen()
        assert await lab.ask("jupyterapp.name") == "JupyterLab"
        assert await notebook.ask("jupyterapp.name") == "Jupyter Notebook"
    trace = capture.trace()
    assert trace.parties == (
        "JupyterLab", "Notebook", "console", "Qt console", "server", "kernel",
    )  # fmt: skip
    # The kernel counts for all of them.
    results = [m for m in trace.types("execute_result") if m.sender == "kernel"]
    assert {m.content["execution_count"] for m in results} == {1, 2, 3, 4}
    assert len({m.link.kernel_id for m in results}) == 1
