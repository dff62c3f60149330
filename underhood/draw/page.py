"""A picture in a page or notebook: one rich output, with everything it needs inside.

Strategy: the output is plain HTML that reads well when nothing else works. The drawing is inline
SVG with real text; every arrow is a link to its message in a list of ``<details>``; the messages
stand there as a table too. The style sheet makes it follow the page's theme. The script, where it
may run, only makes handier what is there already. Both are files of this package and are written
into each output once; the script may run any number of times on a page.

Where styles are taken out (JupyterLab does so while a notebook is not trusted, GitHub always), the
text of a drawing would be left as a heap of words. So the drawing is marked ``hidden``, which the
style sheet takes back: without it, list and table are what is seen.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from underhood.draw import scene as scenery
from underhood.draw.palette import CHANNELS, Theme, marks, variables
from underhood.draw.words import Clock, octets, tint

if TYPE_CHECKING:
    from underhood.draw.scene import Scene
    from underhood.trace import Message, Trace

_OPENED: Final = 250  # messages that a page carries whole; more are a table only
_LONG: Final = 3000  # characters of one part of a message that the list shows

# An empty value would not survive JupyterLab's sanitizer.
_UNSTYLED: Final = 'hidden="hidden"'
_SCROLLS: Final = 'role="group" tabindex="0"'

_taken: Counter[str] = Counter()  # ids that this process has given out, by their stem


class Picture:
    """One picture, drawn from a trace.

    Shown at the end of a cell, it is a drawing that readers can open; printed, it is a table of
    its messages.

    Parameters
    ----------
    kind
        ``"sequence"``, ``"octets"``, ``"timing"`` or ``"table"``.
    title, description, caption
        Its heading, its text for readers who cannot see it, and what to look for.
    scene
        The drawing; None if there is none but HTML.
    trace
        The messages in it.
    body
        HTML that stands in the place of the drawing, or below it.
    text
        What the picture is in plain text; a table of the messages if not given.
    draws, lists
        Whether a page shows the drawing, and whether it lists the messages below.
    fates
        What became of messages that did not simply arrive, by their numbers.
    """

    def __init__(
        self,
        *,
        kind: str,
        title: str,
        description: str,
        scene: Scene | None,
        trace: Trace,
        caption: str = "",
        body: str = "",
        text: str = "",
        draws: bool = True,
        lists: bool = True,
        fates: Mapping[int, str] | None = None,
    ) -> None:
        self.kind, self.title, self.description, self.caption = kind, title, description, caption
        self.trace, self._scene, self._body, self._text = trace, scene, body, text
        self._draws, self._lists = draws, lists
        self._fates, self._shown = fates or {}, False

    def __repr__(self) -> str:
        from underhood.draw.table import as_text

        return f"{self.title}\n{self._text or as_text(self.trace)}"

    @cached_property
    def svg(self) -> str:
        """The drawing as an ``<svg>`` element that takes its colours from the page."""
        if self._scene is None:
            return ""
        return scenery.svg(self._scene, title=self.title, description=self.description)

    @cached_property
    def html(self) -> str:
        """The whole picture as HTML."""
        return self._html(_new_id(self.trace.capture.name))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        # The same picture shown twice needs addresses of its own the second time.
        html = self._html(_new_id(self.trace.capture.name)) if self._shown else self.html
        self._shown = True
        return {"text/html": html, "text/plain": repr(self)}

    def save(self, path: str | Path, *, theme: Theme = "light", scale: float = 2) -> Path:
        """Write the drawing to a file, as SVG, PNG or PDF by the file's suffix.

        Parameters
        ----------
        path
            Where to.
        theme
            The colours to use.
        scale
            For PNG, how many pixels to a CSS pixel.

        Raises
        ------
        ValueError
            If the picture has no drawing (a table), or the suffix is none of these.
        """
        path = Path(path)
        if self._scene is None:
            raise ValueError(f"a {self.kind} has no drawing to save; print it, or use .html")
        if path.suffix == ".svg":
            path.write_text(scenery.styled(self.svg, theme), encoding="utf-8")
        elif path.suffix in (".png", ".pdf"):
            figure = scenery.figure(self._scene, theme, ground=True)
            figure.savefig(path, dpi=72 * scale)
        else:
            raise ValueError(f"cannot save as {path.suffix!r}; use .svg, .png or .pdf")
        return path

    # ---- HTML

    def _html(self, own_id: str) -> str:
        clock = Clock(self.trace)
        opened = len(self.trace) <= _OPENED
        drawn = self._linked(own_id) if self._draws else ""
        attributes = scenery.attributes(
            id=own_id,
            data_underhood=self.kind,
            data_capture=self.trace.capture.name,
            data_query=self.trace.query_json,
            aria_label=self.title,
        )
        # What scrolls must be within reach of the keyboard, if only to scroll.
        stops = "" if "data-message" in drawn else f' {_SCROLLS} aria-label="Drawing"'
        size = ""
        if self._scene is not None:
            size = f' style="--uh-width:{self._scene.width:g};--uh-height:{self._scene.height:g}"'
        parts = [
            f'<figure class="underhood"{attributes}>',
            f'<figcaption class="uh-top"><p class="uh-title">{escape(self.title)}</p></figcaption>',
            f'<style class="uh-asset">{style_sheet()}</style>',
        ]
        if drawn:
            parts += [
                self._key() if not stops else "",
                f'<div class="uh-body"><div class="uh-stage" {_UNSTYLED}{stops}{size}>',
                f"{drawn}</div></div>",
                '<p class="uh-plain">The drawing is not shown, because its style sheet was taken '
                "out; where you trust this notebook, it stays. Here are the messages.</p>",
            ]
        parts.append(self._body)
        if self.caption:
            parts.append(f'<p class="uh-caption">{escape(self.caption)}</p>')
        if len(self.trace) and self._lists:
            parts += self._messages(own_id, clock, opened)
        if drawn or self._lists:
            parts.append(f'<script class="uh-asset">{script()}</script>')
        parts.append("</figure>")
        return "\n".join(part for part in parts if part)

    def _linked(self, own_id: str) -> str:
        """Return the drawing with its arrows' links as they may stand in a page."""
        # JupyterLab rewrites the ``href`` of every link that it shows, and fails at those of an
        # SVG, which cannot be assigned to (``handleAnchor`` in its rendermime package, 4.6). It
        # does not look at the older ``xlink:href``, which browsers follow in the same way.
        # Who looks for links by ``href`` is told by the role that it is one.
        drawn = re.sub(r'<a ([^>]*?)href="', r'<a role="link" \1xlink:href="', self.svg)
        # A picture comes to life when it is near, but is in reach of the Tab key before; not
        # every program that looks for what can be reached finds links in an SVG.
        drawn = drawn.replace("<a ", '<a tabindex="0" ', 1)
        return drawn.replace('href="#@', f'href="#{own_id}')

    def _messages(self, own_id: str, clock: Clock, opened: bool) -> Iterator[str]:
        """Write the messages, as a list to open and as a table, and what the script needs."""
        from underhood.draw.payload import payload
        from underhood.draw.table import as_html

        # An address is on what is inside a <details>, so that following it opens it.
        rows = as_html(self.trace, "" if opened else f"{own_id}-m")
        table = f'<div class="uh-scroll" {_SCROLLS} aria-label="Table of messages">{rows}</div>'
        if self.kind == "table":
            yield table
        else:
            yield (
                f'<details class="uh-fold uh-table"><summary>As a table</summary>{table}</details>'
            )
        if opened:
            found = "".join(
                _details(m, f"{own_id}-m{m.number}", clock, self._fates.get(m.number, ""))
                for m in self.trace
            )
            yield (
                '<details class="uh-fold uh-list"><summary>Message by message</summary>'
                f"{found}</details>"
            )
            yield f'<script type="application/json">{payload(self.trace)}</script>'

    def _key(self) -> str:
        """Show each channel that occurs: its line, its head, its name."""
        from underhood.draw.sequence import swatch

        used = Counter(tint(m) for m in self.trace)
        fates = {"lost": "● lost on the way", "refused": "✕ refused"}
        items = [
            f'<li class="u-{name}" data-channel="{name}">{swatch(name)}{name}</li>'
            for name in CHANNELS
            if name in used
        ]
        items += [f"<li>{fates[fate]}</li>" for fate in sorted({*self._fates.values()})]
        return f'<ul class="uh-key" {_UNSTYLED}>{"".join(items)}</ul>'


