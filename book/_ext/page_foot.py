"""What stands below each page: how it came about, and what readers can take with them.

Strategy: whatever is said here is looked up where the build keeps it, never typed. When, where and
with which versions a page was executed, and how long that took, comes with its result from the
cache (:mod:`chapter_execution`). What it captured lies in ``_build/captures``; it is copied into
the site, where Wireshark's users find it. Its notebook is written by :mod:`portable_notebook`.
The template ``page-foot.html`` has the words.
"""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from chapter_execution import Chapter, Results
from docutils import nodes
from portable_notebook import portable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sphinx.application import Sphinx

#: Where captures are, in the site.
CAPTURES = "_captures"

#: The page that says how to run a chapter, and its section for those who took only that along.
SETUP, ELSEWHERE = "book/appendix/setup", "one-chapter-elsewhere"


def results_of(app: Sphinx) -> Results:
    """Return what the chapters' execution left in the build folder."""
    build = Path(app.outdir).parent
    cache_path = Path(app.config.nb_execution_cache_path or build / ".jupyter_cache")
    return Results(Path(app.srcdir), build, cache_path)


def size(octets: int) -> str:
    """Say how large a file is, in decimal units."""
    if octets < 1_000_000:
        return f"{max(octets / 1000, 1):.0f} kB"
    return f"{octets / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Say how long something took."""
    if seconds < 10:
        return f"{seconds:.1f} seconds"
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes"


def execution(run: Mapping[str, Any]) -> dict[str, Any]:
    """Put a run into words for the template; empty if nothing is known of it."""
    if "versions" not in run:
        return {}
    at = datetime.fromtimestamp(run["executed_at"], UTC)
    return {
        "when": f"{at.day} {at:%B %Y, %H:%M} UTC",
        "iso": at.isoformat(timespec="seconds"),
        "took": duration(run["execution_seconds"]),
        "machine": run["machine"],
        "processors": run["processors"],
        "versions": run["versions"],
    }


def captures(app: Sphinx, results: Results, name: str) -> list[dict[str, str]]:
    """Copy the captures of a page into the site; say their names, addresses and sizes."""
    target = Path(app.outdir) / CAPTURES / name
    shutil.rmtree(target, ignore_errors=True)
    found = []
    for path in sorted(results.captures_of(name).glob("*.pcapng")):
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)
        address = f"{CAPTURES}/{name}/{path.name}"
        found.append({"name": path.name, "address": address, "size": size(path.stat().st_size)})
    return found


def write_notebook(
    app: Sphinx, results: Results, chapter: Chapter, address: Callable[[str], str]
) -> str:
    """Write the page's executed notebook, for any front end; return its address in the site."""
    _, executed = results.cache.merge_match_into_notebook(chapter.notebook)
    find = partial(address_of, app, chapter.name, address=address)
    book = {
        "title": app.config.html_title or app.config.project,
        "address": app.config.html_baseurl,
        "repository": app.config.html_theme_options["repository_url"],
        "page": address(chapter.name),
        "more": f"{address(SETUP)}#{ELSEWHERE}",
    }
    notebook = portable(executed, find, chapter.path.parent, book)
    path = Path(app.outdir) / "_sources" / f"{chapter.name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return f"_sources/{chapter.name}.ipynb"


def address_of(
    app: Sphinx, name: str, target: str, *, address: Callable[[str], str]
) -> tuple[str, str]:
    """Return the title and the published address of a page that page ``name`` names."""
    parts = [*name.split("/")[:-1], *target.removesuffix(".md").split("/")]
    if target.startswith("/"):
        parts = target.strip("/").split("/")
    steps: list[str] = []
    for part in parts:
        if part == "..":
            steps = steps[:-1]
        elif part != ".":
            steps.append(part)
    found = "/".join(steps)
    title = app.env.titles.get(found)
    return (title.astext() if title is not None else found), address(found)


def description(app: Sphinx, name: str) -> str:
    """Return how a page describes itself to search engines."""
    for meta in app.env.get_doctree(name).findall(nodes.meta):
        if meta.get("name") == "description":
            return re.sub(r"\s+", " ", str(meta["content"])).strip()
    return ""


def complete_context(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Give the template of the foot, and of the way on, what they say."""
    if doctree is None or app.builder.name != "html":
        return
    foot: dict[str, Any] = {}
    chapter = Chapter.read(pagename, Path(app.env.doc2path(pagename)))
    if chapter:
        results = results_of(app)
        foot = execution(results.run_of(chapter))
        foot["captures"] = captures(app, results, pagename)
        base = app.config.html_baseurl
        if results.executed_at(chapter) is not None:
            foot["notebook"] = write_notebook(app, results, chapter, lambda n: f"{base}{n}.html")
            foot["setup"] = SETUP in app.env.all_docs and (SETUP, ELSEWHERE)
    repository = app.config.html_theme_options["repository_url"]
    branch = app.config.html_theme_options["repository_branch"]
    binder = app.config.html_theme_options["launch_buttons"]["binderhub_url"]
    place = repository.removeprefix("https://github.com/")
    foot |= {
        "source": f"{pagename}.md",
        "edit": f"{repository}/edit/{branch}/{pagename}.md",
        "report": f"{repository}/issues/new?title={pagename}%3A%20",
        "launch": chapter and f"{binder}/v2/gh/{place}/{branch}?urlpath=lab/tree/{pagename}.md",
    }
    context["foot"] = foot
    for side in ("prev", "next"):
        names = app.builder.relations.get(pagename)  # parent, previous, next
        name = names and names[1 if side == "prev" else 2]
        if name:
            context[f"{side}_reason"] = description(app, name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    # After the theme, which puts a notebook without outputs where ours belongs.
    app.connect("html-page-context", complete_context, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
