"""Front ends of four kinds on one server, to be set on one kernel.

Strategy: they live in one home and are opened one by one, browsers before consoles: a kernel starts
with the first notebook that is opened, and consoles join the newest kernel. What any of them needs
is looked for before the first one is opened, so that a scene is either live as a whole or replayed
as a whole.

>>> async with record("one-kernel") as capture, front_ends() as ends:
...     lab = await ends.jupyterlab()
...     await lab.open("shared.ipynb")
...     console = await ends.console()
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from underhood.stage.browser import chromium
from underhood.stage.console import find_consoles, qt_console, terminal_console
from underhood.stage.lab import visiting
from underhood.stage.processes import Home
from underhood.stage.replay import on_stage
from underhood.stage.server import EXTENSIONS, Server, jupyter_server

if TYPE_CHECKING:
    from playwright.async_api import Browser

    from underhood.stage.console import QtConsole, TerminalConsole
    from underhood.stage.lab import FrontEnd


class FrontEnds:
    """A server, and whatever front ends are opened on it."""

    def __init__(
        self, home: Home, browser: Browser, server: Server, stack: contextlib.AsyncExitStack
    ) -> None:
        self._home, self._browser, self._server, self._stack = home, browser, server, stack

    TOLD: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<FrontEnds on {self._server!r}>"

    async def jupyterlab(self) -> FrontEnd:
        """Open a page for JupyterLab; pictures call it so."""
        page = visiting("JupyterLab", self._browser, self._server, "JupyterLab")
        return await self._stack.enter_async_context(page)

    async def notebook(self) -> FrontEnd:
        """Open a page for Jupyter Notebook; pictures call it ``"Notebook"``."""
        page = visiting("Notebook", self._browser, self._server, "Notebook")
        return await self._stack.enter_async_context(page)

    async def console(self, *arguments: str) -> TerminalConsole:
        """Start `jupyter console` with these arguments on the newest kernel."""
        return await self._stack.enter_async_context(terminal_console(self._home, *arguments))

    async def qt_console(self, *arguments: str) -> QtConsole:
        """Start the Qt console with these arguments on the newest kernel."""
        return await self._stack.enter_async_context(qt_console(self._home, *arguments))


@contextlib.asynccontextmanager
async def front_ends(*arguments: str) -> AsyncIterator[FrontEnds]:
    """Run a server for several front ends as long as the block runs.

    Parameters
    ----------
    arguments
        For the server's command line.

    Raises
    ------
    MissingActor
        If there is no browser, or one of the consoles cannot run here.
    StartError
        If the server does not start.
    """
    async with on_stage(FrontEnds, _front_ends(arguments)) as ends:
        yield ends


@contextlib.asynccontextmanager
async def _front_ends(arguments: tuple[str, ...]) -> AsyncIterator[FrontEnds]:
    async with contextlib.AsyncExitStack() as stack:
        home = await stack.enter_async_context(Home())
        await find_consoles(home)
        browser = await stack.enter_async_context(chromium(home))
        server = await stack.enter_async_context(
            jupyter_server(*arguments, extensions=EXTENSIONS, home=home)
        )
        # What is opened later is closed first, and all of it before the server.
        opened = await stack.enter_async_context(contextlib.AsyncExitStack())
        yield FrontEnds(home, browser, server, opened)
