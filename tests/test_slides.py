# ruff: noqa: F401, F811  (fixtures of test_site)
"""The talk as its speaker shows it: by keyboard, on three projectors, on paper, live in RISE."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import slides as deck_maker
import yaml
import zxingcpp
from bs4 import BeautifulSoup, Tag
from chapter_execution import Chapter
from checkout import ROOT, missing
from PIL import Image
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
SPEAKER = yaml.safe_load((ROOT / "book/slides/speaker.yml").read_text(encoding="utf-8"))
FAULTS = Path(__file__).with_name("slide_faults.js").read_text(encoding="utf-8")


def soup(build: Path, name: str = "index") -> BeautifulSoup:
    text = (build / f"html/slides/{name}.html").read_text(encoding="utf-8")
    return BeautifulSoup(text, "html.parser")


def slides(deck: BeautifulSoup) -> list[Tag]:
    return deck.select(".slides > section > section")


def minutes(deck: BeautifulSoup) -> float:
    return sum(int(str(slide["data-timing"])) for slide in slides(deck)) / 60


def said(slide: Tag) -> str:
    """Return what a slide shows, without its notes."""
    notes = slide.select_one("aside.notes")
    spoken = set(notes.find_all(string=True)) if notes else set()
    shown = (text for text in slide.find_all(string=True) if text not in spoken)
    return " ".join(text.strip() for text in shown if text.strip())


def test_the_talk_lasts_as_long_as_its_slot(build: Path) -> None:
    deck = soup(build)
    assert 25 <= minutes(deck) <= 30
    assert float(str(deck.select_one(".reveal")["data-minutes"])) == minutes(deck)
    assert minutes(soup(build, "lightning")) == 5


def test_every_slide_has_notes_that_say_when_to_be_done_with_it(build: Path) -> None:
    for name in ("index", "lightning"):
        done = 0
        for slide in slides(soup(build, name)):
            done += int(str(slide["data-timing"]))
            notes = slide.select_one("aside.notes")
            assert notes, said(slide)
            assert len(notes.get_text()) > 40
            assert f"done at {done // 60}:{done % 60:02}" in notes.get_text()


@pytest.mark.parametrize(("form", "slowest"), [("minutes", 100), ("lightning", 70)])
def test_the_notes_can_be_spoken_in_the_minutes_of_their_slide(form: str, slowest: int) -> None:
    talk = Chapter.read(deck_maker.TALK, ROOT / f"{deck_maker.TALK}.md")
    assert talk is not None
    for slide in deck_maker.slides(talk.notebook):
        facts = deck_maker.about(slide)
        speaking = facts.get(form, 0) - (facts.get("pause", 0) if form == "minutes" else 0)
        text = deck_maker.paragraphs(slide)[: None if form == "minutes" else 1]
        if not speaking:
            assert form not in facts or text == []  # the speaker's own words
            continue
        pace = sum(map(deck_maker.words, text)) / speaking
        assert slowest <= pace <= 150, f"{pace:.0f} words a minute: {text[0][:60]}"


def test_a_slide_leads_to_its_chapter_and_the_chapter_back_to_the_slide(build: Path) -> None:
    led = 0
    for number, slide in enumerate(slides(soup(build)), 1):
        for link in slide.select(".chapter a"):
            page = (build / "html/slides" / str(link["href"])).resolve()
            text = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
            title = text.select_one("h1").get_text().replace("’", "'")
            assert title.startswith(link.get_text())
            back = {str(a["href"]).split("slides/")[-1] for a in text.select(".page-foot a[href]")}
            assert page.stem == "index" or f"index.html#/{number - 1}" in back
            led += 1
    assert led > 12


@pytest.mark.parametrize("name", ["index", "lightning"])
def test_every_picture_says_what_it_shows(build: Path, name: str) -> None:
    deck = soup(build, name)
    for image in deck.select(".slides img"):
        assert len(str(image["alt"])) > 10
    for drawing in deck.select(".slides figure svg"):
        assert drawing.find("title").get_text(strip=True)
        assert "Sequence diagram of" in drawing.find("desc").get_text()


def test_the_deck_is_made_of_a_built_book_in_half_a_minute(build: Path, tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, chapter_execution as c, slides as s\n"
        "root, target = map(pathlib.Path, sys.argv[1:])\n"
        "talk = c.Chapter.read(s.TALK, root / f'{s.TALK}.md')\n"
        "results = c.Results(root, root / '_build', root / '_build/.jupyter_cache')\n"
        "s.write(root, target, results.cache.merge_match_into_notebook(talk.notebook)[1])\n"
    )
    command = [sys.executable, "-c", script, str(ROOT), str(tmp_path / "slides")]
    # The processor's time: on a machine that does nothing else, the clock shows no more.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, cwd=ROOT / "book/_ext")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 30
    made = {path.name for path in (tmp_path / "slides").iterdir()}
    assert made == {path.name for path in (build / "html/slides").iterdir()}


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


def test_every_step_of_the_lightning_talk_fits_the_screen(browser: Browser, address: str) -> None:
    with visit(browser, f"{address}slides/lightning.html", reduced_motion="reduce") as seen:
        seen.page.set_viewport_size({"width": 1280, "height": 720})
        seen.page.wait_for_function("window.Reveal?.isReady()")
        for slide, fragment in step_through(seen.page):
            assert seen.page.evaluate(FAULTS) == [], f"slide {slide + 1}, step {fragment + 1}"
        assert seen.console == []


def test_with_the_network_cable_out_the_deck_opens_from_its_files(
    build: Path, browser: Browser
) -> None:
    file = (build / "html/slides/index.html").as_uri()
    with visit(browser, f"{file}#/4", offline=True) as seen:
        seen.page.wait_for_function("window.Reveal?.isReady()")
        seen.page.keyboard.press("ArrowRight")
        assert seen.page.locator("section.present .said:not([hidden])").count() == 1
        assert seen.console == []
        assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("way", ["file", "server"])
def test_the_speakers_window_shows_the_notes_and_a_clock_that_runs(
    build: Path, browser: Browser, address: str, way: str
) -> None:
    file = (build / "html/slides/index.html").as_uri()
    url = f"{address}slides/index.html" if way == "server" else file
    with visit(browser, url) as seen:
        seen.page.wait_for_function("window.Reveal?.isReady()")
        with seen.page.expect_popup() as opened:
            seen.page.keyboard.press("s")
        window = opened.value
        notes = window.locator(".speaker-controls-notes .value")
        notes.get_by_text("done at 0:30").wait_for()
        seconds = window.locator(".speaker-controls-time .timer .seconds-value")
        first = seconds.inner_text()
        window.wait_for_function(
            "first => document.querySelector('.timer .seconds-value').innerText !== first",
            arg=first,
        )
        seen.page.keyboard.press("ArrowRight")
        notes.get_by_text("done at 1:00").wait_for()
        hosts = {url.split("/")[2] for url in seen.requests if not url.startswith("data:")}
        assert hosts <= {"", address.split("/")[2]}
        assert seen.console == []


def test_who_asked_for_less_motion_gets_none_and_focus_can_be_seen(
    browser: Browser, address: str
) -> None:
    url = f"{address}slides/index.html#/4"
    moving = """[...document.querySelectorAll('.reveal, .reveal *')].filter(part => {
        const style = getComputedStyle(part);
        return parseFloat(style.transitionDuration) || parseFloat(style.animationDuration);
    }).map(part => part.className.baseVal ?? part.className)"""
    with visit(browser, url, reduced_motion="reduce") as seen:
        seen.page.wait_for_function("window.Reveal?.isReady()")
        assert seen.page.evaluate("Reveal.getConfig().transition") == "none"
        assert seen.page.evaluate(moving) == []
        seen.page.keyboard.press("Tab")
        style = "(part => [part.href, getComputedStyle(part).outlineWidth])(document.activeElement)"
        href, outline = seen.page.evaluate(style)
        assert href.endswith("/keystroke.html")
        assert float(outline.removesuffix("px")) >= 3


def test_a_phone_in_the_room_reads_the_code_on_the_last_slide(
    browser: Browser, address: str
) -> None:
    with visit(browser, f"{address}slides/index.html", reduced_motion="reduce") as seen:
        seen.page.wait_for_function("window.Reveal?.isReady()")
        seen.page.evaluate("Reveal.slide(Reveal.getTotalSlides() - 1)")
        photo = Image.open(io.BytesIO(seen.page.screenshot()))
    assert [code.text for code in zxingcpp.read_barcodes(photo)] == [SPEAKER["course"]]


def test_on_a_phone_the_slides_stand_one_below_the_other_in_their_layout(
    build: Path, browser: Browser, address: str
) -> None:
    phone = {"width": 390, "height": 844}
    with visit(browser, f"{address}slides/index.html", viewport=phone) as seen:
        seen.page.wait_for_function("window.Reveal?.isReady() && Reveal.isScrollView()")
        stacked = seen.page.locator(".scroll-page-content > section[data-layout]")
        edges = stacked.evaluate_all("all => all.map(slide => getComputedStyle(slide).paddingLeft)")
        assert edges == ["64px"] * len(slides(soup(build)))


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
    assert len(targets) > len(deck) / 3
    assert [target for target in targets if not target.startswith(SPEAKER["course"])] == []
    root = reader.trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"] is not False
    assert "/StructTreeRoot" in root


@pytest.mark.parametrize("name", ["index", "lightning"])
def test_on_paper_a_slide_has_the_layout_that_it_has_on_the_screen(
    browser: Browser, address: str, name: str
) -> None:
    layout = """part => {
        const style = getComputedStyle(part), large = part.querySelector('h1, h2, .address');
        return [style.padding, style.borderLeft, getComputedStyle(large).fontSize];
    }"""
    looks = []
    for mode in ("", "?print-pdf"):
        with visit(browser, f"{address}slides/{name}.html{mode}", reduced_motion="reduce") as seen:
            seen.page.wait_for_function("window.Reveal?.isReady()")
            if mode:
                seen.page.wait_for_selector(".pdf-page")
            found = seen.page.locator(":is(section, .pdf-page) > section[data-layout]").all()
            looks.append([part.evaluate(layout) for part in found])
            if mode:
                assert [fault for part in found for fault in part.evaluate(FAULTS)] == []
    assert looks[0] == looks[1]


def test_the_introduction_comes_from_the_speakers_file(build: Path) -> None:
    words = said(slides(soup(build))[1])
    assert all(line in words for line in (SPEAKER["name"], *SPEAKER["about"]))


# ---- live


@contextmanager
def lab(folder: Path, home: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run JupyterLab with RISE on a folder; give its address, with its token, and its process."""
    private = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    token = secrets.token_hex(8)
    log = (home / "log").open("wb")
    server = psutil.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
         "--port=0", f"--ServerApp.root_dir={folder}"],
        env={**os.environ, **private, "HOME": str(home), "JUPYTER_TOKEN": token},
        stdout=log, stderr=log,
    )  # fmt: skip
    place = home / f"RUNTIME/jpserver-{server.pid}.json"
    try:
        while not place.exists():
            assert server.poll() is None, (home / "log").read_text()
            time.sleep(0.1)
        time.sleep(0.1)  # the file may not be complete yet
        yield f"{json.loads(place.read_text())['url']}rise/talk.ipynb?token={token}", server
    finally:
        for process in [*server.children(recursive=True), server] if server.is_running() else []:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        server.wait()


