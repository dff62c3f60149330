"""The talk: an executed notebook, made into slides that need nothing but their own folder.

Strategy: ``book/slides/talk.md`` is executed like a chapter (:mod:`chapter_execution`), so its
captures lie in ``_build/captures`` and its result in the cache. When the site is built, nbconvert
makes slides of that result with the template ``book/slides/deck``, which takes reveal.js from
npm. Then each diagram is taken out of its frame, enlarged until its smallest letters can be read
in a room, and gets a panel for each message. The lightning talk is made of the same cells: of the
slides that say how many minutes they have in it. Where there is a Chromium, both become PDF.

A slide says in its metadata, beside nbconvert's ``slideshow``, what the deck needs to know::

    deck: {minutes: 2, lightning: 0.5, layout: picture}
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from bs4 import BeautifulSoup, Tag
from chapter_execution import Chapter
from nbconvert import SlidesExporter
from page_foot import results_of
from sphinx.util import logging
from traitlets.config import Config

from underhood.draw.page import style_sheet
from underhood.stage import MissingActor
from underhood.stage.browser import chromium
from underhood.stage.processes import Home

if TYPE_CHECKING:
    from sphinx.application import Sphinx

logger = logging.getLogger(__name__)

#: The talk's source, as a page's name.
TALK = "book/slides/talk"
#: The forms of it: the file's name, the key of its minutes, the title.
FORMS = {
    "index": ("minutes", "Jupyter: Under the Hood"),
    "lightning": ("lightning", "Jupyter: Under the Hood, in five minutes"),
}
#: By how much a diagram is enlarged, so that its smallest letters have 24 pixels.
SCALE = 24 / 11.5
#: How much of a message can be read beside a narrow diagram, and below a wide one: lines, and
#: characters in a line.
BESIDE, BELOW = (10, 30), (2, 72)
#: What a message is about, which is shown first.
FIRST = ("code", "data", "text", "status", "execution_state")
#: The widest diagram, in pixels of the slide, that leaves room beside it.
NARROW = 760


def slides(notebook: nbformat.NotebookNode) -> Iterator[list[nbformat.NotebookNode]]:
    """Cut a notebook into slides: a cell of type ``slide``, and what belongs to it."""
    slide: list[nbformat.NotebookNode] = []
    for cell in notebook.cells:
        if "remove-cell" in cell.metadata.get("tags", []):
            continue
        if cell.metadata.get("slideshow", {}).get("slide_type") == "slide" and slide:
            yield slide
            slide = []
        slide.append(cell)
    if slide:
        yield slide


def form(notebook: nbformat.NotebookNode, key: str) -> tuple[nbformat.NotebookNode, float]:
    """Keep the slides that have minutes under ``key``; return them, and their sum."""
    kept, minutes = [], 0.0
    for slide in slides(notebook):
        about = slide[0].metadata.get("deck", {})
        if key not in about:
            continue
        minutes += about[key]
        data = {"timing": round(60 * about[key]), "layout": about["layout"]}
        slide[0].metadata.slideshow["data"] = data
        kept += slide
    return nbformat.v4.new_notebook(cells=kept, metadata=notebook.metadata), minutes


def page(notebook: nbformat.NotebookNode, key: str, title: str, template: Path) -> str:
    """Write a form of the talk as one HTML page."""
    deck, minutes = form(nbformat.from_dict(notebook), key)
    exporter = SlidesExporter(
        config=Config(
            SlidesExporter={
                "exclude_input_prompt": True,
                "exclude_output_prompt": True,
                "extra_template_basedirs": [str(template.parent)],
                "template_name": template.name,
            },
            TagRemovePreprocessor={"enabled": True, "remove_input_tags": {"remove-input"}},
        )
    )
    about = {"title": title, "minutes": minutes, "description": "Slides drawn from live captures."}
    html, _ = exporter.from_notebook_node(deck, resources={"deck": about})
    soup = BeautifulSoup(html, "html.parser")
    for figure in soup.select("figure.underhood"):
        enlarge(soup, figure)
    style = soup.new_tag("style")
    style.string = style_sheet()
    if isinstance(soup.head, Tag):
        # Before the deck's own style, which has the last word.
        soup.head.find("link", href="deck.css").insert_before(style)
    return str(soup)


def enlarge(soup: BeautifulSoup, figure: Tag) -> None:
    """Take a diagram out of the frame that it has on a page, and give it the room of a slide."""
    heading = soup.new_tag("h2")
    heading.string = figure.select_one(".uh-title").get_text()
    drawing = figure.select_one(".uh-stage svg")
    for side in ("width", "height"):
        drawing[side] = f"{float(drawing[side]) * SCALE:g}"
    for arrow in drawing.select("[data-message]"):
        del arrow["xlink:href"]  # a click here means: go on
    panels = soup.new_tag("div", attrs={"class": "panels"})
    for message in figure.select(".uh-message"):
        panels.append(panel(soup, message, BESIDE if float(drawing["width"]) < NARROW else BELOW))
    drawn = soup.new_tag("div", attrs={"class": "drawn"})
    drawn.extend([drawing.extract(), panels])
    figure.clear()
    figure.extend([heading, drawn])


def panel(soup: BeautifulSoup, message: Tag, room: tuple[int, int]) -> Tag:
    """Write what is in a message, as much as can be read from the last row."""
    said = soup.new_tag(
        "div", attrs={"class": "said", "data-of": message["data-number"], "hidden": ""}
    )
    heading = soup.new_tag("p")
    summary = message.summary.get_text()
    heading.string = re.split(r", \d|, at the start", summary)[0]
    if "refused" in summary:
        heading.string += ", refused"
    text = soup.new_tag("pre")
    lines, width = room
    content = json.loads(message.find("dt", string="content").find_next("pre").get_text())
    names = sorted(content, key=lambda name: name not in FIRST)
    shown = [f"{name}: {json.dumps(content[name], ensure_ascii=False)}" for name in names]
    cut = [line if len(line) <= width else f"{line[: width - 1]}…" for line in shown[:lines]]
    text.string = "\n".join(cut)
    said.extend([heading, text])
    return said


async def to_pdf(folder: Path) -> None:
    """Print each form of the talk, one page for each slide."""
    async with Home() as home, chromium(home) as browser:
        for name in FORMS:
            tab = await browser.new_page(viewport={"width": 1280, "height": 720})
            await tab.goto(f"{(folder / name).with_suffix('.html').as_uri()}?print-pdf")
            await tab.wait_for_selector(".pdf-page")
            target = folder / ("talk.pdf" if name == "index" else f"{name}.pdf")
            await tab.pdf(
                path=target, prefer_css_page_size=True, print_background=True,
                tagged=True, outline=True,
            )  # fmt: skip
            await tab.close()


def build_slides(app: Sphinx, exception: Exception | None) -> None:
    """Make the slides, when the site is built."""
    path = Path(app.srcdir, f"{TALK}.md")
    talk = Chapter.read(TALK, path) if path.exists() else None
    if exception or app.builder.name != "html" or talk is None:
        return
    reveal = Path(app.srcdir, "node_modules", "reveal.js")
    if not reveal.is_dir():
        logger.info("slides: reveal.js is missing (npm ci), so there are none")
        return
    _, executed = results_of(app).cache.merge_match_into_notebook(talk.notebook)
    target = Path(app.outdir, "slides")
    shutil.rmtree(target, ignore_errors=True)
    for part in ("dist/reveal.js", "dist/reveal.css", "plugin/notes/notes.js", "LICENSE"):
        (target / "reveal" / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(reveal / part, target / "reveal" / part)
    template = path.parent / "deck"
    for part in ("deck.css", "deck.js"):
        shutil.copyfile(template / part, target / part)
    for name, (key, title) in FORMS.items():
        (target / f"{name}.html").write_text(page(executed, key, title, template), encoding="utf-8")
    try:
        asyncio.run(to_pdf(target))
    except MissingActor as why:
        logger.info(f"slides: no PDF ({why})")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("build-finished", build_slides, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
