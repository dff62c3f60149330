"""The whole book as PDF and EPUB: complete, linked, bookmarked, as the standards want it.

And each chapter as a notebook, as it is read where nobody knows MyST.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
import whole_book
from bs4 import BeautifulSoup
from checkout import ROOT, missing
from markdown_it import MarkdownIt
from pypdf import PdfReader
from pypdf.generic import Destination

XHTML = "{http://www.w3.org/1999/xhtml}"
SVG = "{http://www.w3.org/2000/svg}"
JAR = Path("/usr/share/java/epubcheck.jar")


@pytest.fixture(scope="module")
def site(build: Path) -> Path:
    done = subprocess.run(
        [sys.executable, whole_book.__file__], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "is not offered" in done.stdout:
        missing(done.stdout.strip())
    return build / "html"


@pytest.fixture(scope="module")
def pdf(site: Path) -> PdfReader:
    return PdfReader(site / f"{whole_book.STEM}.pdf")


@pytest.fixture(scope="module")
def sheets(pdf: PdfReader) -> list[str]:
    """The text of each page of the PDF."""
    return [page.extract_text() for page in pdf.pages]


@pytest.fixture(scope="module")
def epub(site: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(site / f"{whole_book.STEM}.epub")


@pytest.fixture(scope="module")
def titles(site: Path) -> list[str]:
    """The titles of all pages, in the book's order."""
    found = []
    for _, name in whole_book.contents(site):
        page = BeautifulSoup((site / f"{name}.html").read_text("utf-8"), "html.parser")
        heading = page.select_one("article h1")
        for link in heading.select(".headerlink"):
            link.decompose()
        found.append(" ".join(heading.get_text().split()))
    return found


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


# ---- PDF


def bookmarks(
    entries: list[Destination | list[Destination]], depth: int = 0
) -> list[tuple[int, Destination]]:
    found = []
    for entry in entries:
        if isinstance(entry, list):
            found += bookmarks(entry, depth + 1)
        else:
            found.append((depth, entry))
    return found


def test_every_chapter_has_a_bookmark_that_leads_to_its_first_page(pdf, titles):
    marks = {squeezed(mark.title): mark for _, mark in bookmarks(pdf.outline)}
    for title in titles:
        mark = marks[squeezed(title)]
        page = pdf.pages[pdf.get_destination_page_number(mark)]
        assert squeezed(title) in squeezed(page.extract_text()), title


def test_sections_are_bookmarks_below_their_chapter(pdf, titles):
    marks = bookmarks(pdf.outline)
    depths = {squeezed(mark.title): depth for depth, mark in marks}
    chapter = max(depths[squeezed(title)] for title in titles)
    assert sum(depth > chapter for depth, _ in marks) > len(titles)


def test_the_contents_say_the_page_on_which_each_chapter_begins(pdf, titles):
    goals = {squeezed(mark.title): mark for _, mark in bookmarks(pdf.outline)}
    first = pdf.get_destination_page_number(goals[squeezed(titles[0])])
    listing = [line for page in pdf.pages[1:first] for line in page.extract_text().splitlines()]
    numbers = {int(line) for line in listing if line.strip().isdigit()}
    for title in titles:
        assert pdf.get_destination_page_number(goals[squeezed(title)]) + 1 in numbers, title


def test_links_inside_the_pdf_lead_somewhere_and_others_to_the_web(pdf):
    goals = pdf.named_destinations
    inside = outside = 0
    for page in pdf.pages:
        for note in page.get("/Annots") or []:
            link = note.get_object()
            if "/Dest" in link:
                inside += 1
                assert str(link["/Dest"]) in goals, link["/Dest"]
            elif "/A" in link and "/URI" in link["/A"]:
                outside += 1
                assert re.match(r"https?://|mailto:", str(link["/A"]["/URI"])), link["/A"]["/URI"]
    assert inside > 10
    assert outside > 10


def test_the_pdf_is_tagged_for_screen_readers_and_says_what_it_is(pdf):
    assert pdf.trailer["/Root"]["/MarkInfo"]["/Marked"]
    assert pdf.trailer["/Root"]["/Lang"] == "en"
    assert pdf.metadata.title == whole_book.Imprint.read().title


def test_every_piece_of_the_pdf_that_is_tagged_belongs_to_one_element_of_its_page(pdf):
    marked = []  # the page and the number of each piece, as the tree of tags tells them
    waiting = [(pdf.trailer["/Root"]["/StructTreeRoot"], None)]
    while waiting:
        element, page = waiting.pop()
        page = element.raw_get("/Pg").idnum if "/Pg" in element else page
        inside = element.get("/K", [])
        for kid in inside if isinstance(inside, list) else [inside]:
            child = kid.get_object()
            if isinstance(child, int):
                marked.append((page, child))
            elif child.get("/Type") == "/MCR":
                place = child.raw_get("/Stm" if "/Stm" in child else "/Pg")
                marked.append((place.idnum, child["/MCID"]))
            elif "/S" in child:
                waiting.append((child, page))
    assert len(marked) == len(set(marked))
    shown = [
        (page.indirect_reference.idnum, int(number))
        for page in pdf.pages
        for number in re.findall(rb"/MCID (\d+)", page.get_contents().get_data())
    ]
    assert set(shown) - set(marked) == set()


