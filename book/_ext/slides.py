"""The talk: an executed notebook, made into slides that need nothing but their own folder.

Strategy: ``book/slides/talk.md`` is executed like a chapter (:mod:`chapter_execution`), so its
captures lie in ``_build/captures`` and its result in the cache. When the site is built, nbconvert
makes slides of that result with the template ``book/slides/deck``, which takes reveal.js from
npm. Then each diagram is taken out of its frame, enlarged until its smallest letters can be read
in a room, and gets a panel for each message. The lightning talk is made of the same cells: of the
slides that say how many minutes they have in it, with the first paragraph of what is said on them.
Where there is a Chromium, both become PDF. A notebook with all outputs, for RISE in JupyterLab,
is the third form: there cells run on stage, and what they gave when the deck was built stands
below them as text, which no run takes away.

A slide says in its metadata, beside nbconvert's ``slideshow``, what the deck needs to know:
how long it takes, how much of that nobody speaks, how it is laid out, which chapter tells more::

    deck: {minutes: 2, pause: 0.5, lightning: 0.5, layout: picture, chapter: meet/kernel}

In its notes, paragraphs are what the speaker says; lists are directions.

``python book/_ext/slides.py`` makes the slides without the rest of the book.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import yaml
from bs4 import BeautifulSoup, Tag
from chapter_execution import Chapter, Executor, Results, report
from nbconvert import SlidesExporter
from page_foot import results_of
from portable_notebook import with_image
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
#: The room for a diagram, in pixels of the slide: with its messages beside it, and above them.
BESIDE, ABOVE = (690, 572), (1152, 497)
#: The smallest letters of a diagram as it is drawn, in its own pixels.
SMALLEST = 11.5
#: The smallest letters that can be read from the last row, in pixels of the slide.
LETTERS = 24.2
#: How much of a message is shown there: its parts, and the characters of each.
SHOWN = {BESIDE: (3, 57), ABOVE: (1, 50)}
#: The widest diagram, in its own pixels, that leaves room beside it.
NARROW = 364
#: What a message is about, which is shown first.
FIRST = ("code", "data", "text", "status", "execution_state")

Slide = list[nbformat.NotebookNode]


def kind(cell: nbformat.NotebookNode) -> str:
    """Return what a cell is in the deck: "slide", "skip", "notes", or "" for a part of a slide."""
    return str(cell.metadata.get("slideshow", {}).get("slide_type", ""))


def slides(notebook: nbformat.NotebookNode) -> Iterator[Slide]:
    """Cut a notebook into slides: a cell of type ``slide``, and what belongs to it."""
    slide: Slide = []
    for cell in notebook.cells:
        if kind(cell) == "skip":
            continue
        if kind(cell) == "slide" and slide:
            yield slide
            slide = []
        slide.append(cell)
    if slide:
        yield slide


def about(slide: Slide) -> Mapping[str, Any]:
    """Return what a slide says of itself to the deck."""
    return dict(slide[0].metadata.get("deck", {}))


def paragraphs(slide: Slide) -> list[str]:
    """Return what is said on a slide: the paragraphs of its notes that are no lists."""
    notes = "\n\n".join(cell.source for cell in slide if kind(cell) == "notes")
    return [part for part in re.split(r"\n\s*\n", notes) if part and not part.startswith("* ")]


def words(text: str) -> int:
    """Count the words that have to be spoken."""
    return len(re.findall(r"[\w'’+-]+", text))


def slides_about(notebook: nbformat.NotebookNode) -> Mapping[str, list[int]]:
    """Return the numbers of the slides of which a chapter tells more, by the chapter's name."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for number, slide in enumerate(slides(notebook), 1):
        if "chapter" in about(slide):
            found[f"book/{about(slide)['chapter']}"].append(number)
    return found


def clock(minutes: float) -> str:
    """Write a time as the speaker's clock shows it."""
    return f"{int(minutes)}:{round(60 * minutes) % 60:02}"


def form(notebook: nbformat.NotebookNode, key: str) -> tuple[nbformat.NotebookNode, float]:
    """Keep the slides that have minutes under ``key``; return them, and their sum."""
    kept, minutes = [], 0.0
    for slide in slides(notebook):
        facts = about(slide)
        if key not in facts:
            continue
        minutes += facts[key]
        data = {"timing": round(60 * facts[key]), "layout": facts["layout"]}
        slide[0].metadata.slideshow["data"] = data
        for cell in slide:
            if kind(cell) == "notes":
                first, *rest = re.split(r"\n\s*\n", cell.source)
                if key == "lightning":
                    rest = [part for part in rest if part.startswith("* ")]
                when = f"**{facts[key]:g} min, done at {clock(minutes)}**"
                cell.source = "\n\n".join([when, first, *rest])
        kept += slide
    for cell in kept:
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata["transient"] = {"remove_source": True}
    return nbformat.v4.new_notebook(cells=kept, metadata=notebook.metadata), minutes


