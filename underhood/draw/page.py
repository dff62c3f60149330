"""A picture in a page or notebook: one rich output, with everything it needs inside.

Strategy: the output is plain HTML that reads well when nothing else works: the drawing as inline
SVG with real text, every arrow a link to its message in a list of ``<details>``, and the messages
as a table. The style sheet makes it follow the page's theme; the script, where it may run, only
makes handier what is there already. Both are files of this package, written once into each output.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import cache, cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from underhood.draw import scene as scenery
from underhood.draw.palette import CHANNELS, Theme, marks, variables
from underhood.draw.words import Clock, tint

if TYPE_CHECKING:
    from underhood.draw.scene import Scene
    from underhood.trace import Message, Trace

_taken: Counter[str] = Counter()  # ids that this process has given out, by their stem


class Picture:
    """One picture, drawn from a trace.

    Shown by itself at the end of a cell, it is a drawing that readers can open; printed, it is a
    table of its messages.

    Attributes
    ----------
    kind : str
        ``"sequence"``, ``"octets"``, ``"timing"`` or ``"table"``.
    title, description, caption : str
        Its heading, its text for readers who cannot see it, and what to look for.
    trace : Trace
        The messages in it.
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
        fates: Mapping[int, str] | None = None,
    ) -> None:
        self.kind, self.title, self.description, self.caption = kind, title, description, caption
        self.trace, self._scene = trace, scene
        self._fates, self._shown = fates or {}, 0

    def __repr__(self) -> str:
        from underhood.draw.table import as_text

        return f"{self.title}\n{as_text(self.trace)}"

    @cached_property
    def svg(self) -> str:
        """The drawing as an ``<svg>`` element that takes its colours from the page."""
        if self._scene is None:
            return ""
        return scenery.svg(
            self._scene,
            title=self.title,
            description=self.description,
            attributes=' role="group"',
        )

    @cached_property
    def html(self) -> str:
        """The whole picture as HTML."""
        return self._html(_new_id(f"{self.trace.capture.name}"))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        # The same picture shown twice needs addresses of its own the second time.
        html = self.html if not self._shown else self._html(_new_id(self.trace.capture.name))
        self._shown += 1
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
            raise ValueError(f"a {self.kind} has no drawing to save; use .html or print it")
        if path.suffix == ".svg":
            path.write_text(scenery.styled(self.svg, theme), encoding="utf-8")
        elif path.suffix in (".png", ".pdf"):
            figure = scenery.figure(self._scene, theme, ground=True)
            figure.savefig(path, dpi=72 * scale)
        else:
            raise ValueError(f"cannot save as {path.suffix!r}; use .svg, .png or .pdf")
        return path

    def _html(self, own_id: str) -> str:
        from underhood.draw.table import as_html

        drawing = self.svg.replace("#@-m", f"#{own_id}-m")
        parts = [
            f'<figure class="underhood" id="{own_id}"'
            + scenery.attributes(
                data_underhood=self.kind,
                data_capture=self.trace.capture.name,
                data_query=self.trace.query_json,
            )
            + f' aria-label="{escape(self.title)}">',
            f"<style>{style_sheet()}</style>",
            f'<div class="uh-title">{escape(self.title)}</div>',
            f'<ul class="uh-key" aria-label="Channels">{self._key()}</ul>' if drawing else "",
            f'<div class="uh-stage">{drawing}</div>' if drawing else "",
            f'<figcaption class="uh-caption">{escape(self.caption)}</figcaption>'
            if self.caption
            else "",
        ]
        clock = Clock(self.trace)
        messages = "".join(_details(m, f"{own_id}-m{m.number}", clock) for m in self.trace)
        if drawing:
            parts.append(
                '<details class="uh-fold"><summary>Messages, one by one</summary>'
                f"{messages}</details>"
                f'<details class="uh-fold"><summary>As a table</summary>'
                f'<div class="uh-scroll">{as_html(self.trace)}</div></details>'
            )
        else:
            parts.append(f'<div class="uh-scroll">{as_html(self.trace)}</div>{messages}')
        parts.append("</figure>")
        return "\n".join(p for p in parts if p)

    def _key(self) -> str:
        """Show each channel that occurs: its line, its head, its name."""
        from underhood.draw.sequence import swatch

        used = Counter(tint(m) for m in self.trace)
        return "".join(
            f'<li class="u-{name}"><span class="uh-swatch">{swatch(name)}</span>{name}</li>'
            for name in CHANNELS
            if name in used
        )


def _details(message: Message, own_id: str, clock: Clock) -> str:
    """Write one message as something to open, that works without a script."""
    parts = []
    jupyter = message.jupyter
    if jupyter is not None:
        for name in ("header", "parent_header", "metadata", "content"):
            value = json.dumps(getattr(jupyter, name), indent=1, ensure_ascii=False)
            parts.append(f"<dt>{name}</dt><dd><pre>{escape(value)}</pre></dd>")
    # The address stands on what is inside, so that following it opens the details.
    return (
        f'<details class="uh-message u-{tint(message)}"><summary>{escape(clock.sentence(message))}'
        f'</summary><dl id="{own_id}">{"".join(parts)}</dl></details>\n'
    )


def _new_id(name: str) -> str:
    """Return an id for a picture that no other picture of this process has."""
    stem = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-") or "picture"
    _taken[stem] += 1
    return stem if _taken[stem] == 1 else f"{stem}-{_taken[stem]}"


@cache
def style_sheet() -> str:
    """Return the style sheet of every picture."""
    own = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return f"{variables()}\n{marks('.underhood ')}\n{own}"
