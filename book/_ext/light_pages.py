"""Make the built pages light: what all of them load is loaded once, and only what they use.

Strategy: a step after the build, on the files. Sphinx goes on writing the pages as its themes make
them; each page so written is kept in ``_build/untreated``, and what stands in ``_build/html`` is
made from all of those anew whenever one of them, or a file they load, has changed. So the step can
run any number of times, a page that Sphinx did not write again fits the others all the same, and
the untreated book is at hand to compare with (``make audit``).

What is done to a page:

- style sheets become one, ``_static/light/site.css``: rules of the themes that no page has a use
  for are taken out (PurgeCSS), the rest is made small (Lightning CSS);
- scripts that pages share become one, ``_static/light/site.js`` (esbuild), which does not hold up
  the page: what its parts do when the page is there, each does in a turn of its own, and none lays
  out the page again and again. Scripts for searching stay on the page for searching;
- pictures bring a style sheet and a script each, because in a notebook they have nothing else. On
  a page, these go into the shared files;
- the icon fonts keep the icons that occur (fontTools), and the script that draws the same icons
  once more goes;
- comments, indentation and hints to load scripts early go; images that are not seen yet wait.

The tools of the web are Node packages (``package-lock.json``). Without them, pages stay as they
were written, and a line of the build says so.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fontTools import subset
from fontTools.ttLib import TTFont

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE: Final = Path(__file__).parent
TOOLS: Final = HERE / "light_pages.mjs"
#: Beside this very file's project, wherever the book is that is built.
LOCK: Final = Path(__file__).resolve().parent.parent.parent / "package-lock.json"

#: Where the shared files are, in the site.
SHARED: Final = "_static/light"
#: Where pages are kept as Sphinx wrote them, beside the site.
UNTREATED: Final = "untreated"

#: Draws icons as SVG that the style sheet draws by font already.
REDUNDANT: Final = frozenset({"fontawesome.js"})
SEARCHING: Final = frozenset({"searchtools.js", "language_data.js", "searchindex.js"})
#: Parts of Bootstrap that its script names: so their rules would be kept, for pages that have none.
OF_BOOTSTRAP: Final = ("alert", "carousel", "list-group", "modal", "offcanvas", "popover", "toast")
#: Read by what stands in the page itself, so it has to be there before any file is loaded.
INLINED: Final = "documentation_options.js"

WITHOUT_SERVER: Final = (
    'if(location.protocol==="file:")DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY=false;'
)

# Elements whose text is not HTML, and comments; they may hold anything that looks like a tag.
_OPAQUE: Final = re.compile(r"<(script|style|pre|textarea)\b([^>]*)>(.*?)</\1>|<!--.*?-->", re.S)
_SCRIPT: Final = re.compile(r"<(script|style)\b([^>]*)>.*?</\1>", re.S)
_LINK: Final = re.compile(r"<link\b([^>]*)>")
_TAG: Final = re.compile(r"<[a-zA-Z](?:[^>\"']|\"[^\"]*\"|'[^']*')*>")
_WORD: Final = re.compile(r"[\w:%./-]+")
_ATTRIBUTE: Final = re.compile(r"([\w:-]+)(?:=(?:\"([^\"]*)\"|'([^']*)'))?")
_URL: Final = re.compile(r"url\(\s*([\"']?)(?!data:|[a-z]+:|#|/)([^)\"']+)\1\s*\)")
_IMPORT: Final = re.compile(r"@import\s+(?:url\()?[\"']([^\"')]+)[\"']\)?\s*;")
_FONT: Final = re.compile(r"src:\s*url\([\"']?([^)\"']+)\.woff2[\"']?\)[^;}]*")
_PICTURE_ASSET: Final = "uh-asset"
# How scripts, once esbuild has written them, say: if the page is there already, do it at once.
_AT_ONCE: Final = re.compile(r'(document\.readyState!==?"loading"\?)(\w+)\(\):')
# The theme measures, marks, measures the next, and so on: the page is laid out anew for each of a
# thousand elements. course.js measures all of them first.
_ONE_BY_ONE: Final = re.compile(r"\.forEach\((\w+)=>\{\1\.tabIndex=\1\.scrollWidth>[^{}]*\}\)")
# What a browser reads as nothing between two tags; longer than one character.
_BLANKS: Final = re.compile(r"[ \t]*\n\s*")


# It tells of each table of each font.
logging.getLogger("fontTools").setLevel(logging.WARNING)


class ToolsMissingError(RuntimeError):
    """Node.js, or a package for it, is not there; the message says what to do."""


def attributes(text: str) -> dict[str, str]:
    """Read what stands in a tag after its name."""
    return {
        match[1].lower(): unescape(match[2] if match[2] is not None else match[3] or "")
        for match in _ATTRIBUTE.finditer(text)
    }


def digest(text: str | bytes) -> str:
    """Return a short digest: what is asked for anew when, and only when, the file has changed."""
    data = text.encode() if isinstance(text, str) else text
    return hashlib.sha256(data).hexdigest()[:10]


def write_if_changed(path: Path, data: bytes) -> bool:
    """Write a file unless it is so already; tell whether it was written."""
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    # All or nothing: a step that is stopped leaves no half page.
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(data)
    draft.replace(path)
    return True


# ---- what a page is made of


@dataclass
class Page:
    """A page as Sphinx wrote it, and what it loads.

    Parameters
    ----------
    site
        The folder of the site.
    path
        The page's file in it.
    text
        Its HTML.
    """

    site: Path
    path: Path
    text: str
    sheets: list[Path] = field(default_factory=list)
    scripts: list[Path] = field(default_factory=list)
    picture_assets: dict[str, list[str]] = field(
        default_factory=lambda: {"style": [], "script": []}
    )

    @property
    def searches(self) -> bool:
        """Whether this is the page on which readers search."""
        return self.path.name == "search.html"

    @property
    def root(self) -> str:
        """The way from this page to the site's root, with a slash at its end."""
        # A page that is shown wherever there is none names the site's place in full.
        found = re.search(r'href="(/[^"]*?)_static/', self.text)
        found = found or re.search(r'data-content_root="([^"]+)"', self.text)
        return found[1] if found else ""

    def file(self, address: str) -> Path | None:
        """Return the file of the site that an address on this page means, or None."""
        address = address.partition("?")[0].partition("#")[0]
        if not address or re.match(r"[a-z]+:|//", address):
            return None
        folder = self.path.parent
        if address.startswith("/"):
            if not (self.root.startswith("/") and address.startswith(self.root)):
                return None
            folder, address = self.site, address.removeprefix(self.root)
        path = Path(os.path.normpath(folder / address))
        return path if path.is_file() else None

    def shares(self, script: Path, attributes: dict[str, str]) -> bool:
        """Tell whether a script goes into the shared file."""
        # A script with data of its own reads them from its own tag. Options for one page stay, too.
        own_data = any(name.startswith("data-") for name in attributes)
        return not own_data and script.name not in REDUNDANT | SEARCHING | {INLINED}

    def survey(self) -> None:
        """Find what the page loads."""
        for match in _LINK.finditer(_OPAQUE.sub("", self.text)):
            found = attributes(match[1])
            if found.get("rel") == "stylesheet" and (path := self.file(found.get("href", ""))):
                self.sheets.append(path)
        late = []
        for match in _OPAQUE.finditer(self.text):
            element, found = match[1], attributes(match[2] or "")
            if found.get("class") == _PICTURE_ASSET:
                self.picture_assets[element].append(match[3])
                continue
            path = self.file(found.get("src", ""))
            if element == "script" and path and self.shares(path, found):
                (late if "defer" in found else self.scripts).append(path)
        self.scripts += late  # deferred scripts run after the others

    def tags(self) -> set[str]:
        """Return every tag on the page, once."""
        return set(_TAG.findall(_SCRIPT.sub(r"<\1\2>", self.text)))

    def treated(self, sheet: str, script: str) -> str:
        """Return the page with the shared files in place of those it loaded.

        Parameters
        ----------
        sheet, script
            Digests of the shared files.
        """
        shared = f"{self.root}{SHARED}"
        links = [f'<script defer src="{shared}/site.js?v={script}"></script>']
        kept: list[str] = []
        sheets = 0

        def keep(text: str) -> str:
            kept.append(text)
            return f"\0{len(kept) - 1}\0"

        def opaque(match: re.Match[str]) -> str:
            element, found = match[1], attributes(match[2] or "")
            if element is None or found.get("class") == _PICTURE_ASSET:
                return ""
            path = self.file(found.get("src", ""))
            if element != "script" or path is None:
                return keep(match[0])
            if path.name == INLINED:
                # From a USB stick, browsers do not let a page read the pages that it found.
                more = WITHOUT_SERVER if self.searches else ""
                return keep(f"<script>{_squeezed_options(path)}{more}</script>")
            if path.name in REDUNDANT or self.shares(path, found):
                return ""
            if path.name in SEARCHING and not self.searches:
                return ""
            if path.name == "design-tabs.js" and "sd-tab-set" not in self.text:
                return ""
            # What it builds on comes with the shared script, so it comes after that.
            links.append(
                match[0] if "defer" in found else match[0].replace("<script", "<script defer", 1)
            )
            return ""

        def link(match: re.Match[str]) -> str:
            nonlocal sheets
            found = attributes(match[1])
            if found.get("rel") == "preload" and found.get("as") == "script":
                return ""
            if found.get("rel") != "stylesheet" or self.file(found.get("href", "")) is None:
                return match[0]
            sheets += 1
            return (
                f'<link rel="stylesheet" href="{shared}/site.css?v={sheet}">' if sheets == 1 else ""
            )

        text = _OPAQUE.sub(opaque, self.text)
        text = _LINK.sub(link, text)
        text = re.sub(
            r"<img (?![^>]*\bloading=)(?=[^>]*\bsrc=\"[^\"]*/_static/images/)",
            '<img loading="lazy" ',
            text,
        )
        text = _BLANKS.sub("\n", text)
        text = text.replace("</head>", "\n".join([*links, "</head>"]), 1)
        return re.sub(r"\0(\d+)\0", lambda match: kept[int(match[1])], text).lstrip()