def page(notebook: nbformat.NotebookNode, key: str, title: str, root: Path) -> str:
    """Write a form of the talk as one HTML page."""
    deck, minutes = form(nbformat.from_dict(notebook), key)
    template = root / "book/slides/deck"
    exporter = SlidesExporter(
        config=Config(
            SlidesExporter={
                "exclude_input_prompt": True,
                "exclude_output_prompt": True,
                "extra_template_basedirs": [str(template.parent)],
                "template_name": template.name,
            },
        )
    )
    facts = {"title": title, "minutes": minutes, "description": "Slides drawn from live captures."}
    html, _ = exporter.from_notebook_node(deck, resources={"deck": facts})
    soup = BeautifulSoup(html, "html.parser")
    for figure in soup.select("figure.underhood"):
        enlarge(soup, figure)
    for section, slide in zip(
        soup.select(".slides > section > section"), slides(deck), strict=True
    ):
        if "chapter" in about(slide):
            section.insert(0, way_to(soup, root, about(slide)["chapter"]))
    style = soup.new_tag("style")
    style.string = style_sheet()
    if isinstance(soup.head, Tag):
        # Before the deck's own style, which has the last word.
        soup.head.find("link", href="deck.css").insert_before(style)
    return str(soup)


def way_to(soup: BeautifulSoup, root: Path, chapter: str) -> Tag:
    """Write the line above a slide: the chapter that tells more, as a link."""
    text = (root / f"book/{chapter}.md").read_text(encoding="utf-8")
    line = soup.new_tag("p", attrs={"class": "chapter"})
    link = soup.new_tag("a", href=f"../book/{chapter}.html")
    link.string = re.search(r"^# (.+)$", text, flags=re.MULTILINE)[1]
    line.append(link)
    return line


def enlarge(soup: BeautifulSoup, figure: Tag) -> None:
    """Take a diagram out of the frame that it has on a page, and give it the room of a slide."""
    heading = soup.new_tag("h2")
    heading.string = figure.select_one(".uh-title").get_text()
    drawing = figure.select_one(".uh-stage svg")
    size = {side: float(drawing[side]) for side in ("width", "height")}
    room = BESIDE if size["width"] <= NARROW else ABOVE
    scale = min(most / size[side] for side, most in zip(size, room, strict=True))
    for side in size:
        drawing[side] = f"{size[side] * scale:g}"
    for text in drawing.select("text, tspan") if scale < LETTERS / SMALLEST else ():
        text["style"] = f"font-size:{LETTERS / scale:.2f}px"
    if room is ABOVE:
        drawing["class"] = [*drawing.get_attribute_list("class"), "wide"]
    for arrow in drawing.select("[data-message]"):
        del arrow["xlink:href"]  # a click here means: go on
    panels = soup.new_tag("div", attrs={"class": "panels"})
    for message in figure.select(".uh-message"):
        panels.append(panel(soup, message, *SHOWN[room]))
    drawn = soup.new_tag("div", attrs={"class": "drawn"})
    drawn.extend([drawing.extract(), panels])
    figure.clear()
    figure.extend([heading, drawn])


def panel(soup: BeautifulSoup, message: Tag, most: int, width: int) -> Tag:
    """Write what is in a message, as much as can be read from the last row."""
    summary = message.summary.get_text()
    channel, way, name = re.split(r", \d|, at the start", summary)[0].split(", ", 2)
    if "refused" in summary:
        name += ", refused"
    content = json.loads(message.find("dt", string="content").find_next("pre").get_text())
    parts = []
    for key in sorted(content, key=lambda key: key not in FIRST)[:most]:
        text = json.dumps(content[key], ensure_ascii=False)
        text = text if len(text) <= width else f"{text[: width - 1]}…"
        parts.append(f"<div><dt>{escape(key)}</dt><dd>{escape(text)}</dd></div>")
    said = BeautifulSoup(
        f'<div class="said" data-of="{message["data-number"]}" hidden="">'
        f'<p class="way">{escape(channel)}, {escape(way)}</p><p class="name">{escape(name)}</p>'
        f"<dl>{''.join(parts)}</dl></div>",
        "html.parser",
    )
    return said.div


# ---- on stage


