# ruff: noqa: F401, F811  (fixtures of test_site)
"""The talk as its speaker shows it: slide by slide, by keyboard, on three projectors, on paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from bs4 import BeautifulSoup, Tag
from checkout import ROOT, missing
from playwright.sync_api import Browser, Page
from pypdf import PdfReader
from test_site import AXE, AXE_RUN, address, differences, visit

#: The rows of the talk's programme, and words of the slide that carries each.
ROWS = {
    "Introduction": "answer questions",
    "IPython kernel": "A kernel is a process",
    "Jupyter Notebook": "Jupyter Notebook and JupyterLab",
    "JupyterLab": "What JupyterLab asked",
    "Jupyter in the cloud": "In the cloud",
    "WebSocket traffic between front end and server": "WebSocket: what",
    "ZeroMQ traffic between server and kernel": "ZeroMQ: the same",
    "Jupyter tooling ecosystem": "A tool is known by its traffic",
    "Automating a Jupyter notebook": "Automate it",
}
PROJECTORS = [(1280, 720), (1920, 1080), (1024, 768)]
FAULTS = Path(__file__).with_name("slide_faults.js").read_text(encoding="utf-8")


def soup(build: Path, name: str = "index") -> BeautifulSoup:
    text = (build / f"html/slides/{name}.html").read_text(encoding="utf-8")
    return BeautifulSoup(text, "html.parser")


def slides(deck: BeautifulSoup) -> list[Tag]:
    return deck.select(".slides > section > section")


def minutes(deck: BeautifulSoup) -> float:
    return sum(int(str(slide["data-timing"])) for slide in slides(deck)) / 60


def said(slide: Tag) -> str:
    return " ".join(text for text in slide.stripped_strings if not text.startswith("{"))


def test_the_talk_lasts_as_long_as_its_slot(build: Path) -> None:
    deck = soup(build)
    assert 25 <= minutes(deck) <= 30
    assert float(str(deck.select_one(".reveal")["data-minutes"])) == minutes(deck)
    assert minutes(soup(build, "lightning")) == 5


def test_every_slide_has_notes_for_its_speaker(build: Path) -> None:
    for slide in slides(soup(build)):
        notes = slide.select_one("aside.notes")
        assert notes, said(slide)
        assert len(notes.get_text()) > 40


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_programme_is_on_a_slide(build: Path, row: str) -> None:
    assert any(ROWS[row] in said(slide) for slide in slides(soup(build)))


def test_rows_stand_in_the_order_of_the_programme(build: Path) -> None:
    text = [said(slide) for slide in slides(soup(build))]
    places = [next(n for n, t in enumerate(text) if ROWS[row] in t) for row in ROWS]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["index", "lightning"])
def test_every_diagram_equals_its_capture(build: Path, name: str) -> None:
    found = soup(build, name).select('[data-underhood="sequence"]')
    assert len(found) >= 3
    for figure in found:
        assert differences(figure, build / "captures/book/slides/talk") == []


def test_the_lightning_talk_says_nothing_that_the_talk_does_not(build: Path) -> None:
    whole = [said(slide) for slide in slides(soup(build))]
    short = [said(slide) for slide in slides(soup(build, "lightning"))]
    assert 0 < len(short) < len(whole)
    assert set(short) <= set(whole)


# ---- on stage


def step_through(page: Page) -> Iterator[tuple[int, int]]:
    """Press the clicker's key to the end; yield slide and fragment after each press."""
    while True:
        at = page.evaluate("[Reveal.getIndices().h, Reveal.getIndices().f ?? -1]")
        yield at[0], at[1]
        if page.evaluate("Reveal.isLastSlide() && !Reveal.availableFragments().next"):
            return
        page.keyboard.press("ArrowRight")


@pytest.mark.parametrize(("width", "height"), PROJECTORS)
def test_by_keyboard_every_step_of_the_talk_fits_the_screen(
    build: Path, browser: Browser, address: str, width: int, height: int
) -> None:
    size = {"width": width, "height": height}
    url = f"{address}slides/index.html"
    with visit(browser, url, viewport=size, reduced_motion="reduce") as seen:
        seen.page.wait_for_function("window.Reveal?.isReady()")
        shown = set()
        for slide, fragment in step_through(seen.page):
            shown.add(slide)
            assert seen.page.evaluate(FAULTS) == [], f"slide {slide + 1}, step {fragment + 1}"
        assert shown == set(range(len(slides(soup(build)))))
        assert seen.console == []
        assert {request.split("/")[2] for request in seen.requests} == {address.split("/")[2]}


def test_an_arrow_appears_with_its_message_at_each_press(
    build: Path, browser: Browser, address: str
) -> None:
    with visit(browser, f"{address}slides/index.html#/4", reduced_motion="reduce") as seen:
        seen.page.wait_for_function("window.Reveal?.isReady()")
        figure = seen.page.locator("section.present figure.underhood").last
        arrows = figure.locator("svg [data-message]")
        for n in range(arrows.count()):
            seen.page.keyboard.press("ArrowRight")
            assert figure.locator("svg [data-message].visible").count() == n + 1
            panel = figure.locator(".said:not([hidden])")
            assert panel.get_attribute("data-of") == arrows.nth(n).get_attribute("data-message")


def test_each_slide_has_an_address(browser: Browser, address: str) -> None:
    with visit(browser, f"{address}slides/index.html#/7") as seen:
        seen.page.wait_for_function("window.Reveal?.isReady()")
        assert "five sockets" in str(seen.page.locator("section.present h2").last.text_content())


def test_axe_finds_nothing_on_any_slide(browser: Browser, address: str) -> None:
    if not AXE.exists():
        missing("axe-core is not installed: run make test")
    with visit(browser, f"{address}slides/index.html", reduced_motion="reduce") as seen:
        seen.page.wait_for_function("window.Reveal?.isReady()")
        seen.page.add_script_tag(path=str(AXE))
        for n in range(seen.page.evaluate("Reveal.getTotalSlides()")):
            seen.page.evaluate(f"Reveal.slide({n}, 0, 99)")
            found = seen.page.evaluate(AXE_RUN)["violations"]
            assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found] == [], n + 1


# ---- on paper


@pytest.mark.parametrize(("name", "form"), [("talk", "index"), ("lightning", "lightning")])
def test_the_pdf_has_a_page_for_each_slide_with_text_and_links(
    build: Path, name: str, form: str
) -> None:
    reader = PdfReader(build / f"html/slides/{name}.pdf")
    deck = slides(soup(build, form))
    assert len(reader.pages) == len(deck)
    for page, slide in zip(reader.pages, deck, strict=True):
        heading = slide.find(["h1", "h2"])
        words = re.findall(r"\w+", heading.get_text() if heading else "")
        text = page.extract_text()
        assert all(word in text for word in words), f"{words} not in {text!r}"
    targets = [
        str(note.get_object()["/A"]["/URI"])
        for page in reader.pages
        for note in page.get("/Annots", [])
        if "/URI" in note.get_object().get("/A", {})
    ]
    assert any("jupyter-under-the-hood" in target for target in targets)


def test_the_introduction_comes_from_the_speakers_file(build: Path) -> None:
    speaker = yaml.safe_load((ROOT / "book/slides/speaker.yml").read_text(encoding="utf-8"))
    words = said(slides(soup(build))[1])
    assert all(line in words for line in (speaker["name"], *speaker["about"]))