def test_in_rise_a_cell_runs_on_stage_and_what_was_recorded_outlives_kernel_and_server(
    build: Path, browser: Browser, tmp_path: Path
) -> None:
    home, folder = tmp_path / "home", tmp_path / "talk"
    home.mkdir()
    folder.mkdir()
    for name in ("talk.ipynb", "talk.css"):
        (folder / name).write_bytes((build / "html/slides" / name).read_bytes())
    with lab(folder, home) as (url, server):
        context = browser.new_context(viewport={"width": 1280, "height": 720})
        page = context.new_page()
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url)
        page.wait_for_selector(".jp-NotebookPanel.reveal.ready", timeout=90_000)
        assert page.locator(".slides section section").count() == len(slides(soup(build)))

        here = page.locator("section.present > section.present")
        for slide in slides(soup(build))[:9]:
            words = slide.find(["h1", "h2"]).get_text()
            here.get_by_text(words, exact=True).first.wait_for()
            if slide.find("figure"):
                assert here.locator("img").evaluate("image => image.naturalWidth") > 100
            page.keyboard.press("Space")
        while not here.get_by_role("heading", name="Change one number").is_visible():
            page.keyboard.press("Space")
        given = here.locator(".jp-CodeCell .jp-OutputArea-output")
        recorded = here.locator(".jp-MarkdownCell").filter(has_text="Recorded when")
        assert given.inner_text().strip() == "'54'"
        assert "'54'" in recorded.inner_text()

        # The room calls out "eight".
        code = here.locator(".jp-CodeCell .cm-content")
        text = code.inner_text()
        code.click()
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.insert_text(text.replace('"9"', '"8"'))
        page.keyboard.press("Shift+Enter")
        here.locator(".jp-CodeCell .jp-OutputArea-output").get_by_text("'48'").wait_for(
            timeout=90_000
        )

        # The kernel dies, and then the network is gone.
        kernels = [p for p in server.children(recursive=True) if "ipykernel" in str(p.cmdline())]
        for process in (*kernels, server):
            process.kill()
        code.click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(1000)
        assert recorded.is_visible()
        assert "'54'" in recorded.inner_text()
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        page.keyboard.press("Space")
        here.get_by_role("heading", name="What nbclient said").wait_for()
        assert here.locator("img").evaluate("image => image.naturalWidth") > 100
        origin = url.split("/rise")[0]
        assert [u for u in requests if not u.startswith((origin, "data:", "blob:"))] == []
        context.close()