def test_the_running_head_names_the_chapter_and_no_part_says_its_messages_twice(sheets, titles):
    words = [squeezed(text) for text in sheets]
    for title in titles:
        assert sum(squeezed(title) in text for text in words) >= 2, title
    assert not any(squeezed("The messages of the pictures") in text for text in words)


def test_no_page_of_the_pdf_is_empty_and_drawings_have_text_that_can_be_searched(sheets):
    assert [n for n, text in enumerate(sheets, 1) if len(text.split()) < 2] == []
    text = squeezed("".join(sheets))
    assert "execute_request" in text
    assert "Thedrawingisnotshown" not in text


def test_neither_book_has_the_meanings_of_terms_in_the_middle_of_sentences(site, sheets, epub):
    page = BeautifulSoup((site / "book/meet/keystroke.html").read_text("utf-8"), "html.parser")
    meaning = squeezed(page.select_one("article .term-tip").get_text())
    written = squeezed("".join(sheets))
    assert written.count(meaning) == 1, "it stands in the glossary, and nowhere else"
    assert not any(b"term-tip" in epub.read(name) for name in epub.namelist())


def test_a_field_of_bytes_that_is_closed_on_the_page_is_one_line_in_a_book(site, epub):
    page = BeautifulSoup((site / "book/meet/keystroke.html").read_text("utf-8"), "html.parser")
    fields = page.select("article details.uh-f")
    seen = [f for f in fields if not f.find_parent("details", class_="uh-f", open=False)]
    assert 0 < len(seen) < len(fields)
    book = BeautifulSoup(epub.read("book/meet-keystroke.xhtml"), "html.parser")
    assert len(book.select(".uh-f")) == len(seen)


# ---- EPUB


def documents(epub: zipfile.ZipFile) -> dict[str, ElementTree.Element]:
    return {
        name: ElementTree.fromstring(epub.read(name))
        for name in epub.namelist()
        if name.endswith(".xhtml")
    }


