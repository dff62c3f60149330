"""In JupyterLab a picture can be opened too; where the notebook is not trusted, it can be read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import nbformat
import pytest
from checkout import missing
from conversations import execute
from nbconvert import HTMLExporter

from underhood.stage import MissingActor, jupyter_server, jupyterlab
from underhood.stage.browser import chromium
from underhood.stage.lab import FrontEnd
from underhood.stage.processes import Home
from underhood.stage.server import EXTENSIONS

pytestmark = pytest.mark.anyio

SHOW = """from underhood import load
load({path!r}).trace().protocol("jupyter").sequence_diagram(title="One cell")"""


async def eventually(true: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(100):
        if await true():
            return
        await asyncio.sleep(0.1)
    pytest.fail("it did not come true within ten seconds")


async def visible(lab: FrontEnd, selector: str) -> bool:
    return await lab.page.locator(selector).first.is_visible()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return execute(name="seen in lab").save(tmp_path / "seen.pcapng")


async def test_a_reader_opens_messages_in_a_trusted_notebook(saved: Path) -> None:
    try:
        async with jupyterlab() as lab:
            await lab.open("demo.ipynb")
            await lab.type(SHOW.format(path=str(saved)))
            await lab.run()
            errors: list[str] = []
            lab.page.on("pageerror", lambda error: errors.append(str(error)))
            figure = lab.page.locator("figure.underhood")
            await figure.locator(".uh-tools").wait_for()
            arrows = figure.locator("[data-message]")
            assert await arrows.count() == 7
            # JupyterLab writes what went wrong below an output.
            assert "Error" not in await lab.page.locator(".jp-OutputArea").first.inner_text()
            address = lab.page.url

            # By mouse.
            await arrows.nth(3).locator(".u-label").click()
            said = figure.locator(".uh-said")
            assert "stream: stdout" in await said.inner_text()
            await figure.get_by_role("tab", name="bytes").click()
            await eventually(lambda: visible(lab, ".uh-view .uh-f"))

            # By keyboard: the notebook does not take the keys for itself.
            await arrows.nth(3).focus()
            await lab.page.keyboard.press("ArrowDown")
            await lab.page.keyboard.press("Enter")
            assert "execute_result" in await said.inner_text()
            await lab.page.keyboard.press("Escape")
            assert not await visible(lab, ".uh-panel")

            # The address bar is JupyterLab's.
            assert lab.page.url == address
            await figure.get_by_role("button", name="iopub").click()
            assert await figure.locator('[data-message]:not([aria-hidden="true"])').count() == 2

            # The theme is JupyterLab's, and a second run changes nothing about the first picture.
            light = await figure.evaluate("f => getComputedStyle(f).backgroundColor")
            await lab.command("apputils:change-theme", theme="JupyterLab Dark")

            async def dark() -> bool:
                return light != await figure.evaluate("f => getComputedStyle(f).backgroundColor")

            await eventually(dark)
            await lab.page.locator(".jp-Notebook .jp-Cell").last.click()
            await lab.type(SHOW.format(path=str(saved)))
            await lab.run()
            await lab.page.locator("figure.underhood .uh-tools").nth(1).wait_for()
            assert await lab.page.locator("figure.underhood .uh-tools").count() == 2
            # JupyterLab itself asks for themes' settings that there are none of.
            assert [e for e in errors if "404 Not Found" not in e] == []
    except MissingActor as why:
        missing(str(why))


async def test_a_notebook_that_is_not_trusted_shows_the_messages(saved: Path) -> None:
    picture = execute(name="untrusted").trace().protocol("jupyter").sequence_diagram()
    output = nbformat.v4.new_output("execute_result", picture._repr_mimebundle_())
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("1", outputs=[output])],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    try:
        async with (
            jupyter_server(extensions=EXTENSIONS) as server,
            jupyterlab(server=server) as lab,
        ):
            nbformat.write(notebook, server.notebooks / "other.ipynb")
            await lab.open("other.ipynb")
            output_area = lab.page.locator(".jp-OutputArea-output").first
            await output_area.wait_for()
            assert await output_area.locator("svg").count() == 0
            assert "The drawing is not shown" in await output_area.inner_text()
            stage = output_area.locator(".uh-stage")
            assert "Sequence diagram of 7 messages" in str(await stage.text_content())
            assert not await stage.is_visible()
            await output_area.get_by_text("As a table").click()
            rows = output_area.locator("tbody tr")
            assert await rows.count() == 7
            assert await rows.nth(6).is_visible()
            await output_area.get_by_text("Message by message").click()
            await output_area.get_by_text("stream: stdout, ").last.click()
            assert '"text": "0\\n"' in await output_area.inner_text()
    except MissingActor as why:
        missing(str(why))


async def test_a_notebook_turned_into_a_page_keeps_its_pictures_alive(
    saved: Path, tmp_path: Path
) -> None:
    """As nbviewer and ``jupyter nbconvert --to html`` do, without any server."""
    picture = execute(name="exported").trace().protocol("jupyter").sequence_diagram()
    output = nbformat.v4.new_output("execute_result", picture._repr_mimebundle_())
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])])
    page_text, _ = HTMLExporter().from_notebook_node(notebook)
    file = tmp_path / "exported.html"
    file.write_text(page_text, encoding="utf-8")
    try:
        async with Home() as home, chromium(home) as browser:
            page = await browser.new_page(color_scheme="dark")
            # The exporter's own page asks for libraries from elsewhere; pictures need none.
            await page.route("https://**", lambda route: route.abort())
            await page.goto(file.as_uri())
            figure = page.locator("figure.underhood")
            await figure.locator("[data-message] .u-label").nth(3).click()
            assert "stream: stdout" in await figure.locator(".uh-said").inner_text()
            # The exporter's page is light, whatever the system prefers; so is the picture.
            ground = await figure.evaluate("f => getComputedStyle(f).backgroundColor")
            assert ground == "rgb(253, 252, 249)"
    except MissingActor as why:
        missing(str(why))
