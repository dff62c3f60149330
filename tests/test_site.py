"""The built site as its readers get it: in a browser, in light and dark, wide and narrow.

And its pictures against its captures: every arrow of a sequence diagram is a message that was
captured while that very page was built, and every message that the diagram claims is an arrow.
"""

from __future__ import annotations

import getpass
import http.server
import importlib.metadata
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup, Tag
from chapter_execution import Chapter, Results
from checkout import ROOT, missing, served
from glossary_terms import ANOTHER_MEANING
from page_foot import duration
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page
from sphinx_external_toc.parsing import parse_toc_yaml

import underhood
from underhood import Trace

PAGES = list(parse_toc_yaml(ROOT / "_toc.yml"))
#: Pages with cells; the others, as the glossary, are only read.
EXECUTED = [page for page in PAGES if "```{code-cell}" in (ROOT / f"{page}.md").read_text("utf-8")]
CHAPTERS = [page for page in PAGES if re.match(r"book/(meet|fundamentals|tooling|build)/", page)]
OTHERS = ["search"]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
#: Where the site is published, and the path of that.
SITE = str(CONFIG["sphinx"]["config"]["html_baseurl"])
PATH = urlsplit(SITE).path
AXE_RUN = "axe.run(document, {preload: false, resultTypes: ['violations']})"
AXE = ROOT / "node_modules/axe-core/axe.min.js"


# ---- the arrows


@dataclass(frozen=True)
class Arrow:
    """What a diagram says of one message, or what the capture does."""

    number: int
    sender: str
    receiver: str
    label: str


def squeezed(text: str) -> str:
    """Return ``text`` without blanks and invisible characters: labels are broken into lines."""
    return re.sub(r"[\s\u00ad\u200b\u2060]", "", text)


def arrows_in(figure: Tag) -> list[Arrow]:
    """Read the arrows off a drawing, in their order, by where they begin and where they end."""
    heads: dict[float, str] = {}
    for name in figure.select("svg .u-heads text.u-name"):  # a long name has several lines
        x = float(str(name["x"]))
        heads[x] = " ".join([*heads.get(x, "").split(), *name.get_text(" ").split()])
    arrows = []
    for mark in figure.select("svg [data-message]"):
        path = " ".join(str(line["d"]) for line in mark.select("path.u-line"))
        points = [float(x) for x in re.findall(r"[MLH](-?[\d.]+)", path)]
        sender, receiver = (
            heads[min(heads, key=lambda x: abs(x - end))] for end in (points[0], points[-1])
        )
        label = squeezed("".join(text.get_text() for text in mark.select("text.u-label")))
        numbers = [mark["data-message"], *str(mark.get("data-folded", "")).split()]
        arrows += [Arrow(int(str(number)), sender, receiver, label) for number in numbers]
    return arrows


def arrows_of(trace: Trace) -> list[Arrow]:
    """Say what arrows a diagram of this trace must have."""
    return [Arrow(m.number, m.sender, m.receiver, squeezed(m.label)) for m in trace]


def differences(figure: Tag, captures: Path) -> list[str]:
    """Compare a sequence diagram with the capture that it says it was drawn from."""
    capture = underhood.load(captures / f"{figure['data-capture']}.pcapng")
    expected = arrows_of(capture.trace().select(json.loads(str(figure["data-query"]))))
    drawn = arrows_in(figure)
    if figure.select("svg [data-folded]"):
        # An arrow that stands for a run stands where its first message does; numbers tell order.
        drawn.sort(key=lambda arrow: arrow.number)
    wrong = []
    if [a.number for a in drawn] != [a.number for a in expected]:
        wrong.append(
            f"arrows {[a.number for a in drawn]} are drawn, "
            f"messages {[a.number for a in expected]} were captured"
        )
    for arrow, message in zip(drawn, expected, strict=False):
        ends = (arrow.sender, arrow.receiver), (message.sender, message.receiver)
        if ends[0] != ends[1]:
            wrong.append(f"arrow {arrow.number} goes {ends[0]}, its message went {ends[1]}")
        if not arrow.label.startswith(message.label) and not message.label.startswith(
            arrow.label.split("…")[0] or "?"
        ):
            wrong.append(f"arrow {arrow.number} says {arrow.label}, its message {message.label}")
    return wrong


