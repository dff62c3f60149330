"""The whole book to take along: one PDF, and an EPUB for reading devices.

Strategy: both are made from the built pages, so that they show what the site shows, captured in the
same build. Chromium opens each page as for print, and a script in it (``whole_book.js``) takes the
chapter out as XHTML in which drawings carry their own colours and addresses are the book's. That
is put into an EPUB as it is, one file for each chapter, and into one long document, which Chromium
prints: with links, bookmarks and tags for screen readers. pypdf adds the numbers of pages to the
contents, and says what the file is.

``make book`` does this after the build, if the pages have changed. The landing page offers the
files as soon as they are there.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import re
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from light_pages import UNTREATED, write_if_changed
from pygments.formatters import HtmlFormatter
from sphinx_external_toc.parsing import parse_toc_yaml

if TYPE_CHECKING:
    from playwright.async_api import Page
    from pypdf import PdfWriter
    from sphinx.application import Sphinx

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
SCRIPT: Final = HERE / "whole_book.js"
STYLE: Final = HERE / "whole_book.css"

#: What the files are called, in the folder of the site.
STEM: Final = "jupyter-under-the-hood"
#: Drawings are at most 668 pixels wide, and so need not be made smaller.
MARGIN_MM: Final = 16
#: What only paper needs.
PAPER: Final = f"""
@page {{ size: A4; margin: 18mm {MARGIN_MM}mm; }}
@page {{ @bottom-center {{ content: counter(page); font: 9pt sans-serif; }} }}
@page :first {{ @bottom-center {{ content: none; }} }}
html {{ font-size: 10pt; color: #1d2027; }}
figure.underhood {{ padding: 0; background: none; }}
.chapter, .part-page, nav.contents {{ break-before: page; }}
.part-page h1 {{ padding-top: 25vh; text-align: center; }}
.part-page ol {{ margin: 2em 0 0 28%; }}
/* Below its part's, a chapter's headings are one level down. */
.chapter h2.h1 {{ margin: 0 0 1em; font-size: 2em; }}
.chapter h3.h2 {{ margin: 1.8em 0 0.6em; font-size: 1.4em; }}
.chapter h4.h3 {{ margin: 1.4em 0 0.5em; font-size: 1.15em; }}
pre {{ font-size: 0.82em; line-height: 1.4; }}
pre, .admonition {{ box-decoration-break: clone; }}
/* A drawing says what its table says, and on paper no link opens. */
.uh-tables, .uh-way {{ display: none; }}
/* The heads of a drawing come again on the next page. */
.uh-bands {{ display: table; width: 100%; table-layout: fixed; border-spacing: 0; }}
.uh-heads {{ display: table-header-group; break-inside: avoid; }}
.uh-band {{ display: table-row; break-inside: avoid; }}
figure.underhood .uh-stage > svg {{ max-height: 240mm; }}
nav.contents li {{ border-bottom: 1px dotted #b9b5a8; }}
nav.contents li a {{ display: block; margin-right: 3em; background: #fff; }}
"""


@dataclass(frozen=True, slots=True)
class Chapter:
    """A chapter as it goes into the book: the part it opens, its address, title and XHTML."""

    part: str
    slug: str
    title: str
    body: str
    images: tuple[tuple[str, str], ...]
    cover: str = ""


@dataclass(frozen=True, slots=True)
class Imprint:
    """What a book says of itself."""

    title: str
    author: str
    address: str
    description: str

    @classmethod
    def read(cls) -> Imprint:
        """Read it from the book's settings."""
        settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
        address = settings["sphinx"]["config"].get("html_baseurl") or settings["repository"]["url"]
        words = "How the parts of Jupyter talk to each other, from traffic captured live."
        return cls(settings["title"], settings["author"], f"{address.rstrip('/')}/", words)


def contents(site: Path) -> list[tuple[str, str]]:
    """Return the built pages in the book's order, each with the name of the part that it opens."""
    toc = parse_toc_yaml(ROOT / "_toc.yml")
    found = [("", toc.root.docname)]
    for subtree in toc.root.subtrees:
        for n, item in enumerate(subtree.items):
            found.append(((subtree.caption or "") if n == 0 else "", str(item)))
    return [(part, name) for part, name in found if (site / f"{name}.html").is_file()]


def slug(name: str) -> str:
    """Return what a page is called in the book."""
    return re.sub(r"[^\w]+", "-", name.removeprefix("book/"))


# ---- out of the pages


async def chapters(site: Path, page: Page, imprint: Imprint) -> list[Chapter]:
    """Take the chapters out of the built pages."""
    names = contents(site)
    task: dict[str, Any] = {
        "slugs": {name: slug(name) for _, name in names},
        "site": f"{site.as_uri()}/",
        "published": imprint.address,
    }
    script = SCRIPT.read_text(encoding="utf-8")
    script = script[script.index("(task)") :]
    found = []
    await page.emulate_media(media="print", color_scheme="light")
    for part, name in names:
        await page.goto((site / f"{name}.html").as_uri())
        await page.evaluate("document.documentElement.dataset.theme = 'light'")
        made = await page.evaluate(script, {**task, "slug": slug(name)})
        images = tuple((path, file) for path, file in made["images"])
        found.append(Chapter(part, slug(name), made["title"], made["body"], images, made["cover"]))
    return list(mended(found))


def mended(chapters: list[Chapter]) -> Iterator[Chapter]:
    """Lead links whose goal did not come along to the nearest thing that did."""
    ids = {name for chapter in chapters for name in re.findall(r'\bid="([^"]+)"', chapter.body)}

    def goal(match: re.Match[str]) -> str:
        name = match[1]
        if name in ids:
            return match[0]
        # A single message of a picture is not listed in the book; the picture is there.
        picture = re.sub(r"-m\d+$", "", name)
        return f'href="#{picture if picture in ids else name.partition("--")[0]}"'

    for chapter in chapters:
        body = re.sub(r'href="#([^"]+)"', goal, chapter.body)
        yield replace(chapter, body=body)


def style() -> str:
    """Return the style sheet of both forms, with the colours of code."""
    code = HtmlFormatter(style="a11y-high-contrast-light").get_style_defs(".highlight")
    rules = [rule for rule in code.splitlines() if rule.startswith(".highlight .")]
    return "\n".join([STYLE.read_text(encoding="utf-8"), *rules])


def document(title: str, head: str, body: str) -> str:
    """Return an XHTML document."""
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE html>\n'
        '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops" '
        f'lang="en" xml:lang="en">\n<head>\n<title>{escape(title)}</title>\n{head}\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def title_page(imprint: Imprint, picture: str = "", heading: str = "h1") -> str:
    """Return the first page, with a picture of this build's traffic."""
    name, _, rest = imprint.title.partition(": ")
    today = datetime.now(UTC)
    return (
        f'<section class="title-page" id="title-page">'
        f'<{heading} class="h1">{escape(name)} <br/>{escape(rest)}</{heading}>'
        f'<p class="says">{escape(imprint.description)}</p>'
        f'<div class="cover">{picture}</div>'
        f'<p class="imprint">{escape(imprint.author)}<br/>Built on {today.day} {today:%B %Y}<br/>'
        f'<a href="{imprint.address}">{escape(imprint.address)}</a><br/>'
        "Text and pictures: CC BY 4.0. Code: BSD-3-Clause.</p></section>"
    )


# ---- PDF


def lowered(body: str) -> str:
    """Put a chapter's headings one level down, so that bookmarks stand below the part's."""
    return re.sub(
        r"<(/?)h([1-5])\b",
        lambda m: f"<{m[1]}h{int(m[2]) + 1}" + ("" if m[1] else f' class="h{m[2]}"'),
        body,
    )


def long_document(chapters: list[Chapter], imprint: Imprint) -> str:
    """Return the whole book as one document."""
    entries, parts, heads = [], [], []
    for number, chapter in enumerate(chapters):
        entry = f'<li><a href="#{chapter.slug}">{escape(chapter.title)}</a></li>'
        if chapter.part:
            name = f"part-{slug(chapter.part.lower())}"
            entries.append(f'<li class="part"><a href="#{name}">{escape(chapter.part)}</a></li>')
            parts.append(
                f'<section class="part-page" id="{name}"><h1>{escape(chapter.part)}</h1></section>'
            )
        entries.append(entry)
        parts.append(lowered(chapter.body))
        words = chapter.title.replace("\\", "").replace('"', '\\"')
        heads.append(
            f"#{chapter.slug}{{page:chapter-{number}}}@page chapter-{number}"
            f'{{@top-left{{content:"{words}";font:8.5pt sans-serif;color:#575b66}}}}'
        )
    listing = (
        f'<nav class="contents" id="contents"><h1>Contents</h1><ol>{"".join(entries)}</ol></nav>'
    )
    look = "\n".join([style(), PAPER, *heads])
    first = title_page(imprint, next((c.cover for c in chapters if c.cover), ""), heading="p")
    head = f"<style>{escape(look, quote=False)}</style>"
    return document(imprint.title, head, "\n".join([first, listing, *parts]))


async def printed(page: Page, path: Path) -> bytes:
    """Print a document."""
    await page.goto(path.as_uri())
    return await page.pdf(
        prefer_css_page_size=True, print_background=True, outline=True, tagged=True
    )


def prune(writer: PdfWriter) -> None:
    """Take out of the tags what says nothing: an element of its own for each run of text.

    Chromium tags each as ``NonStruct``, which ISO 32000-1, 14.8.4.2 calls of no significance, and
    they are two thirds of the file. Their content goes into the element around them.
    """
    from pypdf.generic import ArrayObject, DictionaryObject, NameObject, NumberObject

    def inside(element: Any) -> list[Any]:
        found = element.get("/K", [])
        return list(found) if isinstance(found, list) else [found]

    root = writer.root_object["/StructTreeRoot"]
    parents: dict[int, Any] = {}  # of the elements that go, by their numbers
    waiting = inside(root)
    while waiting:
        reference = waiting.pop()
        element = reference.get_object()
        kept: list[Any] = []
        for kid in inside(element):
            child = kid.get_object()
            if not isinstance(child, DictionaryObject) or "/S" not in child:
                kept.append(kid)
                continue
            content = inside(child)
            marks = all(isinstance(one, NumberObject) for one in content)
            if child["/S"] != "/NonStruct" or not marks or "/Pg" not in child:
                kept.append(kid)
                waiting.append(kid)
                continue
            parents[kid.idnum] = reference
            page = child.raw_get("/Pg")
            if "/Pg" not in element:
                element[NameObject("/Pg")] = page
            if element.raw_get("/Pg") == page:
                kept += content
                continue
            for mark in content:
                entry = {"/Type": NameObject("/MCR"), "/Pg": page, "/MCID": mark}
                kept.append(DictionaryObject({NameObject(k): v for k, v in entry.items()}))
        element[NameObject("/K")] = ArrayObject(kept)
    # What leads from a page's content to its elements.
    waiting = [root["/ParentTree"]]
    while waiting:
        node = waiting.pop().get_object()
        waiting += node.get("/Kids", [])
        for entry in node.get("/Nums", [])[1::2]:
            owners = entry.get_object()
            if isinstance(owners, ArrayObject):
                for place, owner in enumerate(owners):
                    if getattr(owner, "idnum", None) in parents:
                        owners[place] = parents[owner.idnum]
    writer.compress_identical_objects(remove_duplicates=False, remove_unreferenced=True)


async def finished_pdf(page: Page, data: bytes, imprint: Imprint, folder: Path) -> bytes:
    """Add page numbers to the contents, and what the file is."""
    from pypdf import PdfReader, PdfWriter

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # Chromium counts objects its own way
    reader = PdfReader(io.BytesIO(data))
    goals = {
        name: (reader.get_destination_page_number(goal) or 0) + 1
        for name, goal in reader.named_destinations.items()
    }
    writer = PdfWriter(clone_from=reader)
    # The contents begin after the title page, and end where their first entry leads.
    sheet, last = 1, len(reader.pages)
    while sheet + 1 < last:
        links = [note.get_object() for note in reader.pages[sheet].get("/Annots") or []]
        height = float(reader.pages[sheet].mediabox.height)
        found = [
            (height - float(link["/Rect"][3]), link["/Rect"], goals[str(link["/Dest"])])
            for link in links
            if str(link.get("/Dest")) in goals
        ]
        last = min([last, *(number for *_, number in found)])
        numbers = folder / "numbers.xhtml"
        rows = "".join(
            f'<p style="top:{top:.1f}pt;line-height:{float(box[3]) - float(box[1]):.1f}pt">'
            f"{number}</p>"
            for top, box, number in found
        )
        look = (
            f"@page{{size:A4;margin:0}}p{{position:absolute;right:{MARGIN_MM}mm;margin:0;"
            "background:#fff;padding-left:4pt;font-size:10pt;"
            "font-family:Charter,'Bitstream Charter',Cambria,'Noto Serif',Georgia,serif}"
        )
        numbers.write_text(document("", f"<style>{look}</style>", rows), encoding="utf-8")
        stamp = PdfReader(io.BytesIO(await printed(page, numbers)))
        writer.pages[sheet].merge_page(stamp.pages[0])
        sheet += 1
    prune(writer)
    writer.add_metadata(
        {"/Title": imprint.title, "/Author": imprint.author, "/Subject": imprint.description}
    )
    writer.page_mode = "/UseOutlines"
    result = io.BytesIO()
    writer.write(result)
    return result.getvalue()


# ---- EPUB

KINDS: Final = {
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
}
CONTAINER: Final = (
    '<?xml version="1.0"?>\n'
    '<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">\n'
    '<rootfiles><rootfile full-path="book/package.opf" '
    'media-type="application/oebps-package+xml"/></rootfiles>\n</container>\n'
)


def apart(chapter: Chapter) -> str:
    """Return a chapter's XHTML with addresses in other chapters leading to their files."""

    def address(match: re.Match[str]) -> str:
        other, rest = match[1], match[2] or ""
        if other == chapter.slug:
            return match[0]
        return f'href="{other}.xhtml{f"#{other}{rest}" if rest else ""}"'

    return re.sub(r'href="#([^"]+?)(--[^"]+)?"', address, chapter.body)


def listed(chapter: Chapter) -> str:
    """Return a chapter's entry in the contents of the EPUB, with its sections below it.

    Devices show them all in their menu; in the page of contents, ``hidden`` keeps the list short.
    """
    heading = (
        r'<section\b[^>]*?\bid="([^"]+)"[^>]*>(?:\s|<span[^>]*?/>|<span[^>]*></span>)*<h2[^>]*>'
    )
    entries = "".join(
        f'<li><a href="{chapter.slug}.xhtml#{name}">{re.sub("<[^>]+>", "", words).strip()}</a></li>'
        for name, words in re.findall(f"{heading}(.*?)</h2>", chapter.body, re.DOTALL)
    )
    below = f'<ol hidden="hidden">{entries}</ol>' if entries else ""
    return f'<li><a href="{chapter.slug}.xhtml">{escape(chapter.title)}</a>{below}</li>'


def epub(chapters: list[Chapter], imprint: Imprint, site: Path, cover: bytes) -> bytes:
    """Return the book as an EPUB 3."""
    link = '<link rel="stylesheet" type="text/css" href="style.css"/>'
    files: dict[str, bytes | str] = {"style.css": style(), "cover.png": cover}
    picture = next((chapter.cover for chapter in chapters if chapter.cover), "")
    files["title.xhtml"] = document(imprint.title, link, title_page(imprint, picture))
    first = ""
    parts: list[str] = []
    for chapter in chapters:
        files[f"{chapter.slug}.xhtml"] = document(chapter.title, link, apart(chapter))
        files |= {f"images/{file}": (site / path).read_bytes() for path, file in chapter.images}
        entry = listed(chapter)
        if chapter.part:
            name = f"<span>{escape(chapter.part)}</span>"
            parts.append(f"{'</ol></li>' if parts else ''}<li>{name}<ol>{entry}")
        elif parts:
            parts.append(entry)
        else:
            first += entry
    listing = f"<ol>{first}{''.join(parts)}{'</ol></li>' if parts else ''}</ol>"
    marks = [("titlepage", "title", "Title page"), ("toc", "nav", "Contents")]
    if chapters:
        marks.append(("bodymatter", chapters[0].slug, "Beginning"))
    landmarks = "".join(
        f'<li><a epub:type="{kind}" href="{name}.xhtml">{words}</a></li>'
        for kind, name, words in marks
    )
    files["nav.xhtml"] = document(
        "Contents",
        link,
        f'<nav epub:type="toc" id="toc" class="contents"><h1>Contents</h1>{listing}</nav>'
        f'<nav epub:type="landmarks" hidden="hidden"><ol>{landmarks}</ol></nav>',
    )
    manifest, spine = [], []
    for n, (name, data) in enumerate(files.items()):
        kind = KINDS.get(Path(name).suffix, "text/css")
        properties = {"nav.xhtml": "nav", "cover.png": "cover-image"}.get(name, "")
        if name.endswith(".xhtml"):
            kind = "application/xhtml+xml"
            if "<svg" in str(data):
                properties = "svg"
            spine.append((name, f'<itemref idref="f{n}"/>'))
        extra = f' properties="{properties}"' if properties else ""
        manifest.append(f'<item id="f{n}" href="{name}" media-type="{kind}"{extra}/>')
    order = ["title.xhtml", "nav.xhtml", *(f"{chapter.slug}.xhtml" for chapter in chapters)]
    itemrefs = dict(spine)
    files["package.opf"] = (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id" '
        'xml:lang="en">\n<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">\n'
        f'<dc:identifier id="id">urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, imprint.address)}'
        f"</dc:identifier>\n<dc:title>{escape(imprint.title)}</dc:title>\n"
        f"<dc:creator>{escape(imprint.author)}</dc:creator>\n<dc:language>en</dc:language>\n"
        f"<dc:description>{escape(imprint.description)}</dc:description>\n"
        f"<dc:source>{imprint.address}</dc:source>\n<dc:rights>CC BY 4.0</dc:rights>\n"
        f'<meta property="dcterms:modified">{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}</meta>\n'
        '<meta property="schema:accessMode">textual</meta>\n'
        '<meta property="schema:accessMode">visual</meta>\n'
        '<meta property="schema:accessModeSufficient">textual</meta>\n'
        '<meta property="schema:accessibilityFeature">alternativeText</meta>\n'
        '<meta property="schema:accessibilityFeature">tableOfContents</meta>\n'
        '<meta property="schema:accessibilityHazard">none</meta>\n'
        "</metadata>\n<manifest>\n"
        + "\n".join(manifest)
        + "\n</manifest>\n<spine>\n"
        + "\n".join(itemrefs[name] for name in order)
        + "\n</spine>\n</package>\n"
    )
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        archive.writestr("META-INF/container.xml", CONTAINER)
        for name, data in files.items():
            archive.writestr(f"book/{name}", data)
    return result.getvalue()


# ---- the step


def fingerprint(site: Path) -> str:
    """Return a digest of all that the files depend on."""
    found = hashlib.sha256()
    for part, name in contents(site):
        original = site.parent / UNTREATED / f"{name}.html"
        path = original if original.is_file() else site / f"{name}.html"
        text = path.read_text(encoding="utf-8")
        at = text.find("<article"), text.find("</article>")
        found.update(f"{part}\0{name}\0{text[at[0] : at[1]]}".encode())
    for path in (Path(__file__), SCRIPT, STYLE, ROOT / "_config.yml"):
        found.update(path.read_bytes())
    return found.hexdigest()


async def make(site: Path) -> None:
    """Make both files from the built pages.

    Raises
    ------
    MissingActor
        If there is no Chromium that starts.
    """
    from underhood.stage.browser import chromium
    from underhood.stage.processes import Home

    imprint = Imprint.read()
    async with Home() as home, chromium(home) as browser:
        context = await browser.new_context(java_script_enabled=False)
        page = await context.new_page()
        page.set_default_timeout(300_000)
        found = await chapters(site, page, imprint)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for path, file in {image for chapter in found for image in chapter.images}:
                (folder / "images").mkdir(exist_ok=True)
                (folder / "images" / file).write_bytes((site / path).read_bytes())
            long = folder / "book.xhtml"
            long.write_text(long_document(found, imprint), encoding="utf-8")
            pdf = await printed(page, long)
            pdf = await finished_pdf(page, pdf, imprint, folder)
            await page.emulate_media(media="screen")
            await page.set_viewport_size({"width": 600, "height": 800})
            front = folder / "title.xhtml"
            art = next((chapter.cover for chapter in found if chapter.cover), "")
            head = f"<style>{escape(style(), quote=False)} html{{font-size:16px}}</style>"
            front.write_text(document("", head, title_page(imprint, art)), encoding="utf-8")
            await page.goto(front.as_uri())
            cover = await page.screenshot()
    write_if_changed(site / f"{STEM}.pdf", pdf)
    write_if_changed(site / f"{STEM}.epub", epub(found, imprint, site, cover))


def offer(site: Path, landing_page: str) -> None:
    """Say on the landing page where the files are, if they are."""
    landing = site / f"{landing_page}.html"
    if not landing.is_file():
        return
    up = "../" * (len(landing.relative_to(site).parts) - 1)
    links = [
        f'<a href="{up}{path.name}">{path.suffix[1:].upper()}</a> '
        f"({path.stat().st_size / 1e6:.1f} MB)"
        for path in (site / f"{STEM}.pdf", site / f"{STEM}.epub")
        if path.is_file()
    ]
    text = landing.read_text(encoding="utf-8")
    words = (
        f"<p>The whole book, to read without a network: {' or '.join(links)}.</p>" if links else ""
    )
    new = re.sub(
        r'(<div class="[^"]*\bwhole-book\b[^"]*">).*?(</div>)', rf"\1{words}\2", text, flags=re.S
    )
    write_if_changed(landing, new.encode())


def main() -> int:
    """Make the files if the pages have changed."""
    site = ROOT / "_build/html"
    stamp = site.parent / "whole_book.stamp"
    now = fingerprint(site)
    files = [site / f"{STEM}.{form}" for form in ("pdf", "epub")]
    if all(path.is_file() for path in files) and stamp.is_file() and stamp.read_text() == now:
        return 0
    from underhood.stage.replay import MissingActor

    print("Making the PDF and the EPUB …", flush=True)
    try:
        asyncio.run(make(site))
    except MissingActor as error:
        print(f"The book is not offered as PDF and EPUB: {error}")
        return 0
    stamp.write_text(now)
    offer(site, contents(site)[0][1])
    return 0


def finish(app: Sphinx, exception: Exception | None) -> None:
    """Offer what was made before, at the end of a build."""
    if exception is None and app.builder.name == "html":
        offer(Path(app.outdir), app.config.root_doc)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("build-finished", finish, priority=960)  # after light_pages
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    sys.exit(main())
