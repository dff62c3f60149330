"""What the pictures' tests share: a browser, and pages with pictures in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from underhood.draw.page import Picture

Open = Callable[..., Page]

PAGE = """<!doctype html>
<html lang="en"{attributes}><head><meta charset="utf-8"><title>Pictures</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ margin: 16px auto; max-width: 700px; padding: 0 16px }}
@media (prefers-color-scheme: dark) {{ body {{ background: #111; color: #eee }} }}</style></head>
<body><main><h1>Pictures</h1>{pictures}</main></body></html>"""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Open a page that holds pictures; it fails if anything turns up on the console."""
    pages: list[Page] = []
    heard: list[str] = []

    def opened(
        *pictures: Picture | str,
        theme: str = "light",
        width: int = 1280,
        height: int = 900,
        attributes: str = "",
        address: str = "",
        **options: Any,
    ) -> Page:
        inside = "".join(p if isinstance(p, str) else p.html for p in pictures)
        file = tmp_path / f"page-{len(pages)}.html"
        file.write_text(PAGE.format(attributes=attributes, pictures=inside), encoding="utf-8")
        size = {"width": width, "height": height}
        page = browser.new_page(viewport=size, color_scheme=theme, **options)
        page.set_default_timeout(10_000)
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.goto(f"{file.as_uri()}{address}")
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.context.close()
    assert heard == []