def figures(build: Path, page: str, kind: str = "sequence") -> list[Tag]:
    html = (build / "html" / f"{page}.html").read_text(encoding="utf-8")
    return list(BeautifulSoup(html, "html.parser").select(f'[data-underhood="{kind}"]'))


@pytest.mark.parametrize("page", EXECUTED)
def test_every_arrow_is_a_message_captured_in_this_build_and_every_message_an_arrow(build, page):
    found = figures(build, page)
    assert found, f"{page} has no sequence diagram"
    assert sum(len(arrows_in(figure)) for figure in found) > 0
    wrong = {
        f"{figure['aria-label']}: {line}"
        for figure in found
        for line in differences(figure, build / "captures" / page)
    }
    assert not wrong, "\n".join(sorted(wrong))


def first_figure(build: Path, page: str) -> tuple[Tag, list[Tag]]:
    """Return a diagram with at least three arrows, parsed anew, and its arrows."""
    for figure in figures(build, page):
        marks = figure.select("svg [data-message]")
        if len(marks) >= 3 and not any(mark.get("data-folded") for mark in marks):
            return figure, marks
    pytest.fail(f"{page} has no diagram with three arrows")


@pytest.mark.parametrize("page", EXECUTED)
def test_the_comparison_notices_an_arrow_that_is_dropped_invented_moved_turned_or_renamed(
    build, page
):
    captures = build / "captures" / page

    figure, marks = first_figure(build, page)
    assert differences(figure, captures) == []
    marks[1].decompose()
    assert differences(figure, captures), "a dropped arrow was not noticed"

    figure, marks = first_figure(build, page)
    invented = BeautifulSoup(str(marks[1]), "html.parser").find()
    invented["data-message"] = "999999"
    marks[1].insert_after(invented)
    assert differences(figure, captures), "an invented arrow was not noticed"

    figure, marks = first_figure(build, page)
    marks[0].insert_before(marks[1].extract())
    assert differences(figure, captures), "two arrows in the wrong order were not noticed"

    figure, marks = first_figure(build, page)
    lines = marks[1].select("path.u-line")
    ends = re.findall(r"-?[\d.]+", " ".join(str(line["d"]) for line in lines))
    lines[0]["d"] = f"M{ends[-1]} {ends[1]}H{ends[0]}"
    for line in lines[1:]:
        line.decompose()
    assert differences(figure, captures), "an arrow in the wrong direction was not noticed"

    figure, marks = first_figure(build, page)
    marks[1].select_one("text.u-label").string = "comm_open"
    assert differences(figure, captures), "a wrong label was not noticed"


@pytest.mark.parametrize("page", EXECUTED)
def test_every_picture_has_alternative_text_made_from_its_messages(build, page):
    for figure in figures(build, page):
        svg = figure.select_one("svg:has(> title)")
        assert svg.find("title").get_text(strip=True)
        described = svg.find("desc").get_text(strip=True)
        arrows = arrows_in(figure)
        assert arrows, f"“{figure['aria-label']}” shows no message at all"
        assert arrows[0].label in squeezed(described)
        for mark in svg.select("[data-message]"):
            assert mark.get("aria-label") or mark.find("title"), "an arrow has no name"


# ---- the files


def texts(build: Path) -> Iterator[tuple[Path, str]]:
    for path in (build / "html").rglob("*"):
        if path.suffix in {
            ".html",
            ".js",
            ".json",
            ".txt",
            ".md",
            ".ipynb",
            ".css",
            ".svg",
            ".xml",
        }:
            yield path, path.read_text(encoding="utf-8", errors="replace")


