"""The map of the chapters on the first page: drawn from a plain table that authors add rows to.

Strategy: ``book/index.md`` has one ``list-table`` of class ``course-map`` with a row for each
chapter: its address, what the reader will do, its minutes. Here the rows are sorted into the parts
of ``_toc.yml`` and written as lists, one for each part, each on a lifeline as in the pictures. The
order and the parts come from the contents, so a row may stand anywhere in the table.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx


def parts(app: Sphinx) -> Iterator[tuple[str, list[str]]]:
    """Yield the parts of the contents with their pages."""
    contents = app.config.external_site_map
    for tree in contents[contents.root.docname].subtrees:
        yield tree.caption or "More", [str(item) for item in tree.items]


class DrawMap(SphinxPostTransform):
    """Make lists of the table, one for each part."""

    default_priority = 410
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Look for the table."""
        if self.env.docname != self.app.config.root_doc:
            return
        for table in list(self.document.findall(nodes.table)):
            if "course-map" in table["classes"]:
                drawn = nodes.raw("", self._drawn(self._rows(table)), format="html")
                table.replace_self(drawn)

    def _rows(self, table: nodes.table) -> dict[str, tuple[str, str]]:
        """Return what a reader will do, and the minutes, by page."""
        rows = {}
        for row in table.findall(nodes.row):
            chapter, will, minutes = row.children
            for link in chapter.findall(nodes.reference):
                here = self.app.builder.get_target_uri(self.env.docname)
                for name in self.env.found_docs:
                    target = self.app.builder.get_relative_uri(self.env.docname, name)
                    if link.get("refuri") == target and target != here:
                        rows[name] = (will.astext(), minutes.astext())
        return rows

    def _drawn(self, rows: dict[str, tuple[str, str]]) -> str:
        """Write the map."""
        made, number = [], 0
        for caption, pages in parts(self.app):
            chapters = [name for name in pages if name in rows]
            if not chapters:
                continue
            total = sum(int(rows[name][1]) for name in chapters)
            hours = f"{total} min" if total < 60 else f"{total // 60} h {total % 60:02d} min"
            made.append(
                '<section class="map-part">'
                f"<h3><span>{escape(caption)}</span> <small>{hours}</small></h3>"
                f'<ol start="{number + 1}">'
            )
            for name in chapters:
                number += 1
                will, minutes = rows[name]
                address = self.app.builder.get_relative_uri(self.env.docname, name)
                title = self.env.titles[name].astext()
                made.append(
                    f'<li value="{number}"><a href="{escape(address)}">{escape(title)}</a>'
                    f"<p>You {escape(will)}.</p><small>{minutes} min</small></li>"
                )
            made.append("</ol></section>")
        return f'<div class="course-map">{"".join(made)}</div>'


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_post_transform(DrawMap)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