def _squeezed_options(path: Path) -> str:
    """Return Sphinx's options for scripts on one line."""
    return re.sub(r"\s*\n\s*", "", path.read_text(encoding="utf-8").strip())


def distinct(paths: Iterable[Path]) -> list[Path]:
    """Return each path once, in the order of its first occurrence."""
    return list(dict.fromkeys(paths))


# ---- the shared files


def style_sheet(path: Path, site: Path) -> str:
    """Read a style sheet with what it imports; addresses in it are made to fit the shared file."""
    shared = site / SHARED

    def imported(match: re.Match[str]) -> str:
        other = Path(os.path.normpath(path.parent / match[1]))
        return style_sheet(other, site) if other.is_file() else match[0]

    def address(match: re.Match[str]) -> str:
        target = os.path.normpath(path.parent / match[2])
        return f'url("{Path(os.path.relpath(target, shared)).as_posix()}")'

    text = path.read_text(encoding="utf-8")
    text = re.sub(r"/\*# sourceMappingURL.*?\*/", "", text)
    text = _URL.sub(address, text)
    return _IMPORT.sub(imported, text)


def icons(sheet: str) -> list[int]:
    """Return the private code points that a style sheet writes: the icons of icon fonts."""
    found = {int(code, 16) for code in re.findall(r"\\([ef][0-9a-f]{3})\b", sheet)}
    found |= {ord(character) for character in sheet if "\ue000" <= character <= "\uf8ff"}
    # Some icons stand on the code points of characters, as the plus sign does.
    found |= {ord(character) for text in re.findall(r'content:"(.)"', sheet) for character in text}
    return sorted(found)