def test_nothing_of_the_machine_that_built_it_is_in_the_site(build):
    home, user, host = str(Path.home()), getpass.getuser(), socket.gethostname()
    traces = {str(ROOT), home, f"/home/{user}"}
    if not sys.base_prefix.startswith("/usr"):
        traces.add(sys.base_prefix)
    if len(host) > 5:
        traces.add(host)
    found = {
        f"{path.relative_to(build)}: …{text[max(0, at - 60) : at + 80]!r}…"
        for path, text in texts(build)
        if "_static" not in path.parts
        for trace in traces
        if len(trace) > 3 and (at := text.find(trace)) >= 0
    }
    captured = {
        f"{path.relative_to(build)}: {trace}"
        for path in (build / "captures").rglob("*.pcapng")
        for trace in traces
        if len(trace) > 3 and trace.encode() in path.read_bytes()
    }
    assert not found | captured, "\n".join(sorted(found | captured))


def test_no_link_inside_the_site_is_broken(build):
    pages = {
        path.relative_to(build / "html").as_posix(): BeautifulSoup(
            path.read_text(encoding="utf-8"), "html.parser"
        )
        for path in (build / "html").rglob("*.html")
        if "_static" not in path.parts
    }
    ids = {name: {str(tag["id"]) for tag in page.select("[id]")} for name, page in pages.items()}
    for name, page in pages.items():  # a slide has its number as its address
        ids[name] |= {f"/{n}" for n, _ in enumerate(page.select(".reveal .slides > section"))}
    broken = []
    for name, page in pages.items():
        for tag in page.select("a[href], svg a, link[href], img[src], script[src]"):
            address = str(tag.get("href") or tag.get("xlink:href") or tag.get("src"))
            if re.match(r"[a-z]+:|//", address) or address == "None":  # an arrow on a slide
                continue
            file, _, anchor = address.partition("#")
            target = os.path.normpath(os.path.join(os.path.dirname(name), file.split("?")[0]))
            if file.startswith(PATH):  # on the page for addresses that lead nowhere
                target = file.removeprefix(PATH).split("?")[0]
            target = target if file else name
            if not (build / "html" / target).exists() or (
                anchor and target in ids and anchor not in ids[target]
            ):
                broken.append(f"{name}: {address}")
    assert not broken, "\n".join(broken)


def test_every_id_on_a_page_is_unique(build):
    for path in (build / "html/book").rglob("*.html"):
        ids = re.findall(r'\sid="([^"]+)"', path.read_text(encoding="utf-8"))
        assert sorted({name for name in ids if ids.count(name) > 1}) == [], path.name


# ---- what is below each page, and what can be taken along


def html(build: Path, page: str) -> BeautifulSoup:
    return BeautifulSoup((build / f"html/{page}.html").read_text(encoding="utf-8"), "html.parser")


def link(page: BeautifulSoup, words: str) -> str:
    """Return the address behind these words."""
    found = [a for a in page.select("a[href]") if " ".join(a.get_text().split()) == words]
    assert found, f"no link says “{words}”"
    return str(found[0]["href"])


@pytest.mark.parametrize("page", EXECUTED)
def test_the_launch_button_opens_this_very_page_in_jupyterlab(build, page):
    repository = CONFIG["repository"]["url"].removeprefix("https://github.com/")
    address = f"https://mybinder.org/v2/gh/{repository}/main?urlpath=lab/tree/{page}.md"
    soup = html(build, page)
    assert link(soup, "Open it in Binder") == address
    assert link(soup, "Binder") == address
    assert (ROOT / f"{page}.md").is_file()
    # Where a notebook of the same name lies beside it, the theme would open that instead.
    assert not (ROOT / f"{page}.ipynb").exists()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_where_to_mend_it(build, page):
    soup = html(build, page)
    assert link(soup, "Edit this page").endswith(f"/edit/main/{page}.md")
    assert f"/issues/new?title={page}" in link(soup, "report a mistake")