def live(executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the talk as a notebook for RISE: it has its outputs, and each cell can be run.

    A run, or an attempt to run without a kernel, clears a cell's output. So what a cell gave when
    the deck was built also stands below it, in a cell of its own.
    """
    notebook = nbformat.from_dict(executed)
    keep = ("kernelspec", "language_info", "rise")
    notebook.metadata = {key: notebook.metadata[key] for key in keep if key in notebook.metadata}
    cells = []
    for cell in notebook.cells:
        cell.metadata.pop("deck", None)
        cells.append(cell)
        for output in cell.get("outputs", ()):
            if "underhood" in output.get("data", {}).get("text/html", ""):
                output.data["text/html"] = as_image(output.data["text/html"])
        shown = not cell.metadata.get("jupyter", {}).get("source_hidden")
        if cell.cell_type == "code" and shown and kind(cell) != "skip":
            cells.append(recorded(cell))
    notebook.cells = cells
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return notebook


def recorded(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a cell that says what another one gave when the deck was built."""
    texts = (out.get("text") or out.get("data", {}).get("text/plain", "") for out in cell.outputs)
    text = "".join(texts).strip()
    source = f"Recorded when this deck was built:\n\n```\n{text}\n```"
    return nbformat.v4.new_markdown_cell(source, id=f"{cell.id[:50]}-recorded")


def as_image(html: str) -> str:
    """Return a picture as a heading and an image, which a notebook shows though nobody trusts it.

    JupyterLab takes style sheets and inline SVG out of outputs that did not come from its own
    kernel.
    """
    figure = BeautifulSoup(html, "html.parser").select_one("figure.underhood")
    title = figure.select_one(".uh-title").get_text()
    drawing = figure.select_one(".uh-stage svg")
    told = drawing.find("desc")
    image = BeautifulSoup(with_image(html), "html.parser").select_one(".uh-plain img")
    image["alt"] = told.get_text() if told else title
    return f"<h2>{escape(title)}</h2>{image}"


# ---- the files


async def to_pdf(folder: Path, course: str) -> None:
    """Print each form of the talk, one page for each slide; links lead to the published course."""
    async with Home() as home, chromium(home) as browser:
        for name in FORMS:
            tab = await browser.new_page(viewport={"width": 1280, "height": 720})
            await tab.goto(f"{(folder / name).with_suffix('.html').as_uri()}?print-pdf")
            await tab.wait_for_selector(".pdf-page")
            await tab.evaluate(
                """course => document.querySelectorAll('a[href^="../"]').forEach(link => {
                    link.href = course + link.getAttribute('href').slice(3);
                })""",
                course,
            )
            target = folder / ("talk.pdf" if name == "index" else f"{name}.pdf")
            await tab.pdf(
                path=target, prefer_css_page_size=True, print_background=True,
                tagged=True, outline=True,
            )  # fmt: skip
            await tab.close()


def write(root: Path, target: Path, executed: nbformat.NotebookNode) -> None:
    """Write all forms of the executed talk into a folder."""
    source, reveal = root / "book/slides", root / "node_modules/reveal.js"
    if not reveal.is_dir():
        logger.info("slides: reveal.js is missing (npm ci), so there are none")
        return
    shutil.rmtree(target, ignore_errors=True)
    for part in ("dist/reveal.js", "dist/reveal.css", "plugin/notes/notes.js", "LICENSE"):
        (target / "reveal" / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(reveal / part, target / "reveal" / part)
    for part in ("deck/deck.css", "deck/deck.js", "talk.css", "../_static/mark.svg"):
        shutil.copyfile(source / part, target / Path(part).name)
    for name, (key, title) in FORMS.items():
        (target / f"{name}.html").write_text(page(executed, key, title, root), encoding="utf-8")
    nbformat.write(live(executed), target / "talk.ipynb")
    course = yaml.safe_load((source / "speaker.yml").read_text(encoding="utf-8"))["course"]
    try:
        asyncio.run(to_pdf(target, course))
    except MissingActor as why:
        logger.info(f"slides: no PDF ({why})")


def build_slides(app: Sphinx, exception: Exception | None) -> None:
    """Make the slides, when the site is built."""
    path = Path(app.srcdir, f"{TALK}.md")
    talk = Chapter.read(TALK, path) if path.exists() else None
    if exception or app.builder.name != "html" or talk is None:
        return
    _, executed = results_of(app).cache.merge_match_into_notebook(talk.notebook)
    write(Path(app.srcdir), Path(app.outdir, "slides"), executed)


def name_slides(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Tell the foot of a page on which slides the talk shows what the page is about."""
    path = Path(app.srcdir, f"{TALK}.md")
    talk = Chapter.read(TALK, path) if path.exists() else None
    if talk is not None:
        context["slides"] = slides_about(talk.notebook).get(pagename, [])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("html-page-context", name_slides)
    app.connect("build-finished", build_slides, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def main() -> None:
    """Make the slides alone; run the talk before, if it has changed since its last run."""
    root = Path(__file__).resolve().parents[2]
    results = Results(root, root / "_build", root / "_build/.jupyter_cache")
    results.drop_if_outdated()
    talk = Chapter.read(TALK, root / f"{TALK}.md")
    assert talk is not None
    if results.executed_at(talk) is None:
        print("Running the talk: real kernels, live captures …", flush=True)
        executor = Executor(results, 1, 300)
        executor.run([talk])
        if executor.failures:
            sys.exit(report(executor.failures))
    _, executed = results.cache.merge_match_into_notebook(talk.notebook)
    write(root, root / "_build/html/slides", executed)


if __name__ == "__main__":
    main()
