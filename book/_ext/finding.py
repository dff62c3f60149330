"""What helps search engines, and people who were sent a link, to find a page and to know it.

Strategy: each page says what it is as structured data (schema.org ``Course`` and
``LearningResource``), from its own title, description and card: nothing is said twice by hand. The
list of all pages is written at the end of each build from the book's contents; sphinx-sitemap
would list only the pages that an incremental build happened to write. What a shared link shows
beside the card (:mod:`social_cards`) is sphinxext-opengraph's work.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from chapter_execution import Chapter
from docutils import nodes
from page_foot import description, results_of

if TYPE_CHECKING:
    from sphinx.application import Sphinx

LICENCE = "https://creativecommons.org/licenses/by/4.0/"


def card(doctree: nodes.document) -> dict[str, list[str]]:
    """Read the card that opens a chapter: its rows by their names, each as a list of texts."""
    for table in doctree.findall(nodes.table):
        if "chapter-card" in table["classes"]:
            rows = {}
            for row in table.findall(nodes.row):
                name, entry = row.children
                items = list(entry.findall(nodes.list_item)) or [entry]
                rows[name.astext()] = [" ".join(item.astext().split()) for item in items]
            return rows
    return {}


def minutes(doctree: nodes.document) -> int | None:
    """Return how long a chapter takes its reader, as its card says."""
    found = re.search(r"\d+", " ".join(card(doctree).get("Minutes", [])))
    return int(found[0]) if found else None


def pages(app: Sphinx) -> list[str]:
    """Return the pages of the book in their order."""
    return [name for name in app.config.external_site_map if name in app.env.found_docs]


def address(app: Sphinx, name: str) -> str:
    """Return the published address of a page."""
    return f"{app.config.html_baseurl}{app.builder.get_target_uri(name)}"


def lesson(app: Sphinx, name: str, position: int) -> dict[str, Any]:
    """Describe a page as a learning resource."""
    doctree = app.env.get_doctree(name)
    about = {
        "@type": "LearningResource",
        "@id": address(app, name),
        "url": address(app, name),
        "name": app.env.titles[name].astext(),
        "description": description(app, name),
        "position": position,
        "inLanguage": app.config.language,
        "isAccessibleForFree": True,
        "license": LICENCE,
    }
    rows = card(doctree)
    if rows:
        about["learningResourceType"] = "executable notebook"
        about["teaches"] = rows.get("You will", [])
        about["timeRequired"] = f"PT{minutes(doctree)}M"
    return about


def course(app: Sphinx) -> dict[str, Any]:
    """Describe the whole course."""
    root = app.config.root_doc
    names = [name for name in pages(app) if card(app.env.get_doctree(name))]
    total = sum(minutes(app.env.get_doctree(name)) or 0 for name in names)
    publisher = {"@type": "Organization", "name": app.config.author}
    return {
        "@type": "Course",
        "@id": address(app, root),
        "url": address(app, root),
        "name": app.config.html_title or app.config.project,
        "description": description(app, root),
        "provider": publisher,
        "inLanguage": app.config.language,
        "isAccessibleForFree": True,
        "license": LICENCE,
        "educationalLevel": "Intermediate",
        "offers": {"@type": "Offer", "category": "Free", "price": 0, "priceCurrency": "EUR"},
        "hasCourseInstance": {
            "@type": "CourseInstance",
            "courseMode": "Online",
            "courseWorkload": f"PT{total}M",
        },
        "hasPart": [lesson(app, name, number) for number, name in enumerate(names, 1)],
    }


def describe_page(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Add a page's structured data to its head."""
    if doctree is None or app.builder.name != "html":
        return
    if pagename == app.config.root_doc:
        about = course(app)
    else:
        names = pages(app)
        about = lesson(app, pagename, names.index(pagename) if pagename in names else 0)
        about["isPartOf"] = {"@type": "Course", "@id": address(app, app.config.root_doc)}
    text = json.dumps({"@context": "https://schema.org", **about}, ensure_ascii=False)
    text = text.replace("</", "<\\/")
    context["metatags"] += f'\n<script type="application/ld+json">{text}</script>'


def write_sitemap(app: Sphinx, exception: Exception | None) -> None:
    """Write the list of all pages, and where it is."""
    if exception is not None or app.builder.name != "html":
        return
    results = results_of(app)
    lines = []
    for name in pages(app):
        chapter = Chapter.read(name, Path(app.env.doc2path(name)))
        at = results.executed_at(chapter) if chapter else None
        changed = f"<lastmod>{datetime.fromtimestamp(at, UTC):%Y-%m-%d}</lastmod>" if at else ""
        lines.append(f"<url><loc>{escape(address(app, name))}</loc>{changed}</url>")
    site = Path(app.outdir)
    (site / "sitemap.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
        + "\n".join(lines)
        + "\n</urlset>\n",
        encoding="utf-8",
    )
    (site / "robots.txt").write_text(
        f"User-agent: *\nAllow: /\nSitemap: {app.config.html_baseurl}sitemap.xml\n",
        encoding="utf-8",
    )


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("html-page-context", describe_page, priority=700)
    app.connect("build-finished", write_sitemap)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