@pytest.mark.parametrize("page", EXECUTED)
def test_a_page_says_when_and_with_what_it_was_executed(build, page):
    chapter = Chapter.read(page, ROOT / f"{page}.md")
    results = Results(ROOT, build, build / ".jupyter_cache")
    foot = html(build, page).select_one(".page-foot")
    said = " ".join(foot.get_text(" ").split())
    at = datetime.fromisoformat(str(foot.select_one("time")["datetime"])).timestamp()
    assert abs(at - results.executed_at(chapter)) <= 1
    run = results.run_of(chapter)
    assert f"in {duration(run['execution_seconds'])}" in said
    for name, version in run["versions"].items():
        assert f"{name} {version}" in said
    assert run["versions"]["ipykernel"] == importlib.metadata.version("ipykernel")


@pytest.mark.parametrize("page", EXECUTED)
def test_all_captures_of_a_page_can_be_taken_along(build, page):
    captures = sorted((build / "captures" / page).glob("*.pcapng"))
    assert captures
    soup = html(build, page)
    for path in captures:
        offered = (build / f"html/{page}.html").parent / link(soup, path.name)
        assert offered.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("page", EXECUTED)
def test_the_notebook_of_a_page_is_valid_executed_and_free_of_myst(build, page):
    place = (build / f"html/{page}.html").parent / link(html(build, page), "The executed notebook")
    notebook = nbformat.read(place, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    # A cell that writes a module of the chapter is for whoever has this one file only.
    run = [cell for cell in code if not cell.source.startswith("%%writefile")]
    assert all(cell.execution_count for cell in run if cell.source.strip())
    pictures = [o for c in code for o in c.outputs if "data-underhood" in str(o.get("data"))]
    drawn = html(build, page).select("[data-underhood]")
    assert len(pictures) == len(drawn)
    for picture in pictures:
        if '<div class="uh-stage"' in picture.data["text/html"]:
            assert '<img alt="' in picture.data["text/html"], "no image where styles are taken out"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.DOTALL)
            assert not re.search(r"\{[\w:-]+\}|^:::|^\(.*\)=$|…\]\(", prose, re.MULTILINE), prose
            assert not re.search(r"\]\((?!https?:)[^)]*\.md\)", prose), prose
    seen = "".join(c.source for c in notebook.cells if c.source.startswith("## What you saw"))
    section = html(build, page).select_one("#what-you-saw")
    if section:  # with the same numbers of this run
        numbers = r"\d+(?:[.,]\d+)*"
        assert re.findall(numbers, seen) == re.findall(numbers, section.get_text())
    titles = [c.source for c in notebook.cells if c.source.startswith("#### Solution")]
    assert len(titles) == len(html(build, page).select("details.solution"))


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("book/appendix/")])
def test_a_term_is_a_link_where_it_first_occurs_and_says_what_it_means(build, page):
    soup = html(build, page)
    links = soup.select("article a.term")
    assert links, "no term of the glossary occurs"
    addresses = [str(a["href"]).partition("#")[2] for a in links]
    assert len(set(addresses)) == len(addresses), "a term is a link twice"
    glossary = html(build, "book/appendix/glossary")
    for a in links:
        term = glossary.select_one(f"dt#{str(a['href']).partition('#')[2]}")
        meaning = " ".join(term.find_next("dd").p.get_text().split())
        tip = soup.select_one(f"#{a['aria-describedby']}")
        assert " ".join(tip.get_text().split()) == meaning
        assert a.find_parent(["pre", "code", "h1", "h2", "h3", "summary"]) is None


def test_a_word_with_another_meaning_is_used_on_its_page_and_not_explained_there(build):
    for page, words in ANOTHER_MEANING.items():
        assert (ROOT / f"{page}.md").exists()
        if page not in PAGES:
            continue  # not in this build
        prose = html(build, page).select_one("article").get_text(" ").lower()
        explained = {a.get_text().lower() for a in html(build, page).select("article a.term")}
        for word in words:
            assert word in prose, f"{page} does not use {word}: take it out of ANOTHER_MEANING"
            assert not explained & {word, f"{word}s"}, f"{page} explains {word} wrongly"


