"""What the pages of this book do otherwise than Jupyter Book's: less to load, and open to all.

Strategy: change as little as will do, and as early as possible. A box that opens and closes is
made a ``<details>`` in the document tree, so that it needs no script and no mouse. Colours come
from :mod:`underhood.draw.palette`, so that pages and pictures cannot drift apart. What only the
theme's templates can change is in ``book/_templates``, one file for each that is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx.locale import admonitionlabels
from sphinx.transforms.post_transforms import SphinxPostTransform

from underhood.draw.palette import CHANNELS, COLOURS

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.builders import Builder
    from sphinx.writers.html5 import HTML5Translator

CHATTER = re.compile(
    r"console\.(?:log|debug|info)\((?:`\[(?:PST|SBT)\][^`]*`|\"\[(?:PST|SBT)\][^\"]*\")\)"
)
PALETTE_FILE = "palette.css"


class Details(nodes.General, nodes.Element):
    """A box that opens and closes, by itself."""


class Summary(nodes.General, nodes.TextElement):
    """The line of such a box that is always seen."""


def visit_details(self: HTML5Translator, node: Details) -> None:
    """Open a box; it starts closed."""
    self.body.append(self.starttag(node, "details"))


def depart_details(self: HTML5Translator, node: Details) -> None:
    """Close it."""
    self.body.append("</details>\n")


def visit_summary(self: HTML5Translator, node: Summary) -> None:
    """Open the line that is always seen."""
    self.body.append(self.starttag(node, "summary", "", CLASS="admonition-title"))


def depart_summary(self: HTML5Translator, node: Summary) -> None:
    """Close it."""
    self.body.append("</summary>\n")


def visit_hidden_cell(self: HTML5Translator, node: HideCodeCellNode) -> None:
    """Open a hidden cell, under a name that says what is in it, and with valid HTML inside."""
    # MyST-NB gives all of them one name by aria-label, which is not what the eye reads there.
    classes = " ".join(["admonition", "hide", *node["classes"]])
    self.body.append(f'<details class="{classes}">\n<summary>')
    for state, prompt in (("collapsed", "prompt_show"), ("expanded", "prompt_hide")):
        self.body.append(f'<span class="{state} admonition-title">{escape(node[prompt])}</span>')
    self.body.append("</summary>\n")


def depart_hidden_cell(self: HTML5Translator, node: HideCodeCellNode) -> None:
    """Close it."""
    self.body.append("</details>\n")


def visit_citation(self: HTML5Translator, node: nodes.citation) -> None:
    """Open an entry of the bibliography, in a list: docutils' own role for it is no more."""
    if not isinstance(node.previous_sibling(), nodes.citation):
        self.body.append('<ul class="citation-list">\n')
    self.body.append(self.starttag(node, "li", classes=["citation"]))


def depart_citation(self: HTML5Translator, node: nodes.citation) -> None:
    """Close it, and the list behind the last."""
    self.body.append("</li>\n")
    if not isinstance(node.next_node(descend=False, siblings=True), nodes.citation):
        self.body.append("</ul>\n")