def smaller_font(font: Path, codes: Iterable[int]) -> bytes:
    """Return a font with these characters only, as WOFF."""
    options = subset.Options(
        layout_features=[], glyph_names=False, name_IDs=[], notdef_outline=False
    )
    options.drop_tables += ["FFTM", "GDEF"]
    # Its times of making and change would differ from run to run.
    with TTFont(font, recalcTimestamp=False) as loaded:
        maker = subset.Subsetter(options)
        maker.populate(unicodes=codes)
        maker.subset(loaded)
        loaded.flavor = "woff"
        result = io.BytesIO()
        loaded.save(result)
    return result.getvalue()


def with_smaller_fonts(sheet: str, site: Path) -> str:
    """Write the fonts that a style sheet names with the icons in it only; return it so changed."""
    shared, codes = site / SHARED, icons(sheet)

    def source(match: re.Match[str]) -> str:
        # The themes bring each font twice; TrueType is what can be read with no further package.
        font = Path(os.path.normpath(shared / f"{match[1]}.ttf"))
        if not font.is_file():
            return match[0]
        data = smaller_font(font, codes)
        write_if_changed(shared / f"{font.stem}.woff", data)
        return f'src:url({font.stem}.woff?v={digest(data)})format("woff")'

    return _FONT.sub(source, sheet)


