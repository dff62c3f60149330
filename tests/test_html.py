"""The built pages are valid HTML, but for a short list of faults that are the theme's."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import light_pages
import pytest
from checkout import ROOT, missing

#: Rules that the theme or Sphinx breaks, each with what breaks it and why it stays.
FAULTS = {
    "void-style": "Sphinx and the themes write <br /> and <br>; both are valid",
    "no-implicit-button-type": "the theme's buttons for menus and sidebars have no type; they "
    "stand in no form, where it would matter",
    "text-content": "the theme's buttons with an icon have a title for a name, no text",
    "no-redundant-role": "the theme says that <main> is main",
    "prefer-native-element": "the theme writes the captions of its contents as paragraphs with the "
    "role of a heading, docutils a bibliography as boxes with the role of a list",
    "attribute-empty-style": "Sphinx gives a link to a file an empty name to save it under",
    "wcag/h32": "the theme's search fields are sent by the Enter key and have no button",
}
#: Properties that elements may set themselves.
LOOKS = [
    *("display", "--uh-width", "--uh-height", "max-width", "height", "max-height", "overflow"),
    *("fill", "fill-opacity", "font-family", "font-size", "font-weight", "opacity"),
    *("stroke", "stroke-dasharray", "stroke-dashoffset", "stroke-linecap", "stroke-linejoin"),
    *("stroke-opacity", "stroke-width", "text-anchor"),
]
#: Rules of taste that are set otherwise here, with the reason.
SETTINGS: dict[str, tuple[Any, str]] = {
    "valid-id": (["error", {"relaxed": True}], "HTML allows what sphinx-exercise writes: a slash"),
    "no-inline-style": (
        ["error", {"allowedProperties": LOOKS}],
        "a drawing's width is its own; a screenshot has to fit where no style sheet is, too; a "
        "chart's parts have the looks that matplotlib gave them; a long table scrolls",
    ),
    "long-title": (["error", {"maxlength": 90}], "a title ends with the book's, as in a search"),
    "no-trailing-whitespace": ("off", "outputs stand as programs printed them"),
}


def messages(*paths: Path, rules: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return what html-validate says of these pages."""
    program = ROOT / "node_modules/.bin/html-validate"
    if shutil.which("node") is None or not program.exists():
        missing("html-validate is not installed: run make test")
    config = folder / "html-validate.json"
    extends = ["html-validate:recommended"]
    config.write_text(json.dumps({"root": True, "extends": extends, "rules": rules}))
    # It ends before a pipe has taken all that it says; a file has.
    said = folder / "html-validate.out"
    with said.open("w") as out:
        done = subprocess.run(
            [program, "--config", config, "--formatter", "json", *paths],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert said.stat().st_size, done.stderr
    return [
        {**message, "file": Path(result["filePath"]).name}
        for result in json.loads(said.read_text())
        for message in result["messages"]
    ]


@pytest.fixture(scope="module")
def pages(build: Path) -> list[Path]:
    return [*light_pages.pages_in(build / "html"), build / "html/index.html"]


def test_every_page_is_valid_html_but_for_the_themes_faults(pages, tmp_path):
    rules = dict.fromkeys(FAULTS, "off") | {name: rule for name, (rule, _) in SETTINGS.items()}
    found = messages(*pages, rules=rules, folder=tmp_path)
    wrong = [f"{m['file']}:{m['line']} {m['ruleId']}: {m['message']}" for m in found]
    assert not wrong, "\n".join(wrong[:40])


def test_the_list_of_faults_is_no_longer_than_it_has_to_be(pages, tmp_path):
    found = Counter(m["ruleId"] for m in messages(*pages, rules={}, folder=tmp_path))
    assert sorted({*FAULTS, *SETTINGS} - set(found)) == []


def test_what_is_not_valid_would_be_noticed(pages, tmp_path):
    page = tmp_path / "wrong.html"
    text = pages[0].read_text("utf-8")
    page.write_text(text.replace("</main>", '<p id="main-content"><div></div></p></main>', 1))
    rules = dict.fromkeys(FAULTS, "off")
    found = {m["ruleId"] for m in messages(page, rules=rules, folder=tmp_path)}
    assert "no-dup-id" in found