class Boxes(SphinxPostTransform):
    """Take the inner section out of exercises, and make every dropdown a ``<details>``."""

    default_priority = 400  # when exercises and solutions have got their titles
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Replace them."""
        for node in list(self.document.findall(nodes.Admonition)):
            if not isinstance(node, nodes.Element):
                continue
            # What sphinx-exercise wraps into a section has the same id in every exercise.
            for section in [child for child in node.children if isinstance(child, nodes.section)]:
                section["ids"] = []  # or they would pass to what takes its place
                section.replace_self(section.children)
            if "dropdown" not in node["classes"]:
                continue
            kind = type(node).__name__
            body = list(node.children)
            if body and isinstance(body[0], nodes.title):
                words = body.pop(0).children
            else:  # a note, a tip …: its title is its kind
                words = [nodes.Text(admonitionlabels.get(kind, kind.title()))]
            details = Details("", ids=node["ids"], names=node["names"])
            details["classes"] = ["admonition", *node["classes"]]
            if kind in admonitionlabels and kind not in details["classes"]:
                details["classes"].append(kind)
            details += Summary("", "", *_without_links(words))
            details += body
            node.replace_self(details)


def _without_links(words: Sequence[nodes.Node]) -> list[nodes.Node]:
    """Return ``words`` with links as plain text: a line to press on cannot hold a second target."""
    plain: list[nodes.Node] = []
    for word in words:
        plain.extend(word.children if isinstance(word, nodes.reference) else [word])
    return plain


def palette_css() -> str:
    """Return the palette as CSS variables, for both themes."""

    def rules(theme: int) -> Iterator[str]:
        for name, colours in COLOURS.items():
            yield f"--hood-{name}:{colours[theme]}"
        for name, channel in CHANNELS.items():
            yield f"--hood-{name}:{(channel.light, channel.dark)[theme]}"

    return (
        f":root,html[data-theme=light]{{{';'.join(rules(0))}}}\n"
        f"html[data-theme=dark]{{{';'.join(rules(1))}}}\n"
        # Without a script, the page takes the system's word for it.
        f"@media(prefers-color-scheme:dark){{html:not([data-theme=light]){{{';'.join(rules(1))}}}}}\n"
    )


def write_palette(app: Sphinx) -> None:
    """Write the palette's style sheet where Sphinx will take it from."""
    folder = Path(app.outdir).parent / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / PALETTE_FILE, palette_css()
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)
    app.config.html_static_path.append(str(folder))
    app.add_css_file(PALETTE_FILE)
    app.add_css_file("course.css")
    app.add_js_file("course.js", loading_method="defer")


def complete_context(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Give the templates what they ask for."""
    # Unless readers say otherwise, light or dark is their system's choice.
    context.setdefault("default_mode", "auto")


def write_root_page(app: Sphinx, exception: Exception | None) -> None:
    """Write the page at the site's root, which leads to the book's first page."""
    if exception is None and app.builder.name == "html":
        target = app.builder.get_target_uri(app.config.root_doc)
        title = escape(app.config.html_title or app.config.project)
        (Path(app.outdir) / "index.html").write_text(
            f'<!DOCTYPE html>\n<html lang="{app.config.language}">\n<head>\n'
            '<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n"
            f'<link rel="canonical" href="{target}">\n'
            f'<meta http-equiv="refresh" content="0; url={target}">\n</head>\n'
            f'<body><main><h1>{title}</h1><p><a href="{target}">Go to the first page</a></p></main>'
            "</body>\n</html>\n",
            encoding="utf-8",
        )


def make_way_for_scripts(app: Sphinx, builder: Builder) -> None:
    """Remove the themes' scripts as we changed them, just before Sphinx copies them again."""
    for script in (Path(app.outdir) / "_static/scripts").glob("*.js"):
        script.unlink()


def quieten_theme(app: Sphinx, exception: Exception | None) -> None:
    """Take out of the themes' scripts what they tell the console on every page."""
    if exception is None:
        for script in (Path(app.outdir) / "_static/scripts").glob("*.js"):
            text = script.read_text(encoding="utf-8")
            script.write_text(CHATTER.sub("void 0", text), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    # Jupyter Book sets it for sphinx_comments, an extension that this book does without.
    app.add_config_value("comments_config", {}, "")
    app.add_node(Details, html=(visit_details, depart_details))
    app.add_node(Summary, html=(visit_summary, depart_summary))
    app.add_node(nodes.citation, override=True, html=(visit_citation, depart_citation))
    app.add_node(HideCodeCellNode, override=True, html=(visit_hidden_cell, depart_hidden_cell))
    app.add_post_transform(Boxes)
    app.connect("builder-inited", write_palette)
    app.connect("html-page-context", complete_context, priority=400)
    app.connect("write-started", make_way_for_scripts)
    app.connect("build-finished", quieten_theme)
    app.connect("build-finished", write_root_page, priority=400)  # before sphinx_external_toc does
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
