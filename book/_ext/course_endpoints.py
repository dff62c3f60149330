"""A table of the server's endpoints as this very build called them.

Strategy: one directive without options, ``course-endpoints``, used by
``book/appendix/endpoints.md``. The rows are Jupyter Server's own list of handlers, so an endpoint
that nobody called has a row too; what each row says comes from the captures that the chapters
saved while they ran. The page is read anew in each build, since a chapter may have run again while
the page is the same.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from docutils import nodes
from jupyter_server.serverapp import JUPYTER_SERVICE_HANDLERS, load_handlers
from sphinx.util.docutils import SphinxDirective
from tornado.web import RequestHandler

from underhood import load
from underhood.draw.timing import exchanges

if TYPE_CHECKING:
    from sphinx.application import Sphinx

    from underhood import Message

MODULES: Final = (
    "jupyter_server.base.handlers",
    *(module for modules in JUPYTER_SERVICE_HANDLERS.values() for module in modules or ()),
    "jupyter_server_terminals.api_handlers",
)
"""Where the lists of handlers are that a server with terminals has."""

LISTED: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
"""HEAD is a GET without content, and every handler answers OPTIONS alike."""

USER: Final = re.compile(r"^/user/[^/]+(?=/)")
"""What comes before the path of a server behind a JupyterHub."""

_GROUP: Final = re.compile(r"\((?:\?P<(\w+)>)?((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)")
_KEYS: Final = 6  # names of a JSON object that a row shows


@dataclass
class Endpoint:
    """What this build saw of one method and path."""

    pages: dict[str, None] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    shape: str = ""

    def add(self, page: str, answer: Message) -> None:
        """Count one answer; the first good one with content gives the shape."""
        self.pages.setdefault(page)
        self.statuses[answer.status] += 1
        if answer.status < 400 and (not self.shape or self.shape == "nothing"):
            self.shape = holds(answer)


def routes() -> dict[str, list[str]]:
    """Return the server's paths under ``/api``, as expressions, with the methods of each."""
    found: dict[str, list[str]] = {}
    for module in MODULES:
        for path, handler, *_ in load_handlers(module):
            pattern = "/" + path.lstrip("/").removesuffix("$") + "$"
            methods = [
                method
                for method in LISTED
                if method in handler.SUPPORTED_METHODS
                and getattr(handler, method.lower()) is not RequestHandler._unimplemented_method
            ]
            if pattern.startswith("/api"):
                found.setdefault(pattern, methods)
    return found


def readable(pattern: str) -> str:
    """Write a path's expression with ``{name}`` for each group."""

    def name(group: re.Match[str]) -> str:
        plain = group[2]
        return "{" + (plain if re.fullmatch(r"[a-z|]+", plain) else group[1] or "…") + "}"

    return _GROUP.sub(name, pattern).removesuffix("$").replace("/?", "/")


def holds(answer: Message) -> str:
    """Say in a few words what an answer holds."""
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if answer.status == 101:
        return "a WebSocket"
    if kind == "application/json" and answer.body:
        try:
            return f"`{shape(json.loads(answer.body))}`"
        except ValueError:
            return "`application/json`"
    return f"`{kind}`" if answer.body else "nothing"


def shape(value: Any) -> str:
    """Write the form of a JSON value: names, without what they say."""
    if isinstance(value, dict):
        names = [*list(value)[:_KEYS], *["…"] * (len(value) > _KEYS)]
        return "{" + ", ".join(names) + "}"
    if isinstance(value, list):
        return f"[{shape(value[0])}]" if value else "[]"
    return type(value).__name__


def called(pages: list[str], captures: Path) -> dict[tuple[str, str], Endpoint]:
    """Collect, for each endpoint of the server, what the captures of ``pages`` say of it."""
    table = routes()
    found = {(method, route): Endpoint() for route in table for method in table[route]}
    for page in pages:
        for file in sorted((captures / page).glob("*.pcapng")):
            for request, answer in exchanges(load(file).trace().protocol("http")):
                path = USER.sub("", request.path)
                route = next((route for route in table if re.match(route, path)), "")
                if answer is not None and (request.method, route) in found:
                    found[request.method, route].add(page, answer)
    return found


class Endpoints(SphinxDirective):
    """A row for each endpoint: statuses and shape as captured, and the pages that called it."""

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        self.env.note_reread()
        app = self.env.app
        found = called(list(app.config.external_site_map), Path(app.outdir).parent / "captures")
        opened = sum(bool(endpoint.pages) for endpoint in found.values())
        lines = [
            f"This build called {opened} of {len(found)} endpoints.",
            "",
            "```{list-table}",
            ":header-rows: 1",
            ":class: stacked",
            "",
            "* - Endpoint",
            "  - Status",
            "  - What it holds",
            "  - Called in",
            *self._rows(found),
            "```",
        ]
        return self.parse_text_to_nodes("\n".join(lines))

    def _rows(self, found: dict[tuple[str, str], Endpoint]) -> Iterator[str]:
        for (method, route), endpoint in sorted(found.items(), key=lambda at: (at[0][1], at[0][0])):
            yield f"* - {method} `{readable(route)}`"
            yield f"  - {', '.join(f'`{s}`' for s in sorted(endpoint.statuses)) or 'not called'}"
            yield f"  - {endpoint.shape or '·'}"
            yield f"  - {', '.join(f'{{doc}}`/{page}`' for page in endpoint.pages) or '·'}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("course-endpoints", Endpoints)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
