"""Chromium in a neutral home, and what it saw of its own traffic.

Strategy: Playwright drives a headless Chromium, which gets the home's environment, so that it
knows nothing of this machine and is found and ended with the home whatever happens. What the
browser itself saw comes from the source of DevTools' network tab (the ``Network`` domain of the
Chrome DevTools Protocol), whose times are the system's monotonic clock: they are moved onto the
clock of the taps, so that both accounts of one request can be laid side by side.
"""

from __future__ import annotations

import base64
import contextlib
import html
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import urlsplit

from underhood.capture.store import Direction
from underhood.capture.tap import CLOCK_OFFSET
from underhood.stage.processes import HOST, Home
from underhood.stage.replay import MissingActor, on_stage
from underhood.stage.server import Taps

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

VIEWPORT: Final = (1280, 720)
"""Width and height of a page, in CSS pixels."""

TOOLS: Final = (1000, 600)
"""The same of its developer tools."""

PATIENCE_S: Final = 90.0
"""How long a page may take to load and to get ready, in seconds."""

_FLAGS: Final = (
    # Nothing of its own on the network, nothing to ask the user …
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    # (it would still look up where to ask for updates, and for words to fill into forms)
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--no-first-run",
    # … and no shared memory, of which containers have little.
    "--disable-dev-shm-usage",
)