# ---- in a room


def test_the_hours_of_the_workshop_add_up_and_are_those_of_the_cards(build: Path) -> None:
    html = (build / "html/book/appendix/speakers.html").read_text(encoding="utf-8")
    page = BeautifulSoup(html, "html.parser")
    table = next(t for t in page.select("table") if "Exercises for the room" in t.get_text())
    rows = [
        [cell.get_text(" ", strip=True) for cell in tr.select("td")] for tr in table.select("tr")
    ]
    rows = [row for row in rows if row]
    begins = [60 * int(row[0][:2]) + int(row[0][3:]) for row in rows]
    minutes = [int(row[3]) for row in rows]
    assert [b - a for a, b in pairwise(begins)] == minutes[:-1]
    assert 180 <= sum(minutes) <= 240
    for row, minute in zip(table.select("tr")[1:], minutes, strict=True):
        chapter = row.select_one("td:nth-child(2) a[href$='.html']")
        if chapter and "slides" not in str(chapter["href"]):
            other = (build / "html/book/appendix" / str(chapter["href"])).resolve()
            card = BeautifulSoup(other.read_text(encoding="utf-8"), "html.parser")
            assert int(card.select(".chapter-card tr")[-1].select("td")[-1].get_text()) == minute
            assert row.select("td:nth-child(3) a")
