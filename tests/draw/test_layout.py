"""Nothing in a diagram lies on anything else: measured in a browser, for 200 conversations."""

from __future__ import annotations

from pathlib import Path

import pytest
from conversations import invented
from playwright.sync_api import Browser, Page

from underhood.draw.page import style_sheet

FAULTS = Path(__file__).with_name("overlaps.js").read_text(encoding="utf-8")

LOOKS = (
    {},
    {"groups": True, "fold": True},
    {"scale": "time"},
    {"scale": "time", "groups": True, "time": True},
    {"time": False, "fold": True},
)


@pytest.fixture(scope="module")
def page(browser: Browser) -> Page:
    return browser.new_page()


@pytest.mark.parametrize("start", range(0, 200, 20))
def test_no_two_labels_overlap_and_none_is_cut_off(page: Page, start: int) -> None:
    figures = []
    for seed in range(start, start + 20):
        trace = invented(seed).trace()
        if not len(trace):
            continue
        look = LOOKS[seed % len(LOOKS)]
        noted = trace[seed % len(trace)].number
        picture = trace.sequence_diagram(
            notes={noted: "A note that says a thing or two about this message."},
            lost=[trace[-1].number],
            **look,
        )
        name = f"{trace.capture.name} {look}"
        figures.append(f'<figure class="underhood" data-capture="{name}">{picture.svg}')
    sheet = f"<style>{style_sheet()}</style>"
    page.set_content(f"<!doctype html><html><body>{sheet}{'</figure>'.join(figures)}")
    assert page.locator("svg[role=group]").count() >= 15
    # The reader's font may be narrow or wide; DejaVu is as wide as they come.
    assert page.evaluate(FAULTS, 0.5) == []
    page.add_style_tag(content=".underhood svg, .underhood svg * { font-family: 'DejaVu Sans' }")
    assert page.evaluate(FAULTS, 0.5) == []


def test_a_drawing_with_two_labels_on_each_other_is_found_out(page: Page) -> None:
    trace = invented(3).trace()
    picture = trace.sequence_diagram()
    page.set_content(f'<figure class="underhood" data-capture="spoiled">{picture.html}</figure>')
    labels = "document.querySelectorAll('svg[role=group] text.u-label')"
    page.evaluate(f"{labels}.forEach((label) => label.setAttribute('y', 90))")
    faults = page.evaluate(FAULTS, 0.5)
    assert any("lies on" in fault for fault in faults)