def test_epubcheck_has_no_complaint(site, epub):
    if JAR.exists() and shutil.which("java"):
        command = ["java", "-jar", str(JAR)]  # Debian's command needs a kernel that knows of jars
    elif own := shutil.which("epubcheck"):
        command = [own]
    else:
        missing("there is no epubcheck: apt-get install epubcheck")
    done = subprocess.run(
        [*command, "--failonwarnings", site / f"{whole_book.STEM}.epub"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_chapter_is_in_the_epub_and_in_its_contents(epub, titles):
    listing = documents(epub)["book/nav.xhtml"]
    contents = next(listing.iter(f"{XHTML}nav"))
    links = [("".join(link.itertext()), link.get("href")) for link in contents.iter(f"{XHTML}a")]
    chapters = [squeezed(words) for words, address in links if "#" not in address]
    assert chapters == [squeezed(title) for title in titles]
    assert len(links) > 2 * len(titles), "sections are listed, too"


def test_every_link_inside_the_epub_leads_to_something_that_is_there(epub):
    pages = documents(epub)
    ids = {name: {e.get("id") for e in page.iter()} for name, page in pages.items()}
    broken = []
    for name, page in pages.items():
        for link in page.iter(f"{XHTML}a"):
            address = link.get("href", "")
            if re.match(r"[a-z]+:", address):
                continue
            file, _, goal = address.partition("#")
            target = f"book/{file}" if file else name
            if target not in ids or (goal and goal not in ids[target]):
                broken.append(f"{name}: {address}")
    assert broken == []


def test_every_drawing_of_the_site_is_in_the_epub_and_carries_its_own_colours(site, epub):
    on_site = sum(
        len(
            BeautifulSoup((site / f"{name}.html").read_text("utf-8"), "html.parser").select(
                ".uh-stage > svg"
            )
        )
        for _, name in whole_book.contents(site)
    )
    drawings = [
        svg
        for page in documents(epub).values()
        for svg in page.iter(f"{SVG}svg")
        if svg.get("role") == "img" and svg.get("aria-label")
    ]
    assert len(drawings) >= on_site > 0
    for svg in drawings:
        assert "var(" not in ElementTree.tostring(svg, encoding="unicode")
        strokes = {line.get("stroke") for line in svg.iter() if line.get("stroke")}
        assert strokes - {"none"}, svg.get("aria-label")


def test_a_tall_drawing_comes_in_bands_that_show_all_of_it_and_end_between_messages(site, epub):
    tall = 0
    for name, page in documents(epub).items():
        for box in page.iter(f"{XHTML}div"):
            if box.get("class") != "uh-bands":
                continue
            tall += 1
            places = [tuple(map(float, s.get("viewBox").split())) for s in box.iter(f"{SVG}svg")]
            for above, below in pairwise(places):
                assert below[1] == above[1] + above[3], f"{name}: a band is missing"
            edges = [top for _, top, _, _ in places[1:]]
            for text in box.iter(f"{SVG}text"):
                baseline = float(text.get("y"))
                torn = [edge for edge in edges if edge - 2 < baseline < edge + 6]
                assert not torn, (name, "".join(text.itertext()), torn)
    assert tall > 0


def test_the_messages_of_a_drawing_are_a_table_at_the_end_of_the_chapter(epub):
    page = BeautifulSoup(epub.read("book/meet-keystroke.xhtml"), "html.parser")
    ways = page.select("figure.underhood .uh-way a")
    assert ways
    for way in ways:
        heading = page.find(id=str(way["href"]).removeprefix("#"))
        assert heading.find_next("table").select("tr")
        assert page.find(id=str(heading.a["href"]).removeprefix("#")).name == "figure"
    assert not page.select("figure.underhood:has(svg) table")


def test_every_picture_of_the_epub_has_words_that_stand_for_it(epub):
    for name in epub.namelist():
        if not name.endswith(".xhtml"):
            continue
        page = BeautifulSoup(epub.read(name), "html.parser")
        for image in page.select("img"):
            assert image.get("alt"), (name, image)
        for svg in page.select("svg"):
            assert svg.get("aria-label") or svg.get("aria-hidden") == "true", name


# ---- notebooks


def test_a_notebook_shows_no_markup_where_only_markdown_is_known(build):
    """VS Code renders Markdown with markdown-it, of which this is the port; Colab with the like."""
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    places = sorted((build / "html/_sources").rglob("*.ipynb"))
    assert places
    for place in places:
        notebook = nbformat.read(place, as_version=4)
        nbformat.validate(notebook)
        for cell in notebook.cells:
            if cell.cell_type != "markdown":
                continue
            shown = BeautifulSoup(markdown.render(cell.source), "html.parser")
            for link in shown.select("a[href]"):
                assert re.match(r"https?://", link["href"]), (place.name, link)
            for box in shown.select("div, p, span, blockquote"):
                assert box.get_text(strip=True), (place.name, box)
            for code in shown.select("pre, code"):
                code.extract()
            raw = re.search(r"\*\*|\{[\w:-]+\}|:::|\]\(|`|^\(.*\)=", shown.get_text(), re.MULTILINE)
            assert raw is None, (place.name, cell.source)


# ---- offered, and made only when needed


def test_the_landing_page_offers_both_files_with_their_sizes(site):
    name = whole_book.contents(site)[0][1]
    page = BeautifulSoup((site / f"{name}.html").read_text("utf-8"), "html.parser")
    box = page.select_one(".whole-book")
    links = {link.get_text(): link["href"] for link in box.select("a")}
    assert set(links) == {"PDF", "EPUB"}
    for address in links.values():
        assert (site / name).parent.joinpath(address).resolve().is_file()
    assert re.search(r"\d MB", box.get_text())


def test_nothing_is_made_again_while_the_pages_stay_the_same(site):
    paths = [site / f"{whole_book.STEM}.{form}" for form in ("pdf", "epub")]
    before = [path.stat().st_mtime_ns for path in paths]
    done = subprocess.run(
        [sys.executable, whole_book.__file__], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_a_link_to_what_is_not_in_the_book_leads_to_the_nearest_thing_that_is():
    chapters = [
        whole_book.Chapter(
            "", "a", "A", '<p id="a"/><a href="#b--run-m12"/><a href="#b--gone"/>', ()
        ),
        whole_book.Chapter("", "b", "B", '<p id="b"/><figure id="b--run"/><a href="#a"/>', ()),
    ]
    first, second = whole_book.mended(chapters)
    assert re.findall('href="([^"]+)"', first.body) == ["#b--run", "#b"]
    assert re.findall('href="([^"]+)"', second.body) == ["#a"]
    assert re.findall('href="([^"]+)"', whole_book.apart(first)) == ["b.xhtml#b--run", "b.xhtml"]


def test_without_a_chromium_the_book_is_not_offered_and_a_line_says_so(tmp_path, site):
    code = (
        "import sys, whole_book, underhood.stage.browser as browser; from pathlib import Path\n"
        "from underhood.stage.replay import MissingActor\n"
        "def none(home): raise MissingActor('there is no chromium on the path')\n"
        "browser.chromium = none\n"
        "whole_book.fingerprint = lambda site: 'changed'\n"
        "sys.exit(whole_book.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(whole_book.__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "The book is not offered as PDF and EPUB: there is no chromium" in done.stdout
    assert (ROOT / "_build/html" / f"{whole_book.STEM}.pdf").is_file(), "what was there is kept"