def tools(task: dict[str, Any]) -> dict[str, str]:
    """Have ``light_pages.mjs`` do its part.

    Raises
    ------
    ToolsMissingError
        If Node.js or one of the packages is missing.
    RuntimeError
        If a tool cannot read what it is given; the message is the tool's.
    """
    beside = Path(sys.executable).parent
    node = shutil.which("node") or shutil.which("node", path=str(beside))
    if node is None:
        raise ToolsMissingError("Node.js is missing")
    done = subprocess.run(
        [node, str(TOOLS)], input=json.dumps(task).encode(), capture_output=True, check=False
    )
    errors = done.stderr.decode("utf-8", "replace")
    if "ERR_MODULE_NOT_FOUND" in errors or "Cannot find package" in errors:
        raise ToolsMissingError("a package of package-lock.json is missing")
    if done.returncode:
        raise RuntimeError(f"{TOOLS.name} failed:\n{errors.strip()}")
    result: dict[str, str] = json.loads(done.stdout)
    return result


def in_turns(script: str) -> str:
    """Return the shared script so changed that it does not keep a reader waiting.

    Raises
    ------
    RuntimeError
        If the themes' scripts are not what they were, and this has to be thought over.
    """
    script, waits = _AT_ONCE.subn(r"\1setTimeout(\2):", script)
    script, measured = _ONE_BY_ONE.subn("", script)
    if not waits or measured > 1:
        raise RuntimeError("light_pages.py does not recognise the themes' scripts any more")
    return script


# ---- the step


def copy_untreated(site: Path, target: Path) -> None:
    """Copy a built site to a new folder, with its pages as Sphinx wrote them."""
    shutil.copytree(site, target, ignore=shutil.ignore_patterns("light", "*.map"))
    shutil.copytree(site.parent / UNTREATED, target, dirs_exist_ok=True)


def marker() -> str:
    """Return what every treated page has in it, and no other."""
    return f"{SHARED}/site.js?v="


def pages_in(site: Path) -> Iterator[Path]:
    """Yield the pages of the site that the theme made."""
    for path in sorted(site.rglob("*.html")):
        parts = path.relative_to(site).parts
        if parts[0] not in ("_static", "_sources"):
            with path.open(encoding="utf-8") as file:
                if "data-content_root" in file.read(1000):
                    yield path