def _details(message: Message, own_id: str, clock: Clock, fate: str) -> str:
    """Write one message as something to open, that works without a script."""
    parts = "".join(
        f"<dt>{escape(name)}</dt><dd><pre>{escape(_cut(text))}</pre></dd>"
        for name, text in contents(message)
    )
    summary = clock.sentence(message, fate)
    return (
        f'<details class="uh-message" data-number="{message.number}" '
        f'data-channel="{tint(message)}"><summary>{escape(summary)}</summary>'
        f'<dl id="{own_id}">{parts}</dl></details>\n'
    )


def contents(message: Message) -> Iterator[tuple[str, str]]:
    """Yield what is in a message, as names and texts: the parts of its protocol."""
    jupyter = message.jupyter
    if jupyter is not None:
        for name in ("content", "header", "parent_header", "metadata"):
            value = getattr(jupyter, name)
            yield name.replace("_", " "), json.dumps(value, indent=1, ensure_ascii=False)
        if jupyter.buffers:
            yield "buffers", ", ".join(octets(len(buffer)) for buffer in jupyter.buffers)
        if jupyter.note:
            yield "note", jupyter.note
    elif message.protocol == "http":
        for span in message.span.children:
            if span.key in ("http.request_line", "http.response_line"):
                yield "start line", _text(message.data[: span.length])
        # One line for each field: several may have the same name, such as Set-Cookie.
        yield "headers", "\n".join(f"{name}: {value}" for name, value in message.headers.fields)
        body = bytes(getattr(message, "body", b""))
        if body:
            yield "body", _text(body) if _is_text(body) else octets(len(body))
    elif message.protocol == "websocket":
        payload = bytes(getattr(message, "payload", b""))
        yield "payload", _text(payload) if _is_text(payload) else octets(len(payload))
    else:
        leaves = (leaf for leaf in message.span.leaves() if leaf.length)
        yield (
            "fields",
            "\n".join(
                f"{leaf.label}: {_value(leaf.value)}" for leaf in leaves if leaf.value is not None
            ),
        )
    if (verdict := message.signature) is not None:
        yield "signature", str(verdict)
    yield "size", octets(message.size)


def _value(value: Any) -> str:
    return value.hex(" ") if isinstance(value, bytes) else str(value)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").rstrip("\r\n")


def _is_text(data: bytes) -> bool:
    try:
        return data.decode("utf-8").isprintable() or b"\0" not in data
    except UnicodeDecodeError:
        return False


def _cut(text: str) -> str:
    # Neither lone surrogates nor control characters may stand in HTML.
    text = re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
    if len(text) <= _LONG:
        return text
    return f"{text[:_LONG]}\n… and {len(text) - _LONG} more characters"


def _new_id(name: str) -> str:
    """Return an id for a picture that no other picture of this process has."""
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "picture"
    if not stem[0].isalpha():
        stem = f"capture-{stem}"
    _taken[stem] += 1
    return stem if _taken[stem] == 1 else f"{stem}-{_taken[stem]}"


@cache
def style_sheet() -> str:
    """Return the style sheet of every picture."""
    return f"{variables()}\n{marks('.underhood ')}\n{_asset('page.css')}"


@cache
def script() -> str:
    """Return the script of every picture."""
    return _asset("page.js")


def _asset(name: str) -> str:
    """Read a file of this package, without comments and indentation."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))