def test_the_map_of_the_first_page_has_every_chapter_with_the_minutes_of_its_card(build):
    entries = html(build, "book/index").select(".course-map li")
    found = {}
    for entry in entries:
        page = os.path.normpath(f"book/{entry.a['href']}").removesuffix(".html")
        found[page] = entry.select_one("small").get_text().removesuffix(" min")
    cards = {}
    for page in CHAPTERS:
        rows = html(build, page).select("table.chapter-card tr")
        cards[page] = next(r.td.get_text(strip=True) for r in rows if r.th.get_text() == "Minutes")
    assert found == cards
    assert list(found) == CHAPTERS, "the order is another than in _toc.yml"


# ---- for search engines, and for people who were sent a link


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_it_is_and_where_it_belongs(build, page):
    soup = html(build, page)
    assert soup.select_one("link[rel=canonical]")["href"] == f"{SITE}{page}.html"
    about = json.loads(soup.select_one('script[type="application/ld+json"]').string)
    assert about["@type"] == ("Course" if page == "book/index" else "LearningResource")
    assert about["url"] == f"{SITE}{page}.html"
    assert about["description"] == soup.select_one("meta[name=description]")["content"]
    if page == "book/index":
        parts = [part["url"].removeprefix(SITE).removesuffix(".html") for part in about["hasPart"]]
        assert parts == CHAPTERS
    elif page in CHAPTERS:
        assert len(about["teaches"]) == 3
        assert re.fullmatch(r"PT\d+M", about["timeRequired"])


@pytest.mark.parametrize("page", PAGES)
def test_a_shared_link_shows_a_card_of_the_page(build, page):
    soup = html(build, page)
    shown = {str(tag["property"]): str(tag["content"]) for tag in soup.select("meta[property]")}
    assert shown["og:url"] == f"{SITE}{page}.html"
    assert shown["og:title"] == soup.h1.find(string=True)
    picture = shown["og:image"]
    assert picture.startswith(SITE)
    with Image.open(build / "html" / picture.removeprefix(SITE)) as card:
        assert card.size == (1200, 630)
    assert (shown["og:image:width"], shown["og:image:height"]) == ("1200", "630")


def test_the_sitemap_lists_every_page_and_robots_find_it(build):
    tree = ElementTree.parse(build / "html/sitemap.xml")
    found = [element.text for element in tree.iter() if element.tag.endswith("}loc")]
    assert found == [f"{SITE}{page}.html" for page in PAGES]
    assert f"Sitemap: {SITE}sitemap.xml" in (build / "html/robots.txt").read_text().splitlines()


# ---- in the browser


@pytest.fixture(scope="module")
def address(build: Path) -> Iterator[str]:
    """The site, served on loopback."""
    with served(build / "html") as url:
        yield url


@dataclass
class Visit:
    """A page in the browser, and what happened while it was opened."""

    page: Page
    console: list[str]
    requests: list[str]


