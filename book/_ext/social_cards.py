"""The picture that a shared link shows: a page's title, beside messages that the page captured.

Strategy: the messages are those of the page's first sequence diagram, loaded from its capture; the
colours are the palette's. matplotlib draws them, as it draws all pictures of this book, because
sphinxext-opengraph's own cards know one layout. A card is drawn anew only when what it shows has
changed. sphinxext-opengraph finds its address among the page's meta fields.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bs4 import BeautifulSoup
from chapter_execution import Chapter
from course_map import parts
from finding import minutes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from page_foot import results_of

import underhood
from underhood.draw.palette import CHANNELS, colour
from underhood.draw.words import tint

if TYPE_CHECKING:
    from sphinx.application import Sphinx

    from underhood import Message

CARDS = "_cards"
WIDTH, HEIGHT = 1200, 630  # pixels: what the large services ask for
MOST = 13  # messages on a card


def first_messages(app: Sphinx, name: str) -> list[Message]:
    """Return the messages of the first sequence diagram of a page, if it has one."""
    chapter = Chapter.read(name, Path(app.env.doc2path(name)))
    results = results_of(app)
    if not chapter or results.executed_at(chapter) is None:
        return []
    _, executed = results.cache.merge_match_into_notebook(chapter.notebook)
    for cell in executed.cells:
        for output in cell.get("outputs", ()):
            html = str(output.get("data", {}).get("text/html", ""))
            if 'data-underhood="sequence"' not in html:
                continue
            figure = BeautifulSoup(html, "html.parser").select_one("[data-underhood=sequence]")
            path = results.captures_of(name) / f"{figure['data-capture']}.pcapng"
            if path.is_file():
                trace = underhood.load(path).trace().select(json.loads(figure["data-query"]))
                return list(trace)[:MOST]
    return []


def draw(path: Path, title: str, above: str, below: str, messages: list[Message]) -> None:
    """Draw a card."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor=colour("paper", "dark"))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.axis("off")
    ink, muted = colour("ink", "dark"), colour("muted", "dark")
    # The mark: a lid, lifted, over two lifelines and what travels between them.
    left, top, scale = 72, 62, 2.3
    for points, name in (
        (((3, 12.5), (27, 4.5), (29, 8.7)), "ink"),
        (((8, 18.5), (24, 18.5)), "shell"),
        (((10, 25), (24, 25)), "iopub"),
    ):
        axes.plot(
            [left + scale * x for x, _ in points],
            [top - 14 + scale * y for _, y in points],
            color=colour(name, "dark"),
            linewidth=4,
            solid_capstyle="round",
        )
    axes.text(160, 96, above, color=muted, fontsize=23, family="DejaVu Sans", va="center")
    room = 19 if messages else 32
    lines = textwrap.wrap(title, room)
    points = 46 if len(lines) <= 4 else 38
    for number, line in enumerate(lines):
        axes.text(
            72,
            (HEIGHT - (len(lines) - 1) * points * 1.75) / 2 + number * points * 1.75 + 16,
            line,
            color=ink,
            fontsize=points,
            family="DejaVu Serif",
            weight="bold",
            va="center",
        )
    axes.text(72, HEIGHT - 62, below, color=muted, fontsize=20, family="DejaVu Sans", va="center")
    if messages:
        _draw_messages(axes, messages)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _draw_messages(axes: Any, messages: list[Message]) -> None:
    """Draw lifelines and arrows in the right part of a card."""
    parties = list(dict.fromkeys(end for m in messages for end in (m.sender, m.receiver)))
    order = ("browser", "client", "proxy", "server", "hub", "kernel")
    parties.sort(key=lambda party: next((i for i, o in enumerate(order) if party.startswith(o)), 3))
    left, right = 770, WIDTH - 90
    step = (right - left) / max(len(parties) - 1, 1)
    place = {party: left + number * step for number, party in enumerate(parties)}
    for party, x in place.items():
        axes.plot([x, x], [108, HEIGHT - 60], color=colour("line", "dark"), linewidth=2)
        axes.text(
            x,
            84,
            party,
            color=colour("paper", "dark"),
            fontsize=17,
            weight="bold",
            ha="center",
            va="center",
            bbox={"facecolor": colour("ink", "dark"), "edgecolor": "none", "pad": 8},
        )
    gap = min((HEIGHT - 60 - 140) / max(len(messages), 1), 60)
    for number, message in enumerate(messages):
        y = 150 + number * gap
        begin, end = place[message.sender], place[message.receiver]
        name = tint(message)
        tinted = colour(name, "dark")
        forth = 1 if end > begin else -1
        axes.plot(
            [begin + 5 * forth, end - 16 * forth],
            [y, y],
            color=tinted,
            linewidth=3,
            dashes=[d / 2 for d in CHANNELS[name].dash] or (None, None),
        )
        tip = end - 4 * forth
        axes.add_patch(
            Polygon([(tip, y), (tip - 16 * forth, y - 8), (tip - 16 * forth, y + 8)], color=tinted)
        )
        axes.text((begin + end) / 2, y - 9, message.label, color=tinted, fontsize=15, ha="center")


def add_card(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Draw a page's card if it has changed, and name it among the page's meta fields."""
    if doctree is None or app.builder.name != "html":
        return
    title = app.env.titles[pagename].astext()
    course = str(app.config.html_title or app.config.project)
    took = minutes(app.env.get_doctree(pagename))
    above = "An open course" if title == course else course
    messages = first_messages(app, pagename)
    if messages:
        below = f"{took} minutes, from live captures" if took else "From live captures"
    else:  # a page to look things up
        below = next((caption for caption, pages in parts(app) if pagename in pages), "")
    shown = [title, above, below, *(f"{m.sender}{m.receiver}{m.label}" for m in messages)]
    key = hashlib.sha256("\0".join([Path(__file__).read_text(), *shown]).encode()).hexdigest()[:16]
    drawn = Path(app.outdir).parent / "generated/cards" / f"{key}.png"
    if not drawn.is_file():
        draw(drawn, title, above, below, messages)
    target = Path(app.outdir) / CARDS / f"{pagename}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(drawn, target)
    meta = context["meta"] = dict(context.get("meta") or {})
    meta["og:image"] = f"{app.config.html_baseurl}{CARDS}/{pagename}.png"
    meta["og:image:alt"] = f"{title}: {below}" if below else title
    # These are given as they are to the page.
    context["metatags"] += (
        f'\n<meta property="og:image:width" content="{WIDTH}">'
        f'\n<meta property="og:image:height" content="{HEIGHT}">'
        '\n<meta name="twitter:card" content="summary_large_image">'
    )


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("html-page-context", add_card, priority=300)  # before sphinxext-opengraph's tags
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
