"""The first time that a page uses a term of the glossary, it is a link, and says what it means.

Strategy: authors do nothing. When a page is written, its prose is searched, in reading order, for
the terms of ``appendix/glossary``; the first occurrence of each becomes a link to it. Code, titles,
links, what cells put out, and words with another meaning (``ANOTHER_MEANING``) are left alone. The
definition stands right behind the link, hidden until the link is pointed at or has the keyboard's
focus: the style sheet does that, with no script and no request. ``course.js`` adds Escape, keeps
the box inside the window, and lets a first touch show it instead of leaving the page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment
    from sphinx.writers.html5 import HTML5Translator

GLOSSARY = "book/appendix/glossary"
#: Classes of what is not the page's own prose.
APART = frozenset({"cell", "chapter-card", "course-map", "solution", "no-terms", "tutorial-code"})
NOT_IN = (
    nodes.reference,
    nodes.literal,
    nodes.literal_block,
    nodes.title,
    nodes.caption,
    nodes.raw,
    nodes.term,
    nodes.Invisible,
    addnodes.pending_xref,
)

#: Pages on which a word of the glossary means something else, and would be explained wrongly: the
#: signature in a greeting of ZMTP is no HMAC, the token of a plugin no secret.
ANOTHER_MEANING = {
    "book/meet/document": {"signature", "trace"},
    "book/meet/front-ends": {"client", "token"},
    "book/meet/cloud": {"busy", "client"},
    "book/fundamentals/zeromq": {"signature"},
    "book/fundamentals/execute": {"buffer", "trace"},
    "book/fundamentals/channels": {"session"},
    "book/fundamentals/questions": {"session", "signature"},
    "book/fundamentals/rich-output": {"session"},
    "book/fundamentals/rest": {"channel", "client", "signature"},
    "book/tooling/ecosystem": {"signature"},
}


@dataclass(frozen=True, slots=True)
class Term:
    """A term, where it is defined, and what it means."""

    name: str
    id: str
    meaning: str

    def forms(self) -> Iterable[str]:
        """Yield the term as it may stand in a sentence: one, and many."""
        yield self.name
        yield self.name[:-1] + "ies" if re.search(r"[^aeiou]y$", self.name) else f"{self.name}s"


class TermLink(nodes.reference):
    """A link to a term, with its meaning."""


def visit_term_link(self: HTML5Translator, node: TermLink) -> None:
    """Open the link."""
    self.body.append(
        f'<a class="reference internal term" href="{escape(node["refuri"])}" '
        f'aria-describedby="{node["tip"]}">'
    )


def depart_term_link(self: HTML5Translator, node: TermLink) -> None:
    """Close the link, and write the meaning behind it."""
    self.body.append(
        f'</a><span class="term-tip" role="tooltip" id="{node["tip"]}">'
        f"{escape(node['meaning'])}</span>"
    )


def terms_of(environment: BuildEnvironment) -> list[Term]:
    """Read the glossary; the meaning of a term is its first paragraph."""
    if GLOSSARY not in environment.all_docs:
        return []
    terms = []
    for item in environment.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        meaning = next(iter(item.findall(nodes.paragraph)), None)
        if meaning is None:
            continue
        text = " ".join(meaning.astext().split())
        terms += [
            Term(term.astext(), term["ids"][0], text)
            for term in item.findall(nodes.term)
            if term["ids"]
        ]
    return terms


class LinkTerms(SphinxPostTransform):
    """Make a link of the first occurrence of each term."""

    default_priority = 450  # after boxes were made, and references resolved
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Look for terms in the prose of the page."""
        docname = self.env.docname
        if not docname.startswith("book/") or docname.startswith("book/appendix/"):
            return
        another = ANOTHER_MEANING.get(docname, set())
        terms = [term for term in terms_of(self.env) if term.name not in another]
        waiting = {form.lower(): term for term in terms for form in term.forms()}
        used: set[str] = set()
        for text in list(self.document.findall(nodes.Text)):
            if not waiting:
                return
            if _is_prose(text):
                self._link(text, waiting, used)

    def _link(self, text: nodes.Text, waiting: dict[str, Term], used: set[str]) -> None:
        written, at = str(text), 0
        made: list[nodes.Node] = []
        pattern = "|".join(re.escape(form) for form in sorted(waiting, key=len, reverse=True))
        for found in re.finditer(rf"(?<![\w.-])(?:{pattern})(?![\w-])", written, re.IGNORECASE):
            term = waiting.get(found[0].lower())
            if term is None or term.id in used or _is_other_word(term.name, found[0]):
                continue
            used.add(term.id)
            target = self.app.builder.get_relative_uri(self.env.docname, GLOSSARY)
            link = TermLink(
                found[0],
                found[0],
                internal=True,
                refuri=f"{target}#{term.id}",
                tip=f"tip-{term.id}",
                meaning=term.meaning,
            )
            made += [nodes.Text(written[at : found.start()]), link]
            at = found.end()
        if not made:
            return
        for form in [form for form, term in waiting.items() if term.id in used]:
            del waiting[form]
        made.append(nodes.Text(written[at:]))
        text.parent.replace(text, [node for node in made if node.astext()])


def _is_other_word(name: str, found: str) -> bool:
    """Tell names in capitals, as IDLE, from words in small letters."""
    return name.isupper() and not found.rstrip("s").isupper()


def _is_prose(text: nodes.Text) -> bool:
    """Tell whether a text is part of a sentence of the page's author."""
    node: nodes.Node = text.parent
    in_paragraph = False
    while node is not None:
        if isinstance(node, NOT_IN):
            return False
        if isinstance(node, nodes.Element) and APART & set(node.get("classes", ())):
            return False
        in_paragraph = in_paragraph or isinstance(node, nodes.paragraph)
        node = node.parent
    return in_paragraph


def pages_with_terms(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """When the glossary was read again, have every page written again."""
    meanings = [(term.name, term.meaning) for term in terms_of(env)]
    if getattr(env, "underhood_terms", None) == meanings:
        return []
    env.underhood_terms = meanings  # type: ignore[attr-defined]
    return [name for name in env.found_docs if name in env.all_docs]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_node(TermLink, html=(visit_term_link, depart_term_link))
    app.add_post_transform(LinkTerms)
    app.connect("env-updated", pages_with_terms)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