@contextlib.asynccontextmanager
async def chromium(home: Home, tools_port: int = 0) -> AsyncIterator[Browser]:
    """Run a headless Chromium in ``home``: the system's, or else Playwright's own.

    Parameters
    ----------
    tools_port
        Where on loopback it serves its developer tools, for :func:`developer_tools`; by default,
        nowhere.

    Raises
    ------
    MissingActor
        If there is none, or none that starts.
    """
    try:
        from playwright.async_api import Error, async_playwright
    except ImportError as error:
        raise MissingActor("Playwright is not installed: pip install playwright") from error

    async with contextlib.AsyncExitStack() as stack:
        try:
            playwright = await stack.enter_async_context(async_playwright())
        except Error as error:
            raise MissingActor(f"Playwright does not start: {error.message}") from error
        candidates = [path for name in _NAMES if (path := shutil.which(name))]
        own = playwright.chromium.executable_path
        if Path(own).exists():
            candidates.append(own)
        flags = [*_FLAGS]
        if tools_port:
            where = f"http://{HOST}:{tools_port}"
            flags += [f"--remote-debugging-port={tools_port}", f"--remote-allow-origins={where}"]
        why = "there is no chromium on the path"
        for candidate in candidates:
            try:
                browser = await playwright.chromium.launch(
                    executable_path=candidate,
                    args=flags,
                    env=dict(home.environment),
                    # A notebook that is interrupted leaves this block and closes it.
                    handle_sigint=False,
                    handle_sigterm=False,
                    handle_sighup=False,
                )
            except Error as error:  # Ubuntu's chromium-browser is a stub that only says so
                why = error.message
                continue
            try:
                yield browser
            finally:
                with contextlib.suppress(Error):  # somebody killed it
                    await browser.close()
            return
        raise MissingActor(f"Chromium is missing (playwright install chromium): {why}")


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the browser's network tab shows it.

    Parameters
    ----------
    method, path
        The path with its query, and without scheme, host and port.
    kind
        What asked for it: ``"Document"``, ``"Script"``, ``"Fetch"``, ``"WebSocket"`` ….
    started_ns, answered_ns, ended_ns
        When the browser sent it, when it had the answer's headers, and when all of it, in
        nanoseconds on the taps' clock; 0 for what did not happen.
    status
        The status code; 0 if there was no answer.
    size
        Bytes of the answer as they came over the wire; 0 from the cache.
    from_cache
        Whether the browser had it already, so that no server saw the request.
    """

    method: str
    path: str
    kind: str
    started_ns: int
    answered_ns: int = 0
    ended_ns: int = 0
    status: int = 0
    size: int = 0
    from_cache: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """A WebSocket frame as the browser's network tab shows it.

    Parameters
    ----------
    time_ns
        When the browser sent or received it, in nanoseconds on the taps' clock.
    path
        The path, with its query, of the WebSocket's URL.
    direction
        ``">"`` if the browser sent it, ``"<"`` if it received it.
    opcode
        1 for text, 2 for binary (RFC 6455, section 5.2).
    payload
        Unmasked and decompressed.
    """

    time_ns: int
    path: str
    direction: Direction
    opcode: int
    payload: bytes


@dataclass(slots=True)
class NetworkTab:
    """What the browser saw of its requests and WebSocket frames, each in order of time."""

    requests: list[Request] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)

    async def watch(self, page: Page) -> Clock:
        """Note from now on what ``page`` sends and receives."""
        session = await page.context.new_cdp_session(page)
        await session.send("Performance.enable")
        before = time.monotonic_ns()
        metrics = await session.send("Performance.getMetrics")
        after = time.monotonic_ns()
        clock = Clock.read(metrics, before, after)
        places: dict[str, int] = {}  # of a request id in self.requests
        sockets: dict[str, str] = {}  # of a request id to the WebSocket's path

        def change(event: Mapping[str, Any], **facts: Any) -> None:
            if (place := places.get(event["requestId"])) is not None:
                self.requests[place] = replace(self.requests[place], **facts)

        def cached(event: Mapping[str, Any]) -> bool:
            place = places.get(event["requestId"])
            return place is not None and self.requests[place].from_cache

        def requested(event: Mapping[str, Any]) -> None:
            at = clock.ns(event["timestamp"])
            if earlier := event.get("redirectResponse"):  # the same id goes on elsewhere
                change(event, status=earlier["status"], answered_ns=at, ended_ns=at)
            asked = event["request"]
            if urlsplit(asked["url"]).scheme not in ("http", "https"):
                return  # data: and blob: never leave the browser
            places[event["requestId"]] = len(self.requests)
            kind = event.get("type", "Other")
            self.requests.append(Request(asked["method"], _path(asked["url"]), kind, at))

        def answered(event: Mapping[str, Any]) -> None:
            answer = event["response"]
            at = event["timestamp"]
            timing = answer.get("timing")
            if answer.get("fromDiskCache"):
                change(event, from_cache=True)
            elif timing and not cached(event):  # the network's own times are the finer ones
                at = timing["requestTime"] + timing["receiveHeadersEnd"] / 1e3
            change(event, status=answer["status"], answered_ns=clock.ns(at))

        def finished(event: Mapping[str, Any]) -> None:
            size = int(event["encodedDataLength"])
            change(event, ended_ns=clock.ns(event["timestamp"]), size=size)

        def opening(event: Mapping[str, Any]) -> None:
            sockets[event["requestId"]] = _path(event["url"])

        def handshake(event: Mapping[str, Any]) -> None:
            places[event["requestId"]] = len(self.requests)
            path = sockets.get(event["requestId"], "")
            at = clock.ns(event["timestamp"])
            self.requests.append(Request("GET", path, "WebSocket", at))

        def frame(event: Mapping[str, Any], direction: Direction) -> None:
            content = event["response"]
            opcode, text = int(content["opcode"]), content["payloadData"]
            payload = text.encode() if opcode == 1 else base64.b64decode(text)
            at, path = clock.ns(event["timestamp"]), sockets.get(event["requestId"], "")
            self.frames.append(Frame(at, path, direction, opcode, payload))

        session.on("Network.requestWillBeSent", requested)
        session.on("Network.requestServedFromCache", lambda event: change(event, from_cache=True))
        session.on("Network.responseReceived", answered)
        session.on("Network.loadingFinished", finished)
        session.on(
            "Network.loadingFailed",
            lambda event: change(event, ended_ns=clock.ns(event["timestamp"])),
        )
        session.on("Network.webSocketCreated", opening)
        session.on("Network.webSocketWillSendHandshakeRequest", handshake)
        session.on("Network.webSocketHandshakeResponseReceived", answered)
        session.on("Network.webSocketFrameSent", lambda event: frame(event, ">"))
        session.on("Network.webSocketFrameReceived", lambda event: frame(event, "<"))
        await session.send("Network.enable")
        return clock


@dataclass(frozen=True, slots=True)
class Clock:
    """From Chromium's clock to the taps'.

    Chromium's is the system's monotonic clock where Python's is, too (Linux, macOS); elsewhere
    the two are compared once.
    """

    offset_ns: int

    @classmethod
    def read(cls, metrics: Mapping[str, Any], before: int, after: int) -> Clock:
        """Compare Chromium's time with ours (monotonic, nanoseconds) before and after asking."""
        now = int(_metric(metrics, "Timestamp") * 1e9)
        same = before <= now <= after
        return cls(CLOCK_OFFSET + (0 if same else (before + after) // 2 - now))

    def ns(self, seconds: float) -> int:
        """Return Chromium's ``seconds`` as nanoseconds on the taps' clock."""
        return int(seconds * 1e9) + self.offset_ns


@dataclass(frozen=True, slots=True)
class Screenshot:
    """What the page looked like; a rich output in a notebook.

    Parameters
    ----------
    png
        The picture.
    alternative
        The same in words.
    """

    png: bytes
    alternative: str

    def save(self, path: str | Path) -> Path:
        """Write the picture to a PNG file."""
        path = Path(path)
        path.write_bytes(self.png)
        return path

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        source = base64.b64encode(self.png).decode()
        width, height = (int.from_bytes(self.png[i : i + 4]) for i in (16, 20))  # in its IHDR
        return {
            "text/html": (
                f'<img class="underhood-screenshot" width="{width}" height="{height}" '
                f'style="max-width: 100%; height: auto" alt="{html.escape(self.alternative)}" '
                f'src="data:image/png;base64,{source}">'
            ),
            "text/plain": self.alternative,
        }


class WebPage:
    """A page in a browser.

    Attributes
    ----------
    base : str
        The URL of its server as the browser sees it, without a slash at its end.
    page : playwright.async_api.Page
        The page, for whatever else a reader would do with it.
    tools : playwright.async_api.Page or None
        The network tab of its developer tools, if they were asked for at first.
    network : NetworkTab
        What the browser saw of its requests and frames.
    """

    TOLD: ClassVar[tuple[str, ...]] = ()

    tools: Page | None = None

    def __init__(self, page: Page, network: NetworkTab, clock: Clock, base: str) -> None:
        self.base, self.page, self.network, self._clock = base, page, network, clock

    def __repr__(self) -> str:
        return f"<WebPage at {self.base}>"

    async def go(self, path: str = "/") -> None:
        """Go to a path on the server, and wait until the page has loaded."""
        await self.page.goto(self.base + path)

    async def click(self, where: str) -> None:
        """Click on the first element that a CSS selector matches."""
        await self.page.locator(where).first.click()

    async def fill(self, where: str, text: str) -> None:
        """Put text into the first field that a CSS selector matches."""
        await self.page.locator(where).first.fill(text)

    async def press(self, keys: str) -> None:
        """Press keys, as in ``"Control+s"`` or ``"Tab"``."""
        await self.page.keyboard.press(keys)

    async def read(self, where: str, containing: str = "") -> str:
        """Wait for an element, and return its text.

        Parameters
        ----------
        where
            A CSS selector; the first element that matches counts.
        containing
            A text that it has to contain.
        """
        found = self.page.locator(where, has_text=containing or None).first
        await found.wait_for()
        return await found.inner_text()

    async def ask(self, javascript: str) -> Any:
        """Return the value of a JavaScript expression in the page, as JSON has it."""
        return await self.page.evaluate(javascript)

    async def forget(self) -> None:
        """Leave the page, and forget what was seen there and all cookies; the cache stays."""
        await self.page.goto("about:blank")
        await self.page.context.clear_cookies()
        self.network.requests.clear()
        self.network.frames.clear()

    async def screenshot(self) -> Screenshot:
        """Return a picture of the page."""
        png = await self.page.screenshot(animations="disabled")
        return Screenshot(png, await self._described())

    async def network_tab(
        self, containing: str = "", choose: str = "", view: str = ""
    ) -> Screenshot:
        """Return a picture of the network tab in the browser's own developer tools.

        Parameters
        ----------
        containing
            What to type into its filter.
        choose
            A text in the row to choose, which stays open; by default, none.
        view
            What to open of that row, as in ``"Headers"``.

        Raises
        ------
        RuntimeError
            If the tools have not been open from the start.
        """
        tools = self.tools
        if tools is None:
            raise RuntimeError("the tab knows what happens while it is open: ask for it at first")
        field = tools.get_by_role("textbox", name="Filter").first
        await field.click()
        await tools.keyboard.press("ControlOrMeta+a")
        await tools.keyboard.press("Delete")
        await tools.keyboard.type(containing)
        if choose:
            row = tools.get_by_role("row").filter(has_text=choose).first
            await row.click(position={"x": 60, "y": 10})  # its name; the rest only marks it
        if view:
            await tools.get_by_role("tab", name=view).click()
        png = await tools.screenshot(animations="disabled")
        rows = await tools.locator(".network-summary-bar").inner_text()
        said = f", filtered by {containing!r}" if containing else ""
        said += f", with {view or 'the row'} of {choose!r} open" if choose else ""
        return Screenshot(png, f"Chromium's network tab{said}: {' '.join(rows.split())}")

    async def _described(self) -> str:
        title, text = await self.page.title(), await self.page.locator("body").inner_text()
        return f"A browser showing the page {title!r}: {' '.join(text.split())[:300]}"


@contextlib.asynccontextmanager
async def new_page(browser: Browser) -> AsyncIterator[tuple[Page, NetworkTab, Clock]]:
    """Give out a page in a context of its own, watched."""
    from playwright.async_api import Error

    width, height = VIEWPORT
    context = await browser.new_context(viewport={"width": width, "height": height})
    try:
        page = await context.new_page()
        page.set_default_timeout(PATIENCE_S * 1e3)
        network = NetworkTab()
        yield page, network, await network.watch(page)
    finally:
        with contextlib.suppress(Error):  # somebody killed the browser
            await context.close()


async def developer_tools(page: Page, port: int) -> Page:
    """Open the network tab of a page's developer tools, in a page of its own.

    Parameters
    ----------
    page
        What is looked at; the tab knows what happens there from now on.
    port
        Where its browser serves the tools: see :func:`chromium`.

    Raises
    ------
    MissingActor
        If this Chromium came without its tools, as its headless shell does.
    """
    target = await (await page.context.new_cdp_session(page)).send("Target.getTargetInfo")
    assert page.context.browser is not None
    width, height = TOOLS
    tools = await page.context.browser.new_page(viewport={"width": width, "height": height})
    await tools.add_init_script("localStorage.setItem('screencast-enabled', 'false')")
    socket = f"{HOST}:{port}/devtools/page/{target['targetInfo']['targetId']}"
    answer = await tools.goto(
        f"http://{HOST}:{port}/devtools/inspector.html?ws={socket}&panel=network"
    )
    if answer is None or not answer.ok:
        raise MissingActor("this Chromium came without its developer tools")
    await tools.get_by_role("textbox", name="Filter").first.wait_for()
    return tools


@contextlib.asynccontextmanager
async def web_page(
    url: str, *, client: str = "browser", server: str = "server"
) -> AsyncIterator[WebPage]:
    """Run a headless browser with an empty page for any server on this machine.

    Parameters
    ----------
    url
        Where the server listens, as in ``"http://127.0.0.1:8000"``; inside a recording, the
        browser reaches it through a tap.
    client, server
        What pictures call the two.

    Raises
    ------
    MissingActor
        If there is no browser.
    """
    async with on_stage(WebPage, _web_page(url, client, server)) as page:
        yield page


@contextlib.asynccontextmanager
async def _web_page(url: str, client: str, server: str) -> AsyncIterator[WebPage]:
    port = urlsplit(url).port
    if port is None:
        raise ValueError(f"{url!r} names no port; write it like 'http://127.0.0.1:8000'")
    async with contextlib.AsyncExitStack() as stack:
        home = await stack.enter_async_context(Home())
        browser = await stack.enter_async_context(chromium(home))
        taps = Taps()
        stack.push_async_callback(taps.close)
        page, network, clock = await stack.enter_async_context(new_page(browser))
        base = f"http://{HOST}:{taps.before(port, client, server)}"
        yield WebPage(page, network, clock, base)


def _metric(metrics: Mapping[str, Any], name: str) -> float:
    return float(next(m["value"] for m in metrics["metrics"] if m["name"] == name))


def _path(url: str) -> str:
    parts = urlsplit(url)
    return parts.path + (f"?{parts.query}" if parts.query else "")