def gather(site: Path) -> tuple[list[Page], set[str], bool]:
    """Put aside what Sphinx has written since the last time, and return what there is.

    Returns
    -------
    pages, others, written
        The pages as Sphinx wrote them; the tags of pages that are to be had treated only; and
        whether Sphinx has written any since the last time.
    """
    pages, others, written = [], set(), False
    for path in pages_in(site):
        original = site.parent / UNTREATED / path.relative_to(site)
        text = path.read_text(encoding="utf-8")
        if marker() not in text:
            write_if_changed(original, text.encode())
            written = True
        elif original.is_file():
            text = original.read_text(encoding="utf-8")
        else:
            others |= set(_TAG.findall(text))
            continue
        page = Page(site, path, text)
        page.survey()
        pages.append(page)
    return pages, others, written


def state(site: Path, pages: list[Page]) -> str:
    """Return a digest of all that the treated pages depend on."""
    found = hashlib.sha256()
    for page in pages:
        found.update(f"\0{page.path.relative_to(site).as_posix()}\0{page.text}".encode())
    loaded = {path for page in pages for path in (*page.sheets, *page.scripts)}
    for path in (*sorted(loaded), Path(__file__), TOOLS, LOCK):
        found.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return found.hexdigest()


def lighten(site: Path) -> int:
    """Make the pages of a built site light; return how many files were written.

    Parameters
    ----------
    site
        The folder with the built pages, ``_build/html``.

    Raises
    ------
    ToolsMissingError
        If Node.js or one of the packages is missing. Nothing has been changed then.
    RuntimeError
        If a tool fails; the message is the tool's.
    """
    pages, others, written = gather(site)
    if not pages:
        return 0
    stamp, now = site.parent / "light_pages.stamp", state(site, pages)
    if not written and stamp.is_file() and stamp.read_text() == now:
        return 0
    ours = {path.name for path in (HERE.parent / "_static").rglob("*.css")} | {"palette.css"}
    sheets = distinct(path for page in pages for path in page.sheets)
    scripts = distinct(path for page in pages for path in page.scripts)
    styles, programs = (
        list(dict.fromkeys(text for page in pages for text in page.picture_assets[kind]))
        for kind in ("style", "script")
    )
    # Pictures come to life in a turn of their own, too.
    programs = [f"setTimeout(() => {{\n{program}\n}});" for program in programs]
    script = "\n;\n".join(["", *(path.read_text(encoding="utf-8") for path in scripts), *programs])
    tags = others.union(*(page.tags() for page in pages))
    written = {word for tag in tags for word in _WORD.findall(tag)}
    words = written | set(_WORD.findall(script))
    unused = [
        part
        for part in OF_BOOTSTRAP
        if not any(word == part or word.startswith(f"{part}-") for word in written)
    ]
    made = tools(
        {
            "theme": "\n".join(style_sheet(p, site) for p in sheets if p.name not in ours),
            "own": "\n".join([*(style_sheet(p, site) for p in sheets if p.name in ours), *styles]),
            "words": sorted(words),
            "unused": unused,
            "script": re.sub(r"//# sourceMappingURL=\S+", "", script),
        }
    )
    sheet, program = with_smaller_fonts(made["sheet"], site), in_turns(made["script"])
    shared = site / SHARED
    files = {shared / "site.css": sheet, shared / "site.js": program}
    for page in pages:
        files[page.path] = page.treated(digest(sheet), digest(program))
    changed = [write_if_changed(path, text.encode()) for path, text in files.items()]
    stamp.write_text(now)
    return sum(changed)


def finish(app: Sphinx, exception: Exception | None) -> None:
    """Make the pages light at the end of a build."""
    from sphinx.util import logging

    if exception is not None or app.builder.name != "html":
        return
    logger = logging.getLogger(__name__)
    try:
        written = lighten(Path(app.outdir))
    except ToolsMissingError as error:
        message = f"Pages stay heavy: {error}. Install Node.js 20 or newer, and run: make book"
        (logger.warning if os.environ.get("UNDERHOOD_REQUIRE_LIVE") else logger.info)(message)
    else:
        if written:
            logger.info(f"Made pages light: {written} files written.")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("build-finished", finish, priority=950)  # after whatever else changes pages
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