@contextmanager
def visit(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    context = browser.new_context(**options)
    page = context.new_page()
    console: list[str] = []
    requests: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        console.append(f"{message.type}: {message.text}")

    page.on("console", heard)
    page.on("pageerror", lambda error: console.append(f"error: {error}"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url, wait_until="networkidle")
    yield Visit(page, console, requests)
    context.close()


#: Finds tables of the prose that are wider than their place.
CUT_TABLES = """() => [...document.querySelectorAll(".pst-scrollable-table-container")]
  .filter(box => box.checkVisibility() && box.scrollWidth > box.clientWidth)
  .map(box => box.textContent.trim().slice(0, 60))"""
MODES = [(theme, width) for theme in ("light", "dark") for width in (1280, 390)]


@pytest.mark.parametrize(("theme", "width"), MODES, ids=lambda value: str(value))
@pytest.mark.parametrize("name", PAGES + OTHERS)
def test_a_page_opens_silently_from_one_host_fits_and_is_accessible(
    browser, address, name, theme, width
):
    size = {"width": width, "height": 900}
    with visit(browser, f"{address}{name}.html", color_scheme=theme, viewport=size) as seen:
        assert seen.page.evaluate("document.documentElement.dataset.theme") == theme
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        if width > 1000:
            assert seen.page.evaluate(CUT_TABLES) == [], "a table has columns out of sight"
        assert [url for url in seen.requests if not url.startswith((address, "data:"))] == []
        if not AXE.exists():
            missing("axe-core is not installed: run make test")
        seen.page.evaluate(AXE.read_text(encoding="utf-8"))
        violations = seen.page.evaluate(AXE_RUN)["violations"]
        faults = [f"{v['id']}: {node['html'][:200]}" for v in violations for node in v["nodes"]]
        assert not faults, "\n".join(faults)
        assert seen.console == []


def test_without_javascript_a_page_can_be_read_and_its_boxes_opened(browser, address):
    page = CHAPTERS[0]
    with visit(browser, f"{address}{page}.html", java_script_enabled=False) as seen:
        assert seen.page.locator("[data-underhood] svg").first.is_visible()
        solution = seen.page.locator("details.solution").first
        inside = solution.locator(":scope > :not(summary)").first
        assert not inside.is_visible()
        solution.locator(":scope > summary").click()
        assert inside.is_visible()


def test_a_solution_opens_by_keyboard_alone(browser, address):
    page = CHAPTERS[0]
    with visit(browser, f"{address}{page}.html") as seen:
        solution = seen.page.locator("details.solution").first
        solution.locator(":scope > summary").focus()
        assert not solution.get_attribute("open")
        seen.page.keyboard.press("Enter")
        assert solution.get_attribute("open") is not None


def test_the_theme_switch_goes_round_and_pictures_follow(browser, address):
    with visit(browser, f"{address}book/index.html", color_scheme="light") as seen:
        picture = "getComputedStyle(document.querySelector('[data-underhood]')).colorScheme"
        seen_themes = {seen.page.evaluate("document.documentElement.dataset.theme")}
        schemes = {seen.page.evaluate(picture)}
        for _ in range(3):
            seen.page.locator(".theme-switch-button:visible").first.click()
            seen_themes.add(seen.page.evaluate("document.documentElement.dataset.theme"))
            schemes.add(seen.page.evaluate(picture))
        assert seen_themes == {"light", "dark"}
        assert schemes == {"light", "dark"}


def test_search_finds_a_chapter(browser, address):
    with visit(browser, f"{address}search.html?q=heartbeat") as seen:
        seen.page.wait_for_selector("#search-results li a", timeout=10_000)
        results = seen.page.locator("#search-results li a").evaluate_all("a => a.map(x => x.href)")
        assert any("book/meet/kernel.html" in url for url in results)
        # The meaning of a term stands in pages, but hidden, and pictures have bytes in them.
        chapters = seen.page.locator("#search-results li:not(:has(a[href*='/appendix/']))")
        excerpts = chapters.locator("p.context")
        excerpts.first.wait_for()
        alien = re.compile("One of the five ways|from byte")
        assert not [text for text in excerpts.all_inner_texts() if alien.search(text)]


def test_the_root_leads_to_the_first_page(browser, address):
    with visit(browser, address) as seen:
        seen.page.wait_for_url("**/book/index.html")


# ---- what readers do


def test_a_term_says_its_meaning_by_mouse_by_keyboard_and_by_touch(browser, address):
    page = f"{address}{CHAPTERS[0]}.html"
    with visit(browser, page, viewport={"width": 1280, "height": 900}) as seen:
        link = seen.page.locator("article a.term").first
        tip = seen.page.locator("article a.term + .term-tip").first
        assert not tip.is_visible()
        link.hover()
        assert tip.is_visible()
        tip.hover()
        assert tip.is_visible(), "the meaning cannot be pointed at"
        seen.page.mouse.move(5, 5)
        assert not tip.is_visible()
        link.evaluate("link => link.focus({focusVisible: true})")
        assert tip.is_visible()
        seen.page.keyboard.press("Escape")
        assert not tip.is_visible()
        seen.page.keyboard.press("Enter")
        seen.page.wait_for_url("**/book/appendix/glossary.html#term-*")
    phone = {"width": 390, "height": 800}
    with visit(browser, page, viewport=phone, has_touch=True, is_mobile=True) as seen:
        for number in range(seen.page.locator("article a.term").count()):
            link = seen.page.locator("article a.term").nth(number)
            if not link.is_visible():
                continue  # in a box that is closed
            link.tap()
            tip = seen.page.locator("article a.term + .term-tip").nth(number)
            box = tip.bounding_box()
            assert box
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
            seen.page.locator("article h1").tap()
            assert not tip.is_visible()


def test_a_term_says_its_meaning_without_javascript(browser, address):
    with visit(browser, f"{address}{CHAPTERS[0]}.html", java_script_enabled=False) as seen:
        seen.page.locator("article a.term").first.hover()
        assert seen.page.locator("article a.term + .term-tip").first.is_visible()


def test_the_site_works_from_a_folder_without_a_server(browser, build):
    with visit(browser, (build / "html/index.html").as_uri()) as seen:
        seen.page.wait_for_url("**/book/index.html")
        seen.page.locator(".course-map a").first.click()
        seen.page.wait_for_url(f"**/{CHAPTERS[0]}.html")
        assert seen.page.locator("[data-underhood] svg").first.is_visible()
        seen.page.locator("a.right-next").click()
        seen.page.wait_for_url(f"**/{PAGES[PAGES.index(CHAPTERS[0]) + 1]}.html")
        assert seen.console == []
        assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []


def test_an_address_that_leads_nowhere_gets_a_page_that_leads_on(browser, build):
    site = build / "html"

    class Pages(http.server.SimpleHTTPRequestHandler):
        """Serves the site as GitHub Pages does: in a folder, with 404.html for what is missing."""

        def do_GET(self) -> None:
            path = site / self.path.split("?")[0].removeprefix(PATH)
            found = path.is_file()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", self.guess_type(path if found else "404.html"))
            self.end_headers()
            self.wfile.write((path if found else site / "404.html").read_bytes())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}"
        with visit(browser, f"{home}{PATH}book/nowhere/at/all.html") as seen:
            assert seen.page.locator("h1").inner_text() == "No page is here"
            assert [url for url in seen.requests if not url.startswith(home)] == []
            assert seen.page.locator(".hood-mark").first.bounding_box()["height"] <= 60
            seen.page.evaluate(AXE.read_text(encoding="utf-8"))
            assert [fault["id"] for fault in seen.page.evaluate(AXE_RUN)["violations"]] == []
            seen.page.get_by_role("link", name="The first page").click()
            seen.page.wait_for_url(f"{home}{PATH}book/index.html")
        server.shutdown()


FOCUSED = """() => {
  const element = document.activeElement, box = element.getBoundingClientRect();
  const style = getComputedStyle(element), inside = element.closest('svg') !== null;
  const at = document.elementFromPoint(
    Math.max(1, Math.min(innerWidth - 1, box.x + box.width / 2)),
    Math.max(1, Math.min(innerHeight - 1, box.y + Math.min(box.height / 2, 40))));
  return {
    what: element.outerHTML.slice(0, 160),
    body: element === document.body,
    seen: box.width > 0 && box.bottom > 0 && box.top < innerHeight,
    ringed: inside || style.outlineStyle !== 'none' || style.boxShadow !== 'none',
    // What is taller than the screen reaches below the header, too.
    covered: !!at && !!at.closest('.bd-header-article') && !element.closest('.bd-header-article')
      && box.bottom < 120,
  };
}"""


@pytest.mark.parametrize("page", PAGES)
def test_with_the_keyboard_alone_each_stop_on_a_phone_is_seen_and_marked(browser, address, page):
    phone = {"width": 390, "height": 800}
    faults = []
    with visit(browser, f"{address}{page}.html", viewport=phone, color_scheme="dark") as seen:
        seen.page.keyboard.press("Tab")
        assert "Skip to main content" in seen.page.evaluate(FOCUSED)["what"]
        for _ in range(60):
            seen.page.keyboard.press("Tab")
            stop = seen.page.evaluate(FOCUSED)
            if stop["body"]:
                break
            if not stop["seen"] or not stop["ringed"] or stop["covered"]:
                faults.append(str(stop))
    assert not faults, "\n".join(faults)


#: Finds what is first within reach of the Tab key in the text of a page.
FIRST_IN_TEXT = (
    "article :is(a[href], button, summary, [tabindex='0']):not(.headerlink), "
    ".bd-search-container input"
)


@pytest.mark.parametrize("page", [CHAPTERS[0], "search", "404"])
def test_the_link_to_the_main_content_leads_past_the_buttons_above_it(browser, address, page):
    phone = {"width": 390, "height": 800}
    with visit(browser, f"{address}{page}.html", viewport=phone) as seen:
        seen.page.evaluate("document.activeElement.blur()")
        seen.page.locator(".skip-link a").focus()
        seen.page.keyboard.press("Enter")
        seen.page.keyboard.press("Tab")
        first = seen.page.locator(FIRST_IN_TEXT).first
        reached = seen.page.evaluate(FOCUSED)["what"]
        assert first.evaluate("element => element === document.activeElement"), reached


@pytest.mark.parametrize("button", [".primary-toggle", ".secondary-toggle", ".search-button"])
def test_what_the_keyboard_opens_on_a_phone_gives_the_focus_back_when_it_closes(
    browser, address, button
):
    phone = {"width": 390, "height": 800}
    with visit(browser, f"{address}{CHAPTERS[0]}.html", viewport=phone) as seen:
        opener = seen.page.locator(f".bd-header-article {button}")
        opener.focus()
        seen.page.keyboard.press("Enter")
        box = seen.page.locator("dialog[open]")
        assert box.evaluate("box => box.contains(document.activeElement)"), "focus stayed outside"
        seen.page.keyboard.press("Escape")
        assert not box.count()
        assert opener.evaluate("button => button === document.activeElement")


def test_the_theme_switch_can_be_pressed_again_by_keyboard(browser, address):
    with visit(browser, f"{address}book/index.html", color_scheme="light") as seen:
        seen.page.locator(".theme-switch-button:visible").first.focus()
        modes = []
        for _ in range(3):
            seen.page.keyboard.press("Enter")
            modes.append(seen.page.evaluate("document.documentElement.dataset.mode"))
        assert sorted(modes) == ["auto", "dark", "light"]


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_heading_that_is_jumped_to_is_not_under_the_header(browser, address, page):
    with visit(browser, f"{address}{page}.html", viewport={"width": 390, "height": 800}) as seen:
        names = seen.page.locator("article section[id]").evaluate_all("all => all.map(s => s.id)")
        for name in names[2:5]:
            seen.page.goto(f"{address}{page}.html#{name}")
            seen.page.wait_for_timeout(100)
            top, bottom = seen.page.evaluate(
                """name => {
                  const heading = document.getElementById(name).querySelector('h2, h3');
                  const header = document.querySelector('.bd-header-article');
                  const top = heading.getBoundingClientRect().top;
                  return [top, header.getBoundingClientRect().bottom];
                }""",
                name,
            )
            assert top >= bottom - 1, f"#{name} is under the header"
