"""The pages after they were made light: as little to load as promised, and nothing lost by it.

What is lost is looked for by comparison: the same page as the theme made it, in the same state,
must look the same, pixel by pixel.
"""

from __future__ import annotations

import gzip
import io
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import light_pages
import pytest
from bs4 import BeautifulSoup
from checkout import ROOT, missing, served
from fontTools.ttLib import TTFont
from PIL import Image, ImageChops
from playwright.sync_api import Browser, Page
from sphinx_external_toc.parsing import parse_toc_yaml

#: What only the light site has: the book as files, offered when they have been made.
OFFER = ".whole-book"
PAGES = list(parse_toc_yaml(ROOT / "_toc.yml"))
CHAPTER = next(name for name in PAGES if name != "book/index")
PALM, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def site(build: Path) -> Path:
    if not (build / "html" / light_pages.SHARED / "site.css").exists():
        missing("the pages were not made light: Node.js or its packages are missing")
    return build / "html"


@pytest.fixture(scope="module")
def untreated(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same site as the theme made it."""
    target = tmp_path_factory.mktemp("untreated") / "html"
    light_pages.copy_untreated(site, target)
    return target


def packed(path: Path) -> int:
    """Return how many bytes of a file travel where the server compresses what is text."""
    data = path.read_bytes()
    return len(data if path.suffix.startswith(".woff") else gzip.compress(data, 6))


# ---- what is loaded


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with served(site) as url:
        yield url


@pytest.fixture(scope="module")
def untreated_address(untreated: Path) -> Iterator[str]:
    with served(untreated) as url:
        yield url


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    context = browser.new_context(**options)
    page = context.new_page()
    # It draws the icons of the untreated page a second time, a little otherwise than the font does.
    page.route("**/fontawesome.js*", lambda route: route.abort())
    page.goto(url, wait_until="networkidle")
    page.evaluate("document.fonts.ready")
    yield page
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_in_eight_requests_and_100_kb_beside_its_diagrams(
    browser, site, address, name
):
    context = browser.new_context(viewport=DESK)
    page = context.new_page()
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.goto(f"{address}{name}.html", wait_until="networkidle")
    context.close()
    urls = [url for url in urls if not url.startswith("data:")]
    files = {site / url.removeprefix(address).partition("?")[0] for url in urls}
    assert len(urls) <= 8, urls
    html = site / f"{name}.html"
    page_without = BeautifulSoup(html.read_text(encoding="utf-8"), "html.parser")
    for picture in page_without.select("figure.underhood, img[src^='data:']"):
        picture.decompose()
    size = len(gzip.compress(str(page_without).encode(), 6))
    size += sum(packed(file) for file in files - {html})
    assert size <= 100_000, f"{size:,} bytes: {sorted((packed(f), f.name) for f in files)}"


def test_pictures_share_one_style_sheet_and_one_script(site, untreated):
    for name in PAGES:
        page = (site / f"{name}.html").read_text(encoding="utf-8")
        assert "uh-asset" not in page
        if "uh-asset" in (untreated / f"{name}.html").read_text(encoding="utf-8"):
            assert "data-underhood=" in page
    shared = site / light_pages.SHARED
    assert ".uh-stage" in (shared / "site.css").read_text(encoding="utf-8")
    assert "figure.underhood" in (shared / "site.js").read_text(encoding="utf-8")


def test_a_notebook_to_download_still_brings_all_that_its_pictures_need(site):
    notebooks = [p for p in (site / "_sources").rglob("*.ipynb") if "uh-title" in p.read_text()]
    assert all("uh-asset" in path.read_text(encoding="utf-8") for path in notebooks)


@pytest.mark.parametrize("name", PAGES)
def test_a_light_page_says_what_the_heavy_page_said(site, untreated, name):
    def said(folder: Path) -> tuple[str, list[str], list[str]]:
        page = BeautifulSoup((folder / f"{name}.html").read_text("utf-8"), "html.parser")
        for tag in page.select(f"script:not([type='application/json']), style, {OFFER}"):
            tag.decompose()
        body = page.body
        return (
            " ".join(body.get_text(" ").split()),
            [str(tag["href"]) for tag in body.select("[href]")],
            [str(tag["id"]) for tag in body.select("[id]")],
        )

    assert said(site) == said(untreated)


# ---- nothing is lost: pixel by pixel

# A font with fewer characters is fitted to the pixels a little otherwise. Another test sees to it
# that each icon is there.
NO_ICONS = (
    "[class*='fa-']::before { visibility: hidden !important }"
    # Where the first dot of a line stands is decided by fractions of a pixel.
    " .uh-address { text-decoration-style: solid !important }"
    f" {OFFER} {{ display: none }}"
)


def plain(page: Page) -> None:
    pass


def menu(page: Page) -> None:
    page.locator(".dropdown-download-buttons > button:visible").first.click()
    page.locator(".dropdown-menu.show").wait_for()


def tooltip(page: Page) -> None:
    page.locator(".theme-switch-button:visible").first.hover()
    page.locator(".tooltip.show").wait_for()


def contents(page: Page) -> None:
    page.locator("button.primary-toggle:visible").first.click()
    page.wait_for_timeout(600)


def hidden_cell(page: Page) -> None:
    box = page.locator("details.hide > summary, details.solution > summary").first
    box.click()
    box.scroll_into_view_if_needed()


def message(page: Page) -> None:
    page.locator("[data-message]").first.click()
    page.locator(".uh-panel").first.wait_for()


def search_dialog(page: Page) -> None:
    page.keyboard.press("Control+k")
    page.locator("#pst-search-dialog input").wait_for()
    page.keyboard.type("heart")


def copying(page: Page) -> None:
    page.locator("div.highlight").first.hover()
    page.wait_for_timeout(500)


def printed(page: Page) -> None:
    page.emulate_media(media="print")


STATES: list[tuple[Callable[[Page], None], str, dict[str, int], str]] = [
    (state, theme, size, page)
    for state in (plain, message)
    for theme in ("light", "dark")
    for size in (DESK, PALM)
    for page in (CHAPTER,)
] + [
    (plain, "light", DESK, "book/index"),
    (plain, "dark", PALM, "book/index"),
    (plain, "light", DESK, "search"),
    (menu, "light", DESK, CHAPTER),
    (menu, "dark", PALM, CHAPTER),
    (tooltip, "light", DESK, CHAPTER),
    (contents, "light", PALM, CHAPTER),
    (contents, "dark", DESK, CHAPTER),
    (hidden_cell, "light", DESK, CHAPTER),
    (search_dialog, "light", DESK, CHAPTER),
    (copying, "dark", DESK, CHAPTER),
    (printed, "light", DESK, CHAPTER),
    (printed, "dark", DESK, "book/index"),
]


# Pictures are laid out, and come to life, when they are near; how high one is, is known only then.
EVERY_PICTURE_SEEN = """async () => {
    const seen = figure => figure.dataset.live || !figure.checkVisibility();
    for (const figure of document.querySelectorAll('figure.underhood')) {
        figure.scrollIntoView();
        while (!seen(figure)) await new Promise(requestAnimationFrame);
    }
    document.head.append(Object.assign(document.createElement('style'),
        {textContent: '.underhood .uh-stage { content-visibility: visible !important }'}));
    scrollTo(0, 0);
}"""


@pytest.mark.parametrize(
    ("state", "theme", "size", "name"),
    STATES,
    ids=lambda value: (
        value.__name__
        if callable(value)
        else str(value["width"])
        if isinstance(value, dict)
        else value
    ),
)
def test_a_light_page_looks_as_the_heavy_page_did(
    browser, address, untreated_address, state, theme, size, name
):
    def picture(host: str) -> Image.Image:
        options = {"viewport": size, "color_scheme": theme, "reduced_motion": "reduce"}
        with opened(browser, f"{host}{name}.html", **options) as page:
            page.add_style_tag(content=NO_ICONS)
            page.evaluate(EVERY_PICTURE_SEEN)
            state(page)
            page.wait_for_timeout(300)
            shot = page.screenshot(full_page=state in (plain, printed), caret="hide")
            return Image.open(io.BytesIO(shot)).convert("RGB")

    # On a busy machine, a page may not have settled when its picture is taken: then once more.
    for _ in range(3):
        light, heavy = picture(address), picture(untreated_address)
        same_size = light.size == heavy.size
        difference = ImageChops.difference(light, heavy).getbbox() if same_size else "their size"
        if difference is None:
            break
    assert difference is None, f"they differ within {difference}"


# ---- it behaves as before


def test_the_page_does_not_move_while_it_loads(browser, address):
    for size in (DESK, PALM):
        for name in ("book/index", CHAPTER):
            context = browser.new_context(viewport=size)
            page = context.new_page()
            page.add_init_script(
                "window.moved = 0; new PerformanceObserver(list => { for (const entry of "
                "list.getEntries()) window.moved += entry.value; })"
                ".observe({type: 'layout-shift', buffered: true});"
            )
            page.goto(f"{address}{name}.html", wait_until="networkidle")
            page.wait_for_timeout(300)
            moved = page.evaluate("window.moved")
            context.close()
            assert moved <= 0.02, f"{name} at {size['width']}: {moved}"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_theme_is_chosen_before_anything_is_painted(browser, address, theme):
    context = browser.new_context(color_scheme=theme)
    page = context.new_page()
    # What the page would be painted with, if it came to it, as soon as there is a body.
    page.add_init_script(
        "new MutationObserver((_, watch) => { if (document.body) { watch.disconnect(); "
        "window.first = document.documentElement.dataset.theme; } })"
        ".observe(document, {childList: true, subtree: true});"
    )
    page.goto(f"{address}{CHAPTER}.html")
    assert page.evaluate("window.first") == theme
    context.close()


def test_the_copy_button_copies_what_the_cell_says(browser, address):
    with opened(browser, f"{address}{CHAPTER}.html", viewport=DESK) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        cell = page.locator("div.highlight:visible").first
        cell.hover()
        cell.locator("button.copybtn").click()
        page.wait_for_function("() => navigator.clipboard.readText()")
        copied = page.evaluate("navigator.clipboard.readText()").replace("\r", "").strip()
        assert copied == cell.locator("pre").inner_text().strip()


def test_who_copies_by_the_keyboard_reads_on_from_there(browser, address):
    with opened(browser, f"{address}{CHAPTER}.html", viewport=DESK) as page:
        button = page.locator("div.highlight:visible button.copybtn").first
        button.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("button.copybtn.success")
        assert button.evaluate("button => button === document.activeElement")


def test_on_a_phone_the_keyboard_goes_on_from_the_heading_that_was_chosen(browser, address):
    with opened(browser, f"{address}{CHAPTER}.html", viewport=PALM) as page:
        page.locator(".bd-header-article .secondary-toggle").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open]")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.activeElement.matches(':target > h2')")


def test_escape_closes_a_menu_and_gives_the_focus_back(browser, address):
    with opened(browser, f"{address}{CHAPTER}.html", viewport=DESK) as page:
        menu(page)
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.matches('.dropdown-menu.show a')")
        page.keyboard.press("Escape")
        assert page.locator(".dropdown-menu.show").count() == 0
        assert page.evaluate("document.activeElement.matches('[data-bs-toggle=dropdown]')")


def test_the_search_dialog_leads_to_results(browser, address):
    with opened(browser, f"{address}{CHAPTER}.html", viewport=DESK) as page:
        search_dialog(page)
        page.keyboard.press("Enter")
        page.wait_for_selector("#search-results li a", timeout=10_000)


def test_from_a_usb_stick_everything_works_and_nothing_is_missing(browser, site):
    context = browser.new_context(viewport=DESK)
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.goto((site / f"{CHAPTER}.html").as_uri(), wait_until="networkidle")
    message(page)
    page.goto((site / "search.html").as_uri() + "?q=heartbeat", wait_until="networkidle")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    context.close()
    assert faults == []


def test_every_icon_of_a_page_is_in_the_smaller_fonts(browser, site, address):
    drawn = """() => [...document.querySelectorAll('[class*="fa-"]')].map(element => {
        const style = getComputedStyle(element, '::before');
        return [style.content.replaceAll('"', ''), style.fontFamily, style.fontWeight];
    })"""
    fonts: dict[str, set[int]] = {}
    with opened(browser, f"{address}{CHAPTER}.html", viewport=DESK) as page:
        found = {tuple(icon) for icon in page.evaluate(drawn) if icon[0] not in ("none", "")}
    assert found
    for content, family, weight in found:
        kind = "brands" if "Brands" in family else {"900": "solid", "400": "regular"}[weight]
        stem = f"fa-{kind}-{weight}"
        if stem not in fonts:
            fonts[stem] = set(TTFont(site / light_pages.SHARED / f"{stem}.woff").getBestCmap())
        assert ord(content) in fonts[stem], f"{content!r} is not in {stem}"


# What scrolls, of all that is seen, and whether the Tab key is told to stop there.
SCROLLERS = """() => [...document.querySelectorAll('article :is(pre, .cell_output > .output)')]
    .filter(box => box.checkVisibility() && !box.closest('.underhood'))
    .map(box => [box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight,
                 box.getAttribute('tabindex') === '0'])"""


def test_the_tab_key_stops_at_what_scrolls_and_at_nothing_that_does_not(browser, address):
    with opened(browser, f"{address}{CHAPTER}.html", viewport=PALM) as page:
        settled = f"() => ({SCROLLERS})().every(([scrolls, stops]) => scrolls === stops)"
        page.wait_for_function(settled)
        before = page.evaluate(SCROLLERS)
        assert 0 < sum(scrolls for scrolls, _ in before) < len(before)
        for line in page.locator("details.solution > summary").all():
            line.click()
        page.wait_for_function(settled)
        assert len(page.evaluate(SCROLLERS)) > len(before)
        page.set_viewport_size(DESK)
        page.wait_for_function(settled)


def test_no_script_measures_one_box_after_another(site):
    script = (site / light_pages.SHARED / "site.js").read_text("utf-8")
    assert light_pages._ONE_BY_ONE.search(script) is None
    assert light_pages._AT_ONCE.search(script) is None


def test_a_theme_whose_scripts_have_changed_is_noticed():
    with pytest.raises(RuntimeError, match="does not recognise"):
        light_pages.in_turns("somethingElse()")


# ---- building again


@pytest.fixture
def copy(site: Path, tmp_path: Path) -> Path:
    """A copy of the site that a test may change, and of what is beside it."""
    build = site.parent
    shutil.copytree(site, tmp_path / "html", ignore=shutil.ignore_patterns("*.map"))
    shutil.copytree(build / light_pages.UNTREATED, tmp_path / light_pages.UNTREATED)
    light_pages.lighten(tmp_path / "html")
    return tmp_path / "html"


def times(site: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in site.rglob("*") if path.is_file()}


def test_nothing_is_written_when_nothing_has_changed(copy):
    before = times(copy)
    assert light_pages.lighten(copy) == 0
    assert times(copy) == before


def test_a_page_that_sphinx_wrote_again_is_made_light_and_the_others_are_left(copy):
    before = times(copy)
    page = copy / f"{CHAPTER}.html"
    heavy = (copy.parent / light_pages.UNTREATED / f"{CHAPTER}.html").read_text("utf-8")
    page.write_text(heavy.replace("</h1>", " (second edition)</h1>", 1), encoding="utf-8")

    assert light_pages.lighten(copy) == 1

    assert light_pages.marker() in page.read_text("utf-8")
    assert "(second edition)" in page.read_text("utf-8")
    assert {path for path, at in times(copy).items() if before.get(path) != at} == {page}


def test_a_style_that_a_page_is_the_first_to_use_reaches_the_shared_sheet(copy):
    sheet = copy / light_pages.SHARED / "site.css"
    assert ".sd-text-danger" not in sheet.read_text("utf-8")
    page = copy / f"{CHAPTER}.html"
    heavy = (copy.parent / light_pages.UNTREATED / f"{CHAPTER}.html").read_text("utf-8")
    page.write_text(heavy.replace("<h1>", '<h1 class="sd-text-danger">', 1), encoding="utf-8")

    light_pages.lighten(copy)

    assert ".sd-text-danger" in sheet.read_text("utf-8")
    asked = [
        re.findall(r"site\.css\?v=(\w+)", p.read_text("utf-8")) for p in light_pages.pages_in(copy)
    ]
    assert {tuple(versions) for versions in asked} == {
        (light_pages.digest(sheet.read_text("utf-8")),)
    }


def test_pages_whose_originals_are_lost_stay_as_they_are(copy):
    before = (copy / f"{CHAPTER}.html").read_text("utf-8")
    shutil.rmtree(copy.parent / light_pages.UNTREATED)
    light_pages.lighten(copy)
    assert (copy / f"{CHAPTER}.html").read_text("utf-8") == before


def test_without_node_the_pages_are_left_as_they_were_and_the_build_says_so(
    copy, untreated, monkeypatch
):
    shutil.rmtree(copy)
    shutil.copytree(untreated, copy)
    monkeypatch.setattr(light_pages.shutil, "which", lambda *_, **__: None)
    with pytest.raises(light_pages.ToolsMissingError, match=r"Node\.js is missing"):
        light_pages.lighten(copy)
    for name in PAGES:
        assert (copy / f"{name}.html").read_bytes() == (untreated / f"{name}.html").read_bytes()


def test_without_the_packages_of_the_lock_file_the_step_says_which_are_missing(tmp_path):
    if shutil.which("node") is None:
        missing("there is no node")
    tools = tmp_path / "light_pages.mjs"  # from here, no node_modules can be seen
    shutil.copy(light_pages.TOOLS, tools)
    done = subprocess.run(["node", tools], input=b"{}", capture_output=True, check=False)
    assert b"Cannot find package" in done.stderr


def test_the_page_for_addresses_that_lead_nowhere_is_light_too(site):
    page = (site / "404.html").read_text("utf-8")
    sheets = re.findall(r'<link rel="stylesheet"[^>]* href="([^"]+)"', page)
    # It may be shown at any depth, so it names the site's place in full.
    assert len(sheets) == 1
    assert re.match(r"/[\w-]+/_static/light/site\.css", sheets[0])
    assert len(re.findall(r"<script[^>]* src=", page)) == 1
