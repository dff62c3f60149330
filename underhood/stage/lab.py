"""JupyterLab and Jupyter Notebook in a headless browser: open, type, run, look.

Strategy: the front end runs in Chromium against a real server, and is driven by the keys that a
reader would press. Whether it is ready, and whether a cell has run, is asked of the front end's
own objects and of the cell's prompt. The indicator on the page is no help: it shows an idle
kernel before there is a connection, and Shift+Enter is then dropped without a word. The moments
of a run (key, output, paint) are taken inside the page and moved onto the taps' clock.

>>> async with record() as capture, jupyterlab() as lab:
...     await lab.open("demo.ipynb")
...     await lab.type("6 * 7")
...     ran = await lab.run()
>>> ran.output
'42'
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal
from urllib.parse import quote

import nbformat

from underhood.capture.recording import active
from underhood.stage.browser import (
    PATIENCE_S,
    NetworkTab,
    WebPage,
    chromium,
    developer_tools,
    new_page,
)
from underhood.stage.processes import HOST, Home, free_ports
from underhood.stage.replay import on_stage
from underhood.stage.server import EXTENSIONS, Server, Taps, forwarded, jupyter_server

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

    from underhood.stage.browser import Clock

Kind = Literal["JupyterLab", "Notebook"]

_DOORS: Final[Mapping[Kind, str]] = {"JupyterLab": "/lab/tree/", "Notebook": "/notebooks/"}

_IN_FRONT: Final = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook"

# Not by its classes: two views of one notebook may stand side by side, each with an active cell.
_EDITOR: Final = """
() => window.jupyterapp.shell.currentWidget.content.activeCell.node.querySelector('.cm-content')
"""

# The front end's own word on whether the kernel answers: `isReady` and a status of the kernel
# alone come true too early, hence the connection's, and the display's, which counts what is due.
_READY: Final = """
() => {
    const panel = window.jupyterapp?.shell.currentWidget;
    const context = panel?.sessionContext;
    const kernel = context?.session?.kernel;
    return Boolean(
        panel?.content?.activeCell && panel.context.isReady && context.isReady &&
        kernel?.connectionStatus === 'connected' && kernel.status === 'idle' &&
        context.kernelDisplayStatus === 'idle'
    );
}
"""

_STATE: Final = """
() => {
    const context = window.jupyterapp?.shell.currentWidget?.sessionContext;
    const kernel = context?.session?.kernel;
    return !window.jupyterapp ? 'the front end has not loaded' :
        !context ? 'no notebook is in front' :
        `in front: connection ${kernel?.connectionStatus}, kernel ${kernel?.status}, ` +
        `shown as ${context.kernelDisplayStatus}`;
}
"""

# Notes, from before the key is pressed, when the active cell got it, showed its first new output
# and had that drawn, and when its prompt went from the old number over the star to the new one:
# the front end sets that when reply *and* idle have come.
_WATCH: Final = """
() => {
    const cell = window.jupyterapp.shell.currentWidget.content.activeCell;
    const prompt = () => cell.node.querySelector('.jp-InputPrompt')?.textContent ?? '';
    const outputs = () => [...cell.node.querySelectorAll('.jp-OutputArea-output')];
    const seen = { pressed: 0, shown: 0, painted: 0, finished: 0, outputs };
    const before = { prompt: prompt(), outputs: new Set(outputs()) };
    let running = false;
    const press = event => { seen.pressed ||= event.timeStamp; };
    const watcher = new MutationObserver(() => {
        const now = performance.now();
        running ||= prompt() !== before.prompt;
        if (!seen.shown && outputs().some(node => !before.outputs.has(node))) {
            seen.shown = now;
            requestAnimationFrame(() => setTimeout(() => { seen.painted = performance.now(); }));
        }
        if (running && !seen.finished && /\\d/.test(prompt())) { seen.finished = now; }
    });
    document.addEventListener('keydown', press, { capture: true });
    watcher.observe(cell.node, { subtree: true, childList: true, characterData: true });
    seen.stop = () => {
        document.removeEventListener('keydown', press, { capture: true });
        watcher.disconnect();
    };
    window.underhood?.stop();
    window.underhood = seen;
    return cell.model.type;
}
"""

_RAN: Final = """
() => {
    const seen = window.underhood;
    return seen.finished && (!seen.shown || seen.painted);
}
"""

_SEEN: Final = """
() => {
    const { pressed, shown, painted, finished, outputs } = window.underhood;
    return { pressed, shown, painted, finished, output: outputs().map(node => node.innerText) };
}
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One Shift+Enter, as the page lived it; times are nanoseconds on the taps' clock.

    Parameters
    ----------
    output
        The text of the cell's outputs.
    pressed_ns
        When the browser received the key.
    shown_ns, painted_ns
        When the first output was in the page, and when it had been drawn; 0 without output.
    finished_ns
        When the cell had its number: its reply had arrived.
    """

    output: str
    pressed_ns: int
    shown_ns: int
    painted_ns: int
    finished_ns: int


class FrontEnd(WebPage):
    """A front end in a browser's page.

    Attributes
    ----------
    kind : str
        ``"JupyterLab"`` or ``"Notebook"``.
    loaded : bool
        Whether the front end is in the page already.
    """

    TOLD: ClassVar[tuple[str, ...]] = ("kind",)

    def __init__(
        self, kind: Kind, page: Page, network: NetworkTab, clock: Clock, token: str, notebooks: Path
    ) -> None:
        super().__init__(page, network, clock, "")
        self.kind, self.loaded, self._token, self._notebooks = kind, False, token, notebooks
        self._opened = ""

    def __repr__(self) -> str:
        return f"<{self.kind} at {self.base}, showing {self._opened or 'nothing yet'}>"

    async def open(
        self, path: str, cells: Sequence[str] = ("",), *, kernel: str = "python3"
    ) -> None:
        """Open a notebook, and wait until its kernel answers.

        Parameters
        ----------
        path
            Below the server's folder, as in ``"demo.ipynb"``.
        cells
            If there is no such notebook yet, the source of its code cells.
        kernel
            Likewise, the name of its kernelspec.
        """
        file = self._notebooks / path
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(_notebook(cells, kernel), file)
        if self.kind == "JupyterLab" and self.loaded:
            await self.command("docmanager:open", path=path)
        else:
            secret = f"?token={self._token}" if self._token and not self.loaded else ""
            await self.page.goto(f"{self.base}{_DOORS[self.kind]}{quote(path)}{secret}")
            self.loaded = True
        await self.ready()
        self._opened = path

    async def fill_cache(self, base: str, token: str) -> None:
        """Visit a front end once, so that the browser has its files; forget all else.

        Parameters
        ----------
        base, token
            A server's URL, without a slash at its end, and its token.
        """
        place = {"JupyterLab": "/lab/workspaces/before", "Notebook": "/tree"}[self.kind]
        await self.page.goto(f"{base}{place}?token={token}")
        await self.page.wait_for_function("() => window.jupyterapp?.restored.then(() => true)")
        await self.forget()

    async def ready(self) -> None:
        """Wait until the kernel of the notebook in front answers and is idle."""
        await self._wait(_READY, PATIENCE_S, "the notebook's kernel does not answer")

    async def type(self, source: str) -> None:
        """Type into the cell that is active, key by key (several lines: at one blow)."""
        editor = (await self.page.evaluate_handle(_EDITOR)).as_element()
        assert editor is not None
        await editor.click()
        await self.page.keyboard.press("ControlOrMeta+End")
        if "\n" in source:  # the editor would indent each new line once more
            await self.page.keyboard.insert_text(source)
        else:
            await self.page.keyboard.type(source)

    async def run(self, *, timeout: float = 60.0) -> Run:
        """Press Shift+Enter in the active cell and wait until it has run and is drawn.

        Raises
        ------
        TimeoutError
            If it has not after ``timeout`` seconds.
        """
        # The origin of the page's times, on Chromium's clock.
        session = await self.page.context.new_cdp_session(self.page)
        await session.send("Performance.enable")
        metrics = await session.send("Performance.getMetrics")
        await session.detach()
        start = next(m["value"] for m in metrics["metrics"] if m["name"] == "NavigationStart")
        kind = await self.page.evaluate(_WATCH)
        await self.page.keyboard.press("Shift+Enter")
        if kind == "code":
            await self._wait(_RAN, timeout, "the cell has not run")
        seen = await self.page.evaluate(_SEEN)

        def ns(milliseconds: float) -> int:
            return self._clock.ns(start + milliseconds / 1e3) if milliseconds else 0

        return Run(
            "\n".join(text.strip("\n") for text in seen["output"]),
            ns(seen["pressed"]),
            ns(seen["shown"]),
            ns(seen["painted"]),
            ns(seen["finished"]),
        )

    async def _wait(self, come_true: str, timeout: float, otherwise: str) -> None:
        from playwright.async_api import TimeoutError as TookTooLong

        try:
            await self.page.wait_for_function(come_true, timeout=timeout * 1000)
        except TookTooLong:
            dialogs = await self.page.locator(".jp-Dialog-content").all_inner_texts()
            shown = " ".join(" ".join(dialogs).split())
            state = await self.page.evaluate(_STATE)
            raise TimeoutError(
                f"{otherwise} after {timeout:g} s"
                + (f"; the page says: {shown}" if shown else f" ({state})")
            ) from None

    async def command(self, name: str, **arguments: object) -> None:
        """Execute one of the front end's commands, as its menus do.

        Parameters
        ----------
        name
            As in ``"notebook:interrupt-kernel"``.
        """
        await self.page.evaluate(
            "([name, args]) => window.jupyterapp.commands.execute(name, args).then(() => null)",
            [name, arguments],
        )

    async def save(self) -> None:
        """Save the notebook in front, and wait until the server has it."""
        await self.command("docmanager:save")

    async def _described(self) -> str:
        described = f"{self.kind} in a browser, showing {self._opened or 'an empty page'}"
        cells = await self.page.locator(f"{_IN_FRONT} .jp-CodeCell").all()
        told = [" ".join((await cell.inner_text()).split()) for cell in cells[:5]]
        return f"{described}. Its cells: {'; '.join(filter(None, told))}."


@contextlib.asynccontextmanager
async def jupyterlab(
    *arguments: str,
    server: Server | None = None,
    client: str = "browser",
    cached: bool = True,
    kernels: Mapping[str, Path] = {},
    tools: bool = False,
) -> AsyncIterator[FrontEnd]:
    """Run JupyterLab in a headless browser as long as the block runs.

    Parameters
    ----------
    arguments
        For the server's command line.
    server
        A server that runs already, with its :data:`~underhood.stage.server.EXTENSIONS`; one of
        its own by default.
    client
        What pictures call the browser.
    cached
        Whether the browser has the front end's files (8 MB) already, as on any day but the first;
        the visit before this one is not recorded.
    kernels
        For the server: see :func:`~underhood.stage.server.jupyter_server`.
    tools
        Whether the browser's developer tools are open, for
        :meth:`~underhood.stage.browser.WebPage.network_tab`.

    Raises
    ------
    MissingActor
        If there is no browser.
    StartError
        If the server does not start.
    """
    live = _front_end("JupyterLab", arguments, server, client, cached, kernels, tools)
    async with on_stage(FrontEnd, live) as lab:
        yield lab


@contextlib.asynccontextmanager
async def notebook(
    *arguments: str,
    server: Server | None = None,
    client: str = "browser",
    cached: bool = True,
    kernels: Mapping[str, Path] = {},
) -> AsyncIterator[FrontEnd]:
    """Run Jupyter Notebook in a headless browser; all else as in :func:`jupyterlab`."""
    live = _front_end("Notebook", arguments, server, client, cached, kernels)
    async with on_stage(FrontEnd, live) as front_end:
        yield front_end


@contextlib.asynccontextmanager
async def _front_end(
    kind: Kind,
    arguments: Sequence[str],
    server: Server | None,
    client: str,
    cached: bool,
    kernels: Mapping[str, Path],
    tools: bool = False,
) -> AsyncIterator[FrontEnd]:
    async with contextlib.AsyncExitStack() as stack:
        home = await stack.enter_async_context(Home())
        port = free_ports(1)[0] if tools else 0
        browser = await stack.enter_async_context(chromium(home, port))
        if server is None:
            server = await stack.enter_async_context(
                jupyter_server(*arguments, extensions=EXTENSIONS, kernels=kernels, home=home)
            )
        front_end = await stack.enter_async_context(visiting(kind, browser, server, client, cached))
        if tools:
            front_end.tools = await developer_tools(front_end.page, port)
        yield front_end


@contextlib.asynccontextmanager
async def visiting(
    kind: Kind, browser: Browser, server: Server, client: str, cached: bool = True
) -> AsyncIterator[FrontEnd]:
    """Give a front end a page of its own, and while something records, its own way to a server.

    Parameters
    ----------
    browser
        As :func:`~underhood.stage.browser.chromium` gives it.
    server
        A server with :data:`~underhood.stage.server.EXTENSIONS`.
    client, cached
        As for :func:`jupyterlab`.
    """
    taps = Taps()
    try:
        async with in_page(kind, browser, server.token, server.notebooks) as front_end:
            at = 0
            if cached and active():
                async with forwarded(server.port) as at:
                    await front_end.fill_cache(f"http://{HOST}:{at}", server.token)
            front_end.base = f"http://{HOST}:{taps.before(server.port, client, 'server', at=at)}"
            yield front_end
    finally:
        await taps.close()


@contextlib.asynccontextmanager
async def in_page(
    kind: Kind, browser: Browser, token: str, notebooks: Path
) -> AsyncIterator[FrontEnd]:
    """Give a front end a page of its own; whoever does sets its ``base``.

    Parameters
    ----------
    browser
        As :func:`~underhood.stage.browser.chromium` gives it.
    token
        The server's token; empty if the browser gets in by other means.
    notebooks
        The folder that the server serves.
    """
    async with new_page(browser) as (page, network, clock):
        yield FrontEnd(kind, page, network, clock, token, notebooks)


def _notebook(cells: Sequence[str], kernel: str) -> Any:
    document = nbformat.v4.new_notebook()
    document.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    shown = "Python 3 (ipykernel)" if kernel == "python3" else kernel
    document.metadata.kernelspec = {"name": kernel, "display_name": shown}
    return document
